"""What ``torchrun`` tells the processes it starts; without torch, which takes long to import."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator


def started_by_torchrun() -> bool:
    return "TORCHELASTIC_RUN_ID" in os.environ


def rank() -> int:
    """This process's number in its run; number 0 speaks and writes."""
    return int(os.environ["RANK"]) if started_by_torchrun() else 0


def local_rank() -> int:
    """This process's number on its machine: which GPU it takes."""
    return int(os.environ["LOCAL_RANK"]) if started_by_torchrun() else 0


@contextlib.contextmanager
def quiet_unless_main() -> Iterator[None]:
    """Inside, what any process but number 0 prints goes nowhere."""
    if rank() == 0:
        yield
        return
    with (
        open(os.devnull, "w") as nowhere,
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
    ):
        yield
