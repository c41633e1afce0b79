"""What the library takes for a word, and what it expects of that: nothing in a build without CUDA."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from benchmarks.kernel_choice import STEPWISE
from benchmarks.shapes import Shape

MODES = {"lstm": "LSTM", "gru": "GRU", "rnn": "RNN_TANH", "rnn_relu": "RNN_RELU"}


@dataclass(frozen=True)
class Choice:
    """plan: the word for it. step_us: expected of a step of the recurrence, in microseconds."""

    plan: str
    step_us: float


def choice(
    cell: str, shape: Shape, dtype: str, tf32: bool | None, word: str, *, backward: bool
) -> Choice | None:
    """What `word` leads to for a layer with one direction on the current device; None where the
    extension has no CUDA kernels. Raises ValueError where there is no such word."""
    from fastlstm import _C

    ask = getattr(_C, "cuda_choice", None)
    if ask is None:
        return None
    found = ask(
        mode=MODES[cell],
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


def is_possible(found: Choice | None, word: str) -> bool:
    """Whether `word` leads to what it says, as far as is known."""
    return found is None or word == STEPWISE or found.plan != STEPWISE
