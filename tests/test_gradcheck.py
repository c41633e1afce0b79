"""First and second derivatives against finite differences, in float64."""

import pytest
import torch
from helpers import OUTPUTS, Case, cases, dtypes, ours
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

import fastlstm

TINY = (
    Case(3, 2, 2, 3),
    Case(2, 2, 2, 1, bias=False, state=False),
    Case(2, 2, 1, 2, bidirectional=True, batch_first=True),
    Case(2, 1, 2, 2, layers=2),
)


def _check(case: Case, kind: str, wanted: list[str] | None, check, **kwargs) -> None:
    values = case.problem(torch.float64)
    if kind != "float":
        size = (case.N, case.T) if case.batch_first else (case.T, case.N)
        values["x"] = torch.randint(case.I if kind == "one_hot" else 4, size)
    if kind == "embedding":
        values["embedding"] = torch.randn(4, case.I, dtype=torch.float64)
    names = [n for n, v in values.items() if v.is_floating_point()]
    names = names if wanted is None else wanted

    def function(*tensors: Tensor) -> tuple[Tensor, ...]:
        results = ours(case, values | dict(zip(names, tensors, strict=True)))
        return tuple(results[name] for name in OUTPUTS)

    tensors = [values[name].clone().requires_grad_() for name in names]
    assert check(function, tensors, **kwargs)


@pytest.mark.paths
@pytest.mark.parametrize("kind", ["float", "one_hot", "embedding"])
@cases(*TINY)
def test_gradcheck(case: Case, kind: str) -> None:
    _check(case, kind, None, gradcheck)


@pytest.mark.parametrize(
    "wanted", [["x"], ["h0", "c0"], ["w_hh_0"], ["w_ih_0", "b_ih_0"]], ids="+".join
)
def test_gradcheck_of_some_inputs(wanted: list[str]) -> None:
    _check(Case(3, 2, 2, 3), "float", wanted, gradcheck)


@pytest.mark.parametrize("kind", ["float", "one_hot", "embedding"])
@cases(*TINY)
def test_gradgradcheck(case: Case, kind: str) -> None:
    _check(case, kind, None, gradgradcheck)


@pytest.mark.parametrize(
    "wanted", [["x"], ["h0", "c0"], ["w_hh_0"], ["w_ih_0", "b_ih_0"]], ids="+".join
)
def test_gradgradcheck_of_some_inputs(wanted: list[str]) -> None:
    _check(Case(3, 2, 2, 3), "float", wanted, gradgradcheck)


@pytest.mark.parametrize("check", [gradcheck, gradgradcheck], ids=lambda f: f.__name__)
def test_states(check) -> None:
    case = Case(2, 2, 2, 2, layers=2)
    values = case.problem(torch.float64)
    names = list(values)

    def function(*tensors: Tensor) -> tuple[Tensor, ...]:
        v = dict(zip(names, tensors, strict=True))
        _, _, states = fastlstm.functional.lstm(
            v["x"], (v["h0"], v["c0"]), case.weights(v), return_states=True
        )
        return *states.h, *states.c

    assert check(function, [v.clone().requires_grad_() for v in values.values()])


@pytest.mark.parametrize("check", [gradcheck, gradgradcheck], ids=lambda f: f.__name__)
def test_dropout(check) -> None:
    """The second derivative sees the very mask of the first pass."""
    case = Case(2, 2, 2, 3, layers=2)
    values = case.problem(torch.float64)
    names = list(values)

    def function(*tensors: Tensor) -> tuple[Tensor, ...]:
        v = dict(zip(names, tensors, strict=True))
        torch.manual_seed(3)
        output, (h_n, c_n) = fastlstm.functional.lstm(
            v["x"], (v["h0"], v["c0"]), case.weights(v), dropout=0.5, training=True
        )
        torch.manual_seed(4)
        return output, h_n, c_n

    assert check(function, [v.clone().requires_grad_() for v in values.values()])


@dtypes
def test_gradient_penalty(dtype: torch.dtype) -> None:
    """The loss of WGAN-GP: the norm of a gradient, differentiated with respect to the weights."""
    theirs = torch.nn.LSTM(3, 7, 2, bidirectional=True).double()
    mine = fastlstm.LSTM(3, 7, 2, bidirectional=True).to(dtype)
    mine.load_state_dict(theirs.state_dict())
    x = torch.randn(5, 4, 3, dtype=dtype)
    grads = []
    for lstm, leaf in ((mine, x), (theirs, x.double())):
        leaf = leaf.clone().requires_grad_()
        (grad,) = torch.autograd.grad(lstm(leaf)[0].sin().sum(), leaf, create_graph=True)
        penalty = (grad.norm(dim=-1) - 1).square().mean()
        wanted = list(lstm.parameters())
        grads.append(torch.autograd.grad(penalty, wanted, materialize_grads=True))
    mine_grads = [g.double() for g in grads[0]]
    rtol, atol = (1e-4, 1e-6) if dtype == torch.float32 else (1e-9, 1e-12)
    torch.testing.assert_close(mine_grads, list(grads[1]), rtol=rtol, atol=atol)


def test_first_derivative_is_the_same_with_create_graph() -> None:
    case = Case(4, 3, 2, 17)
    values = {n: v.requires_grad_() for n, v in case.problem(torch.float64).items()}
    loss = ours(case, values)["output"].sin().sum()
    wanted = list(values.values())
    first = torch.autograd.grad(loss, wanted, retain_graph=True)
    again = torch.autograd.grad(loss, wanted, create_graph=True)
    torch.testing.assert_close(first, again, rtol=1e-12, atol=1e-14)
