"""First and second derivatives, backward and forward, against finite differences in float64."""

from collections.abc import Callable

import pytest
import torch
from cell_kinds import GATES, has_c
from helpers import MODES, Case, Values, cases, dtypes, modes, ours, with_tokens
from module_pairs import build, flat, kinds
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.func import functional_call

import fastlstm
from fastlstm.dispatch import autograd

TINY = (
    Case(3, 2, 2, 3),
    Case(2, 2, 2, 1, bias=False, state=False),
    Case(2, 2, 1, 2, bidirectional=True, batch_first=True),
    Case(3, 1, 2, 2, layers=2),
)
RAGGED = (
    Case(3, 3, 2, 2, bidirectional=True, lengths=(1, 0, 3)),
    Case(3, 2, 2, 2, bidirectional=True, lengths=(3, 2), packed=True),
    Case(4, 2, 2, 2, bidirectional=True, reset=0.4),
    Case(4, 3, 2, 2, lengths=(3, 2, 4), reset=0.4),
)
SHORT_RAGGED = (
    Case(2, 3, 1, 2, bidirectional=True, lengths=(1, 0, 2)),
    Case(2, 2, 1, 2, bidirectional=True, lengths=(2, 1), packed=True),
    Case(3, 1, 1, 2, bidirectional=True, reset=0.4),
)
PROJECTED = (
    Case(3, 2, 2, 3, proj_size=2),
    Case(2, 2, 2, 2, proj_size=1, layers=2, bidirectional=True, bias=False),
    Case(3, 3, 2, 3, proj_size=2, lengths=(1, 0, 3)),
)
# One of each kind of cell; the activation of an RNN is a detail of the first derivative.
CELLS = ("LSTM", "GRU", "RNN_TANH")
SOME = pytest.mark.parametrize(
    "wanted", [["x"], ["h0"], ["w_hh_0"], ["w_ih_0", "b_ih_0"], ["b_hh_0"]], ids="+".join
)
tokens = pytest.mark.parametrize("kind", ["one_hot", "embedding"])
inputs = pytest.mark.parametrize("kind", ["float", "one_hot", "embedding"])
orders = pytest.mark.parametrize("check", [gradcheck, gradgradcheck], ids=lambda f: f.__name__)

# torch's own forward-mode formulas are still scripted.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")

# In each of these checks, the options it takes beside the plain one.
FORWARD = {
    gradcheck: {"check_forward_ad": True, "check_batched_grad": True},
    gradgradcheck: {"check_fwd_over_rev": True, "check_batched_grad": True},
}


def problem(case: Case, kind: str = "float") -> Values:
    values = case.problem(torch.float64)
    if kind != "float":
        values = with_tokens(case, values, case.I if kind == "one_hot" else 4)
    if kind == "embedding":
        values["embedding"] = torch.randn(4, case.I, dtype=torch.float64)
    return values


def run(
    check: Callable, case: Case, values: Values, wanted: list[str] | None = None, **kwargs
) -> None:
    names = [n for n, v in values.items() if v.is_floating_point()] if wanted is None else wanted

    def function(*tensors: Tensor) -> tuple[Tensor, ...]:
        results = ours(case, values | dict(zip(names, tensors, strict=True)))
        return tuple(results[name] for name in case.outputs)

    tensors = [values[name].clone().requires_grad_() for name in names]
    assert check(function, tensors, **kwargs)


@pytest.mark.paths
@cases(*TINY, modes=MODES)
def test_gradcheck(case: Case) -> None:
    run(gradcheck, case, problem(case))


@pytest.mark.paths
@tokens
@cases(*TINY[1:3], modes=MODES)
def test_gradcheck_of_tokens(case: Case, kind: str) -> None:
    run(gradcheck, case, problem(case, kind))


@pytest.mark.paths
@cases(*RAGGED, modes=MODES)
def test_gradcheck_of_ragged_rows(case: Case) -> None:
    run(gradcheck, case, problem(case))


@pytest.mark.paths
@cases(*PROJECTED)
def test_gradcheck_of_a_projection(case: Case) -> None:
    run(gradcheck, case, problem(case))


@SOME
@cases(Case(3, 2, 2, 3), modes=MODES)
def test_gradcheck_of_some_inputs(case: Case, wanted: list[str]) -> None:
    run(gradcheck, case, problem(case), wanted)


@cases(*TINY[1:], modes=CELLS)
def test_gradgradcheck(case: Case) -> None:
    run(gradgradcheck, case, problem(case), fast_mode=True)


