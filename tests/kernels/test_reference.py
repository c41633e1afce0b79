"""The reference loops against torch.nn, in float64: the ground under all other tests."""

from dataclasses import replace
from itertools import product

import pytest
import torch
from cell_kinds import GATES, has_c
from error_rule import max_error
from helpers import TORCH_MODES, Case, Values, call, cases, named, plain, solve, theirs
from oracle import HAS_LONG_DOUBLE, long_double_oracle
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence

from fastlstm import reference

EXACT = {"rtol": 0, "atol": 1e-10}


def module(mode: str, *args, **options) -> nn.RNNBase:
    if mode.startswith("RNN"):
        return nn.RNN(*args, nonlinearity=mode[4:].lower(), **options).double()
    return getattr(nn, mode)(*args, **options).double()


def assert_equal_to(rnn: nn.RNNBase, expected, found, inputs: list[Tensor]) -> None:
    """Outputs and the gradients of ``inputs``; both are as torch.nn returns them."""

    def flat(output, hidden) -> tuple[Tensor, ...]:
        return output, *(hidden if has_c(rnn.mode) else (hidden,))

    expected, found = flat(*expected), flat(*found)
    torch.testing.assert_close(found, expected, **EXACT)
    cotangents = [torch.randn_like(t) for t in expected]
    grads = [
        torch.autograd.grad(results, inputs, cotangents, materialize_grads=True)
        for results in (found, expected)
    ]
    torch.testing.assert_close(*grads, **EXACT)


def loop(rnn: nn.RNNBase, input: Tensor, hx, **options):
    function = {"LSTM": reference.lstm, "GRU": reference.gru}.get(rnn.mode, reference.rnn)
    if function is reference.rnn:
        options["nonlinearity"] = rnn.nonlinearity
    weights = [[getattr(rnn, n) for n in names] for names in rnn._all_weights]
    return function(
        input,
        hx,
        weights,
        batch_first=rnn.batch_first,
        bidirectional=rnn.bidirectional,
        dropout=rnn.dropout,
        training=rnn.training,
        **options,
    )


def state_of(rnn: nn.RNNBase, *batch: int):
    D = 2 if rnn.bidirectional else 1

    def state(width: int) -> Tensor:
        size = (rnn.num_layers * D, *batch, width)
        return torch.randn(size, dtype=torch.float64, requires_grad=True)

    h0 = state(rnn.proj_size or rnn.hidden_size)
    return (h0, state(rnn.hidden_size)) if has_c(rnn.mode) else h0


@pytest.mark.parametrize("mode", [*TORCH_MODES, "proj"])
@pytest.mark.parametrize("bidirectional", [False, True], ids=["forward", "bidirectional"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "nobias"])
@pytest.mark.parametrize("layout", ["time_first", "batch_first", "unbatched", "unbatched_first"])
@pytest.mark.filterwarnings("ignore:dropout option adds dropout")
def test_equals_torch_nn(mode: str, bidirectional: bool, bias: bool, layout: str) -> None:
    """Outputs and all gradients, with the dropout masks that the same seed gives torch.nn."""
    options = {"proj_size": 3} if mode == "proj" else {}
    mode = "LSTM" if mode == "proj" else mode
    batch_first = layout in ("batch_first", "unbatched_first")
    size = (5,) if layout.startswith("unbatched") else (5, 2)
    batch = () if len(size) == 1 else (size[0] if batch_first else size[1],)
    x = torch.randn(*size, 3, dtype=torch.float64, requires_grad=True)
    for layers, dropout, with_state, training in (
        (1, 0.0, True, True),
        (1, 0.5, False, True),
        (3, 0.5, True, True),
        (3, 0.5, False, False),
        (3, 1.0, True, True),
    ):
        rnn = module(
            mode, 3, 4, layers, bias=bias, batch_first=batch_first, dropout=dropout,
            bidirectional=bidirectional, **options,
        )  # fmt: skip
        rnn.train(training)
        hx = state_of(rnn, *batch) if with_state else None
        torch.manual_seed(1)
        expected = rnn(x, hx)
        torch.manual_seed(1)
        found = loop(rnn, x, hx)
        states = [] if hx is None else list(hx) if has_c(mode) else [hx]
        assert_equal_to(rnn, expected, found, [x, *rnn.parameters(), *states])


