"""fastlstm.functional.lstm against torch.nn, on the shapes and tensors that break kernels."""

import gc
import weakref
from collections.abc import Callable
from itertools import chain, combinations

import pytest
import torch
import torch.nn.functional as F
from helpers import (
    OUTPUTS,
    Case,
    Values,
    assert_error_within,
    assert_parity,
    assert_same,
    cases,
    dtypes,
    ours,
    plain,
    solve,
    theirs,
)
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

import fastlstm

# Around the tile: 6 rows, 16 or 8 or 1 lanes, and sizes that are a multiple of nothing.
SMALL = Case(5, 7, 4, 17)


@pytest.mark.paths
@dtypes
@cases(
    Case(1, 1, 1, 1),
    Case(3, 2, 1, 1),
    Case(1, 5, 2, 3),
    Case(7, 1, 4, 17),
    Case(4, 6, 5, 59),
    Case(3, 7, 65, 64),
    Case(3, 13, 64, 65),
    Case(3, 32, 7, 111),
    Case(3, 50, 33, 128),
    Case(4, 2, 3, 500),
    Case(33, 5, 1, 16),
    Case(5, 3, 4, 17, state=False),
    Case(5, 3, 4, 17, bias=False),
    Case(5, 3, 4, 17, bias=False, state=False),
    Case(6, 5, 3, 33, batch_first=True),
    Case(6, 5, 3, 33, bidirectional=True),
    Case(6, 1, 3, 70, bidirectional=True, batch_first=True),
    Case(5, 3, 4, 18, layers=3),
    Case(5, 7, 4, 18, layers=2, bidirectional=True, bias=False),
)
def test_parity(case: Case, dtype: torch.dtype) -> None:
    assert_parity(case, dtype)


@pytest.mark.paths
@cases(*(Case(3, n, 5, 33) for n in (2, 3, 4, 5, 6, 8, 11, 12, 13, 31)))
def test_parity_at_every_tile_height(case: Case) -> None:
    assert_parity(case, torch.float32)


@pytest.mark.paths
@cases(*(Case(3, 3, 2, h) for h in (2, 4, 7, 8, 9, 15, 31, 32, 47, 48, 49)))
def test_parity_at_every_tile_width(case: Case) -> None:
    assert_parity(case, torch.float32)


@pytest.mark.parametrize(
    ("case", "dtype"),
    [
        pytest.param(Case(1000, 1, 3, 17), torch.float32, id="T1000-N1-f32"),
        pytest.param(Case(1000, 7, 8, 64), torch.float32, id="T1000-N7-f32"),
        pytest.param(Case(500, 2, 3, 17), torch.float64, id="T500-N2-f64"),
    ],
)
def test_parity_over_long_sequences(case: Case, dtype: torch.dtype) -> None:
    assert_parity(case, dtype)


# The kernels work a sequence off in chunks of 4 MB of gates: 6 MB of them in float32, 12 in float64.
CHUNKED = Case(90, 40, 3, 100, bidirectional=True, batch_first=True)


@dtypes
def test_parity_over_several_chunks(dtype: torch.dtype) -> None:
    assert_parity(CHUNKED, dtype)


def test_token_ids_over_several_chunks() -> None:
    assert_parity(
        CHUNKED,
        torch.float32,
        change=lambda values: _tokens(CHUNKED, values, CHUNKED.I),
        baseline=_theirs_on_one_hot,
    )


@pytest.mark.paths
@pytest.mark.parametrize(
    "outputs",
    list(chain.from_iterable(combinations(OUTPUTS, n) for n in (1, 2))),
    ids="+".join,
)
def test_gradient_of_some_outputs_only(outputs: tuple[str, ...]) -> None:
    assert_parity(SMALL, torch.float32, outputs=outputs)
    assert_parity(Case(4, 3, 2, 9, layers=2, bidirectional=True), torch.float32, outputs=outputs)


