from collections.abc import Sequence
from typing import TypedDict

from torch import Tensor

class Share(TypedDict):
    direction: int
    row_begin: int
    row_end: int
    unit_begin: int
    unit_end: int
    group: int
    group_size: int

def lstm_layer_fwd(
    x: Tensor,
    embedding: Tensor | None,
    h0: Tensor | None,
    c0: Tensor | None,
    weights: Sequence[Tensor | None],
    keep: int,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor, Tensor]: ...
def lstm_layer_bwd(
    x: Tensor,
    embedding: Tensor | None,
    h0: Tensor | None,
    c0: Tensor | None,
    weights: Sequence[Tensor | None],
    h: Tensor,
    c: Tensor,
    gates: Tensor,
    grad_y: Tensor | None,
    grad_c: Tensor | None,
    grad_h_n: Tensor | None,
    grad_c_n: Tensor | None,
    needs_x: bool,
    needs_embedding: bool,
    needs_state: bool,
    needs_weights: bool,
) -> tuple[
    Tensor | None,
    Tensor | None,
    Tensor | None,
    Tensor,
    list[tuple[Tensor, Tensor, Tensor]],
]: ...
def cpu_capability() -> str: ...
def capabilities() -> list[str]: ...
def schedule(
    num_steps: int,
    batch_size: int,
    hidden_size: int,
    num_directions: int,
    num_threads: int,
    lanes: int,
) -> list[list[Share]]: ...
def activation(name: str, x: Tensor, capability: str) -> Tensor: ...
def fma_peak(dtype: str, threads: int, seconds: float) -> float: ...