@pytest.mark.parametrize("mode", [*TORCH_MODES, "proj"])
@pytest.mark.parametrize("bidirectional", [False, True], ids=["forward", "bidirectional"])
def test_packed_rows_equal_torch_nn(mode: str, bidirectional: bool) -> None:
    options = {"proj_size": 3} if mode == "proj" else {}
    mode = "LSTM" if mode == "proj" else mode
    rnn = module(mode, 3, 4, 2, dropout=0.5, bidirectional=bidirectional, **options)
    packed = pack_sequence([torch.randn(n, 3, dtype=torch.float64) for n in (5, 3, 3, 1)])
    data = packed.data.requires_grad_()
    hx = state_of(rnn, 4)
    torch.manual_seed(1)
    output, hidden = rnn(packed, hx)
    torch.manual_seed(1)
    found = loop(rnn, data, hx, batch_sizes=packed.batch_sizes)
    states = list(hx) if has_c(mode) else [hx]
    assert_equal_to(rnn, (output.data, hidden), found, [data, *rnn.parameters(), *states])


RAGGED = (
    Case(5, 4, 3, 4, bidirectional=True, lengths=(2, 5, 0, 1)),
    Case(5, 4, 3, 4, layers=2, batch_first=True, lengths=(2, 5, 0, 1)),
    Case(5, 4, 3, 4, bidirectional=True, reset=0.4),
    Case(6, 4, 3, 4, layers=2, bidirectional=True, lengths=(3, 6, 0, 1), reset=0.4),
    Case(6, 4, 3, 4, batch_first=True, bidirectional=True, lengths=(3, 6, 2, 1), reset=0.4),
)


@pytest.mark.skipif(not HAS_LONG_DOUBLE, reason="long double is no wider than double here")
@cases(
    Case(6, 3, 4, 5),
    Case(4, 2, 3, 5, layers=2, bidirectional=True, batch_first=True),
    Case(4, 2, 3, 5, bias=False, state=False),
    Case(5, 4, 3, 4, layers=2, bidirectional=True, lengths=(5, 3, 3, 1), packed=True),
    *RAGGED,
    modes=TORCH_MODES,
)
def test_equals_the_equations_worked_by_hand(case: Case) -> None:
    """Against the forward and backward equations written out in long double."""
    values, cotangents = case.problem(torch.float64), case.cotangents(torch.float64)
    found = solve(plain, case, values, cotangents)
    expected = long_double_oracle(case, values, cotangents)
    assert found.keys() == expected.keys()
    for name in expected:
        assert max_error(found[name], expected[name]) < 1e-14, name


@pytest.mark.skipif(not HAS_LONG_DOUBLE, reason="long double is no wider than double here")
@cases(*(replace(case, proj_size=3) for case in (Case(4, 2, 3, 5, layers=2), *RAGGED)))
def test_projection_equals_the_equations_worked_by_hand(case: Case) -> None:
    test_equals_the_equations_worked_by_hand(case)


@cases(
    Case(5, 4, 3, 4, bidirectional=True, lengths=(2, 5, 0, 1)),
    Case(5, 4, 3, 4, layers=2, batch_first=True, state=False, lengths=(2, 5, 0, 5)),
    modes=TORCH_MODES,
)
def test_lengths_equal_torch_nn_on_packed_rows(case: Case) -> None:
    values, cotangents = case.problem(torch.float64), case.cotangents(torch.float64)
    values["x"][case.padding] = float("nan")
    found = solve(plain, case, values, cotangents)
    torch.testing.assert_close(found, solve(theirs, case, values, cotangents), **EXACT)