@pytest.mark.parametrize(
    "wanted",
    [["x"], ["h0"], ["c0"], ["w_ih_0"], ["w_hh_0"], ["b_ih_0"], ["b_hh_0"], ["x", "c0"]],
    ids="+".join,
)
@pytest.mark.parametrize("bidirectional", [False, True], ids=["forward", "bidirectional"])
def test_only_some_inputs_need_a_gradient(wanted: list[str], bidirectional: bool) -> None:
    case = Case(5, 7, 4, 17, bidirectional=bidirectional)
    values, cotangents = case.problem(torch.float32), case.cotangents(torch.float32)
    everything = solve(ours, case, values, cotangents)
    some = solve(ours, case, values, cotangents, wanted)
    assert_same(some, {name: everything[name] for name in some})


def _sliced(v: Tensor) -> Tensor:
    big = torch.full([2 * n + 3 for n in v.shape], float("nan"), dtype=v.dtype)
    view = big[tuple(slice(1, 1 + 2 * n, 2) for n in v.shape)]
    return view.copy_(v)


def _transposed(v: Tensor) -> Tensor:
    return v.mT.contiguous().mT if v.dim() > 1 else v


def _reordered(v: Tensor) -> Tensor:
    """Strides of dimension 0 the smallest."""
    return v.movedim(0, -1).contiguous().movedim(-1, 0)


def _expanded(v: Tensor) -> Tensor:
    """Every row of the last but one dimension the same, with stride 0."""
    return v[..., :1, :].expand_as(v) if v.dim() > 1 else v[:1].expand_as(v)


def _offset(v: Tensor) -> Tensor:
    """Contiguous, but not aligned to more than one element."""
    return torch.cat([v.new_zeros(1), v.flatten()])[1:].view_as(v)


layouts = pytest.mark.parametrize(
    "layout", [_sliced, _transposed, _reordered, _expanded, _offset], ids=lambda f: f.__name__[1:]
)


@pytest.mark.paths
@layouts
@pytest.mark.parametrize("names", [["x"], ["h0", "c0"], ["w_"], ["b_"]], ids=lambda n: n[0])
def test_inputs_of_any_layout(layout: Callable[[Tensor], Tensor], names: list[str]) -> None:
    def change(values: Values) -> Values:
        return {
            n: layout(v) if any(n.startswith(name) for name in names) else v
            for n, v in values.items()
        }

    assert_parity(SMALL, torch.float32, change=change)


@layouts
@pytest.mark.parametrize("batch_first", [False, True], ids=["time_first", "batch_first"])
def test_cotangents_of_any_layout(layout: Callable[[Tensor], Tensor], batch_first: bool) -> None:
    case = Case(5, 7, 4, 17, batch_first=batch_first)
    values, cotangents = case.problem(torch.float32), case.cotangents(torch.float32)
    odd = {n: layout(g) for n, g in cotangents.items()}
    plain_cotangents = {n: g.contiguous() for n, g in odd.items()}
    assert_same(solve(ours, case, values, odd), solve(ours, case, values, plain_cotangents))


def test_the_cotangent_of_sum_has_stride_zero() -> None:
    case = SMALL
    values = case.problem(torch.float64)
    x = values["x"].requires_grad_()
    (grad,) = torch.autograd.grad(ours(case, values)["output"].sum(), x)
    (expected,) = torch.autograd.grad(theirs(case, values)["output"].sum(), x)
    torch.testing.assert_close(grad, expected, rtol=1e-12, atol=1e-12)


@dtypes
def test_unbatched(dtype: torch.dtype) -> None:
    case = Case(5, 1, 4, 17, layers=2, bidirectional=True)
    values = case.problem(dtype)
    expected = solve(ours, case, values, None)
    single = values | {"x": values["x"][:, 0], "h0": values["h0"][:, 0], "c0": values["c0"][:, 0]}
    found = solve(ours, case, single, None)
    assert_same(found, {n: v.squeeze(1) for n, v in expected.items()})


