"""Bad calls fail, and in the way torch.nn's modules fail."""

import re
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from cell_kinds import has_c
from module_pairs import KINDS, build, kinds
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence

import fastlstm


def x(*shape: int) -> Tensor:
    return torch.zeros(shape or (5, 3, 10))


class Maker(NamedTuple):
    """Makes modules and states of one kind from one package."""

    package: object
    kind: str

    def __call__(self, *args, **kwargs) -> nn.Module:
        return build(self.package, self.kind, *args, **kwargs)

    def state(self, *shape: int, c: Tensor | None = None, **kwargs):
        h = torch.zeros(shape, **kwargs)
        return (h, torch.zeros(shape, **kwargs) if c is None else c) if self.has_c else h

    @property
    def has_c(self) -> bool:
        return has_c(self.kind)


CONSTRUCTOR = {
    "no_arguments": lambda rnn: rnn(),
    "unknown_argument": lambda rnn: rnn(10, 20, foo=1),
    "dropout_above_1": lambda rnn: rnn(10, 20, 2, dropout=2),
    "dropout_negative": lambda rnn: rnn(10, 20, 2, dropout=-0.1),
    "dropout_bool": lambda rnn: rnn(10, 20, 2, dropout=True),
    "dropout_string": lambda rnn: rnn(10, 20, 2, dropout="a"),
    "bias_not_bool": lambda rnn: rnn(10, 20, bias=1),
    "batch_first_not_bool": lambda rnn: rnn(10, 20, batch_first=1),
    "input_size_float": lambda rnn: rnn(10.0, 20),
    "input_size_0": lambda rnn: rnn(0, 20),
    "hidden_size_string": lambda rnn: rnn(10, "20"),
    "hidden_size_0": lambda rnn: rnn(10, 0),
    "hidden_size_negative": lambda rnn: rnn(10, -1),
    "num_layers_0": lambda rnn: rnn(10, 20, 0),
    "proj_size_negative": lambda rnn: rnn(10, 20, proj_size=-1),
    "proj_size_hidden_size": lambda rnn: rnn(10, 20, proj_size=20),
    "proj_size_0_of_gru": lambda rnn: rnn(10, 20, proj_size=None if rnn.kind == "LSTM" else 0),
}

FORWARD = {
    "input_1d": lambda rnn: rnn(10, 20)(x(10)),
    "input_4d": lambda rnn: rnn(10, 20)(x(1, 5, 3, 10)),
    "input_size": lambda rnn: rnn(10, 20)(x(5, 3, 11)),
    "input_size_unbatched": lambda rnn: rnn(10, 20)(x(5, 11)),
    "input_size_batch_first": lambda rnn: rnn(10, 20, batch_first=True)(x(3, 5, 9)),
    "input_double": lambda rnn: rnn(10, 20)(x().double()),
    "input_float_for_double": lambda rnn: rnn(10, 20).double()(x()),
    "input_list": lambda rnn: rnn(10, 20)([1.0]),
    "h0_layers": lambda rnn: rnn(10, 20)(x(), rnn.state(2, 3, 20)),
    "h0_batch": lambda rnn: rnn(10, 20)(x(), rnn.state(1, 5, 20)),
    "h0_hidden_size": lambda rnn: rnn(10, 20)(x(), rnn.state(1, 3, 21)),
    "h0_batch_first": lambda rnn: rnn(10, 20, batch_first=True)(x(), rnn.state(1, 3, 20)),
    "h0_bidirectional": lambda rnn: rnn(10, 20, bidirectional=True)(x(), rnn.state(1, 3, 20)),
    "h0_two_layers": lambda rnn: rnn(10, 20, 2)(x(), rnn.state(1, 3, 20)),
    "hx_2d_for_batch": lambda rnn: rnn(10, 20)(x(), rnn.state(1, 20)),
    "hx_3d_without_batch": lambda rnn: rnn(10, 20)(x(5, 10), rnn.state(1, 1, 20)),
    "hx_unbatched_size": lambda rnn: rnn(10, 20)(x(5, 10), rnn.state(1, 21)),
    "hx_unbatched_batch_first": lambda rnn: rnn(10, 20, batch_first=True)(
        x(5, 10), rnn.state(2, 20)
    ),
    "input_on_meta": lambda rnn: rnn(10, 20)(x().to("meta")),
    "parameters_on_meta": lambda rnn: rnn(10, 20, device="meta")(x()),
    "state_on_meta": lambda rnn: rnn(10, 20)(x(), rnn.state(1, 3, 20, device="meta")),
    "state_on_meta_of_wrong_size": lambda rnn: rnn(10, 20)(x(), rnn.state(1, 3, 21, device="meta")),
}

