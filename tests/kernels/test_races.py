"""Every way in which work is divided among threads, at sizes that are really divided.

`make sanitize` runs these under ThreadSanitizer; here the bits of one thread are the yardstick.
"""

from collections.abc import Callable

import pytest
import torch
from error_rule import assert_same
from helpers import GATES, MODES, Case, Values, cases, ours, solve, with_tokens
from torch import Tensor

import fastlstm

BY_ROWS = Case(4, 16, 5, 49)
BY_UNITS = Case(4, 2, 5, 97)

# How each case is to be cut: groups of rows, threads of the largest of them.
PARTS = {BY_ROWS: (2, 1), BY_UNITS: (1, 2)}

# Beside other processes small layers may take one thread.
pytestmark = pytest.mark.alone


@pytest.mark.parametrize("case", PARTS, ids=str)
def test_the_cases_are_divided_as_their_names_say(case: Case) -> None:
    for lanes in (1, 4, 8, 16):
        shares = fastlstm._C.schedule(case.N, case.H, GATES[case.mode], 1, False, 2, lanes)
        assert all(shares)
        groups = {s["group"] for of_thread in shares for s in of_thread}
        sizes = {s["group_size"] for of_thread in shares for s in of_thread}
        assert (len(groups), max(sizes)) == PARTS[case]


def assert_same_on(threads: int, call: Callable[[], Values]) -> None:
    torch.set_num_threads(1)
    expected = call()
    torch.set_num_threads(threads)
    assert_same(call(), expected)


@pytest.mark.paths
@pytest.mark.parametrize("threads", [2, 4])
@pytest.mark.parametrize("kind", ["float", "one_hot", "embedding"])
@cases(
    BY_ROWS,
    BY_UNITS,
    Case(4, 3, 5, 97, bidirectional=True),
    Case(4, 16, 5, 49, lengths=tuple(n % 5 for n in range(16)), reset=0.2, bidirectional=True),
    Case(4, 16, 5, 49, lengths=tuple(4 - n // 4 for n in range(16)), packed=True),
    modes=MODES,
)
def test_layers_on_several_threads(case: Case, kind: str, threads: int) -> None:
    values, cotangents = case.problem(torch.float32), case.cotangents(torch.float32)
    values = values if kind == "float" else with_tokens(case, values, 5)
    values |= {"embedding": torch.randn(5, 5)} if kind == "embedding" else {}
    assert_same_on(threads, lambda: solve(ours, case, values, cotangents))


@pytest.mark.paths
@cases(Case(4, 16, 5, 49, proj_size=33), Case(4, 2, 5, 97, proj_size=40, bidirectional=True))
def test_projections_on_several_threads(case: Case) -> None:
    values, cotangents = case.problem(torch.float32), case.cotangents(torch.float32)
    assert_same_on(2, lambda: solve(ours, case, values, cotangents))


@cases(BY_ROWS, BY_UNITS, modes=MODES)
def test_layers_without_gradient_and_in_float64_on_several_threads(case: Case) -> None:
    values = case.problem(torch.float64)
    assert_same_on(2, lambda: solve(ours, case, values, None))
    assert_same_on(2, lambda: solve(ours, case, values, case.cotangents(torch.float64)))


@pytest.mark.parametrize("module", [fastlstm.LSTM, fastlstm.GRU, fastlstm.RNN])
@cases(BY_ROWS, BY_UNITS)
def test_bfloat16_layers_on_several_threads(case: Case, module: type) -> None:
    layer = module(case.I, case.H, bidirectional=True, dtype=torch.bfloat16)
    x = torch.randn(case.T, case.N, case.I, dtype=torch.bfloat16)
    assert_same_on(2, lambda: output_and_grads(layer, x))


@pytest.mark.paths
@pytest.mark.parametrize("cell", [fastlstm.LSTMCell, fastlstm.GRUCell, fastlstm.RNNCell])
def test_cells_on_several_threads(cell: type) -> None:
    layer = cell(50, 65)
    x = torch.randn(40, 50)
    assert_same_on(2, lambda: output_and_grads(layer, x))


def output_and_grads(layer: torch.nn.Module, x: Tensor) -> Values:
    x = x.clone().requires_grad_()
    result = layer(x)
    output = result[0] if isinstance(result, tuple) else result
    grads = torch.autograd.grad(output.square().sum(), [x, *layer.parameters()])
    return {"output": output.detach(), **{f"grad {k}": g for k, g in enumerate(grads)}}


def test_calls_from_several_python_threads() -> None:
    """Each with a team of its own."""
    from concurrent.futures import ThreadPoolExecutor

    values, cotangents = BY_UNITS.problem(torch.float32), BY_UNITS.cotangents(torch.float32)
    torch.set_num_threads(1)
    expected = solve(ours, BY_UNITS, values, cotangents)

    def call(_: int) -> Values:
        torch.set_num_threads(2)
        return solve(ours, BY_UNITS, values, cotangents)

    with ThreadPoolExecutor(max_workers=3) as pool:
        for found in pool.map(call, range(6)):
            assert_same(found, expected)
