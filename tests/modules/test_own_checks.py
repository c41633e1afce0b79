"""Bad values of the arguments that torch.nn does not have, and bad calls of the functional API."""

import re

import pytest
import torch
from cell_kinds import has_c
from module_pairs import build, kinds
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_sequence

import fastlstm


def x(*shape: int) -> Tensor:
    return torch.zeros(shape or (5, 3, 10))


def tokens(*shape: int) -> Tensor:
    return torch.zeros(shape or (5, 3), dtype=torch.int64)


PACKED = pack_sequence([x(3, 10), x(2, 10)])


@kinds
@pytest.mark.parametrize("shape", [(5,), (5, 3), (5, 3, 10)], ids=["1d", "2d", "3d"])
@pytest.mark.parametrize("dtype", [torch.bool, torch.complex64], ids=["bool", "complex"])
def test_boolean_or_complex_input_is_a_type_error(kind: str, shape, dtype) -> None:
    module = build(fastlstm, kind, 10, 20)
    input = torch.zeros(shape, dtype=dtype)
    words = f"input must be a floating-point tensor or integer token ids, got {dtype}"
    state = x(1, 3, 20)
    for hx in (None, (state, state) if has_c(kind) else state):
        with pytest.raises(TypeError, match=words):
            module(input, hx)
    with pytest.raises(TypeError, match=words):
        module(PackedSequence(input, torch.tensor([2, 2, 1])))
    with pytest.raises(TypeError, match=words):
        module(input, embedding=x(7, 10))
    with pytest.raises(TypeError, match=words):
        fastlstm.functional.rnn(input, None, [(x(20, 10), x(20, 20))])


@pytest.mark.parametrize("shape", [(), (5, 3, 10)], ids=["0d", "3d"])
def test_integer_features_are_told_from_tokens(shape: tuple[int, ...]) -> None:
    """Whoever gives features as integers hears that these are taken for tokens, and what to do."""
    features = torch.zeros(shape, dtype=torch.int64)
    words = (
        rf"input has dtype torch.int64 and {len(shape)} dimensions, but integer input is token ids"
        r".*input\.to\(torch.float32\)"
    )
    with pytest.raises(ValueError, match=words):
        fastlstm.LSTM(10, 20)(features)
    sizes = torch.tensor([2, 2, 1])
    with pytest.raises(RuntimeError, match=words):
        fastlstm.LSTM(10, 20)(PackedSequence(features, sizes))
    with pytest.raises(ValueError, match=words):
        fastlstm.GRU(10, 20)(PackedSequence(features, sizes))
    with pytest.raises(RuntimeError, match=words):
        fastlstm.functional.lstm(features, None, [W])
    with pytest.raises(RuntimeError, match=words):
        fastlstm.functional.lstm(features, None, [W], batch_sizes=sizes)


@pytest.mark.parametrize(
    ("ids", "table", "bad", "last"),
    [
        (tokens() + 10, None, 10, 9),
        (tokens() - 3, None, -3, 9),
        (tokens() + 7, x(7, 10), 7, 6),
        (tokens() - 1, x(7, 10), -1, 6),
        (tokens() + 70, x(70, 10), 70, 69),
        (tokens() - 1, x(70, 10), -1, 69),
        ((tokens() + 200).to(torch.uint8), None, 200, 9),
        ((tokens() - 100).to(torch.int8), x(7, 10), -100, 6),
    ],
    ids=["10", "-3", "7", "table--1", "large-70", "large--1", "uint8-200", "int8--100"],
)
@pytest.mark.parametrize("form", ["padded", "packed"])
def test_token_range(ids: Tensor, table: Tensor | None, bad: int, last: int, form: str) -> None:
    """The message names the argument, the range (to its last id or its size) and the value."""
    input = pack_sequence(list(ids.unbind(1))) if form == "packed" else ids
    with pytest.raises(IndexError) as caught:
        fastlstm.LSTM(10, 20)(input, embedding=table)
    message = str(caught.value)
    assert re.search(r"\binput\b|\btokens?\b", message), message
    assert re.search(rf"(?<!\d){last}\b|(?<!\d){last + 1}\b", message), message
    assert re.search(rf"(?<![\d-]){bad}\b", message), message


@kinds
@pytest.mark.parametrize(
    "table",
    [
        x(7, 9),
        x(7, 11),
        x(10),
        x(1, 7, 10),
        x(7, 10).double(),
        tokens(7, 10),
        x(7, 10).to("meta"),
        x(70, 10).to("meta"),
    ],
    ids=["narrow", "wide", "1d", "3d", "double", "int", "meta", "large_meta"],
)
def test_embedding(kind: str, table: Tensor) -> None:
    with pytest.raises(RuntimeError, match="embedding"):
        build(fastlstm, kind, 10, 20)(tokens(), embedding=table)