@dtypes
@pytest.mark.parametrize("batch_first", [False, True], ids=["time_first", "batch_first"])
def test_empty_batch(dtype: torch.dtype, batch_first: bool) -> None:
    case = Case(5, 0, 4, 17, layers=2, bidirectional=True, batch_first=batch_first)
    values, cotangents = case.problem(dtype), case.cotangents(dtype)
    found = solve(ours, case, values, cotangents)
    assert_same(found, solve(plain, case, values, cotangents))
    assert found["output"].shape == theirs(case, values)["output"].shape


@dtypes
@pytest.mark.parametrize("batch_first", [False, True], ids=["time_first", "batch_first"])
def test_empty_sequence_leaves_the_state_alone(dtype: torch.dtype, batch_first: bool) -> None:
    """torch.nn refuses a sequence of length 0; here it is a chunk like any other."""
    case = Case(0, 3, 4, 17, layers=2, bidirectional=True, batch_first=batch_first)
    values, cotangents = case.problem(dtype), case.cotangents(dtype)
    found = solve(ours, case, values, cotangents, ["h0", "c0"])
    assert found["output"].shape == ((3, 0, 34) if batch_first else (0, 3, 34))
    assert torch.equal(found["h_n"], values["h0"])
    assert torch.equal(found["c_n"], values["c0"])
    assert torch.equal(found["grad h0"], cotangents["h_n"])
    assert torch.equal(found["grad c0"], cotangents["c_n"])


@pytest.mark.paths
@dtypes
def test_saturated_gates(dtype: torch.dtype) -> None:
    def change(values: Values) -> Values:
        return values | {"b_ih_0": 8.0 * values["b_ih_0"].sign()}

    assert_parity(Case(4, 7, 3, 17), dtype, change=change)
    case = Case(4, 7, 3, 17, scale=1e30)
    found = solve(ours, case, case.problem(dtype), case.cotangents(dtype))
    assert all(v.isfinite().all() for v in found.values())
    assert found["output"].abs().max() == 1.0


@pytest.mark.paths
@dtypes
def test_denormal_values(dtype: torch.dtype) -> None:
    tiny = torch.finfo(dtype).tiny

    def change(values: Values) -> Values:
        return values | {n: values[n] * (tiny / 16) for n in ("x", "h0", "c0")}

    assert_parity(Case(6, 7, 3, 17, bias=False), dtype, change=change)


def _other_rows(v: Tensor, row: int, dim: int) -> Tensor:
    return v[(slice(None),) * dim + ([n for n in range(v.size(dim)) if n != row],)]


@pytest.mark.paths
@dtypes
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")], ids=str)
@pytest.mark.parametrize("where", ["x", "h0", "c0"])
def test_nan_and_inf_stay_in_their_row(dtype: torch.dtype, bad: float, where: str) -> None:
    case, row = Case(6, 13, 4, 17), 4
    values, cotangents = case.problem(dtype), case.cotangents(dtype)
    poisoned = values | {where: values[where].clone()}
    poisoned[where][3 if where == "x" else 0, row, 2] = bad
    clean, found = (solve(ours, case, v, cotangents) for v in (values, poisoned))
    expected = solve(plain, case, poisoned, cotangents)
    for name in (*OUTPUTS, "grad x", "grad h0", "grad c0"):
        assert torch.equal(_other_rows(found[name], row, 1), _other_rows(clean[name], row, 1)), name
    for name in found:
        # Sums over the batch: inf * 0 is NaN, but a gate that is 1e-38 for torch's 0 makes it inf.
        of_weight = name[:6] in ("grad w", "grad b")
        mine, theirs = (
            v.nan_to_num(0, 0, 0) if of_weight else v for v in (found[name], expected[name])
        )
        torch.testing.assert_close(mine, theirs, equal_nan=True, rtol=1e-4, atol=1e-5, msg=name)
        assert torch.equal(found[name].isfinite(), expected[name].isfinite()), name
    if where == "x":
        assert torch.equal(found["output"][:3], clean["output"][:3])


