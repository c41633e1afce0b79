"""Where to compute."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from .errors import UserError
from .launch import local_rank, started_by_torchrun


def set_up_machine(device: str, threads: int) -> torch.device:
    """The device called ``device``, with CPU work on ``threads`` threads (0: as they are).

    ``auto`` is the GPU if there is one. Of several processes on a machine with GPUs, each takes
    its own. UserError for a device that is not there.
    """
    if threads < 0:
        raise UserError(f"--threads must be at least 0, got {threads}")
    if threads:
        torch.set_num_threads(threads)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and started_by_torchrun():
        device = f"cuda:{local_rank()}"
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
        if found.index is not None and found.type == "cuda":
            torch.cuda.set_device(found)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device {device} is not available here") from error
    return found


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """For work too small to share: waking threads for every character costs more than it saves."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
