"""What must not matter: other rows of the batch, threads, earlier runs, memory nobody has written."""

import pytest
import torch
from error_rule import assert_same
from helpers import MODES, Case, cases, dtypes, ours, plain, solve, with_tokens
from torch import Tensor

from fastlstm.dispatch.traits import CELL_TRAITS


def _other_rows(v: Tensor, row: int, dim: int) -> Tensor:
    return v[(slice(None),) * dim + ([n for n in range(v.size(dim)) if n != row],)]


@pytest.mark.paths
@dtypes
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")], ids=str)
@pytest.mark.parametrize(
    ("case", "where"),
    [
        pytest.param(case, where, id=f"{case}-{where}")
        for case in (
            *(Case(6, 13, 4, 17, mode=mode) for mode in MODES),
            Case(6, 13, 4, 17, proj_size=5),
        )
        for where in ("x", *case.state_names)
    ],
)
def test_nan_and_inf_stay_in_their_row(
    case: Case, where: str, dtype: torch.dtype, bad: float
) -> None:
    row = 4
    values, cotangents = case.problem(dtype), case.cotangents(dtype)
    poisoned = values | {where: values[where].clone()}
    poisoned[where][3 if where == "x" else 0, row, 2] = bad
    clean, found = (solve(ours, case, v, cotangents) for v in (values, poisoned))
    expected = solve(plain, case, poisoned, cotangents)
    of_rows = (*case.outputs, "grad x", *(f"grad {name}" for name in case.state_names))
    for name in of_rows:
        assert torch.equal(_other_rows(found[name], row, 1), _other_rows(clean[name], row, 1)), name
    for name in found:
        # inf * 0 is NaN, but a gate that is 1e-38 for torch's 0 makes it inf. In sums over the batch
        # either may come out; a cell that multiplies h itself by gates compares with nothing then.
        traits = CELL_TRAITS[case.mode]
        if traits.fwd_reads_state and not traits.has_c and where == "h0" and bad == bad:
            break
        either = name not in of_rows or case.proj_size
        mine, theirs = (
            v.nan_to_num(0, 0, 0) if either else v for v in (found[name], expected[name])
        )
        torch.testing.assert_close(mine, theirs, equal_nan=True, rtol=1e-4, atol=1e-5, msg=name)
        assert torch.equal(found[name].isfinite(), expected[name].isfinite()), name
    if where == "x":
        assert torch.equal(found["output"][:3], clean["output"][:3])


@pytest.mark.paths
@dtypes
@cases(Case(6, 13, 4, 33), Case(6, 5, 4, 17, layers=2, bidirectional=True), modes=MODES)
def test_rows_do_not_feel_their_neighbours(case: Case, dtype: torch.dtype) -> None:
    values, cotangents = case.problem(dtype), case.cotangents(dtype)
    other, other_cotangents = case.problem(dtype, seed=1), case.cotangents(dtype, seed=1)
    same = case.N // 2 + 1
    for name in ("x", *case.state_names):
        other[name][:, :same] = values[name][:, :same]
    for name in case.outputs:
        other_cotangents[name][:, :same] = cotangents[name][:, :same]
    for name in case.weight_names:
        other[name] = values[name]
    a = solve(ours, case, values, cotangents)
    b = solve(ours, case, other, other_cotangents)
    for name in (*case.outputs, "grad x", *(f"grad {name}" for name in case.state_names)):
        assert torch.equal(a[name][:, :same], b[name][:, :same]), name
        assert not torch.equal(a[name][:, same:], b[name][:, same:]), name


