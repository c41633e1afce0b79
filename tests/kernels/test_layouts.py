"""Tensors of any layout, calls without a batch, and nothing at all."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from error_rule import assert_parity, assert_same
from helpers import Case, Values, cases, dtypes, modes, ours, plain, solve, theirs
from torch import Tensor

SMALL = Case(5, 7, 4, 17)


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
@cases(SMALL, replace(SMALL, mode="GRU"), replace(SMALL, mode="RNN_TANH"))
def test_inputs_of_any_layout(
    case: Case, layout: Callable[[Tensor], Tensor], names: list[str]
) -> None:
    def change(values: Values) -> Values:
        return {
            n: layout(v) if any(n.startswith(name) for name in names) else v
            for n, v in values.items()
        }

    assert_parity(case, torch.float32, change=change)


@pytest.mark.paths
@layouts
@pytest.mark.parametrize("names", [["x"], ["w_hh", "w_hr"], ["h0", "c0"]], ids=lambda n: n[0])
@cases(
    replace(SMALL, proj_size=9),
    replace(SMALL, lengths=(5, 5, 4, 3, 3, 2, 1), packed=True),
    replace(SMALL, lengths=(3, 1, 5, 0, 2, 5, 4)),
    replace(SMALL, mode="GRU", lengths=(3, 1, 5, 0, 2, 5, 4), batch_first=True),
)
def test_other_inputs_of_any_layout(
    case: Case, layout: Callable[[Tensor], Tensor], names: list[str]
) -> None:
    test_inputs_of_any_layout(case, layout, names)


@layouts
@cases(
    SMALL,
    replace(SMALL, batch_first=True),
    replace(SMALL, mode="GRU"),
    replace(SMALL, mode="RNN_RELU"),
    replace(SMALL, proj_size=9),
    replace(SMALL, lengths=(5, 5, 4, 3, 3, 2, 1), packed=True),
    replace(SMALL, lengths=(3, 1, 5, 0, 2, 5, 4), bidirectional=True),
)
def test_cotangents_of_any_layout(case: Case, layout: Callable[[Tensor], Tensor]) -> None:
    values, cotangents = case.problem(torch.float32), case.cotangents(torch.float32)
    odd = {n: layout(g) for n, g in cotangents.items()}
    plain_cotangents = {n: g.contiguous() for n, g in odd.items()}
    assert_same(solve(ours, case, values, odd), solve(ours, case, values, plain_cotangents))


@modes
def test_the_cotangent_of_sum_has_stride_zero(mode: str) -> None:
    case = replace(SMALL, mode=mode)
    values = case.problem(torch.float64)
    x = values["x"].requires_grad_()
    (grad,) = torch.autograd.grad(ours(case, values)["output"].sum(), x)
    (expected,) = torch.autograd.grad(theirs(case, values)["output"].sum(), x)
    torch.testing.assert_close(grad, expected, rtol=1e-12, atol=1e-12)


@dtypes
@modes
def test_unbatched(mode: str, dtype: torch.dtype) -> None:
    case = Case(5, 1, 4, 17, layers=2, bidirectional=True, mode=mode)
    for extra in ({}, {"lengths": torch.tensor([3])}, {"reset": torch.rand(5, 1) < 0.5}):
        values = case.problem(dtype) | extra
        expected = solve(ours, case, values, None)
        single = values | {n: values[n][:, 0] for n in ("x", *case.state_names)}
        if "reset" in extra:
            single["reset"] = extra["reset"][:, 0]
        found = solve(ours, case, single, None)
        assert_same(found, {n: v.squeeze(1) for n, v in expected.items()})


@dtypes
@pytest.mark.parametrize("batch_first", [False, True], ids=["time_first", "batch_first"])
@modes
def test_empty_batch(mode: str, dtype: torch.dtype, batch_first: bool) -> None:
    case = Case(5, 0, 4, 17, layers=2, bidirectional=True, batch_first=batch_first, mode=mode)
    values, cotangents = case.problem(dtype), case.cotangents(dtype)
    found = solve(ours, case, values, cotangents)
    assert_same(found, solve(plain, case, values, cotangents))
    assert found["output"].shape == theirs(case, values)["output"].shape
    for extra in ({"lengths": torch.zeros(0, dtype=torch.int64)}, {"reset": torch.ones(case.size)}):
        extra = {n: v.bool() if n == "reset" else v for n, v in extra.items()}
        assert_same(solve(ours, case, values | extra, cotangents), found)


@dtypes
@pytest.mark.parametrize("batch_first", [False, True], ids=["time_first", "batch_first"])
@modes
def test_empty_sequence_leaves_the_state_alone(
    mode: str, dtype: torch.dtype, batch_first: bool
) -> None:
    """torch.nn refuses a sequence of length 0; here it is a chunk like any other."""
    case = Case(0, 3, 4, 17, layers=2, bidirectional=True, batch_first=batch_first, mode=mode)
    values, cotangents = case.problem(dtype), case.cotangents(dtype)
    for extra in ({}, {"lengths": torch.zeros(3, dtype=torch.int64)}):
        found = solve(ours, case, values | extra, cotangents, case.state_names)
        assert found["output"].shape == ((3, 0, 34) if batch_first else (0, 3, 34))
        for name in case.state_names:
            assert torch.equal(found[f"{name[0]}_n"], values[name])
            assert torch.equal(found[f"grad {name}"], cotangents[f"{name[0]}_n"])


@modes
def test_an_empty_sequence_has_higher_derivatives(mode: str) -> None:
    case = Case(0, 3, 4, 17, mode=mode, state=False)
    values = case.problem(torch.float64)
    x = values["x"].requires_grad_()
    w_hh = values["w_hh_0"].requires_grad_()
    loss = sum(v.sum() for v in ours(case, values).values())
    grads = torch.autograd.grad(loss, [x, w_hh], create_graph=True)
    assert [g.shape for g in grads] == [x.shape, w_hh.shape] and not any(g.any() for g in grads)
