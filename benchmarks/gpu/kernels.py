"""Which kernels of CUDA compute a layer: what FASTLSTM_CUDA_KERNEL asks for, and what the library
takes for a word."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import NamedTuple

import torch

from benchmarks.common.machine import KERNEL_VARIABLE
from benchmarks.common.providers import CELLS
from benchmarks.common.shapes import Shape

STEPWISE = "stepwise"
# That keep W_hh on the chip for many steps.
PERSISTENT = ("block", "cluster", "grid")
METHODS = (STEPWISE, *PERSISTENT)


def want(word: str) -> None:
    os.environ[KERNEL_VARIABLE] = word


def method_of(word: str) -> str:
    """The method of a plan: "cluster" of "cluster:32x16x8"."""
    return word.partition(":")[0]


@contextlib.contextmanager
def kept() -> Iterator[None]:
    """Afterwards the variable is as it was."""
    before = os.environ.get(KERNEL_VARIABLE)
    try:
        yield
    finally:
        os.environ.pop(KERNEL_VARIABLE, None)
        if before is not None:
            want(before)


@contextlib.contextmanager
def forced(word: str) -> Iterator[None]:
    """Inside, `word` is what is asked for."""
    with kept():
        want(word)
        yield


class Choice(NamedTuple):
    """plan: the word for it. step_us: expected of a step of the recurrence, in microseconds."""

    plan: str
    step_us: float

    def is_that_of(self, word: str) -> bool:
        """Whether `word`, for which it was taken, leads to what it says."""
        return word == STEPWISE or self.plan != STEPWISE


def choice(
    cell: str, shape: Shape, dtype: str, tf32: bool | None, word: str, *, backward: bool
) -> Choice:
    """What `word` leads to for a layer with one direction on the current device, in a build with
    CUDA. Raises ValueError where there is no such word."""
    from fastlstm import _C

    found = _C.cuda_choice(
        mode=CELLS[cell].mode,
        backward=backward,
        T=shape.T,
        N=shape.N,
        H=shape.H,
        directions=1,
        dtype=getattr(torch, dtype),
        tf32=bool(tf32),
        wanted=word,
    )
    return Choice(plan_word(found), found["step_us"])


def plan_word(found: dict) -> str:
    """The word for the plan that `found` has."""
    method = found["method"]
    sizes = {"cluster": ("units", "blocks", "rows"), "grid": ("units", "blocks", "rows", "groups")}
    numbers = [str(found[name]) for name in sizes.get(method, ())]
    return f"{method}:{'x'.join(numbers)}" if numbers else method
