"""Bad calls fail, and in the way torch.nn.LSTM fails."""

import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import fastlstm


def x(*shape: int) -> Tensor:
    return torch.zeros(shape or (5, 3, 10))


def state(*shape: int) -> tuple[Tensor, Tensor]:
    return torch.zeros(shape), torch.zeros(shape)


CONSTRUCTOR = {
    "no_arguments": lambda lstm: lstm(),
    "unknown_argument": lambda lstm: lstm(10, 20, foo=1),
    "nonlinearity": lambda lstm: lstm(10, 20, nonlinearity="relu"),
    "dropout_above_1": lambda lstm: lstm(10, 20, 2, dropout=2),
    "dropout_negative": lambda lstm: lstm(10, 20, 2, dropout=-0.1),
    "dropout_bool": lambda lstm: lstm(10, 20, 2, dropout=True),
    "dropout_string": lambda lstm: lstm(10, 20, 2, dropout="a"),
    "bias_not_bool": lambda lstm: lstm(10, 20, bias=1),
    "batch_first_not_bool": lambda lstm: lstm(10, 20, batch_first=1),
    "input_size_float": lambda lstm: lstm(10.0, 20),
    "input_size_0": lambda lstm: lstm(0, 20),
    "hidden_size_string": lambda lstm: lstm(10, "20"),
    "hidden_size_0": lambda lstm: lstm(10, 0),
    "hidden_size_negative": lambda lstm: lstm(10, -1),
    "num_layers_0": lambda lstm: lstm(10, 20, 0),
    "proj_size_negative": lambda lstm: lstm(10, 20, proj_size=-1),
    "proj_size_hidden_size": lambda lstm: lstm(10, 20, proj_size=20),
}

FORWARD = {
    "input_1d": lambda lstm: lstm(10, 20)(x(10)),
    "input_4d": lambda lstm: lstm(10, 20)(x(1, 5, 3, 10)),
    "input_size": lambda lstm: lstm(10, 20)(x(5, 3, 11)),
    "input_size_unbatched": lambda lstm: lstm(10, 20)(x(5, 11)),
    "input_size_batch_first": lambda lstm: lstm(10, 20, batch_first=True)(x(3, 5, 9)),
    "input_double": lambda lstm: lstm(10, 20)(x().double()),
    "input_float_for_double": lambda lstm: lstm(10, 20).double()(x()),
    "input_complex": lambda lstm: lstm(10, 20)(x().to(torch.complex64)),
    "h0_layers": lambda lstm: lstm(10, 20)(x(), state(2, 3, 20)),
    "h0_batch": lambda lstm: lstm(10, 20)(x(), state(1, 5, 20)),
    "h0_hidden_size": lambda lstm: lstm(10, 20)(x(), state(1, 3, 21)),
    "c0_batch": lambda lstm: lstm(10, 20)(x(), (x(1, 3, 20), x(1, 4, 20))),
    "c0_hidden_size": lambda lstm: lstm(10, 20)(x(), (x(1, 3, 20), x(1, 3, 10))),
    "h0_batch_first": lambda lstm: lstm(10, 20, batch_first=True)(x(), state(1, 3, 20)),
    "h0_bidirectional": lambda lstm: lstm(10, 20, bidirectional=True)(x(), state(1, 3, 20)),
    "h0_two_layers": lambda lstm: lstm(10, 20, 2)(x(), state(1, 3, 20)),
    "hx_2d_for_batch": lambda lstm: lstm(10, 20)(x(), state(1, 20)),
    "hx_mixed_dims": lambda lstm: lstm(10, 20)(x(), (x(1, 3, 20), x(1, 20))),
    "hx_3d_without_batch": lambda lstm: lstm(10, 20)(x(5, 10), state(1, 1, 20)),
    "hx_unbatched_size": lambda lstm: lstm(10, 20)(x(5, 10), state(1, 21)),
    "input_on_meta": lambda lstm: lstm(10, 20)(x().to("meta")),
    "parameters_on_meta": lambda lstm: lstm(10, 20, device="meta")(x()),
    "state_on_meta": lambda lstm: lstm(10, 20)(x(), tuple(s.to("meta") for s in state(1, 3, 20))),
}