@pytest.mark.paths
@dtypes
@cases(
    Case(9, 1, 3, 64),
    Case(9, 2, 3, 500),
    Case(9, 13, 3, 59),
    Case(5, 50, 7, 128),
    Case(5, 3, 4, 18, layers=2, bidirectional=True),
    Case(9, 5, 3, 64, lengths=(3, 9, 0, 1, 9), bidirectional=True),
    Case(5, 50, 7, 128, lengths=tuple(n % 6 for n in range(50)), reset=0.2),
    Case(5, 50, 7, 65, lengths=tuple(5 - n // 10 for n in range(50)), packed=True),
    modes=MODES,
)
@pytest.mark.alone
def test_bitwise_the_same_for_any_number_of_threads(case: Case, dtype: torch.dtype) -> None:
    values, cotangents = case.problem(dtype), case.cotangents(dtype)
    torch.set_num_threads(1)
    expected = solve(ours, case, values, cotangents)
    for threads in (2, 3, 8):
        torch.set_num_threads(threads)
        assert_same(solve(ours, case, values, cotangents), expected)


@pytest.mark.paths
@dtypes
@cases(
    Case(9, 2, 3, 500, proj_size=111),
    Case(5, 50, 7, 128, proj_size=33),
    Case(9, 5, 3, 64, proj_size=7, lengths=(3, 9, 0, 1, 9), bidirectional=True),
)
@pytest.mark.alone
def test_projection_bitwise_the_same_for_any_number_of_threads(
    case: Case, dtype: torch.dtype
) -> None:
    test_bitwise_the_same_for_any_number_of_threads(case, dtype)


@pytest.mark.slow
@cases(
    Case(9, 2, 3, 111),
    Case(5, 50, 7, 64),
    Case(5, 3, 4, 18, bidirectional=True),
    Case(5, 50, 7, 65, lengths=tuple(n % 6 for n in range(50)), bidirectional=True),
    Case(5, 13, 7, 65, proj_size=30),
    Case(5, 50, 7, 64, mode="GRU"),
    Case(5, 50, 7, 64, mode="RNN_TANH"),
)
@pytest.mark.alone
def test_bitwise_repeatable(case: Case) -> None:
    values, cotangents = case.problem(torch.float32), case.cotangents(torch.float32)
    torch.set_num_threads(2)
    expected = solve(ours, case, values, cotangents)
    for _ in range(30):
        assert_same(solve(ours, case, values, cotangents), expected)


def _assert_nothing_unwritten_is_read(case: Case, kind: str) -> None:
    """With these two switches torch fills every new tensor with NaN."""
    values, cotangents = case.problem(torch.float32), case.cotangents(torch.float32)
    values = values if kind == "float" else with_tokens(case, values, 4)
    values |= {"embedding": torch.randn(5, 4)} if kind == "embedding" else {}
    expected = solve(ours, case, values, cotangents)
    expected_no_grad = solve(ours, case, values, None)
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    assert torch.empty(100).isnan().all()
    assert_same(solve(ours, case, values, cotangents), expected)
    assert_same(solve(ours, case, values, None), expected_no_grad)


@pytest.mark.paths
@cases(
    Case(5, 7, 4, 17),
    Case(5, 1, 4, 100),
    Case(5, 7, 4, 17, state=False),
    Case(5, 3, 4, 17, layers=2, bidirectional=True, batch_first=True),
    Case(5, 5, 4, 17, bidirectional=True, lengths=(2, 5, 0, 1, 4)),
    Case(5, 5, 4, 17, bidirectional=True, state=False, lengths=(2, 5, 0, 1, 4), reset=0.3),
    Case(5, 5, 4, 17, bidirectional=True, lengths=(5, 4, 2, 2, 1), packed=True),
    modes=MODES,
)
@pytest.mark.parametrize("kind", ["float", "one_hot", "embedding"])
def test_results_do_not_depend_on_uninitialised_memory(case: Case, kind: str) -> None:
    _assert_nothing_unwritten_is_read(case, kind)


@pytest.mark.paths
@cases(
    Case(5, 7, 4, 17, proj_size=5),
    Case(5, 5, 4, 17, proj_size=5, bidirectional=True, lengths=(2, 5, 0, 1, 4), reset=0.3),
)
def test_projection_does_not_depend_on_uninitialised_memory(case: Case) -> None:
    _assert_nothing_unwritten_is_read(case, "float")
