"""One step: the functional cells against torch's."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
from cell_kinds import TORCH_MODES, has_c
from error_rule import assert_error_within, assert_same
from helpers import GATES, MODES, Case, Values, call, dtypes, solve, wide
from test_layouts import layouts
from torch import Tensor

import fastlstm
from fastlstm import reference


@dataclass(frozen=True)
class Cell:
    """The sizes of one problem; for ``helpers.solve`` as a ``Case`` is."""

    mode: str
    N: int
    I: int  # noqa: E741
    H: int
    bias: bool = True

    def __str__(self) -> str:
        return f"{self.mode}-N{self.N}-I{self.I}-H{self.H}" + ("" if self.bias else "-nobias")

    @property
    def outputs(self) -> tuple[str, ...]:
        return ("h", "c") if has_c(self.mode) else ("h",)

    def problem(self, dtype: torch.dtype, seed: int = 0) -> Values:
        g = torch.Generator().manual_seed(seed)
        rows, bound = GATES[self.mode] * self.H, self.H**-0.5
        shapes = {"w_ih": (rows, self.I), "w_hh": (rows, self.H)}
        shapes |= {"b_ih": (rows,), "b_hh": (rows,)} if self.bias else {}
        values = {"x": torch.randn(self.N, self.I, generator=g, dtype=torch.float64)}
        for name in self.outputs:
            values[f"{name}0"] = torch.randn(self.N, self.H, generator=g, dtype=torch.float64)
        for name, shape in shapes.items():
            values[name] = bound * (2 * torch.rand(shape, generator=g, dtype=torch.float64) - 1)
        return {name: v.to(dtype) for name, v in values.items()}

    def cotangents(self, dtype: torch.dtype, seed: int = 0) -> Values:
        g = torch.Generator().manual_seed(seed + 12345)
        return {n: torch.randn(self.N, self.H, generator=g).to(dtype) for n in self.outputs}


def _solver(functions: dict[str, Callable]) -> Callable[[Cell, Values], Values]:
    def solver(case: Cell, values: Values) -> Values:
        hx = [values["h0"], values["c0"]] if has_c(case.mode) else values["h0"]
        weights = [values[n] for n in ("w_ih", "w_hh", "b_ih", "b_hh") if n in values]
        results = functions[case.mode](values["x"], hx, *weights)
        results = results if has_c(case.mode) else (results,)
        return dict(zip(case.outputs, results, strict=True))

    return solver


def _of(module, cell: Callable) -> dict[str, Callable]:
    """The functions of ``module``, and for cells without one ``cell``, which they call."""

    def unnamed(mode: str) -> Callable:
        def step(x: Tensor, h: Tensor, *weights: Tensor) -> Tensor:
            return cell(mode, x, h, None, *weights, *[None] * (4 - len(weights)))[0]

        return step

    return {
        **{mode: unnamed(mode) for mode in MODES if mode not in TORCH_MODES},
        "LSTM": module.lstm_cell,
        "GRU": module.gru_cell,
        "RNN_TANH": module.rnn_cell,
        "RNN_RELU": lambda *args: module.rnn_cell(*args, nonlinearity="relu"),
    }


ours = _solver(_of(fastlstm.functional, fastlstm.functional._cell))
plain = _solver(_of(reference, reference.cell))
theirs = _solver(
    _of(reference, reference.cell)
    | {
        "LSTM": torch.lstm_cell,
        "GRU": torch.gru_cell,
        "RNN_TANH": torch.rnn_tanh_cell,
        "RNN_RELU": torch.rnn_relu_cell,
    }
)


def cells(*rows: tuple) -> pytest.MarkDecorator:
    cases = [Cell(mode, *row) for mode in MODES for row in rows]
    return pytest.mark.parametrize("case", cases, ids=str)


def assert_parity(
    case: Cell, dtype: torch.dtype, change: Callable[[Values], Values] = lambda values: values
) -> None:
    """As ``error_rule.assert_parity``, but float64 has no oracle: there both agree to 12 digits."""
    rows: dict[str, list[tuple[Tensor, Tensor, Tensor]]] = {}
    for seed in range(max(2, min(48, 10_000 // (case.N * case.H)))):
        values, cotangents = change(case.problem(dtype, seed)), case.cotangents(dtype, seed)
        mine = solve(ours, case, values, cotangents)
        base = solve(theirs, case, values, cotangents)
        true = solve(plain, case, wide(values), wide(cotangents))
        for name in mine:
            rows.setdefault(name, []).append((mine[name], base[name], true[name]))
    for name, triples in rows.items():
        found, base, true = (torch.stack(part) for part in zip(*triples, strict=True))
        if dtype == torch.float64:
            torch.testing.assert_close(found, base, rtol=1e-12, atol=1e-13, msg=name)
        else:
            assert_error_within(name, found, base, true)


@pytest.mark.paths
@dtypes
@cells(
    (1, 1, 1),
    (1, 4, 17),
    (7, 4, 17),
    (7, 4, 17, False),
    (6, 65, 64),
    (13, 5, 59),
    (50, 33, 128),
    (2, 3, 500),
)
def test_parity(case: Cell, dtype: torch.dtype) -> None:
    assert_parity(case, dtype)


@pytest.mark.slow
@pytest.mark.paths
@layouts
@pytest.mark.parametrize("names", [["x"], ["h0", "c0"], ["w_"], ["b_"]], ids=lambda n: n[0])
@cells((7, 4, 17))
def test_inputs_of_any_layout(
    case: Cell, layout: Callable[[Tensor], Tensor], names: list[str]
) -> None:
    def change(values: Values) -> Values:
        return {
            n: layout(v) if any(n.startswith(name) for name in names) else v
            for n, v in values.items()
        }

    assert_parity(case, torch.float32, change)


@layouts
@cells((7, 4, 17))
def test_cotangents_of_any_layout(case: Cell, layout: Callable[[Tensor], Tensor]) -> None:
    values, cotangents = case.problem(torch.float32), case.cotangents(torch.float32)
    odd = {n: layout(g) for n, g in cotangents.items()}
    straight = {n: g.contiguous() for n, g in odd.items()}
    assert_same(solve(ours, case, values, odd), solve(ours, case, values, straight))


@cells((7, 4, 17))
def test_only_some_inputs_need_a_gradient(case: Cell) -> None:
    values, cotangents = case.problem(torch.float32), case.cotangents(torch.float32)
    everything = solve(ours, case, values, cotangents)
    for wanted in values:
        some = solve(ours, case, values, cotangents, [wanted])
        assert_same(some, {name: everything[name] for name in some})


@pytest.mark.paths
@pytest.mark.parametrize("solver", [ours, plain], ids=["ours", "plain"])
@pytest.mark.parametrize("absent", ["b_ih", "b_hh"])
@cells((7, 4, 17))
def test_one_bias_without_the_other(
    case: Cell, absent: str, solver: Callable[[Cell, Values], Values]
) -> None:
    """The one that is None is like zeros."""
    values = case.problem(torch.float32)
    values[absent].zero_()
    wanted = [n for n in values if n != absent]

    def with_one(case: Cell, values: Values) -> Values:
        return solver(case, values | {absent: None})

    for cotangents in (case.cotangents(torch.float32), None):
        expected = solve(solver, case, values, cotangents, wanted)
        assert_same(solve(with_one, case, values, cotangents, wanted), expected)


@pytest.mark.parametrize("output", ["h", "c"])
def test_gradient_of_one_output_of_the_lstm_cell(output: str) -> None:
    case = Cell("LSTM", 7, 4, 17)
    values = case.problem(torch.float64)
    cotangents = {output: case.cotangents(torch.float64)[output]}
    found, expected = (solve(solver, case, values, cotangents) for solver in (ours, theirs))
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-12, atol=1e-13, msg=name)


@dtypes
@cells((3, 4, 17))
def test_without_a_batch(case: Cell, dtype: torch.dtype) -> None:
    values = case.problem(dtype)
    expected = solve(ours, case, values, None)
    for n in range(case.N):
        row = values | {name: values[name][n] for name in ("x", "h0", "c0") if name in values}
        found = solve(ours, case, row, None)
        assert_same(found, {name: v[n] for name, v in expected.items()})


@dtypes
@cells((0, 4, 17))
def test_empty_batch(case: Cell, dtype: torch.dtype) -> None:
    values, cotangents = case.problem(dtype), case.cotangents(dtype)
    assert_same(solve(ours, case, values, cotangents), solve(theirs, case, values, cotangents))


@pytest.mark.paths
@pytest.mark.alone
@cells((13, 4, 33), (50, 7, 128))
def test_rows_threads_and_grad_do_not_matter(case: Cell) -> None:
    values, cotangents = case.problem(torch.float32), case.cotangents(torch.float32)
    expected = solve(ours, case, values, cotangents)
    for threads in (2, 3, 8):
        torch.set_num_threads(threads)
        assert_same(solve(ours, case, values, cotangents), expected)
    torch.set_num_threads(1)
    assert_same(solve(ours, case, values, None), {n: expected[n] for n in case.outputs})
    rows = ["x", *(f"{n}0" for n in case.outputs)]
    some = solve(
        ours,
        replace(case, N=5),
        values | {n: values[n][3:8] for n in rows},
        {n: g[3:8] for n, g in cotangents.items()},
    )
    for name in (*case.outputs, *(f"grad {n}" for n in rows)):
        assert torch.equal(some[name], expected[name][3:8]), name


@pytest.mark.paths
@cells((7, 4, 17))
def test_nan_stays_in_its_row(case: Cell) -> None:
    values, cotangents = case.problem(torch.float32), case.cotangents(torch.float32)
    clean = solve(ours, case, values, cotangents)
    rows = ("x", *(f"{n}0" for n in case.outputs))
    for where in rows:
        poisoned = values | {where: values[where].clone()}
        poisoned[where][3, 2] = float("nan")
        found = solve(ours, case, poisoned, cotangents)
        expected = solve(theirs, case, poisoned, cotangents)
        others = [n for n in range(case.N) if n != 3]
        for name in (*case.outputs, *(f"grad {n}" for n in rows)):
            assert torch.equal(found[name][others], clean[name][others]), name
        for name in found:
            assert torch.equal(found[name].isnan(), expected[name].isnan()), name


@cells((7, 4, 17), (7, 4, 17, False))
def test_does_not_depend_on_uninitialised_memory(case: Cell) -> None:
    values, cotangents = case.problem(torch.float32), case.cotangents(torch.float32)
    expected = solve(ours, case, values, cotangents)
    torch.use_deterministic_algorithms(True)
    assert torch.empty(100).isnan().all()
    assert_same(solve(ours, case, values, cotangents), expected)


@cells((5, 4, 17))
def test_steps_equal_the_layer(case: Cell) -> None:
    """A cell called T times is the layer, to the accuracy of another order of the sums."""
    values = case.problem(torch.float64)
    x = torch.randn(6, case.N, case.I, dtype=torch.float64)
    step = {n: values[n] for n in values if n != "x"}
    outputs = []
    for x_t in x:
        found = ours(case, step | {"x": x_t})
        outputs.append(found["h"])
        step |= {f"{n}0": v for n, v in found.items()}
    layer = Case(len(x), case.N, case.I, case.H, mode=case.mode)
    weights = {f"{n}_0": values[n] for n in ("w_ih", "w_hh", "b_ih", "b_hh")}
    states = {f"{n}0": values[f"{n}0"][None] for n in case.outputs}
    output, *_ = call(fastlstm.functional, layer, {"x": x} | states | weights)
    torch.testing.assert_close(torch.stack(outputs), output, rtol=1e-13, atol=1e-14)


@cells((3, 2, 4))
def test_gradients_of_gradients(case: Cell) -> None:
    values = case.problem(torch.float64)

    def function(*tensors: Tensor) -> tuple[Tensor, ...]:
        named = dict(zip(values, tensors, strict=True))
        return tuple(ours(case, named).values())

    leaves = [v.clone().requires_grad_() for v in values.values()]
    assert torch.autograd.gradcheck(function, leaves)
    assert torch.autograd.gradgradcheck(function, leaves)