@pytest.mark.paths
@dtypes
@cases(Case(6, 13, 4, 33), Case(6, 5, 4, 17, layers=2, bidirectional=True))
def test_rows_do_not_feel_their_neighbours(case: Case, dtype: torch.dtype) -> None:
    values, cotangents = case.problem(dtype), case.cotangents(dtype)
    other, other_cotangents = case.problem(dtype, seed=1), case.cotangents(dtype, seed=1)
    for n in range(case.N):
        for name in ("x", "h0", "c0"):
            other[name][:, n] = values[name][:, n]
        for name in OUTPUTS:
            other_cotangents[name][:, n] = cotangents[name][:, n]
        if n == case.N // 2:
            break
    for name in case.weight_names:
        other[name] = values[name]
    a = solve(ours, case, values, cotangents)
    b = solve(ours, case, other, other_cotangents)
    for name in (*OUTPUTS, "grad x", "grad h0", "grad c0"):
        assert torch.equal(a[name][:, : n + 1], b[name][:, : n + 1]), name
        assert not torch.equal(a[name][:, n + 1 :], b[name][:, n + 1 :]), name


@pytest.mark.paths
@dtypes
@cases(
    Case(9, 1, 3, 64),
    Case(9, 2, 3, 500),
    Case(9, 13, 3, 59),
    Case(5, 50, 7, 128),
    Case(5, 3, 4, 18, layers=2, bidirectional=True),
)
def test_bitwise_the_same_for_any_number_of_threads(case: Case, dtype: torch.dtype) -> None:
    values, cotangents = case.problem(dtype), case.cotangents(dtype)
    torch.set_num_threads(1)
    expected = solve(ours, case, values, cotangents)
    for threads in (2, 3, 8):
        torch.set_num_threads(threads)
        assert_same(solve(ours, case, values, cotangents), expected)


@cases(Case(9, 2, 3, 111), Case(5, 50, 7, 64), Case(5, 3, 4, 18, bidirectional=True))
def test_bitwise_repeatable(case: Case) -> None:
    values, cotangents = case.problem(torch.float32), case.cotangents(torch.float32)
    torch.set_num_threads(2)
    expected = solve(ours, case, values, cotangents)
    for _ in range(30):
        assert_same(solve(ours, case, values, cotangents), expected)


@cases(Case(5, 7, 4, 17), Case(5, 7, 4, 17, layers=2, bidirectional=True, batch_first=True))
def test_forward_is_the_same_with_and_without_grad(case: Case) -> None:
    values = case.problem(torch.float32)
    assert_same(_forward_with_grad(case, values), solve(ours, case, values, None))


def _forward_with_grad(case: Case, values: Values) -> Values:
    leaves = {n: v.clone().requires_grad_() for n, v in values.items()}
    return {n: v.detach() for n, v in ours(case, leaves).items()}


def _states(lstm: Callable, case: Case, values: Values) -> Values:
    output, (h_n, c_n), states = lstm(
        values["x"],
        (values["h0"], values["c0"]),
        case.weights(values),
        batch_first=case.batch_first,
        bidirectional=case.bidirectional,
        return_states=True,
    )
    return (
        {"output": output, "h_n": h_n, "c_n": c_n}
        | {f"h{k}": h for k, h in enumerate(states.h)}
        | {f"c{k}": c for k, c in enumerate(states.c)}
    )


