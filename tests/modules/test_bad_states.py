"""What is not a state: modules and cells fail with the class of error of torch.nn's."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from module_pairs import KINDS, build
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence

import fastlstm

N, I, H = 3, 10, 20


def x(*shape: int) -> Tensor:
    return torch.zeros(shape)


def packed(enforce_sorted: bool) -> PackedSequence:
    lengths = (3, 2, 2) if enforce_sorted else (2, 3, 2)
    return pack_sequence([x(n, I) for n in lengths], enforce_sorted=enforce_sorted)


# Of each form of a call: the input, and a state that would be right.
MODULE_FORMS = {
    "batched": (lambda: x(5, N, I), x(1, N, H)),
    "unbatched": (lambda: x(5, I), x(1, H)),
    "packed": (lambda: packed(True), x(1, N, H)),
    "packed_unsorted": (lambda: packed(False), x(1, N, H)),
}
CELL_FORMS = {
    "cell_batched": (lambda: x(N, I), x(N, H)),
    "cell_unbatched": (lambda: x(I), x(H)),
}

# From a right state to a wrong hx.
HX: dict[str, Callable[[Tensor], object]] = {
    "tensor": lambda h: h,
    "parameter": nn.Parameter,
    "stacked": lambda h: torch.stack((h, h)),
    "tensor_of_one_rank_less": lambda h: h[0],
    "one": lambda h: (h,),
    "one_in_a_list": lambda h: [h],
    "two": lambda h: (h, h),
    "three": lambda h: (h, h, h),
    "none": lambda h: (),
    "none_in_a_list": lambda h: [],
    "second_none": lambda h: (h, None),
    "first_none": lambda h: (None, h),
    "both_none": lambda h: (None, None),
    "only_none": lambda h: (None,),
    "second_number": lambda h: (h, 3),
    "second_string": lambda h: (h, "c"),
    "second_list": lambda h: (h, [h]),
    "nested": lambda h: ((h, h),),
    "lists": lambda h: h.tolist(),
    "arrays": lambda h: (np.zeros(tuple(h.shape), np.float32),) * 2,
    "number": lambda h: 3,
    "string": lambda h: "hc",
    "dict": lambda h: {"h": h, "c": h},
    "dict_by_number": lambda h: {0: h, 1: h},
    "shape": lambda h: h.shape,
    "both_0d": lambda h: (x(), x()),
    "both_of_one_rank_less": lambda h: (h[0], h[0]),
    "first_of_one_rank_less": lambda h: (h[0], h),
    "second_of_one_rank_less": lambda h: (h, h[0]),
    "both_double": lambda h: (h.double(), h.double()),
    "both_long": lambda h: (h.long(), h.long()),
    "both_bool": lambda h: (h.bool(), h.bool()),
    "both_complex": lambda h: (h + 0j, h + 0j),
    "both_meta": lambda h: (h.to("meta"), h.to("meta")),
    "long": lambda h: h.long(),
    "bool": lambda h: h.bool(),
    "complex": lambda h: h + 0j,
}
# torch.nn takes the first two states of whatever it is given, if there is no batch.
TAKEN_WITHOUT_BATCH = {"stacked": TypeError, "three": RuntimeError, "dict_by_number": TypeError}
# torch 2.13 looks at dimension 2 of a packed LSTM's states before it looks whether there is one, later
# ones fail with a RuntimeError.
LOOKED_UP_FIRST = (IndexError, RuntimeError)


def error_of(package, kind: str, form: str, hx: Callable, grad: bool) -> Exception | None:
    input, h = (MODULE_FORMS | CELL_FORMS)[form]
    module = build(package, kind, I, H, cell=form in CELL_FORMS)
    with torch.set_grad_enabled(grad):
        try:
            module(input(), hx(h))
        except Exception as error:
            return error
    return None


@pytest.mark.parametrize("hx", HX)
@pytest.mark.parametrize("form", [*MODULE_FORMS, *CELL_FORMS])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "RNN_RELU"])
def test_class_of_the_error_is_torchs(kind: str, form: str, hx: str) -> None:
    expected = error_of(nn, kind, form, HX[hx], True)
    found = error_of(fastlstm, kind, form, HX[hx], True)
    seen = f"{found!r}, torch.nn: {expected!r}"
    assert repr(error_of(fastlstm, kind, form, HX[hx], False)) == repr(found)
    if kind == "LSTM" and "unbatched" in form and hx in TAKEN_WITHOUT_BATCH and expected is None:
        assert type(found) is TAKEN_WITHOUT_BATCH[hx], seen
    elif kind == "LSTM" and "packed" in form and type(found) is IndexError:
        assert type(expected) in LOOKED_UP_FIRST, seen
    else:
        assert type(found) is type(expected), seen


@pytest.mark.parametrize(
    ("form", "hx", "error", "words"),
    [
        ("batched", "one", IndexError, r"hx must be a pair \(h0, c0\), got a tuple of 1"),
        ("unbatched", "none_in_a_list", IndexError, r"a pair \(h0, c0\), got a list of 0"),
        ("unbatched", "stacked", TypeError, r"hx must be a pair \(h0, c0\), got a Tensor"),
        ("packed", "tensor", TypeError, r"hx must be a pair \(h0, c0\), got a Tensor"),
        ("packed", "one", RuntimeError, "lstm expects two hidden states, got 1"),
        ("packed", "second_none", TypeError, r"hx\[1\] must be a Tensor, got NoneType"),
        ("packed_unsorted", "first_of_one_rank_less", IndexError, r"hx\[0\] must have 3 dim.* 2$"),
        ("cell_batched", "tensor", TypeError, r"hx must be a pair \(h, c\), got a Tensor"),
        ("cell_batched", "one", RuntimeError, "lstm_cell expects two hidden states, got 1"),
        ("cell_unbatched", "one", IndexError, r"hx must be a pair \(h, c\), got a tuple of 1"),
        ("cell_unbatched", "stacked", TypeError, r"hx must be a pair \(h, c\), got a Tensor"),
    ],
)
def test_words_of_an_lstm(form: str, hx: str, error: type, words: str) -> None:
    input, h = (MODULE_FORMS | CELL_FORMS)[form]
    lstm = build(fastlstm, "LSTM", I, H, cell=form in CELL_FORMS)
    with pytest.raises(error, match=words):
        lstm(input(), HX[hx](h))
