"""Which kernels of CUDA compute a layer: what FASTLSTM_CUDA_KERNEL asks for, read at every call."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

VARIABLE = "FASTLSTM_CUDA_KERNEL"
AUTO = "auto"
STEPWISE = "stepwise"
# That keep W_hh on the chip for many steps.
PERSISTENT = ("block", "cluster", "grid")
METHODS = (STEPWISE, *PERSISTENT)


def wanted() -> str:
    """A method, a plan of one such as "cluster:32x16x8", or "auto"."""
    return os.environ.get(VARIABLE) or AUTO


def want(word: str) -> None:
    os.environ[VARIABLE] = word


def method_of(word: str) -> str:
    """The method of a plan: "cluster" of "cluster:32x16x8"."""
    return word.partition(":")[0]


@contextlib.contextmanager
def kept() -> Iterator[None]:
    """Afterwards the variable is as it was."""
    before = os.environ.get(VARIABLE)
    try:
        yield
    finally:
        os.environ.pop(VARIABLE, None)
        if before is not None:
            want(before)


@contextlib.contextmanager
def forced(word: str) -> Iterator[None]:
    """Inside, `word` is what is asked for."""
    with kept():
        want(word)
        yield
