"""Bad calls of cells fail, and in the way torch.nn's cells fail."""

from collections.abc import Callable

import pytest
import torch
from cell_kinds import has_c
from module_pairs import HAS_WORDS_FOR_RANK, KINDS, build
from torch import Tensor, nn

import fastlstm


def zeros(*shape: int, **kwargs) -> Tensor:
    return torch.zeros(shape, **kwargs)


def wrong(*shape: int, input: tuple[int, ...] = (3, 10), **kwargs) -> Callable:
    """A call of a cell (10, 20) with a state of this shape, and input of that."""

    def call(cell: nn.Module, kind: str):
        h = zeros(*shape, **kwargs)
        return cell(zeros(*input), (h, h) if has_c(kind) else h)

    return call


def replaced(cell: nn.Module, name: str, value: object) -> nn.Module:
    delattr(cell, name)
    setattr(cell, name, value)
    return cell


ERRORS = {
    "input_size": wrong(3, 20, input=(3, 11)),
    "input_size_unbatched": wrong(20, input=(11,)),
    "input_size_without_state": lambda cell, kind: cell(zeros(3, 11)),
    "input_3d": wrong(3, 20, input=(1, 3, 10)),
    "input_3d_without_state": lambda cell, kind: cell(zeros(1, 3, 10)),
    "input_0d": lambda cell, kind: cell(zeros()),
    "hidden_size": wrong(3, 21),
    "hidden_batch": wrong(5, 20),
    "hidden_batch_1": wrong(1, 20),
    "hidden_3d": wrong(1, 3, 20),
    "hidden_4d": wrong(3, 1, 1, 20),
    "hidden_size_unbatched": wrong(21, input=(10,)),
    "input_list": lambda cell, kind: cell([1.0]),
    "hidden_number": lambda cell, kind: cell(zeros(3, 10), (3, 3) if has_c(kind) else 3),
}
ERRORS_LSTM = {
    "c_batch": lambda cell, kind: cell(zeros(3, 10), (zeros(3, 20), zeros(5, 20))),
    "c_size": lambda cell, kind: cell(zeros(3, 10), (zeros(3, 20), zeros(3, 10))),
    "c_3d": lambda cell, kind: cell(zeros(3, 10), (zeros(3, 20), zeros(1, 3, 20))),
    "one_state": lambda cell, kind: cell(zeros(3, 10), (zeros(3, 20),)),
    "three_states": lambda cell, kind: cell(zeros(3, 10), (zeros(3, 20),) * 3),
    "c_none": lambda cell, kind: cell(zeros(3, 10), (zeros(3, 20), None)),
}
# A call, and what comes in the place of two dimensions.
RANK = {
    "hidden_1d_for_batch": (wrong(20), 1),
    "hidden_2d_without_batch": (wrong(1, 20, input=(10,)), 3),
    "hidden_2d_of_many_rows_without_batch": (wrong(4, 20, input=(10,)), 3),
}
CLASS_ONLY = {
    "input_double": lambda cell, kind: cell(zeros(3, 10).double()),
    "input_half": lambda cell, kind: cell(zeros(3, 10).half()),
    "input_int": lambda cell, kind: cell(zeros(3, 10).long()),
    "weight_ih_none": lambda cell, kind: replaced(cell, "weight_ih", None)(zeros(3, 10)),
    "weight_hh_none": lambda cell, kind: replaced(cell, "weight_hh", None)(zeros(3, 10)),
    "weight_hh_none_without_batch": lambda cell, kind: replaced(cell, "weight_hh", None)(zeros(10)),
    "weight_number": lambda cell, kind: replaced(cell, "weight_hh", 3)(zeros(3, 10)),
    "bias_number": lambda cell, kind: replaced(cell, "bias_ih", 3)(zeros(3, 10)),
    "state_double": wrong(3, 20, dtype=torch.float64),
    "state_on_meta": wrong(3, 20, device="meta"),
    "input_on_meta": lambda cell, kind: cell(zeros(3, 10, device="meta")),
    "parameters_on_meta": lambda cell, kind: cell.to("meta")(zeros(3, 10)),
    "state_tensor": lambda cell, kind: cell(zeros(3, 10), zeros(2, 3, 20) if has_c(kind) else "h"),
}


def rows(for_all: dict, for_lstm: dict) -> pytest.MarkDecorator:
    found = [(kind, name, call) for name, call in for_all.items() for kind in KINDS]
    found += [("LSTM", name, call) for name, call in for_lstm.items()]
    return pytest.mark.parametrize(
        ("kind", "call"), [r[::2] for r in found], ids=[f"{r[0]}-{r[1]}" for r in found]
    )


