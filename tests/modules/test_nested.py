"""Jagged nested tensors: the bits of ``lengths``, in the rows that came in."""

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from cell_kinds import has_c
from error_rule import assert_same
from helpers import Values, modes
from module_pairs import build
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

import fastlstm

LENGTHS = (3, 0, 6, 1, 6)

MARKS = pytest.mark.filterwarnings("ignore:.*nested tensors is in prototype stage:UserWarning")
pytestmark = MARKS
layouts = pytest.mark.parametrize("batch_first", [False, True], ids=["time_first", "batch_first"])


def rows_of(lengths=LENGTHS, *width: int, dtype=torch.float32) -> list[Tensor]:
    return [torch.randn(n, *(width or (4,))).to(dtype) for n in lengths]


def jagged(rows: list[Tensor], **options) -> Tensor:
    return torch.nested.nested_tensor(rows, layout=torch.jagged, **options)


def padded(rows: list[Tensor], batch_first: bool) -> Tensor:
    return pad_sequence(rows, batch_first=batch_first)


def same_rows(nested: Tensor, dense: Tensor, lengths, batch_first: bool) -> None:
    """Fail unless ``nested`` holds the rows of a padded tensor."""
    dense = dense if batch_first else dense.transpose(0, 1)
    for found, row, n in zip(nested.unbind(), dense, lengths, strict=True):
        assert torch.equal(found, row[:n])


def hiddens(hidden) -> tuple[Tensor, ...]:
    return hidden if isinstance(hidden, tuple) else (hidden,)


def state(rnn: nn.Module, N: int):
    count = len(rnn.all_weights)
    h = torch.randn(count, N, rnn.proj_size or rnn.hidden_size).to(rnn.weight_hh_l0.dtype)
    return (h, torch.randn(count, N, rnn.hidden_size)) if has_c(rnn.mode) else h


def results(rnn: nn.Module, x: Tensor, cotangent: Callable, **kwargs) -> Values:
    """What a call returns and every gradient, the output's being that of ``cotangent``."""
    torch.manual_seed(1)  # of dropout
    output, hidden = rnn(x, **kwargs)
    loss = cotangent(output) + sum(h.sin().sum() for h in hiddens(hidden))
    wanted = {n: p for n, p in rnn.named_parameters()} | ({"x": x} if x.requires_grad else {})
    grads = torch.autograd.grad(loss, list(wanted.values()))
    found = {"output": output} | {f"h{k}": h for k, h in enumerate(hiddens(hidden))}
    return found | {f"grad {n}": g for n, g in zip(wanted, grads, strict=True)}


def assert_same_as_lengths(rnn: nn.Module, rows: list[Tensor], **kwargs) -> None:
    lengths, batch_first = [len(row) for row in rows], rnn.batch_first
    is_float = rows[0].is_floating_point()
    x = jagged(rows, requires_grad=is_float)
    dense = padded(rows, batch_first).requires_grad_(is_float)
    mine = results(rnn, x, lambda y: (y.values() ** 2).sum(), **kwargs)
    if "reset" in kwargs:
        kwargs["reset"] = padded(list(kwargs["reset"].unbind()), batch_first)
    theirs = results(rnn, dense, lambda y: (y**2).sum(), lengths=lengths, **kwargs)
    for name in ("output", "grad x") if is_float else ("output",):
        found = mine.pop(name)
        assert found.size(1) == x.size(1)
        same_rows(found, theirs.pop(name), lengths, batch_first)
    assert_same(mine, theirs)


@layouts
@modes
@pytest.mark.parametrize(
    "options", [{}, {"num_layers": 2, "bidirectional": True, "dropout": 0.5}], ids=["one", "stack"]
)
def test_same_bits_as_with_lengths(mode: str, options: dict, batch_first: bool) -> None:
    """Outputs, states and gradients, dropout included."""
    rnn = build(fastlstm, mode, 4, 7, batch_first=batch_first, **options)
    assert_same_as_lengths(rnn, rows_of())
    assert_same_as_lengths(rnn, rows_of((5, 5, 5)), hx=state(rnn, 3))


@layouts
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_same_bits_in_other_dtypes(dtype: torch.dtype, batch_first: bool) -> None:
    rnn = fastlstm.GRU(4, 7, 2, batch_first=batch_first, dtype=dtype)
    assert_same_as_lengths(rnn, rows_of(dtype=dtype))


def test_same_bits_with_a_projection() -> None:
    assert_same_as_lengths(fastlstm.LSTM(4, 7, proj_size=3, bidirectional=True), rows_of())


@layouts
@modes
def test_reset(mode: str, batch_first: bool) -> None:
    rnn = build(fastlstm, mode, 4, 7, bidirectional=True, batch_first=batch_first)
    reset = jagged([torch.rand(n) < 0.4 for n in LENGTHS])
    assert_same_as_lengths(rnn, rows_of(), reset=reset)