# Here torch.nn fails by accident somewhere inside, so that only the class is worth having.
CLASS_ONLY = {
    "state_double": lambda lstm: lstm(10, 20)(x(), tuple(s.double() for s in state(1, 3, 20))),
    "c0_double": lambda lstm: lstm(10, 20)(x(), (x(1, 3, 20), x(1, 3, 20).double())),
    "state_float_for_double": lambda lstm: lstm(10, 20).double()(x().double(), state(1, 3, 20)),
    "three_states": lambda lstm: lstm(10, 20)(x(), (x(1, 3, 20),) * 3),
}


def error_of(call: Callable, lstm: type) -> Exception:
    with pytest.raises(Exception) as caught:
        call(lstm)
    return caught.value


def on_one_line(message: str) -> str:
    return re.sub(r"\s+", " ", message)


@pytest.mark.parametrize("name", [*CONSTRUCTOR, *FORWARD])
def test_fails_as_torch_nn_does(name: str) -> None:
    call = (CONSTRUCTOR | FORWARD)[name]
    expected, found = error_of(call, nn.LSTM), error_of(call, fastlstm.LSTM)
    assert type(found) is type(expected), f"{found!r}, torch.nn: {expected!r}"
    if name in ("no_arguments", "unknown_argument", "nonlinearity"):
        # Python words these, and names whose __init__ it is.
        expected = TypeError(str(expected).partition("__init__() ")[2])
        expected = TypeError(str(expected).partition(":")[0])
    assert on_one_line(str(expected)) in on_one_line(str(found))


@pytest.mark.parametrize("name", CLASS_ONLY)
def test_fails_with_the_class_of_torch_nn(name: str) -> None:
    expected, found = (error_of(CLASS_ONLY[name], lstm) for lstm in (nn.LSTM, fastlstm.LSTM))
    assert type(found) is type(expected), f"{found!r}, torch.nn: {expected!r}"
    assert "mkldnn" not in str(found) and "mat1" not in str(found)


def test_state_not_a_pair() -> None:
    """torch.nn lets indexing fail; any of the classes a caller would expect will do."""
    for hx in (x(1, 3, 20), (x(1, 3, 20),), (None, None)):
        with pytest.raises((TypeError, ValueError, IndexError, RuntimeError, AttributeError)):
            fastlstm.LSTM(10, 20)(x(), hx)


def test_dropout_warning_is_torchs() -> None:
    for lstm in (nn.LSTM, fastlstm.LSTM):
        with pytest.warns(UserWarning, match="dropout option adds dropout after all but last"):
            lstm(10, 20, dropout=0.5)


def test_sequence_of_length_0_is_no_error_here() -> None:
    with pytest.raises(RuntimeError, match="larger than 0"):
        nn.LSTM(10, 20)(x(0, 3, 10))
    assert fastlstm.LSTM(10, 20)(x(0, 3, 10))[0].shape == (0, 3, 20)


BAD_TYPE = (TypeError, ValueError, RuntimeError)


def tokens(*shape: int) -> Tensor:
    return torch.zeros(shape or (5, 3), dtype=torch.int64)


def test_bool_input() -> None:
    with pytest.raises(BAD_TYPE, match="bool"):
        fastlstm.LSTM(10, 20)(tokens().bool())
    with pytest.raises(BAD_TYPE, match="bool"):
        fastlstm.LSTM(10, 20)(tokens().bool(), embedding=x(7, 10))


@pytest.mark.parametrize("shape", [(), (5, 3, 10)], ids=["0d", "3d"])
def test_token_dimensions(shape: tuple[int, ...]) -> None:
    ids = torch.zeros(shape, dtype=torch.int64)
    with pytest.raises(BAD_TYPE, match=rf"got {len(shape)}"):
        fastlstm.LSTM(10, 20)(ids)