@kinds
@pytest.mark.parametrize(
    "table", [x(7, 10).numpy(), x(7, 10).tolist(), "weight", 7], ids=["array", "list", "str", "int"]
)
def test_embedding_that_is_no_tensor(kind: str, table: object) -> None:
    words = f"embedding must be a Tensor.* got {type(table).__name__}$"
    with pytest.raises(TypeError, match=words):
        build(fastlstm, kind, 10, 20)(tokens(), embedding=table)
    with pytest.raises(TypeError, match=words):
        fastlstm.functional.lstm(tokens(), None, [W], embedding=table)


def test_embedding_with_float_input() -> None:
    with pytest.raises(TypeError, match="embedding"):
        fastlstm.LSTM(10, 20)(x(), embedding=x(7, 10))


def test_empty_embedding() -> None:
    with pytest.raises(IndexError):
        fastlstm.LSTM(10, 20)(tokens(), embedding=x(0, 10))
    assert fastlstm.LSTM(10, 20)(tokens(5, 0), embedding=x(0, 10))[0].shape == (5, 0, 20)


LENGTHS = {
    "too_few": ([5, 5], RuntimeError, r"lengths must have shape \[3\], got \[2\]"),
    "too_many": ([5, 5, 5, 5], RuntimeError, r"\[3\], got \[4\]"),
    "2d": (torch.ones(1, 3, dtype=torch.int64), RuntimeError, r"\[3\], got \[1, 3\]"),
    "0d": (torch.tensor(3), RuntimeError, r"\[3\], got \[\]"),
    "above_T": ([5, 6, 5], ValueError, r"lengths must be in \[0, 5\], got 6"),
    "negative": ([5, -1, 5], ValueError, r"lengths must be in \[0, 5\], got -1"),
    "float": ([5.0, 3.5, 5.0], TypeError, "lengths must hold integers, got torch.float32"),
    "bool": (torch.ones(3, dtype=torch.bool), TypeError, "lengths .* got torch.bool"),
}
RESET = {
    "shape": (
        torch.zeros(5, 2).bool(),
        RuntimeError,
        r"reset must have shape \[5, 3\], got \[5, 2",
    ),
    "layout": (torch.zeros(3, 5).bool(), RuntimeError, r"\[5, 3\], got \[3, 5\]"),
    "1d": (torch.zeros(5).bool(), RuntimeError, r"\[5, 3\], got \[5\]"),
    "int": (tokens(), TypeError, "reset must have dtype torch.bool, got torch.int64"),
    "meta": (tokens().bool().to("meta"), RuntimeError, "reset must be on device cpu, got meta"),
}


@kinds
@pytest.mark.parametrize(("lengths", "error", "message"), LENGTHS.values(), ids=LENGTHS)
def test_lengths(kind: str, lengths, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        build(fastlstm, kind, 10, 20)(x(), lengths=lengths)


@kinds
@pytest.mark.parametrize(("reset", "error", "message"), RESET.values(), ids=RESET)
def test_reset(kind: str, reset: Tensor, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        build(fastlstm, kind, 10, 20)(x(), reset=reset)


@kinds
def test_lengths_and_reset_in_other_layouts(kind: str) -> None:
    module = build(fastlstm, kind, 10, 20, batch_first=True)
    module(x(), lengths=[3] * 5, reset=torch.zeros(5, 3).bool())
    with pytest.raises(ValueError, match=r"\[0, 3\], got 4"):
        module(x(), lengths=[4] * 5)
    with pytest.raises(RuntimeError, match=r"\[5, 3\], got \[3, 5\]"):
        module(x(), reset=torch.zeros(3, 5).bool())
    module(x(5, 10), lengths=[3], reset=torch.zeros(5).bool())
    module(x(5, 10), lengths=3)
    module(x(5, 10), lengths=torch.tensor(3))
    with pytest.raises(RuntimeError, match=r"lengths must have shape \[1\], got \[2\]"):
        module(x(5, 10), lengths=[3, 3])
    with pytest.raises(RuntimeError, match=r"reset must have shape \[5\], got \[5, 1\]"):
        module(x(5, 10), reset=torch.zeros(5, 1).bool())


@kinds
@pytest.mark.parametrize("name", ["lengths", "reset"])
def test_padded_options_of_packed_input(kind: str, name: str) -> None:
    value = [3, 2] if name == "lengths" else torch.zeros(3, 2).bool()
    with pytest.raises(ValueError, match="packed"):
        build(fastlstm, kind, 10, 20)(PACKED, **{name: value})


@pytest.mark.parametrize(
    "batch_sizes",
    [[2, 2], [1, 2, 2], [2, 2, 2], [3, 2, 0], []],
    ids=["few_rows", "growing", "many_rows", "zero", "empty"],
)
def test_packed_batch_sizes(batch_sizes: list[int]) -> None:
    sizes = torch.tensor(batch_sizes, dtype=torch.int64)
    with pytest.raises((ValueError, RuntimeError), match="batch_sizes"):
        fastlstm.LSTM(10, 20)(PackedSequence(x(5, 10), sizes))


W = (x(80, 10), x(80, 20), x(80), x(80))
BAD = (TypeError, ValueError, RuntimeError, IndexError)


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
        [(*W[:2], x(5, 20))],
        [(W[0], x(80, 5), *W[2:], x(5, 21))],
        [(W[0], x(80, 5), *W[2:], x(6, 20))],
        [(*W, x(20, 20), None)],
        [(None, *W[1:])],
        [(W[0], None, *W[2:])],
        [(*W[:3], 3)],
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
        "w_hr_without_narrow_w_hh",
        "w_hr_columns",
        "w_hr_rows",
        "six_weights",
        "w_ih_none",
        "w_hh_none",
        "b_hh_number",
    ],
)
def test_functional_weights(weights: list[tuple[Tensor, ...]]) -> None:
    """The functional API sees weights no module has checked: never a crash, never a number."""
    with pytest.raises(BAD):
        fastlstm.functional.lstm(x(), None, weights)