@tokens
@cases(TINY[2], modes=CELLS)
def test_gradgradcheck_of_tokens(case: Case, kind: str) -> None:
    run(gradgradcheck, case, problem(case, kind), fast_mode=True)


@cases(*RAGGED, modes=CELLS)
def test_gradgradcheck_of_ragged_rows(case: Case) -> None:
    run(gradgradcheck, case, problem(case), fast_mode=True)


@cases(*PROJECTED)
def test_gradgradcheck_of_a_projection(case: Case) -> None:
    run(gradgradcheck, case, problem(case), fast_mode=True)


@SOME
@cases(Case(3, 2, 2, 3), modes=CELLS)
def test_gradgradcheck_of_some_inputs(case: Case, wanted: list[str]) -> None:
    run(gradgradcheck, case, problem(case), wanted)


@pytest.mark.slow
@orders
@inputs
@cases(Case(2, 2, 2, 2, bidirectional=True), modes=CELLS)
def test_forward_mode_and_batched(case: Case, kind: str, check: Callable) -> None:
    run(check, case, problem(case, kind), fast_mode=True, **FORWARD[check])


@pytest.mark.slow
@orders
@cases(*SHORT_RAGGED, modes=CELLS)
def test_forward_mode_of_ragged_rows(case: Case, check: Callable) -> None:
    run(check, case, problem(case), fast_mode=True, **FORWARD[check])


@pytest.mark.slow
@orders
@SOME
@cases(Case(2, 2, 2, 2), modes=("LSTM", "GRU"))
def test_forward_mode_of_some_inputs(case: Case, wanted: list[str], check: Callable) -> None:
    run(check, case, problem(case), wanted, **FORWARD[check])


@pytest.mark.slow
@modes
@orders
def test_states(mode: str, check: Callable) -> None:
    case = Case(2, 2, 2, 2, mode=mode, layers=2)
    values = case.problem(torch.float64)
    weights = [name for name in values if name[0] in "wb"]

    def function(x: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        v = dict(zip(weights, tensors, strict=True))
        if has_c(mode):
            *_, states = fastlstm.functional.lstm(x, None, case.weights(v), return_states=True)
            return *states.h, *states.c
        if mode == "GRU":
            *_, states = fastlstm.functional.gru(x, None, case.weights(v), return_states=True)
        else:
            *_, states = fastlstm.functional.rnn(
                x, None, case.weights(v), nonlinearity=mode[4:].lower(), return_states=True
            )
        return states.h

    tensors = [values[name].requires_grad_() for name in ("x", *weights)]
    assert check(function, tensors, fast_mode=True, **FORWARD[check])


@modes
@orders
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "nobias"])
def test_cell(mode: str, check: Callable, bias: bool) -> None:
    x, h, c, weights = cell_problem(mode, bias)

    def function(*tensors: Tensor) -> tuple[Tensor, ...]:
        rest = list(tensors)
        arguments = [None if t is None else rest.pop(0) for t in (x, h, c, *weights)]
        return tuple(t for t in autograd.cell(mode, *arguments) if t is not None)

    tensors = [t.requires_grad_() for t in (x, h, c, *weights) if t is not None]
    assert check(function, tensors)
    assert check(function, tensors, fast_mode=True, **FORWARD[check])


@pytest.mark.parametrize(
    ("mode", "wanted"),
    [(m, k) for m in CELLS for k in range(7) if has_c(m) or k != 2],  # c is the third input
)
def test_cell_of_one_input(mode: str, wanted: int) -> None:
    x, h, c, weights = cell_problem(mode, True)
    arguments = [x, h, c, *weights]

    def function(t: Tensor) -> tuple[Tensor, ...]:
        changed = [*arguments[:wanted], t, *arguments[wanted + 1 :]]
        return tuple(t for t in autograd.cell(mode, *changed) if t is not None)

    assert gradcheck(function, arguments[wanted].requires_grad_())
    assert gradgradcheck(function, arguments[wanted])


def cell_problem(mode: str, bias: bool) -> tuple[Tensor, Tensor, Tensor | None, list]:
    N, I, H = 2, 3, 2  # noqa: E741
    rows = GATES[mode] * H

    def randn(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.float64)

    weights = [randn(rows, I), randn(rows, H), *(randn(rows) if bias else None for _ in range(2))]
    return randn(N, I), randn(N, H), randn(N, H) if has_c(mode) else None, weights


@orders
def test_dropout(check: Callable) -> None:
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

    assert check(function, [v.clone().requires_grad_() for v in values.values()], fast_mode=True)