def row_by_row(case: Case, values: Values) -> Values:
    """The same by calls on one sequence at a time, which is over where the next one begins."""
    rows: list[Values] = []
    T, N = case.T, case.N
    x, reset = values["x"], values.get("reset", torch.zeros(case.size, dtype=torch.bool))
    if case.batch_first:
        x, reset = x.transpose(0, 1), reset.t()
    lengths = values.get("lengths", torch.full((N,), T)).tolist()
    for n in range(N):
        starts = [t for t in range(1, lengths[n]) if reset[t, n]]
        bounds = [0, *starts, lengths[n]]
        pieces = []
        for begin, end in zip(bounds, bounds[1:], strict=False):
            inner = {k: v for k, v in values.items() if k not in ("lengths", "reset")}
            inner["x"] = x[begin:end, n : n + 1]
            for name in case.state_names:
                state = values[name][:, n : n + 1].clone()
                if begin > 0 or (lengths[n] and reset[0, n]):
                    state[0] = 0
                if end < lengths[n] and case.bidirectional:
                    state[1] = 0
                inner[name] = state
            one = replace(case, N=1, T=end - begin, lengths=None, reset=0, batch_first=False)
            pieces.append(plain(one, inner))
        row = {"output": torch.cat([p["output"] for p in pieces])}
        row["output"] = nn.functional.pad(row["output"], (0, 0, 0, 0, 0, T - lengths[n]))
        for name in case.outputs[1:]:
            ends = (pieces[-1][name][:1], pieces[0][name][1:])
            row[name] = torch.cat(ends)
        rows.append(row)
    results = {n: torch.cat([row[n] for row in rows], dim=1) for n in case.outputs}
    if case.batch_first:
        results["output"] = results["output"].transpose(0, 1)
    return results


@cases(
    *(case for case in RAGGED if case.layers == 1),
    Case(4, 3, 2, 5, bidirectional=True, reset=1.0),
    Case(4, 3, 2, 5, bidirectional=True, reset=1.0, lengths=(4, 2, 0)),
    modes=TORCH_MODES,
)
def test_every_sequence_might_as_well_be_alone(case: Case) -> None:
    """Lengths, and resets in both directions, put differently: one call for each sequence."""
    for seed in range(3):
        values = case.problem(torch.float64, seed)
        torch.testing.assert_close(plain(case, values), row_by_row(case, values), **EXACT)


@pytest.mark.parametrize("mode", TORCH_MODES)
def test_reset_past_the_end_of_a_row_has_no_effect(mode: str) -> None:
    case = Case(5, 3, 2, 4, mode=mode, bidirectional=True, lengths=(3, 0, 5))
    values = case.problem(torch.float64)
    expected = plain(case, values)
    values["reset"] = case.padding
    assert values["reset"].any()
    torch.testing.assert_close(plain(case, values), expected, rtol=0, atol=0)


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
def test_lengths_may_be_given_in_many_ways(packed: bool) -> None:
    case = Case(5, 4, 3, 4, bidirectional=True, lengths=(5, 3, 3, 1), packed=packed)
    values = case.problem(torch.float64)
    expected = plain(case, values)
    name = "batch_sizes" if packed else "lengths"
    for lengths in (values[name].int(), values[name].to(torch.uint8)):
        assert torch.equal(plain(case, values | {name: lengths})["output"], expected["output"])
    if not packed:
        found = plain(case, values | {name: list(case.lengths)})
        assert torch.equal(found["output"], expected["output"])


@cases(Case(4, 3, 2, 5), modes=TORCH_MODES)
def test_one_layer(case: Case) -> None:
    """y and c hold every step at its own t, in both directions."""
    v = case.problem(torch.float64)
    weights = [(*case.weights(v)[0], None)]
    c0 = v.get("c0")
    y, c, h_n, c_n = reference.layer(case.mode, v["x"], v["h0"], c0, weights)
    both, c_both, *_ = reference.layer(
        case.mode,
        v["x"],
        v["h0"].expand(2, -1, -1),
        None if c0 is None else c0.expand(2, -1, -1),
        weights * 2,
    )
    backwards, c_backwards, *_ = reference.layer(case.mode, v["x"].flip(0), v["h0"], c0, weights)
    assert torch.equal(y[-1], h_n[0])
    assert torch.equal(both, torch.cat([y, backwards.flip(0)], dim=-1))
    one_step = replace(case, T=1)
    for t in range(4):
        step = plain(one_step, v | {"x": v["x"][t : t + 1]})
        torch.testing.assert_close(y[t], step["output"][0], rtol=0, atol=1e-12)
        v["h0"] = step["h_n"]
        if has_c(case.mode):
            torch.testing.assert_close(c[t], step["c_n"][0], rtol=0, atol=1e-12)
            v["c0"] = step["c_n"]
    if has_c(case.mode):
        assert torch.equal(c[-1], c_n[0])
        assert torch.equal(c_both, torch.cat([c, c_backwards.flip(0)], dim=-1))
    else:
        assert c is None and c_n is None