@pytest.mark.parametrize(
    ("ids", "table", "bad", "last"),
    [
        (tokens() + 10, None, 10, 9),
        (tokens() - 3, None, -3, 9),
        (tokens() + 7, x(7, 10), 7, 6),
        (tokens() - 1, x(7, 10), -1, 6),
        ((tokens() + 200).to(torch.uint8), None, 200, 9),
        ((tokens() - 100).to(torch.int8), x(7, 10), -100, 6),
    ],
    ids=["10", "-3", "table-7", "table--1", "uint8-200", "table-int8--100"],
)
def test_token_range(ids: Tensor, table: Tensor | None, bad: int, last: int) -> None:
    """The message names the argument, the range (to its last id or its size) and the value."""
    with pytest.raises(IndexError) as caught:
        fastlstm.LSTM(10, 20)(ids, embedding=table)
    message = str(caught.value)
    assert re.search(r"\binput\b|\btokens?\b", message), message
    assert re.search(rf"(?<!\d){last}\b|(?<!\d){last + 1}\b", message), message
    assert re.search(rf"(?<![\d-]){bad}\b", message), message


@pytest.mark.parametrize(
    "table",
    [x(7, 9), x(7, 11), x(10), x(1, 7, 10), x(7, 10).double(), tokens(7, 10), x(7, 10).to("meta")],
    ids=["narrow", "wide", "1d", "3d", "double", "int", "meta"],
)
def test_embedding(table: Tensor) -> None:
    with pytest.raises(BAD_TYPE, match="embedding"):
        fastlstm.LSTM(10, 20)(tokens(), embedding=table)


def test_embedding_with_float_input() -> None:
    with pytest.raises(BAD_TYPE, match="embedding"):
        fastlstm.LSTM(10, 20)(x(), embedding=x(7, 10))


def test_empty_embedding() -> None:
    with pytest.raises(IndexError):
        fastlstm.LSTM(10, 20)(tokens(), embedding=x(0, 10))
    assert fastlstm.LSTM(10, 20)(tokens(5, 0), embedding=x(0, 10))[0].shape == (5, 0, 20)


W = (x(80, 10), x(80, 20), x(80), x(80))


@pytest.mark.parametrize(
    "weights",
    [
        [],
        [(W[0],)],
        [W, W],
        [(x(80, 11), *W[1:])],
        [(x(79, 10), *W[1:])],
        [(W[0], x(80, 21), *W[2:])],
        [(W[0], x(60, 20), *W[2:])],
        [(*W[:2], x(79), W[3])],
        [(*W[:2], W[2], x(80, 1))],
        [(W[0].double(), *W[1:])],
        [(*W[:3], W[3].double())],
        [(W[0], W[1].to("meta"), *W[2:])],
    ],
    ids=[
        "none",
        "one_weight",
        "second_layer_width",
        "w_ih_columns",
        "w_ih_rows",
        "w_hh_columns",
        "w_hh_rows",
        "b_ih_size",
        "b_hh_dims",
        "w_ih_dtype",
        "b_hh_dtype",
        "w_hh_device",
    ],
)
def test_functional_weights(weights: list[tuple[Tensor, ...]]) -> None:
    """The functional API sees weights no module has checked: never a crash, never a number."""
    with pytest.raises((TypeError, ValueError, RuntimeError, IndexError)):
        fastlstm.functional.lstm(x(), None, weights)


def test_functional_odd_number_of_directions() -> None:
    with pytest.raises((TypeError, ValueError, RuntimeError, IndexError)):
        fastlstm.functional.lstm(x(), None, [W], bidirectional=True)


@pytest.mark.parametrize(
    ("what", "input", "hx"),
    [
        ("input_size", x(5, 3, 11), None),
        ("input_dims", x(10), None),
        ("input_dtype", x().double(), None),
        ("state_batch", x(), state(1, 4, 20)),
        ("state_layers", x(), state(2, 3, 20)),
        ("state_size", x(), state(1, 3, 21)),
        ("state_dtype", x(), tuple(s.double() for s in state(1, 3, 20))),
        ("state_device", x(), tuple(s.to("meta") for s in state(1, 3, 20))),
        ("tokens", tokens() + 10, None),
        ("bool", tokens().bool(), None),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_functional_arguments(what: str, input: Tensor, hx: tuple[Tensor, Tensor] | None) -> None:
    with pytest.raises((TypeError, ValueError, RuntimeError, IndexError)):
        fastlstm.functional.lstm(input, hx, [W])