@pytest.mark.parametrize("cell", [False, True], ids=["layer", "cell"])
@kinds
def test_create_graph_through_a_state_handed_on(kind: str, cell: bool) -> None:
    """The state of the second call depends on its weights; a gradient counts each path once."""
    rnn = build(fastlstm, kind, 2, 3, cell=cell, dtype=torch.float64)
    steps = torch.randn(2, 2, 2, dtype=torch.float64)
    names = [name for name, _ in rnn.named_parameters()]

    def function(*weights: Tensor) -> Tensor:
        state = None
        for x in steps:
            results = functional_call(
                rnn, dict(zip(names, weights, strict=True)), (x if cell else x[None], state)
            )
            state = results if cell else results[1]
        return flat(state)[0]

    weights = list(rnn.parameters())
    grads = [
        torch.autograd.grad(function(*weights).sin().sum(), weights, create_graph=create)
        for create in (False, True)
    ]
    torch.testing.assert_close(*grads, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("steps", [0, 1])
def test_create_graph_where_some_inputs_do_not_count(steps: int) -> None:
    """Without a step only the state does, and c of the first one is from before W_hr."""
    lstm = fastlstm.LSTM(2, 4, proj_size=3, dtype=torch.float64)
    sizes = {"x": (steps, 2, 2), "h0": (1, 2, 3), "c0": (1, 2, 4)}
    leaves = [torch.randn(s, dtype=torch.float64).requires_grad_() for s in sizes.values()]
    x, h0, c0 = leaves
    wanted = [*leaves, *lstm.parameters()]
    found = [
        torch.autograd.grad(
            lstm(x, (h0, c0))[1][1].sin().sum(), wanted, create_graph=create, materialize_grads=True
        )
        for create in (False, True)
    ]
    torch.testing.assert_close(*found, rtol=1e-12, atol=1e-14)


@dtypes
@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNN"])
def test_gradient_penalty(dtype: torch.dtype, name: str) -> None:
    """The loss of WGAN-GP: the norm of a gradient, differentiated with respect to the weights."""
    theirs = getattr(torch.nn, name)(3, 7, 2, bidirectional=True).double()
    mine = getattr(fastlstm, name)(3, 7, 2, bidirectional=True).to(dtype)
    mine.load_state_dict(theirs.state_dict())
    x = torch.randn(5, 4, 3, dtype=dtype)
    grads = []
    for rnn, leaf in ((mine, x), (theirs, x.double())):
        leaf = leaf.clone().requires_grad_()
        (grad,) = torch.autograd.grad(rnn(leaf)[0].sin().sum(), leaf, create_graph=True)
        penalty = (grad.norm(dim=-1) - 1).square().mean()
        wanted = list(rnn.parameters())
        grads.append(torch.autograd.grad(penalty, wanted, materialize_grads=True))
    mine_grads = [g.double() for g in grads[0]]
    rtol, atol = (1e-4, 1e-6) if dtype == torch.float32 else (1e-9, 1e-12)
    torch.testing.assert_close(mine_grads, list(grads[1]), rtol=rtol, atol=atol)


@cases(Case(4, 3, 2, 17), modes=MODES)
def test_first_derivative_is_the_same_with_create_graph(case: Case) -> None:
    values = {n: v.requires_grad_() for n, v in case.problem(torch.float64).items()}
    loss = ours(case, values)["output"].sin().sum()
    wanted = list(values.values())
    first = torch.autograd.grad(loss, wanted, retain_graph=True)
    again = torch.autograd.grad(loss, wanted, create_graph=True)
    torch.testing.assert_close(first, again, rtol=1e-12, atol=1e-14)


def test_second_derivative_under_autocast() -> None:
    """The loop that stands in for the kernels computes in their precision, not in autocast's."""
    lstm, x = fastlstm.LSTM(3, 5), torch.randn(4, 2, 3, requires_grad=True)
    with torch.autocast("cpu"):
        loss = lstm(x)[0].float().sin().sum()
        (inside,) = torch.autograd.grad(loss, x, create_graph=True)
    (outside,) = torch.autograd.grad(loss, x, create_graph=True)
    torch.testing.assert_close(inside, outside, rtol=1e-6, atol=1e-8)
    second = [
        torch.autograd.grad(g.square().sum(), (x, *lstm.parameters()), retain_graph=True)
        for g in (inside, outside)
    ]
    torch.testing.assert_close(*second, rtol=1e-6, atol=1e-8)
