from collections.abc import Sequence
from typing import TypedDict

from torch import Tensor, dtype

class CellTraits:
    mode: str
    gates: int
    reserve: int
    dgates: int
    separate: int
    has_c: bool
    has_carry: bool
    fwd_reads_state: bool
    bwd_reads_state: bool
    bwd_reads_prev_state: bool

class Share(TypedDict):
    direction: int
    row_begin: int
    row_end: int
    row_step: int
    unit_begin: int
    unit_end: int
    group: int
    group_size: int

def cells() -> Sequence[CellTraits]: ...
def layer_fwd(
    mode: str,
    x: Tensor,
    embedding: Tensor | None,
    h0: Tensor | None,
    c0: Tensor | None,
    weights: Sequence[Tensor | None],
    batch_sizes: Tensor | None,
    lengths: Tensor | None,
    reset: Tensor | None,
    keep: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]: ...
def layer_bwd(
    mode: str,
    x: Tensor,
    embedding: Tensor | None,
    h0: Tensor | None,
    c0: Tensor | None,
    weights: Sequence[Tensor | None],
    batch_sizes: Tensor | None,
    lengths: Tensor | None,
    reset: Tensor | None,
    h: Tensor | None,
    c: Tensor,
    reserve: Tensor,
    grad_y: Tensor | None,
    grad_c: Tensor | None,
    grad_h_n: Tensor | None,
    grad_c_n: Tensor | None,
    needs_x: bool,
    needs_embedding: bool,
    needs_state: bool,
    needs_weights: bool,
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None, list[Tensor | None]]: ...
def cell_fwd(
    mode: str,
    x: Tensor,
    h: Tensor,
    c: Tensor | None,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None,
    b_hh: Tensor | None,
    keep: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None]: ...
def cell_bwd(
    mode: str,
    x: Tensor,
    h: Tensor,
    c: Tensor | None,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None,
    b_hh: Tensor | None,
    h_out: Tensor | None,
    c_out: Tensor | None,
    reserve: Tensor,
    grad_h: Tensor | None,
    grad_c: Tensor | None,
    needs_x: bool,
    needs_h: bool,
    needs_c: bool,
    needs_weights: bool,
) -> tuple[Tensor | None, ...]: ...
def part_of(
    buffer: Tensor, sizes: Sequence[int], strides: Sequence[int], offset: int
) -> Tensor: ...
def alias_of(t: Tensor) -> Tensor: ...
def version_of(t: Tensor) -> Tensor: ...
def transpose_in_place(t: Tensor, dim0: int, dim1: int) -> None: ...
def are_plain(tensors: tuple[Tensor | None, ...]) -> bool: ...
def cpu_capability() -> str: ...
def cuda_arch_list() -> str: ...

class CudaChoice(TypedDict):
    method: str
    units: int
    blocks: int
    rows: int
    groups: int
    shared_bytes: int
    step_us: float

# In builds with CUDA alone.
def cuda_choice(
    *,
    mode: str,
    backward: bool,
    T: int,
    N: int,
    H: int,
    dtype: dtype,
    directions: int = 1,
    tf32: bool | None = None,
    projected: bool = False,
    wanted: str | None = None,
) -> CudaChoice: ...
def capabilities() -> list[str]: ...
def schedule(
    batch_size: int,
    hidden_size: int,
    gates: int,
    num_directions: int,
    ragged: bool,
    num_threads: int,
    lanes: int,
    crowded: bool = False,
) -> list[list[Share]]: ...
def num_threads() -> int: ...
def is_crowded() -> bool: ...
def quota_cores(root: str = "") -> int: ...
def activation(name: str, x: Tensor, capability: str) -> Tensor: ...
def fma_peak(dtype: str, threads: int, seconds: float) -> float: ...