grad_modes = pytest.mark.parametrize("grad", [False, True], ids=["no_grad", "grad"])


def errors_of(kind: str, call: Callable, grad: bool) -> list[Exception]:
    errors = []
    for package in (nn, fastlstm):
        cell = build(package, kind, 10, 20, cell=True)
        with torch.set_grad_enabled(grad), pytest.raises(Exception) as caught:
            call(cell, kind)
        errors.append(caught.value)
    return errors


@grad_modes
@rows(ERRORS, ERRORS_LSTM)
def test_fails_as_torch_nn_does(kind: str, call: Callable, grad: bool) -> None:
    expected, found = errors_of(kind, call, grad)
    assert type(found) is type(expected), f"{found!r}, torch.nn: {expected!r}"
    wanted = str(expected)
    if isinstance(expected, AttributeError):
        wanted = wanted.partition(" has no")[0]
    assert wanted in str(found)


@grad_modes
@rows(CLASS_ONLY, {})
def test_fails_with_the_class_of_torch_nn(kind: str, call: Callable, grad: bool) -> None:
    expected, found = errors_of(kind, call, grad)
    assert type(found) is type(expected), f"{found!r}, torch.nn: {expected!r}"
    assert "mat1" not in str(found)


@grad_modes
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("call", "dim"), RANK.values(), ids=RANK)
def test_state_of_the_wrong_rank(kind: str, call: Callable, dim: int, grad: bool) -> None:
    expected, found = errors_of(kind, call, grad)
    assert type(found) is type(expected), f"{found!r}, torch.nn: {expected!r}"
    assert str(found) == f"Expected 2D hidden0 (batch x hidden_size), but got {dim}D tensor"
    if HAS_WORDS_FOR_RANK:
        assert str(found) in str(expected)


@grad_modes
@pytest.mark.parametrize("dtype", [torch.bool, torch.complex64], ids=["bool", "complex"])
@pytest.mark.parametrize("kind", KINDS)
def test_boolean_or_complex_input_is_a_type_error(kind: str, dtype, grad: bool) -> None:
    words = f"input must be a floating-point tensor, got {dtype}"
    cell = build(fastlstm, kind, 10, 20, cell=True)
    for input in (zeros(3, 10, dtype=dtype), zeros(10, dtype=dtype)):
        with torch.set_grad_enabled(grad), pytest.raises(TypeError, match=words):
            cell(input)
    weights = (zeros(20, 10), zeros(20, 20))
    with torch.set_grad_enabled(grad), pytest.raises(TypeError, match=words):
        fastlstm.functional.rnn_cell(zeros(3, 10, dtype=dtype), zeros(3, 20), *weights)


@pytest.mark.parametrize("package", [nn, fastlstm], ids=["torch", "fastlstm"])
def test_nonlinearity_is_read_when_called(package) -> None:
    cell = package.RNNCell(5, 4, nonlinearity="silu")
    with pytest.raises(RuntimeError, match="Unknown nonlinearity: silu"):
        cell(torch.randn(3, 5))
    cell.nonlinearity = "relu"
    assert (cell(torch.randn(3, 5)) >= 0).all()
    assert repr(cell) == "RNNCell(5, 4, nonlinearity=relu)"


def test_functional_arguments() -> None:
    x, h, w_ih, w_hh = torch.randn(3, 5), torch.randn(3, 4), torch.randn(16, 5), torch.randn(16, 4)
    cell = fastlstm.functional.lstm_cell
    with pytest.raises(TypeError, match="pair"):
        cell(x, h, w_ih, w_hh)
    with pytest.raises(RuntimeError, match="two hidden states, got 3"):
        cell(x, (h, h, h), w_ih, w_hh)
    for bad in ((x, (h, None), w_ih, w_hh), (x, (h, h), None, w_hh), (x, (h, h), w_ih, None)):
        with pytest.raises(TypeError, match="must be a Tensor, got NoneType"):
            cell(*bad)
    with pytest.raises(TypeError, match="hx must be a Tensor, got tuple"):
        fastlstm.functional.rnn_cell(x, (h,), w_ih[:4], w_hh[:4])
    for bad in (
        (x, (h, h), w_ih[:15], w_hh),
        (x, (h, h[:2]), w_ih, w_hh),
        (x[:2], (h, h), w_ih, w_hh),
    ):
        with pytest.raises(RuntimeError):
            cell(*bad)
    with pytest.raises(ValueError, match="nonlinearity must be 'tanh' or 'relu', got 'elu'"):
        fastlstm.functional.rnn_cell(x, h, w_hh[:4, :], w_hh[:4], nonlinearity="elu")