@pytest.mark.paths
@cases(
    Case(6, 7, 4, 17),
    Case(6, 7, 4, 17, batch_first=True),
    Case(5, 3, 4, 17, layers=2, bidirectional=True, batch_first=True),
)
def test_return_states(case: Case) -> None:
    """Every cell and hidden state, and the gradient that comes in through each of them."""

    def my_states(case: Case, values: Values) -> Values:
        return _states(fastlstm.functional.lstm, case, values)

    def reference_states(case: Case, values: Values) -> Values:
        return _states(fastlstm.reference.lstm, case, values)

    values = case.problem(torch.float32)
    with torch.no_grad():
        shapes = {n: v.shape for n, v in reference_states(case, values).items()}
    everything = tuple(shapes)
    for chosen in (everything, ("c0",), ("h0", "c_n"), (f"c{case.layers - 1}", "output")):
        cotangents = {n: torch.randn(shapes[n]) for n in chosen}
        wide = [{n: v.double() for n, v in d.items()} for d in (values, cotangents)]
        found = solve(my_states, case, values, cotangents)
        base = solve(reference_states, case, values, cotangents)
        true = solve(reference_states, case, *wide)
        for name in found:
            assert_error_within(name, found[name], base[name], true[name])
    assert torch.equal(found[f"h{case.layers - 1}"], found["output"])
    if not case.bidirectional:
        last = found["c0"][:, -1] if case.batch_first else found["c0"][-1]
        assert torch.equal(last, found["c_n"][0])
    assert_same({n: found[n] for n in OUTPUTS}, _forward_with_grad(case, values))


def test_return_states_unbatched_and_without_grad() -> None:
    case = Case(5, 1, 4, 17, layers=2)
    values = case.problem(torch.float64)
    with torch.no_grad():
        expected = _states(fastlstm.functional.lstm, case, values)
        single = values | {n: values[n][:, 0] for n in ("x", "h0", "c0")}
        found = _states(fastlstm.functional.lstm, case, single)
    assert_same(found, {n: v.squeeze(1) for n, v in expected.items()})


def _tokens(
    case: Case, values: Values, vocabulary: int, dtype: torch.dtype = torch.int64
) -> Values:
    size = (case.N, case.T) if case.batch_first else (case.T, case.N)
    tokens = torch.randint(vocabulary, size).to(dtype)
    # Both ends of the range, and a token that occurs more than once.
    tokens.view(-1)[:3] = torch.tensor([0, vocabulary - 1, 0])
    return values | {"x": tokens}


def _theirs_on_one_hot(case: Case, values: Values) -> Values:
    one_hot = F.one_hot(values["x"], case.I).to(values["w_ih_0"].dtype)
    return theirs(case, values | {"x": one_hot})


def _theirs_on_embedding(case: Case, values: Values) -> Values:
    return theirs(case, values | {"x": F.embedding(values["x"], values["embedding"])})


token_cases = cases(
    Case(5, 7, 4, 17),
    Case(1, 3, 2, 5),
    Case(9, 6, 65, 33, batch_first=True),
    Case(5, 3, 11, 18, layers=2, bidirectional=True),
    Case(5, 3, 4, 17, bias=False, state=False),
)


@pytest.mark.paths
@token_cases
def test_token_ids_are_one_hot_vectors(case: Case) -> None:
    assert_parity(
        case,
        torch.float32,
        change=lambda values: _tokens(case, values, case.I),
        baseline=_theirs_on_one_hot,
    )


@pytest.mark.paths
@token_cases
@pytest.mark.parametrize("vocabulary", [3, 64])
def test_token_ids_with_an_embedding(case: Case, vocabulary: int) -> None:
    def change(values: Values) -> Values:
        values = _tokens(case, values, vocabulary)
        return values | {"embedding": torch.randn(vocabulary, case.I)}

    assert_parity(case, torch.float32, change=change, baseline=_theirs_on_embedding)


@pytest.mark.paths
@token_cases
def test_token_ids_in_float64(case: Case) -> None:
    values = _tokens(case, case.problem(torch.float64), 3 if case.I > 2 else 2)
    cotangents = case.cotangents(torch.float64)
    for extra, baseline in (
        ({}, _theirs_on_one_hot),
        ({"embedding": torch.randn(5, case.I, dtype=torch.float64)}, _theirs_on_embedding),
    ):
        found = solve(ours, case, values | extra, cotangents)
        expected = solve(baseline, case, values | extra, cotangents)
        for name in expected:
            torch.testing.assert_close(
                found[name], expected[name], rtol=1e-11, atol=1e-12, msg=name
            )


