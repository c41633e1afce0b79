"""What the library takes for a word, and what it expects of that."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from benchmarks.common.providers import CELLS
from benchmarks.common.shapes import Shape
from benchmarks.gpu.kernels import STEPWISE


@dataclass(frozen=True)
class Choice:
    """plan: the word for it. step_us: expected of a step of the recurrence, in microseconds."""

    plan: str
    step_us: float


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
    if method not in ("cluster", "grid"):
        return method
    sizes = [found[name] for name in ("units", "blocks", "rows", "groups")]
    return f"{method}:{'x'.join(map(str, sizes[: 3 if method == 'cluster' else 4]))}"


def is_possible(found: Choice, word: str) -> bool:
    """Whether `word` leads to what it says."""
    return word == STEPWISE or found.plan != STEPWISE
