"""The kernels of one block a batch tile (csrc/cuda/persistent/block/): how large a block may be.

What is asked of every family is in test_persistent_kernels.py.
"""

from dataclasses import replace

import persistent
import pytest
import torch
from error_rule import assert_same
from helpers import Case, cases
from persistent import (
    BF16,
    F16,
    F32,
    PADDED,
    TF32,
    Kernels,
    Numbers,
    check,
    kinds,
    methods_taken,
    solved,
)

pytestmark = pytest.mark.slow

kernels = persistent.kernels


@kinds({"block": "block"}, "bf16", "tf32")
@cases(
    Case(2, 2, 2, 121),
    Case(2, 2, 2, 121, mode="GRU"),
    Case(2, 2, 2, 250, mode="RNN_TANH"),
)
def test_larger_blocks(kernels: Kernels, case: Case, word: str, numbers: Numbers) -> None:
    """With a part of W_hh in shared memory."""
    check(kernels, word, case, numbers)


@cases(Case(2, 2, 2, 169), Case(2, 2, 2, 185, mode="GRU"))
def test_largest_blocks(kernels: Kernels, case: Case) -> None:
    check(kernels, "block", case, BF16)


@pytest.mark.parametrize(
    ("case", "numbers"),
    [
        (PADDED, Numbers(torch.float64)),
        (PADDED, F32),
        (replace(PADDED, proj_size=5), BF16),
        (Case(1, 1, 1, 193), BF16),
        (Case(1, 1, 1, 193, mode="GRU"), F16),
        (Case(1, 1, 1, 257, mode="RNN_TANH"), BF16),
        (Case(1, 1, 1, 129), TF32),
        (Case(1, 1, 1, 129, mode="GRU"), TF32),
        (Case(1, 1, 1, 257, mode="RNN_TANH"), TF32),
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
def test_what_is_left_to_the_kernels_of_a_step(
    kernels: Kernels, case: Case, numbers: Numbers
) -> None:
    assert methods_taken(kernels, "block", case, numbers) == {"stepwise"}
    assert_same(solved(kernels, "block", case, numbers), solved(kernels, "stepwise", case, numbers))