FORWARD_LSTM = {
    "c0_batch": lambda rnn: rnn(10, 20)(x(), rnn.state(1, 3, 20, c=x(1, 4, 20))),
    "c0_hidden_size": lambda rnn: rnn(10, 20)(x(), rnn.state(1, 3, 20, c=x(1, 3, 10))),
    "hx_mixed_dims": lambda rnn: rnn(10, 20)(x(), rnn.state(1, 3, 20, c=x(1, 20))),
    "h0_of_projection": lambda rnn: rnn(10, 20, proj_size=5)(x(), rnn.state(1, 3, 20)),
    "c0_of_projection": lambda rnn: rnn(10, 20, proj_size=5)(x(), rnn.state(1, 3, 5)),
}

# torch.nn.LSTM leaves these to its kernel.
FORWARD_GRU = {
    "packed_double": lambda rnn: rnn(10, 20)(packed().to(torch.float64)),
    "packed_input_size": lambda rnn: rnn(11, 20)(packed()),
    "packed_3d": lambda rnn: rnn(10, 20)(PackedSequence(x(5, 1, 10), packed().batch_sizes)),
    "packed_h0_batch": lambda rnn: rnn(10, 20)(packed(), rnn.state(1, 3, 20)),
    "packed_h0_hidden_size": lambda rnn: rnn(10, 20)(packed(), rnn.state(1, 2, 21)),
    "packed_h0_2d": lambda rnn: rnn(10, 20)(packed(), rnn.state(2, 20)),
    "hx_tuple": lambda rnn: rnn(10, 20)(x(), (x(1, 3, 20),)),
}

# Here torch.nn fails by accident somewhere inside, so that only the class is worth having.
CLASS_ONLY = {
    "input_int_3d": lambda rnn: rnn(10, 20)(x().long()),
    "input_int_3d_packed": lambda rnn: rnn(10, 20)(packed()._replace(data=x(5, 10).long())),
    "weight_none": lambda rnn: replaced(rnn(10, 20), "weight_hh_l0", None)(x()),
    "first_weight_none": lambda rnn: replaced(rnn(10, 20), "weight_ih_l0", None)(x()),
    "first_weight_number": lambda rnn: replaced(rnn(10, 20), "weight_ih_l0", 3)(x()),
    "weight_list": lambda rnn: replaced(rnn(10, 20), "weight_hh_l0", [[1.0]])(x()),
    "bias_string": lambda rnn: replaced(rnn(10, 20), "bias_hh_l0", "b")(x()),
    "state_double": lambda rnn: rnn(10, 20)(x(), rnn.state(1, 3, 20, dtype=torch.float64)),
    "state_float_for_double": lambda rnn: rnn(10, 20).double()(x().double(), rnn.state(1, 3, 20)),
    "state_float_for_half": lambda rnn: rnn(10, 20, dtype=torch.bfloat16)(
        x().bfloat16(), rnn.state(1, 3, 20)
    ),
    "packed_state_double": lambda rnn: rnn(10, 20)(
        packed(), rnn.state(1, 2, 20, dtype=torch.float64)
    ),
    "packed_unsorted_h0_batch": lambda rnn: rnn(10, 20)(
        pack_sequence([x(2, 10), x(1, 10), x(3, 10)], enforce_sorted=False),
        rnn.state(1, 2, 20),
    ),
}
CLASS_ONLY_LSTM = {
    "c0_double": lambda rnn: rnn(10, 20)(x(), rnn.state(1, 3, 20, c=x(1, 3, 20).double())),
    "three_states": lambda rnn: rnn(10, 20)(x(), (x(1, 3, 20),) * 3),
    "packed_three_states": lambda rnn: rnn(10, 20)(packed(), (x(1, 2, 20),) * 3),
    "state_tensor": lambda rnn: rnn(10, 20)(x(), x(2, 1, 3, 20)),
    "packed_double": FORWARD_GRU["packed_double"],
    "packed_h0_batch": FORWARD_GRU["packed_h0_batch"],
    "packed_h0_layers": lambda rnn: rnn(10, 20)(packed(), rnn.state(2, 2, 20)),
    "packed_h0_hidden_size": FORWARD_GRU["packed_h0_hidden_size"],
}


