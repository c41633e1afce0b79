"""The reference loop against torch.nn.LSTM, in float64: the ground under all other tests."""

from itertools import product

import pytest
import torch
from helpers import HAS_LONG_DOUBLE, Case, cases, max_error, oracle, plain, solve
from torch import nn

from fastlstm import reference


@pytest.mark.parametrize("num_layers", [1, 3])
@pytest.mark.parametrize("bidirectional", [False, True], ids=["forward", "bidirectional"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "nobias"])
@pytest.mark.parametrize("layout", ["time_first", "batch_first", "unbatched", "unbatched_first"])
@pytest.mark.parametrize("dropout", [0.0, 0.5, 1.0])
@pytest.mark.filterwarnings("ignore:dropout option adds dropout")
def test_equals_torch_nn(
    num_layers: int, bidirectional: bool, bias: bool, layout: str, dropout: float
) -> None:
    """Outputs and all gradients, with the dropout masks that the same seed gives torch.nn."""
    batch_first = layout.endswith("_first") and layout != "time_first"
    lstm = nn.LSTM(3, 4, num_layers, bias, batch_first, dropout, bidirectional).double()
    size = (5,) if layout.startswith("unbatched") else (5, 2)
    batch = () if len(size) == 1 else (size[0] if batch_first else size[1],)
    x = torch.randn(*size, 3, dtype=torch.float64, requires_grad=True)
    for with_state, training in product((True, False), repeat=2):
        lstm.train(training)
        state = [
            torch.randn(len(lstm.all_weights), *batch, 4, dtype=torch.float64, requires_grad=True)
            for _ in range(2)
        ]
        hx = tuple(state) if with_state else None
        torch.manual_seed(1)
        output, hidden = lstm(x, hx)
        torch.manual_seed(1)
        output_ref, hidden_ref = reference.lstm(
            x,
            hx,
            lstm.all_weights,
            batch_first=batch_first,
            bidirectional=bidirectional,
            dropout=dropout,
            training=training,
        )
        expected, found = (output, *hidden), (output_ref, *hidden_ref)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)
        inputs = [x, *lstm.parameters(), *(state if with_state else [])]
        cotangents = [torch.randn_like(t) for t in expected]
        grads = [
            torch.autograd.grad(results, inputs, cotangents, materialize_grads=True)
            for results in (found, expected)
        ]
        torch.testing.assert_close(*grads, rtol=0, atol=1e-10)


@pytest.mark.skipif(not HAS_LONG_DOUBLE, reason="long double is no wider than double here")
@cases(
    Case(6, 3, 4, 5),
    Case(4, 2, 3, 5, layers=2, bidirectional=True, batch_first=True),
    Case(4, 2, 3, 5, bias=False, state=False),
)
def test_equals_the_equations_worked_by_hand(case: Case) -> None:
    """Against the forward and backward equations written out in long double."""
    values, cotangents = case.problem(torch.float64), case.cotangents(torch.float64)
    found = solve(plain, case, values, cotangents)
    expected = oracle(case, values, cotangents)
    for name in expected:
        assert max_error(found[name], expected[name]) < 1e-14, name


def test_one_layer() -> None:
    """y and c hold every step at its own t, in both directions."""
    case = Case(4, 3, 2, 5)
    v = case.problem(torch.float64)
    h, c = v["h0"][0], v["c0"][0]
    w = case.weights(v)[0]
    y, cells = reference.lstm_layer(v["x"], h, c, *w)
    flipped, flipped_cells = reference.lstm_layer(v["x"].flip(0), h, c, *w, reverse=True)
    for t in range(4):
        gates = v["x"][t] @ w[0].T + w[2] + h @ w[1].T + w[3]
        i, f, g, o = gates.split(5, dim=1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        torch.testing.assert_close(y[t], h, rtol=0, atol=1e-12)
        torch.testing.assert_close(cells[t], c, rtol=0, atol=1e-12)
    assert torch.equal(flipped.flip(0), y)
    assert torch.equal(flipped_cells.flip(0), cells)


def test_states_of_every_layer() -> None:
    """Taken before dropout: the masked output of layer 0 is what layer 1 saw."""
    case = Case(4, 3, 2, 5, layers=2, batch_first=True)
    v = case.problem(torch.float64)
    weights = case.weights(v)
    hx = (v["h0"], v["c0"])
    output, (h_n, c_n), states = reference.lstm(
        v["x"], hx, weights, batch_first=True, dropout=0.5, training=True, return_states=True
    )
    below, _ = reference.lstm(v["x"], (hx[0][:1], hx[1][:1]), weights[:1], batch_first=True)
    assert torch.equal(states.h[0], below)
    assert torch.equal(states.h[1], output)
    for layer in range(2):
        assert torch.equal(states.h[layer][:, -1], h_n[layer])
        assert torch.equal(states.c[layer][:, -1], c_n[layer])


def test_tokens() -> None:
    case = Case(4, 3, 6, 5)
    v = case.problem(torch.float64)
    tokens = torch.randint(6, (4, 3))
    one_hot = nn.functional.one_hot(tokens, 6).double()
    table = torch.randn(6, 6, dtype=torch.float64)
    for x, y in (
        (v | {"x": tokens}, v | {"x": one_hot}),
        (v | {"x": tokens, "embedding": table}, v | {"x": table[tokens]}),
        (v | {"x": tokens.to(torch.uint8)}, v | {"x": one_hot}),
    ):
        torch.testing.assert_close(plain(case, x), plain(case, y), rtol=0, atol=1e-14)
    for bad in (-1, 6):
        with pytest.raises(IndexError, match=rf"input.*\[0, 5\].*{bad}"):
            plain(case, v | {"x": torch.full((4, 3), bad)})


@pytest.mark.parametrize("bidirectional", [False, True], ids=["forward", "bidirectional"])
def test_nothing_to_do(bidirectional: bool) -> None:
    case = Case(0, 3, 2, 5, layers=2, bidirectional=bidirectional)
    v = case.problem(torch.float64)
    results = plain(case, v)
    assert results["output"].shape == (0, 3, 10 if bidirectional else 5)
    assert torch.equal(results["h_n"], v["h0"]) and torch.equal(results["c_n"], v["c0"])
    case = Case(4, 0, 2, 5)
    assert plain(case, case.problem(torch.float64))["output"].shape == (4, 0, 5)
