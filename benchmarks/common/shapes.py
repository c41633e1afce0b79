"""Problem sizes, the named grids, and what one call costs in floating-point operations."""

from __future__ import annotations

from typing import NamedTuple

import torch

MODES = ("infer", "train")


class Shape(NamedTuple):
    """Sizes of one problem: T steps, batch N, I input features, H hidden units."""

    T: int
    N: int
    I: int  # noqa: E741
    H: int

    def __str__(self) -> str:
        return f"{self.T},{self.N},{self.I},{self.H}"


def parse_shape(text: str) -> Shape:
    """Read "T,N,I,H", four positive integers. Raises ValueError with one line that says why."""
    try:
        sizes = [int(part) for part in text.split(",")]
    except ValueError:
        sizes = []
    if len(sizes) != 4:
        raise ValueError(f"a shape is four integers T,N,I,H, got {text!r}")
    if min(sizes) < 1:
        raise ValueError(f"the sizes of a shape are at least 1, got {text!r}")
    return Shape(*sizes)


def parse_shapes(text: str) -> tuple[Shape, ...]:
    return tuple(map(parse_shape, text.split()))


GRIDS: dict[str, tuple[Shape, ...]] = {
    "quick": parse_shapes("25,1,64,100 50,50,65,128 64,32,64,64 128,8,200,200"),
    "full": parse_shapes(
        "25,1,64,100 100,1,128,256 50,50,65,128 64,32,64,64 100,32,128,256 128,16,512,512 "
        "50,64,512,512 50,50,128,512 20,64,300,512 35,20,650,650 64,128,256,1024 128,8,200,200"
    ),
    # The most important ones first: a run that must end early leaves out the last ones.
    "gpu": parse_shapes(
        "1024,16,768,768 512,1,256,256 256,64,512,512 128,128,1024,1024 64,256,1024,1024 "
        "512,32,128,128 512,44,160,160 512,16,64,64 128,64,2048,2048 35,20,1500,1500 "
        "50,50,128,512 256,8,1024,1024"
    ),
}


def flops(gates: int, shape: Shape, mode: str, rows: int | None = None) -> int:
    """Floating-point operations of one call of a one-layer cell with `gates` gates: 4 for an
    LSTM, 3 for a GRU, 1 for an RNN.

    Forward: a multiply and an add for every weight of W_ih [gates*H, I] and W_hh [gates*H, H] in
    every one of the T*N rows, so 2 * gates*H * (I+H) * T*N. Training is three times that: backward
    multiplies by the transposed weights once (dx, dh) and accumulates the weights' own gradients
    once. Biases, activations and the elementwise cell update are left out.

    mode: "infer" (forward) or "train" (forward and backward). rows: how many rows are computed
    where sequences differ in length; T*N where None.
    """
    rows = shape.T * shape.N if rows is None else rows
    forward = 2 * gates * shape.H * (shape.I + shape.H) * rows
    return {"infer": 1, "train": 3}[mode] * forward


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