@layouts
@pytest.mark.parametrize("V", [0, 5, 50], ids=["one_hot", "small_table", "large_table"])
def test_tokens(V: int, batch_first: bool) -> None:
    rnn = fastlstm.GRU(4, 7, batch_first=batch_first)
    rows = [torch.randint(V or 4, (n,)) for n in LENGTHS]
    for table in (torch.randn(V, 4), nn.Embedding(V, 4, padding_idx=1)) if V else (None,):
        assert_same_as_lengths(rnn, rows, embedding=table)


@layouts
@pytest.mark.parametrize(
    "options",
    [{"max_norm": 0.5}, {"scale_grad_by_freq": True}, {"padding_idx": 1, "sparse": True}],
    ids=str,
)
def test_tokens_of_a_module_that_is_called(options: dict, batch_first: bool) -> None:
    """Without the padding: no row of it is renormalised or counted that is not there."""
    rnn = fastlstm.GRU(4, 7, batch_first=batch_first)
    tokens = jagged([torch.randint(1, 5, (n,)) for n in LENGTHS])
    table, found = nn.Embedding(5, 4, **options), []
    other = copy.deepcopy(table)
    first = table.weight[0].clone()

    def lookup(module: nn.Embedding) -> Tensor:
        # What torch's nested tensors do themselves, but for max_norm.
        return torch.nested.nested_tensor_from_jagged(module(tokens.values()), tokens.offsets())

    for output, own in (
        (rnn(tokens, embedding=table)[0], table),
        (rnn(lookup(other))[0], other),
    ):
        (gradient,) = torch.autograd.grad(output.values().sin().sum(), own.weight)
        found.append((output.values(), own.weight, gradient.to_dense()))
    torch.testing.assert_close(*found, rtol=0, atol=0)
    assert torch.equal(table.weight[0], first)


@layouts
def test_states_of_every_step(batch_first: bool) -> None:
    lstm, rows = fastlstm.LSTM(4, 7, 2, bidirectional=True, batch_first=batch_first), rows_of()
    x = jagged(rows)
    output, hidden, states = lstm(x, return_states=True)
    _, expected, dense = lstm(padded(rows, batch_first), lengths=LENGTHS, return_states=True)
    assert states.h[-1] is output and type(states) is fastlstm.LSTMStates
    for found, own in zip(states.h + states.c, dense.h + dense.c, strict=True):
        assert found.size(1) == x.size(1)
        same_rows(found, own, LENGTHS, batch_first)
    torch.testing.assert_close(hidden, expected, rtol=0, atol=0)
    (grad,) = torch.autograd.grad(states.c[0].values().sum(), lstm.weight_ih_l0)
    (other,) = torch.autograd.grad(dense.c[0].sum(), lstm.weight_ih_l0)
    torch.testing.assert_close(grad, other)


def test_output_goes_on_as_the_input_does() -> None:
    """The same ragged dimension, so that the two add up; gradients arrive as those of any leaf."""
    rnn, x = fastlstm.GRU(4, 4), jagged(rows_of(), requires_grad=True)
    output = rnn(x)[0]
    assert output.layout == torch.jagged and output.offsets() is x.offsets()
    assert output.shape == x.shape and output.requires_grad
    head = nn.Linear(4, 3)
    head(output + x).values().sum().backward()
    assert x.grad.shape == x.shape and rnn.weight_hh_l0.grad is not None
    assert not rnn(x.detach())[0].detach().requires_grad


def test_values_that_are_leaves() -> None:
    rnn, offsets = fastlstm.GRU(4, 7), torch.tensor([0, 2, 2, 5])
    values = torch.randn(5, 4, requires_grad=True)
    for kind in (torch.int64, torch.int32):
        x = torch.nested.nested_tensor_from_jagged(values, offsets.to(kind))
        (found,) = torch.autograd.grad(rnn(x)[0].values().sum(), values)
        dense = padded([values[0:2], values[2:2], values[2:5]], False)
        (expected,) = torch.autograd.grad(rnn(dense, lengths=[2, 0, 3])[0].sum(), values)
        assert torch.equal(found, expected)


@layouts
def test_rows_with_holes_between_them(batch_first: bool) -> None:
    rnn = fastlstm.LSTM(4, 4, batch_first=batch_first)
    leaf = torch.randn(3, 6, 4, requires_grad=True)
    starts, lengths = torch.tensor([1, 0, 2]), torch.tensor([2, 0, 4])
    x = torch.nested.narrow(leaf, 1, starts, lengths, layout=torch.jagged)
    assert not x.is_contiguous()
    output = rnn(x)[0]
    rows = [row[s : s + n] for row, s, n in zip(leaf, starts, lengths, strict=True)]
    expected = rnn(padded(rows, batch_first), lengths=lengths)[0]
    same_rows(output, expected, lengths, batch_first)
    assert (output + x).shape == x.shape
    (grad,) = torch.autograd.grad(output.values().sin().sum(), leaf)
    (own,) = torch.autograd.grad(expected.sin().sum(), leaf)
    assert torch.equal(grad, own)


