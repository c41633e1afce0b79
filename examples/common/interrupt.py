"""Ctrl-C and SIGTERM as a request to stop after the step in hand."""

from __future__ import annotations

import signal
from types import FrameType, TracebackType


class StopRequest:
    """Context manager; inside it ``stop`` is True (the object is truthy) once a signal has arrived.

    The first SIGINT or SIGTERM only sets the flag, so that the program can finish its step and
    save. A second one raises KeyboardInterrupt at once. The previous handlers come back on exit.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._previous: dict[int, object] = {}

    def __bool__(self) -> bool:
        return self.signal is not None

    def __enter__(self) -> StopRequest:
        for number in self.SIGNALS:
            self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None:
            raise KeyboardInterrupt
        self.signal = signal.Signals(number)