def test_unseen_tokens_have_no_gradient() -> None:
    case = Case(4, 3, 9, 17)
    values = case.problem(torch.float32) | {"embedding": torch.randn(20, 9)}
    values["x"] = torch.randint(5, 8, (4, 3))
    cotangents = case.cotangents(torch.float32)
    table = solve(ours, case, values, cotangents)["grad embedding"]
    assert (table[:5] == 0).all() and (table[8:] == 0).all()
    del values["embedding"]
    w_ih = solve(ours, case, values, cotangents)["grad w_ih_0"]
    assert (w_ih[:, :5] == 0).all() and (w_ih[:, 8:] == 0).all()
    assert (w_ih[:, 5:8] != 0).any()


@pytest.mark.parametrize("embed", [False, True], ids=["one_hot", "embedding"])
@pytest.mark.parametrize(
    "dtype", [torch.uint8, torch.int8, torch.int16, torch.int32], ids=lambda d: str(d)[6:]
)
def test_token_ids_of_any_integer_type(dtype: torch.dtype, embed: bool) -> None:
    case = Case(5, 7, 9, 17)
    values = _tokens(case, case.problem(torch.float32), case.I)
    values |= {"embedding": torch.randn(9, 9)} if embed else {}
    cotangents = case.cotangents(torch.float32)
    expected = solve(ours, case, values, cotangents)
    assert_same(solve(ours, case, values | {"x": values["x"].to(dtype)}, cotangents), expected)


@pytest.mark.parametrize("embed", [False, True], ids=["one_hot", "embedding"])
@pytest.mark.parametrize("layout", ["sliced", "transposed", "expanded"])
def test_token_ids_of_any_layout(layout: str, embed: bool) -> None:
    case = Case(5, 7, 9, 17)
    values = _tokens(case, case.problem(torch.float32), case.I)
    values |= {"embedding": torch.randn(9, 9)} if embed else {}
    if layout == "sliced":
        big = torch.full((12, 16), -1)
        odd = big[1:11:2, 1:15:2].copy_(values["x"])
    elif layout == "transposed":
        odd = values["x"].t().contiguous().t()
    else:
        odd = values["x"][:, :1].expand(5, 7)
    assert not odd.is_contiguous()
    cotangents = case.cotangents(torch.float32)
    expected = solve(ours, case, values | {"x": odd.contiguous()}, cotangents)
    assert_same(solve(ours, case, values | {"x": odd}, cotangents), expected)


@pytest.mark.parametrize(("T", "N"), [(0, 3), (4, 0)], ids=["T0", "N0"])
def test_no_token_at_all(T: int, N: int) -> None:
    case = Case(T, N, 9, 17)
    values = case.problem(torch.float32) | {"x": torch.zeros(T, N, dtype=torch.int64)}
    output = solve(ours, case, values, None)["output"]
    assert output.shape == (T, N, 17)
    values["embedding"] = torch.randn(9, 9)
    assert solve(ours, case, values, None)["output"].shape == (T, N, 17)


@pytest.mark.parametrize("bad", [-1, 9, 2**40, -(2**40)])
@pytest.mark.parametrize("embed", [False, True], ids=["one_hot", "embedding"])
def test_token_out_of_range(bad: int, embed: bool) -> None:
    case = Case(5, 7, 4 if embed else 9, 17)
    values = case.problem(torch.float32) | {"x": torch.zeros(5, 7, dtype=torch.int64)}
    values |= {"embedding": torch.randn(9, 4)} if embed else {}
    values["x"][4, 6] = bad
    with pytest.raises(IndexError, match=rf"(?s)input.*{bad}"):
        ours(case, values)


def _leaves(values: Values) -> Values:
    return {n: v.clone().requires_grad_(v.is_floating_point()) for n, v in values.items()}