@pytest.mark.parametrize("mode", TORCH_MODES)
def test_cells_equal_torch_nn(mode: str) -> None:
    """The functional cells, with and without bias, with and without a batch."""
    for bias, batch in product((True, False), ((), (3,))):
        gates = GATES[mode]
        w = [torch.randn(gates * 5, n, dtype=torch.float64) for n in (2, 5)]
        w += [torch.randn(gates * 5, dtype=torch.float64) for _ in range(2)] if bias else []
        x, h, c = (torch.randn(*batch, n, dtype=torch.float64) for n in (2, 5, 5))
        if has_c(mode):
            found = reference.lstm_cell(x, (h, c), *w)
            expected = torch.lstm_cell(*_rows(x), _rows(h, c), *w)
        elif mode == "GRU":
            found = (reference.gru_cell(x, h, *w),)
            expected = (torch.gru_cell(*_rows(x, h), *w),)
        else:
            found = (reference.rnn_cell(x, h, *w, nonlinearity=mode[4:].lower()),)
            expected = (getattr(torch, f"{mode.lower()}_cell")(*_rows(x, h), *w),)
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b.view_as(a), **EXACT)


def _rows(*tensors: Tensor) -> list[Tensor]:
    return [t.view(-1, t.size(-1)) for t in tensors]


def test_unknown_nonlinearity() -> None:
    case = Case(2, 2, 2, 2, mode="RNN_TANH")
    values = case.problem(torch.float64)
    weights = case.weights(values)
    with pytest.raises(ValueError, match="nonlinearity.*'tanh' or 'relu'.*'elu'"):
        reference.rnn(values["x"], None, weights, nonlinearity="elu")
    with pytest.raises(ValueError, match="nonlinearity.*'tanh' or 'relu'.*'elu'"):
        reference.rnn_cell(values["x"][0], values["h0"][0], *weights[0], nonlinearity="elu")


@cases(
    Case(4, 3, 2, 5, layers=2, batch_first=True),
    Case(4, 3, 2, 5, layers=2, batch_first=True, lengths=(4, 2, 0)),
    modes=TORCH_MODES,
)
def test_states_of_every_layer(case: Case) -> None:
    """Taken before dropout: the masked output of layer 0 is what layer 1 saw."""
    v = case.problem(torch.float64)
    results = call(reference, case, v, dropout=0.5, training=True, return_states=True)
    found = named(case, results)
    below = plain(replace(case, layers=1), v | {n: v[n][:1] for n in case.state_names})
    assert type(results[2]) is (reference.LSTMStates if has_c(case.mode) else reference.RNNStates)
    assert torch.equal(found["h0"], below["output"])
    assert torch.equal(found["h1"], found["output"])
    for name in case.outputs[1:]:
        for layer in range(2):
            every = found[f"{name[0]}{layer}"]
            assert torch.equal(every[0, -1], found[name][layer, 0])
            if case.lengths:
                assert torch.equal(every[1, 1], found[name][layer, 1])
                assert (every[case.padding] == 0).all()


@cases(Case(4, 3, 6, 5), Case(4, 3, 6, 5, lengths=(2, 0, 4)), modes=TORCH_MODES)
def test_tokens(case: Case) -> None:
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
    if case.lengths:
        tokens[case.padding] = -100
        torch.testing.assert_close(
            plain(case, v | {"x": tokens}), plain(case, v | {"x": one_hot}), rtol=0, atol=1e-14
        )


@pytest.mark.parametrize("mode", TORCH_MODES)
@pytest.mark.parametrize("bidirectional", [False, True], ids=["forward", "bidirectional"])
def test_nothing_to_do(mode: str, bidirectional: bool) -> None:
    case = Case(0, 3, 2, 5, layers=2, bidirectional=bidirectional, mode=mode)
    v = case.problem(torch.float64)
    for extra in ({}, {"lengths": torch.zeros(3, dtype=torch.int64)}):
        results = plain(case, v | extra)
        assert results["output"].shape == (0, 3, 10 if bidirectional else 5)
        for name in case.outputs[1:]:
            assert torch.equal(results[name], v[f"{name[0]}0"])
    case = Case(4, 0, 2, 5, mode=mode)
    assert plain(case, case.problem(torch.float64))["output"].shape == (4, 0, 5)
