"""The kernels of groups of blocks (csrc/cuda/persistent/group/): plans, exchange, determinism.

What is asked of every family is in test_persistent_kernels.py.
"""

from collections.abc import Callable
from dataclasses import replace

import persistent
import pytest
import torch
from choosing import H100, Device, native
from error_rule import assert_same
from helpers import Case, Values, solve, with_tokens
from persistent import (
    BF16,
    F32,
    NUMBERS,
    PADDED,
    RAGGED,
    TF32,
    Kernels,
    Numbers,
    assert_taken,
    check,
    kinds,
    methods_taken,
    solved,
)
from torch import Tensor

pytestmark = pytest.mark.slow

GATED = ["LSTM", "GRU", "RNN_TANH"]

kernels = persistent.kernels


PLANS = [
    # Row tiles are multiplied two at a time, and the odd one by itself. The last block has one
    # unit, or of a cluster none.
    ("cluster:16x2x16", Case(3, 20, 3, 17)),
    ("cluster:16x4x24", Case(3, 20, 3, 33)),
    ("cluster:16x8x32", Case(2, 25, 3, 70)),
    ("grid:16x2x16x1", Case(3, 20, 3, 17)),
    ("grid:16x3x24x1", Case(3, 20, 3, 33)),
    ("grid:16x5x32x2", Case(2, 25, 3, 70)),
    # Other widths of a block.
    ("cluster:32x2x8", Case(3, 3, 3, 40)),
    ("cluster:48x2x24", Case(3, 19, 3, 70)),
    ("grid:32x2x8x1", Case(3, 3, 3, 40)),
    ("grid:48x2x24x1", Case(3, 19, 3, 70)),
    # A group takes jobs one after the other, not all of them as many, or has none.
    ("grid:16x2x8x1", Case(3, 20, 3, 17, bidirectional=True, reset=0.3)),
    ("grid:16x2x8x4", Case(3, 20, 3, 17, bidirectional=True, reset=0.3)),
    ("grid:16x2x8x9", Case(3, 20, 3, 17, bidirectional=True, reset=0.3)),
]
PAIRS = [("LSTM", "bf16"), ("GRU", "bf16"), ("GRU", "tf32"), ("LSTM", "f32"), ("RNN_TANH", "f32")]


@pytest.mark.parametrize(
    ("word", "case", "numbers"),
    [
        pytest.param(word, replace(case, mode=mode), NUMBERS[name], id=f"{word}-{mode}-{name}")
        for word, case in PLANS
        for mode, name in PAIRS
        if name != "f32" or word.startswith("grid")
    ],
)
def test_plans(kernels: Kernels, word: str, case: Case, numbers: Numbers) -> None:
    check(kernels, word, case, numbers)


# More of W_hh than registers hold.
LARGE = {
    "tf32": [
        ("cluster:48x4x8", Case(2, 2, 2, 163)),
        ("cluster:48x8x8", Case(2, 2, 2, 261, mode="GRU")),
        ("cluster:48x16x8", Case(2, 2, 2, 645, mode="RNN_TANH")),
        ("cluster:32x16x8", Case(2, 2, 2, 291)),
        ("grid:48x5x8x1", Case(2, 2, 2, 227)),
        ("grid:48x6x8x1", Case(2, 2, 2, 261, mode="GRU")),
        ("grid:48x14x8x1", Case(2, 2, 2, 645, mode="RNN_TANH")),
        ("grid:32x9x8x1", Case(2, 2, 2, 259)),
        ("grid:16x33x8x1", Case(2, 2, 2, 515)),
    ],
    "f32": [
        ("grid:48x3x8x1", Case(2, 2, 2, 131)),
        ("grid:48x4x8x1", Case(2, 2, 2, 163, mode="GRU")),
        ("grid:48x9x8x1", Case(2, 2, 2, 387, mode="RNN_TANH")),
        ("grid:16x13x8x1", Case(2, 2, 2, 201)),
    ],
    "bf16": [
        ("cluster:48x8x8", Case(2, 2, 2, 324)),
        ("grid:48x9x8x1", Case(2, 2, 2, 420)),
        ("grid:48x9x8x1", Case(2, 2, 2, 389, mode="GRU")),
    ],
}


@pytest.mark.parametrize(
    ("word", "case", "numbers"),
    [
        pytest.param(word, case, NUMBERS[name], id=f"{word}-{case}-{name}")
        for name, problems in LARGE.items()
        for word, case in problems
    ],
)
def test_more_than_registers_hold(
    kernels: Kernels, word: str, case: Case, numbers: Numbers
) -> None:
    """The rest of W_hh is in shared memory; fwd_split and bwd_split say how much that is."""
    check(kernels, word, case, numbers)


def _offset(w: Tensor) -> Tensor:
    """Contiguous, but no row aligned to more than an element."""
    return torch.cat([w.new_zeros(1), w.flatten()])[1:].view_as(w)


def _padded(w: Tensor) -> Tensor:
    """Every row aligned to 16 bytes, and longer than H."""
    return torch.nn.functional.pad(w, (0, 8 - w.size(1) % 8), value=torch.nan)[:, : w.size(1)]