@pytest.mark.parametrize("kind", ["float", "one_hot", "embedding"])
def test_backward_may_run_many_times(kind: str) -> None:
    case = Case(5, 7, 9, 17, layers=2)
    values = case.problem(torch.float32)
    values = values if kind == "float" else _tokens(case, values, 9)
    values |= {"embedding": torch.randn(9, 9)} if kind == "embedding" else {}
    leaves = _leaves(values)
    wanted = [v for v in leaves.values() if v.requires_grad]
    results = list(ours(case, leaves).values())
    cotangents = [torch.randn_like(r) for r in results]
    first = torch.autograd.grad(results, wanted, cotangents, retain_graph=True)
    for _ in range(4):
        again = torch.autograd.grad(results, wanted, cotangents, retain_graph=True)
        assert all(map(torch.equal, first, again))
    last = torch.autograd.grad(results, wanted, cotangents)
    assert all(map(torch.equal, first, last))
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(results, wanted, cotangents)


def test_two_graphs_do_not_share_buffers() -> None:
    """Two forward passes, then their backward passes in the same order and in the other."""
    case = SMALL
    problems = [(case.problem(torch.float32, s), case.cotangents(torch.float32, s)) for s in (0, 1)]
    expected = [solve(ours, case, v, g) for v, g in problems]
    for order in ((0, 1), (1, 0)):
        graphs = [(leaves := _leaves(v), ours(case, leaves)) for v, _ in problems]
        for k in order:
            leaves, results = graphs[k]
            grads = torch.autograd.grad(
                list(results.values()), list(leaves.values()), list(problems[k][1].values())
            )
            for name, grad in zip(leaves, grads, strict=True):
                assert torch.equal(grad, expected[k][f"grad {name}"]), name


def _bits(t: Tensor) -> Tensor:
    """For slots that nobody has written, where a NaN would not equal itself."""
    return t.contiguous().view(torch.uint8)


@pytest.mark.parametrize("kind", ["float", "one_hot", "embedding", "bidirectional", "states"])
def test_backward_changes_nothing_that_was_there_before(kind: str) -> None:
    case = Case(5, 7, 9, 17, bidirectional=kind == "bidirectional")
    values = case.problem(torch.float32)
    values = values if kind not in ("one_hot", "embedding") else _tokens(case, values, 9)
    values |= {"embedding": torch.randn(9, 9)} if kind == "embedding" else {}
    leaves = _leaves(values)
    saved: list[Tensor] = []
    with saved_tensors_hooks(lambda t: saved.append(t.detach()) or t, lambda t: t):
        if kind == "states":
            results = _states(fastlstm.functional.lstm, case, leaves)
        else:
            results = ours(case, leaves)
    cotangents = [torch.randn_like(r) for r in results.values()]
    watched = [*saved, *(v.detach() for v in (*leaves.values(), *results.values())), *cotangents]
    before = [_bits(t).clone() for t in watched]
    wanted = [v for v in leaves.values() if v.requires_grad]
    torch.autograd.grad(list(results.values()), wanted, cotangents)
    assert saved
    assert all(map(torch.equal, before, map(_bits, watched)))


def _saved_bytes(case: Case, values: Values) -> int:
    """Bytes autograd keeps beyond ``values`` and the results, each storage counted once."""
    kept: dict[int, int] = {}

    def pack(t: Tensor) -> Tensor:
        kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with saved_tensors_hooks(pack, lambda t: t):
        results = ours(case, values)
    for t in (*values.values(), *results.values()):
        kept.pop(t.untyped_storage().data_ptr(), None)
    return sum(kept.values())


@dtypes
@pytest.mark.parametrize("kind", ["float", "one_hot", "embedding"])
def test_memory_kept_for_backward(dtype: torch.dtype, kind: str) -> None:
    """Four gates and the cell state of each step, not more: at most 5H numbers per (t, n)."""
    case = Case(60, 8, 9, 32)
    values = case.problem(dtype)
    values = values if kind == "float" else _tokens(case, values, 9)
    values |= {"embedding": torch.randn(9, 9, dtype=dtype)} if kind == "embedding" else {}
    leaves = _leaves(values)
    # Initial states may sit in a slot before the first step: T + 1. Nothing at all would mean that
    # it is kept where autograd's hooks (offloading, checkpointing) cannot see it.
    allowed = 5 * case.H * (case.T + 1) * case.N * dtype.itemsize
    assert 0 < _saved_bytes(case, leaves) <= allowed
    output = ours(case, leaves)["output"]
    assert output.untyped_storage().nbytes() <= case.H * (case.T + 1) * case.N * dtype.itemsize