def test_functional_weights_of_other_modes() -> None:
    gru = (x(60, 10), x(60, 20), x(60), x(60))
    with pytest.raises(BAD):
        fastlstm.functional.gru(x(), None, [(*W,)])
    with pytest.raises(ValueError, match="2 or 4 tensors, got 5"):
        fastlstm.functional.gru(x(), None, [(*gru, x(20, 20))])
    with pytest.raises(BAD):
        fastlstm.functional.rnn(x(), None, [gru])
    with pytest.raises(ValueError, match="nonlinearity must be 'tanh' or 'relu', got 'elu'"):
        fastlstm.functional.rnn(x(), None, [gru], nonlinearity="elu")


def test_functional_odd_number_of_directions() -> None:
    with pytest.raises(ValueError, match="2 entries a layer, got 1"):
        fastlstm.functional.lstm(x(), None, [W], bidirectional=True)


def state(*shape: int) -> tuple[Tensor, Tensor]:
    return x(*shape), x(*shape)


@pytest.mark.parametrize(
    ("what", "input", "hx", "error"),
    [
        ("input_size", x(5, 3, 11), None, RuntimeError),
        ("input_dims", x(10), None, RuntimeError),
        ("input_dtype", x().double(), None, RuntimeError),
        ("state_batch", x(), state(1, 4, 20), RuntimeError),
        ("state_layers", x(), state(2, 3, 20), RuntimeError),
        ("state_dims", x(), state(1, 20), RuntimeError),
        ("state_size", x(), state(1, 3, 21), RuntimeError),
        ("state_dtype", x(), tuple(s.double() for s in state(1, 3, 20)), RuntimeError),
        ("state_device", x(), tuple(s.to("meta") for s in state(1, 3, 20)), RuntimeError),
        ("one_state", x(), (x(1, 3, 20),), RuntimeError),
        ("state_none", x(), (x(1, 3, 20), None), TypeError),
        ("state_dict", x(), {0: x(1, 3, 20), 1: x(1, 3, 20)}, TypeError),
        ("state_tensor", x(), x(2, 1, 3, 20), TypeError),
        ("tokens", tokens() + 10, None, IndexError),
        ("bool", tokens().bool(), None, TypeError),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_functional_arguments(what: str, input: Tensor, hx, error: type) -> None:
    with pytest.raises(error):
        fastlstm.functional.lstm(input, hx, [W])


def test_functional_batch_sizes() -> None:
    sizes = torch.tensor([2, 2, 1])
    output, _ = fastlstm.functional.lstm(x(5, 10), None, [W], batch_sizes=sizes, batch_first=True)
    assert output.shape == (5, 20)
    with pytest.raises(RuntimeError, match="input must have 2 dimensions with batch_sizes, got 3"):
        fastlstm.functional.lstm(x(), None, [W], batch_sizes=sizes)
    with pytest.raises(RuntimeError):
        fastlstm.functional.lstm(x(5, 10), state(1, 3, 20), [W], batch_sizes=sizes)
    with pytest.raises(ValueError, match="packed"):
        fastlstm.functional.lstm(x(5, 10), None, [W], batch_sizes=sizes, lengths=[3, 2])
