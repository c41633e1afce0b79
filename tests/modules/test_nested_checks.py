"""Errors of calls with nested tensors."""

from collections.abc import Callable

import pytest
import torch
from test_nested import MARKS, jagged, rows_of
from torch import Tensor, nn

import fastlstm

pytestmark = MARKS


def strided() -> Tensor:
    return torch.nested.nested_tensor(rows_of((3, 2)))


def lengths_of(tokens: bool = False) -> Tensor:
    return jagged([torch.zeros(n).long() if tokens else torch.zeros(n, 4) for n in (3, 2)])


def from_offsets(*offsets: int, lengths=None) -> Tensor:
    lengths = None if lengths is None else torch.tensor(lengths)
    return torch.nested.nested_tensor_from_jagged(torch.randn(5, 4), torch.tensor(offsets), lengths)


def is_reset(*lengths: int, dtype=torch.bool) -> Tensor:
    return jagged([torch.zeros(n, dtype=dtype) for n in lengths])


# What is given, and the class and words of the error.
BAD: dict[str, tuple[Callable, Callable, type, str]] = {
    "strided": (strided, dict, RuntimeError, r"layout torch.jagged, got torch.strided: .*as_nested"),
    "lengths": (lengths_of, lambda: {"lengths": [3, 2]}, ValueError, "lengths go with padded"),
    "padded_reset": (
        lengths_of,
        lambda: {"reset": torch.zeros(2, 3).bool()},
        TypeError,
        r"reset must be a nested tensor, as the input is, got shape \[2, 3\]",
    ),
    "reset_of_a_list": (
        lengths_of,
        lambda: {"reset": [[True]]},
        TypeError,
        "reset must be a nested tensor, as the input is, got list",
    ),
    "reset_of_integers": (
        lengths_of,
        lambda: {"reset": is_reset(3, 2, dtype=torch.int64)},
        TypeError,
        "reset must have dtype torch.bool, got torch.int64",
    ),
    "reset_of_other_rows": (
        lengths_of,
        lambda: {"reset": is_reset(2, 3)},
        RuntimeError,
        r"reset must have rows of lengths \[3, 2\], got \[2, 3\]",
    ),
    "strided_reset": (
        lengths_of,
        lambda: {"reset": torch.nested.nested_tensor([torch.zeros(n).bool() for n in (3, 2)])},
        RuntimeError,
        "nested reset must have layout torch.jagged",
    ),
    "too_few_dimensions": (lambda: jagged(rows_of((3, 2), 1)).squeeze(-1), dict, RuntimeError,
                           "nested input must have 3 dimensions, got 2"),
    "too_many_dimensions": (lambda: jagged(rows_of((3, 2), 4, 2)), dict, RuntimeError,
                            "nested input must have 3 dimensions, got 4"),
    "other_ragged_dimension": (lambda: lengths_of().transpose(1, 2), dict, RuntimeError,
                               r"ragged in dimension 1.*got dimension 2"),
    "input_size": (lambda: jagged(rows_of((3, 2), 5)), dict, RuntimeError,
                   "input.size\\(-1\\) must be equal to input_size. Expected 4, got 5"),
    "dtype": (lambda: lengths_of().double(), dict, ValueError, "float64.*does not match"),
    "boolean": (lambda: is_reset(3, 2), dict, TypeError, "input must be .*got torch.bool"),
    "hx": (lengths_of, lambda: {"hx": torch.zeros(1, 3, 6)}, RuntimeError,
           r"hidden size \(1, 2, 6\), got \[1, 3, 6\]"),
    "token": (lambda: lengths_of(True) + 4, dict, IndexError, r"input must hold .* got 4"),
    "token_of_a_module": (lambda: lengths_of(True) + 9,
                          lambda: {"embedding": nn.Embedding(9, 4, max_norm=1.0)}, IndexError,
                          r"input must hold token ids in \[0, 9\), got 9"),
    "embedding": (lambda: lengths_of(True), lambda: {"embedding": nn.Linear(4, 4)}, TypeError,
                  "embedding must be a Tensor or nn.Embedding, got Linear"),
    "embedding_of_numbers": (lengths_of, lambda: {"embedding": torch.randn(5, 4)}, TypeError,
                             "embedding goes with integer input"),
    "rows_past_the_end": (lambda: from_offsets(0, 2, 7), dict, RuntimeError,
                          r"within its 5 values, got starts \[0, 2\] and lengths \[2, 5\]"),
    "offsets_that_decrease": (lambda: from_offsets(0, 3, 1), dict, RuntimeError,
                              r"starts \[0, 3\] and lengths \[3, -2\]"),
    "rows_that_overlap": (lambda: from_offsets(0, 1, 4, lengths=[3, 3]), dict, RuntimeError,
                          r"one after the other"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_calls(name: str) -> None:
    made, options, error, message = BAD[name]
    with pytest.raises(error, match=message):
        fastlstm.GRU(4, 6)(made(), **options())


@pytest.mark.parametrize("name", [n for n in BAD if n not in ("input_size", "dtype", "hx")])
def test_bad_calls_of_functions(name: str) -> None:
    made, options, error, message = BAD[name]
    gru = fastlstm.GRU(4, 6)
    with pytest.raises(error, match=message):
        fastlstm.functional.gru(made(), None, [tuple(gru.parameters())], **options())


def test_batch_sizes_of_a_nested_tensor() -> None:
    gru = fastlstm.GRU(4, 6)
    with pytest.raises(ValueError, match="batch_sizes go with packed input"):
        fastlstm.functional.gru(
            lengths_of(), None, [tuple(gru.parameters())], batch_sizes=torch.tensor([2, 2, 1])
        )