def test_values_past_the_last_row() -> None:
    """A buffer may be larger than its rows; what it holds there does not matter."""
    rnn, values = fastlstm.GRU(4, 7), torch.randn(9, 4)
    values[5:] = float("nan")
    x = torch.nested.nested_tensor_from_jagged(values, torch.tensor([0, 2, 5]))
    output = rnn(x)[0].values()
    assert (output[5:] == 0).all()
    assert torch.equal(output[:5], rnn(jagged([values[:2], values[2:5]]))[0].values())


@pytest.mark.parametrize("offsets", [[0], [0, 0, 0]], ids=["no_row", "empty_rows"])
@modes
def test_nothing_at_all(mode: str, offsets: list[int]) -> None:
    rnn, N = build(fastlstm, mode, 4, 7, 2, bidirectional=True), len(offsets) - 1
    x = torch.nested.nested_tensor_from_jagged(torch.randn(0, 4), torch.tensor(offsets))
    hx = state(rnn, N)
    output, hidden = rnn(x, hx)
    assert output.values().shape == (0, 14) and output.size(0) == N
    torch.testing.assert_close(hiddens(hidden), hiddens(hx), rtol=0, atol=0)


def test_values_of_any_strides() -> None:
    rnn, values, offsets = fastlstm.GRU(4, 7), torch.randn(4, 9), torch.tensor([0, 4, 9])
    x = torch.nested.nested_tensor_from_jagged(values.t(), offsets)
    dense = torch.nested.nested_tensor_from_jagged(values.t().contiguous(), offsets)
    assert torch.equal(rnn(x)[0].values(), rnn(dense)[0].values())


@modes
def test_functional(mode: str) -> None:
    module, rows = build(fastlstm, mode, 4, 7, 2), rows_of()
    x, weights = jagged(rows), [tuple(entry) for entry in module.all_weights]
    function = {"LSTM": "lstm", "GRU": "gru"}.get(mode, "rnn")
    options = {"nonlinearity": mode[4:].lower()} if function == "rnn" else {}
    for batch_first in (False, True):
        output, hidden, states = getattr(fastlstm.functional, function)(
            x, None, weights, batch_first=batch_first, return_states=True, **options
        )
        expected, own = module(x)
        assert torch.equal(output.values(), expected.values()) and output.size(1) == x.size(1)
        torch.testing.assert_close(hidden, own, rtol=0, atol=0)
        assert states.h[-1] is output


def test_under_autocast_and_inference_mode() -> None:
    lstm, x = fastlstm.LSTM(4, 7), jagged(rows_of())
    with torch.autocast("cpu", torch.bfloat16):
        output = lstm(x)[0]
        expected = lstm(padded(list(x.unbind()), False), lengths=LENGTHS)[0]
    assert output.dtype == torch.bfloat16
    same_rows(output, expected, LENGTHS, False)
    with torch.inference_mode():
        assert torch.equal(lstm(x)[0].values(), lstm(x)[0].values())


def test_checkpoint_hooks_and_converted_modules() -> None:
    seen, x = [], jagged(rows_of())
    lstm = fastlstm.convert(nn.LSTM(4, 7))
    lstm.register_forward_hook(lambda module, args, out: seen.append(out[0].layout))
    output = torch.utils.checkpoint.checkpoint(lambda x: lstm(x)[0], x, use_reentrant=False)
    output.values().sum().backward()
    assert set(seen) == {torch.jagged} and lstm.weight_hh_l0.grad is not None
    with fastlstm.patch_torch():
        patched = nn.LSTM(4, 7)
    patched.load_state_dict(lstm.state_dict())
    assert torch.equal(patched(x)[0].values(), output.values())
    again = pickle.loads(pickle.dumps(patched))
    assert torch.equal(again(x)[0].values(), output.values())


def test_second_derivatives_by_way_of_the_final_state() -> None:
    """torch's nested tensors have none themselves."""
    gru, rows = fastlstm.GRU(4, 5, dtype=torch.float64), rows_of(dtype=torch.float64)
    found = []
    for h_n in (gru(jagged(rows))[1], gru(padded(rows, False), lengths=LENGTHS)[1]):
        (first,) = torch.autograd.grad(h_n.sin().sum(), gru.weight_hh_l0, create_graph=True)
        found.append(torch.autograd.grad(first.cos().sum(), list(gru.parameters())))
    torch.testing.assert_close(*found, rtol=0, atol=0)
