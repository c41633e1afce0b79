"""One live line on a terminal; plain, rare lines in a log."""

from __future__ import annotations

import sys

from tqdm import tqdm

FORMAT = "{percentage:3.0f}%|{bar:12}| {elapsed}<{remaining} {desc}"
FORMAT_WITHOUT_TOTAL = "{elapsed} {desc}"


class Progress:
    """A tqdm bar when stderr is a terminal; otherwise only the lines given to ``log``.

    ``total`` is the number of steps, or None while it is not known; ``initial`` those done before.
    """

    def __init__(self, total: int | None, initial: int = 0) -> None:
        self.live = sys.stderr.isatty()
        self._bar = tqdm(
            total=total,
            initial=initial,
            disable=not self.live,
            dynamic_ncols=True,
            leave=False,
        )
        self.set_total(total)

    def set_total(self, total: int | None) -> None:
        """Changes the number of steps."""
        if self.live:
            self._bar.total = total
            self._bar.bar_format = FORMAT_WITHOUT_TOTAL if total is None else FORMAT

    def step(self, text: str) -> None:
        """Counts one step; ``text`` is the status beside the bar, drawn a few times a second."""
        if self.live:
            self._bar.set_description_str(text, refresh=False)
            self._bar.update()

    def log(self, text: str) -> None:
        """Prints ``text`` on stdout unless there is a live line that shows the same."""
        if not self.live:
            self.print(text)

    def print(self, text: str) -> None:
        """Prints ``text`` on stdout, above the live line if there is one."""
        if self.live:
            self._bar.write(text, file=sys.stdout)
        else:
            print(text, flush=True)

    def close(self) -> None:
        """Removes the live line."""
        self._bar.close()
