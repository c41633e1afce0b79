"""The states of every step, and states carried from call to call."""

from collections.abc import Callable, Iterable
from dataclasses import replace

import pytest
import torch
from cell_kinds import has_c
from error_rule import assert_errors_within, assert_same
from helpers import MODES, Case, Values, call, cases, named, ours, solve, stacked, wide
from test_layouts import layouts
from torch import Tensor

import fastlstm
from fastlstm import reference


def my_states(case: Case, values: Values) -> Values:
    return named(case, call(fastlstm.functional, case, values, return_states=True))


def reference_states(case: Case, values: Values) -> Values:
    return named(case, call(reference, case, values, return_states=True))


def forward_with_grad(case: Case, values: Values) -> Values:
    leaves = {n: v.clone().requires_grad_(v.is_floating_point()) for n, v in values.items()}
    return {n: v.detach() for n, v in ours(case, leaves).items()}


def shapes_of(case: Case) -> dict[str, torch.Size]:
    with torch.no_grad():
        results = reference_states(case, case.problem(torch.float32))
    return {name: v.shape for name, v in results.items()}


def judged(case: Case, shapes: dict[str, torch.Size], seeds: Iterable[int]) -> Values:
    """Hold results and gradients to the error rule of the reference loop.

    Args:
        shapes: of the results that get a cotangent.

    Returns:
        Those of the last seed.
    """
    mine, base, true = [], [], []
    for seed in seeds:
        values = case.problem(torch.float32, seed)
        cotangents = {n: torch.randn(shape) for n, shape in shapes.items()}
        mine.append(solve(my_states, case, values, cotangents))
        base.append(solve(reference_states, case, values, cotangents))
        true.append(solve(reference_states, case, wide(values), wide(cotangents)))
    assert_errors_within(*map(stacked, (mine, base, true)))
    return mine[-1]


@pytest.mark.slow
@pytest.mark.paths
@cases(
    Case(6, 7, 4, 17),
    Case(6, 7, 4, 17, batch_first=True),
    Case(5, 3, 4, 17, layers=2, bidirectional=True, batch_first=True),
    Case(5, 3, 4, 17, layers=2, bidirectional=True, lengths=(2, 0, 5), reset=0.3),
    Case(5, 3, 4, 17, layers=2, bidirectional=True, lengths=(5, 4, 1), packed=True),
    modes=MODES,
)
def test_return_states(case: Case) -> None:
    """Every cell and hidden state, and the gradient that comes in through each of them."""
    values = case.problem(torch.float32)
    shapes = shapes_of(case)
    last = case.layers - 1
    every = ["h", "c"] if has_c(case.mode) else ["h"]
    assert set(shapes) == {*case.outputs, *(f"{n}{k}" for n in every for k in range(case.layers))}
    chosen_of = [tuple(shapes), (f"{every[-1]}0",), ("h0", case.outputs[-1])]
    chosen_of += [(f"{every[-1]}{last}", "output")]
    for chosen in chosen_of:
        found = judged(case, {n: shapes[n] for n in chosen}, reversed(range(24)))
    assert torch.equal(found[f"h{last}"], found["output"])
    if not case.bidirectional:
        for name in case.outputs[1:]:
            steps = found[f"{name[0]}0"]
            assert torch.equal(steps[:, -1] if case.batch_first else steps[-1], found[name][0])
    assert_same({n: found[n] for n in case.outputs}, forward_with_grad(case, values))


@cases(
    Case(6, 7, 4, 17, layers=2, bidirectional=True, proj_size=5),
    Case(5, 3, 4, 17, bidirectional=True, proj_size=5, lengths=(2, 0, 5)),
    Case(5, 3, 4, 17, bidirectional=True, proj_size=5, lengths=(5, 4, 1), packed=True),
)
def test_return_states_of_a_projection(case: Case) -> None:
    test_return_states(case)


@pytest.mark.parametrize("proj_size", [0, 30])
@pytest.mark.parametrize("rows", ["padded", "lengths", "packed"])
def test_return_states_over_several_chunks(rows: str, proj_size: int) -> None:
    """Three chunks of 4 MB of gates, in few steps."""
    case = Case(10, 600, 2, 100, bidirectional=True, proj_size=proj_size)
    lengths = tuple(1 + 3 * n % 10 for n in range(case.N))
    if rows == "packed":
        case = replace(case, lengths=tuple(sorted(lengths, reverse=True)), packed=True)
    elif rows == "lengths":
        case = replace(case, lengths=lengths)
    judged(case, shapes_of(case), seeds=(0,))


@layouts
@cases(
    Case(5, 7, 4, 17),
    Case(5, 7, 4, 17, proj_size=9),
    Case(5, 7, 4, 17, lengths=(3, 1, 5, 0, 2, 5, 4), bidirectional=True),
    Case(5, 7, 4, 17, lengths=(5, 5, 4, 3, 3, 2, 1), packed=True),
)
def test_cotangents_of_states_of_any_layout(case: Case, layout: Callable[[Tensor], Tensor]) -> None:
    values = case.problem(torch.float32)
    odd = {n: layout(torch.randn(shape)) for n, shape in shapes_of(case).items()}
    straight = {n: g.contiguous() for n, g in odd.items()}
    assert_same(solve(my_states, case, values, odd), solve(my_states, case, values, straight))


@cases(Case(5, 1, 4, 17, layers=2), modes=MODES)
def test_return_states_unbatched_and_without_grad(case: Case) -> None:
    values = case.problem(torch.float64)
    with torch.no_grad():
        expected = my_states(case, values)
        single = values | {n: values[n][:, 0] for n in ("x", *case.state_names)}
        found = my_states(case, single)
    assert_same(found, {n: v.squeeze(1) for n, v in expected.items()})


@cases(
    Case(5, 7, 4, 17),
    Case(5, 7, 4, 17, layers=2, bidirectional=True, batch_first=True),
    Case(5, 4, 4, 17, bidirectional=True, lengths=(3, 0, 5, 1), reset=0.3),
    Case(5, 4, 4, 17, bidirectional=True, lengths=(5, 3, 3, 1), packed=True),
    modes=MODES,
)
def test_forward_is_the_same_with_and_without_grad(case: Case) -> None:
    values = case.problem(torch.float32)
    assert_same(forward_with_grad(case, values), solve(ours, case, values, None))


@cases(Case(5, 7, 4, 17, layers=2, bidirectional=True, proj_size=6))
def test_projected_forward_is_the_same_with_and_without_grad(case: Case) -> None:
    test_forward_is_the_same_with_and_without_grad(case)


@cases(Case(9, 5, 4, 17, layers=2), modes=MODES)
def test_chunks_with_carried_state_equal_one_call(case: Case) -> None:
    """Truncated backpropagation's forward: three calls with the state handed on."""
    values = case.problem(torch.float64)
    whole = solve(ours, case, values, None)
    outputs, state = [], {n: values[n] for n in case.state_names}
    for x in values["x"].split([4, 1, 4]):
        part = solve(ours, case, values | state | {"x": x}, None)
        outputs.append(part["output"])
        state = {n: part[f"{n[0]}_n"] for n in case.state_names}
    torch.testing.assert_close(torch.cat(outputs), whole["output"], rtol=1e-13, atol=1e-14)
    for name, last in state.items():
        torch.testing.assert_close(last, whole[f"{name[0]}_n"], rtol=1e-13, atol=1e-14)