def test_memory_kept_for_backward_by_two_layers() -> None:
    """The output between the layers comes on top."""
    case = Case(60, 8, 9, 32, layers=2)
    allowed = (2 * 5 + 1) * case.H * (case.T + 1) * case.N * 4
    assert _saved_bytes(case, _leaves(case.problem(torch.float32))) <= allowed


@pytest.mark.parametrize("why", ["no leaf needs it", "no_grad", "inference_mode"])
def test_nothing_is_kept_without_need(why: str) -> None:
    case = SMALL
    values = case.problem(torch.float32)
    values = values if why == "no leaf needs it" else _leaves(values)
    context = {"no_grad": torch.no_grad, "inference_mode": torch.inference_mode}
    with context.get(why, torch.enable_grad)():
        assert _saved_bytes(case, values) == 0
        results = ours(case, values)
    assert all(r.grad_fn is None and not r.requires_grad for r in results.values())


def test_no_memory_is_lost() -> None:
    """The graph of a call is freed with its results, without the cycle collector's help."""
    case = SMALL
    leaves = _leaves(case.problem(torch.float32))
    gc.disable()
    try:
        saved: list[weakref.ref] = []
        with saved_tensors_hooks(lambda t: saved.append(weakref.ref(t)) or t, lambda t: t):
            results = ours(case, leaves)
        output = weakref.ref(results["output"])
        results["output"].sum().backward()
        del results
        assert output() is None
        alive = [r() for r in saved if r() is not None]
        known = {v.data_ptr() for v in leaves.values()}
        assert all(t.data_ptr() in known for t in alive)
    finally:
        gc.enable()


@pytest.mark.paths
@cases(
    Case(5, 7, 4, 17),
    Case(5, 1, 4, 100),
    Case(5, 7, 4, 17, state=False),
    Case(5, 3, 4, 17, layers=2, bidirectional=True, batch_first=True),
)
@pytest.mark.parametrize("kind", ["float", "one_hot", "embedding"])
def test_results_do_not_depend_on_uninitialised_memory(case: Case, kind: str) -> None:
    """With these two switches torch fills every new tensor with NaN."""
    values, cotangents = case.problem(torch.float32), case.cotangents(torch.float32)
    values = values if kind == "float" else _tokens(case, values, 4)
    values |= {"embedding": torch.randn(5, 4)} if kind == "embedding" else {}
    expected = solve(ours, case, values, cotangents)
    expected_no_grad = solve(ours, case, values, None)
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    assert torch.empty(100).isnan().all()
    assert_same(solve(ours, case, values, cotangents), expected)
    assert_same(solve(ours, case, values, None), expected_no_grad)


def test_changing_a_saved_input_in_place_is_an_error() -> None:
    case = SMALL
    leaves = _leaves(case.problem(torch.float32))
    leaves["x"] = leaves["x"].detach().clone()
    output = ours(case, leaves)["output"]
    leaves["x"].add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


def test_chunks_with_carried_state_equal_one_call() -> None:
    """Truncated backpropagation's forward: three calls with the state handed on."""
    case = Case(9, 5, 4, 17, layers=2)
    values = case.problem(torch.float64)
    whole = solve(ours, case, values, None)
    outputs, state = [], {n: values[n] for n in ("h0", "c0")}
    for x in values["x"].split([4, 1, 4]):
        part = solve(ours, case, values | state | {"x": x}, None)
        outputs.append(part["output"])
        state = {"h0": part["h_n"], "c0": part["c_n"]}
    torch.testing.assert_close(torch.cat(outputs), whole["output"], rtol=1e-13, atol=1e-14)
    torch.testing.assert_close(state["c0"], whole["c_n"], rtol=1e-13, atol=1e-14)