@kinds({"cluster": "cluster:16x4x8", "grid": "grid:16x3x8x1"}, "bf16", "tf32", "f32")
@pytest.mark.parametrize("layout", [_offset, _padded], ids=["offset", "padded"])
@pytest.mark.parametrize("H", [40, 37])
def test_rows_of_w_hh_anywhere(
    kernels: Kernels, word: str, layout: Callable, H: int, numbers: Numbers
) -> None:
    """Aligned rows come in chunks of 16 bytes, the last part of a row and other rows by numbers."""
    case = Case(2, 3, 2, H)
    assert_taken(kernels, word, case, numbers)
    kernels.device.allow_tf32(numbers.tf32)
    values, cotangents = case.problem(numbers.dtype), case.cotangents(numbers.dtype)
    changed = values | {"w_hh_0": layout(values["w_hh_0"])}
    solver = kernels.through(word)
    assert_same(solve(solver, case, changed, cotangents), solve(solver, case, values, cotangents))


@pytest.mark.parametrize("mode", GATED)
def test_number_of_groups_changes_nothing(kernels: Kernels, mode: str) -> None:
    case = Case(3, 20, 2, 33, mode=mode, bidirectional=True, reset=0.2)
    one, *others = (
        solved(kernels, f"grid:16x3x8x{groups}", case, BF16) for groups in (1, 2, 5, 6, 7)
    )
    for other in others:
        assert_same(other, one)


@pytest.mark.parametrize("mode", GATED)
@pytest.mark.parametrize("word", ["cluster:16x4x{rows}", "grid:16x3x{rows}x2"])
def test_rows_of_a_tile_change_nothing(kernels: Kernels, word: str, mode: str) -> None:
    case = Case(3, 20, 2, 33, mode=mode, lengths=tuple(t % 4 for t in range(20)))
    one, *others = (solved(kernels, word.format(rows=rows), case, TF32) for rows in (8, 16, 24, 32))
    for other in others:
        assert_same(other, one)


@pytest.mark.parametrize("mode", GATED)
@pytest.mark.parametrize("word", ["cluster:16x4x16", "grid:16x3x16x2"])
def test_rest_of_the_batch_changes_nothing(kernels: Kernels, word: str, mode: str) -> None:
    """Beside the input projection, which is not theirs: tokens are looked up."""
    rows = slice(5, 14)
    case = Case(3, 20, 2, 33, mode=mode)
    alone = replace(case, N=rows.stop - rows.start)
    values = with_tokens(case, case.problem(BF16.dtype), case.I)
    cotangents = case.cotangents(BF16.dtype)

    def part(named: Values) -> Values:
        return {n: v[:, rows] if n in BATCHED else v for n, v in named.items()}

    whole = solve(kernels.through(word), case, values, cotangents)
    found = solve(kernels.through(word), alone, part(values), part(cotangents))
    for name in found.keys() & {*BATCHED, "grad h0", "grad c0"}:
        assert torch.equal(found[name], whole[name][:, rows]), name


BATCHED = ("x", "h0", "c0", "output", "h_n", "c_n")


@pytest.mark.parametrize("word", ["cluster", "grid"])
def test_memory_may_hold_anything(kernels: Kernels, word: str) -> None:
    """The emulator's holds what a grid's exchange has to hold at first."""
    poisoned = solved(kernels, word, RAGGED, BF16)
    torch.use_deterministic_algorithms(True)  # fills it with other values
    assert_same(solved(kernels, word, RAGGED, BF16), poisoned)


@pytest.mark.parametrize(
    ("word", "case", "numbers", "device"),
    [
        ("cluster", PADDED, Numbers(torch.float64), H100),
        ("grid", PADDED, Numbers(torch.float64), H100),
        ("cluster", replace(PADDED, proj_size=5), BF16, H100),
        ("grid", replace(PADDED, proj_size=5), BF16, H100),
        ("cluster", PADDED, F32, H100),
        # More units than the largest cluster has, and than fit beside their operand.
        ("cluster", Case(1, 1, 1, 769), BF16, H100),
        ("grid", Case(1, 1, 1, 400), TF32, replace(H100, shared_bytes=32 * 1024)),
        ("cluster", PADDED, BF16, replace(H100, capability=80)),
        ("cluster", PADDED, BF16, replace(H100, clusters_of_8=0)),
        ("grid", Case(1, 1, 1, 49), BF16, replace(H100, multiprocessors=1)),
        ("grid", PADDED, BF16, replace(H100, capability=75)),
        ("grid", PADDED, F32, replace(H100, capability=75)),
        # Plans.
        ("cluster:16x3x8", PADDED, BF16, H100),
        ("cluster:16x32x8", PADDED, BF16, H100),
        ("cluster:16x2x12", PADDED, BF16, H100),
        ("grid:24x1x8x1", PADDED, BF16, H100),
        ("grid:16x1x8x1", PADDED, BF16, H100),
        ("grid:16x2x8x0", PADDED, BF16, H100),
        ("grid:16x2x8x3", PADDED, BF16, replace(H100, multiprocessors=5)),
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
def test_what_is_left_to_the_kernels_of_a_step(
    kernels: Kernels, word: str, case: Case, numbers: Numbers, device: Device
) -> None:
    kernels.simt.set_device(native(device))
    assert methods_taken(kernels, word, case, numbers) == {"stepwise"}
    assert_same(solved(kernels, word, case, numbers), solved(kernels, "stepwise", case, numbers))