def replaced(rnn: nn.Module, name: str, value: object) -> nn.Module:
    delattr(rnn, name)
    setattr(rnn, name, value)
    return rnn


def packed() -> PackedSequence:
    return pack_sequence([x(3, 10), x(2, 10)])


def error_of(call: Callable, rnn: Maker) -> Exception:
    with pytest.raises(Exception) as caught:
        call(rnn)
    return caught.value


def on_one_line(message: str) -> str:
    return re.sub(r"\s+", " ", message)


def calls(for_all: dict, for_lstm: dict, for_others: dict) -> pytest.MarkDecorator:
    rows = [(kind, name, call) for name, call in for_all.items() for kind in KINDS]
    rows += [("LSTM", name, call) for name, call in for_lstm.items()]
    rows += [(k, name, call) for name, call in for_others.items() for k in KINDS if k != "LSTM"]
    return pytest.mark.parametrize(
        ("kind", "call"), [r[::2] for r in rows], ids=[f"{r[0]}-{r[1]}" for r in rows]
    )


@calls(CONSTRUCTOR | FORWARD, FORWARD_LSTM, FORWARD_GRU)
def test_fails_as_torch_nn_does(kind: str, call: Callable) -> None:
    expected, found = (error_of(call, Maker(package, kind)) for package in (nn, fastlstm))
    assert type(found) is type(expected), f"{found!r}, torch.nn: {expected!r}"
    wanted = on_one_line(str(expected))
    if isinstance(expected, TypeError) and "__init__() " in wanted:
        # Python words these, and names whose __init__ it is.
        wanted = wanted.partition("__init__() ")[2].partition(":")[0]
    if isinstance(expected, AttributeError):
        wanted = wanted.partition(" has no")[0]
    assert wanted in on_one_line(str(found))


@calls(CLASS_ONLY, CLASS_ONLY_LSTM, {})
def test_fails_with_the_class_of_torch_nn(kind: str, call: Callable) -> None:
    expected, found = (error_of(call, Maker(package, kind)) for package in (nn, fastlstm))
    assert type(found) is type(expected), f"{found!r}, torch.nn: {expected!r}"
    assert "mkldnn" not in str(found) and "mat1" not in str(found)


@pytest.mark.parametrize("package", [nn, fastlstm], ids=["torch", "fastlstm"])
def test_nonlinearity(package) -> None:
    with pytest.raises(ValueError, match="Unknown nonlinearity 'silu'. Select from 'tanh' or 're"):
        package.RNN(10, 20, nonlinearity="silu")
    for cls in (package.LSTM, package.GRU):
        with pytest.raises(TypeError, match="nonlinearity"):
            cls(10, 20, nonlinearity="relu")


@kinds
def test_dropout_warning_is_torchs(kind: str) -> None:
    for package in (nn, fastlstm):
        with pytest.warns(UserWarning, match="dropout option adds dropout after all but last"):
            build(package, kind, 10, 20, dropout=0.5)


@kinds
def test_sequence_of_length_0_is_no_error_here(kind: str) -> None:
    with pytest.raises(RuntimeError, match="larger than 0"):
        build(nn, kind, 10, 20)(x(0, 3, 10))
    assert build(fastlstm, kind, 10, 20)(x(0, 3, 10))[0].shape == (0, 3, 20)
