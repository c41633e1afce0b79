"""LSTMCell, GRUCell and RNNCell in the place of torch.nn's."""

import copy
import pickle

import pytest
import torch
from cell_kinds import has_c
from error_rule import assert_error_within
from module_pairs import CLOSE, KINDS, build, flat, ids, kinds, randn, results_and_grads
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

import fastlstm
from fastlstm.dispatch import autograd
from fastlstm.dispatch.extension import _C

batches = pytest.mark.parametrize("batch", [(), (1,), (3,)], ids=["unbatched", "N1", "N3"])


def pair(kind: str, *args, **kwargs) -> tuple[nn.Module, nn.Module]:
    """A cell of each package with the same weights, in float64."""
    kwargs.setdefault("dtype", torch.float64)
    theirs, mine = (build(package, kind, *args, cell=True, **kwargs) for package in (nn, fastlstm))
    mine.load_state_dict(theirs.state_dict())
    return mine, theirs


def state(kind: str, *shape: int, **kwargs):
    kwargs.setdefault("dtype", torch.float64)
    h = torch.randn(shape, **kwargs)
    return (h, torch.randn(shape, **kwargs)) if has_c(kind) else h


def assert_same(mine: nn.Module, theirs: nn.Module, *args) -> None:
    """Fail unless results, with and without gradient, and gradients agree."""
    torch.testing.assert_close(
        results_and_grads(mine, *args), results_and_grads(theirs, *args), **CLOSE
    )
    with torch.no_grad():
        torch.testing.assert_close(flat(mine(*args)), flat(theirs(*args)), **CLOSE)


@kinds
@batches
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "nobias"])
def test_results_and_gradients(kind: str, batch: tuple[int, ...], bias: bool) -> None:
    mine, theirs = pair(kind, 5, 4, bias=bias)
    x = randn(*batch, 5)
    assert_same(mine, theirs, x, state(kind, *batch, 4))
    assert_same(mine, theirs, x)
    results = mine(x)
    assert type(results) is (tuple if has_c(kind) else Tensor)


@kinds
@pytest.mark.parametrize("N", [1, 33])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_error(kind: str, N: int, dtype: torch.dtype) -> None:
    """The error against float64 is at most twice that of torch.nn, of results and gradients."""
    rows: list[list] = []
    for seed in range(8):
        torch.manual_seed(seed)
        mine, theirs = pair(kind, 9, 21, dtype=dtype)
        true = build(nn, kind, 9, 21, cell=True, dtype=torch.float64)
        true.load_state_dict(theirs.state_dict())
        x, hx = torch.randn(N, 9, dtype=dtype), state(kind, N, 21, dtype=dtype)
        wide = tuple(t.double() for t in hx) if has_c(kind) else hx.double()
        found, base = results_and_grads(mine, x, hx), results_and_grads(theirs, x, hx)
        expected = results_and_grads(true, x.double(), wide)
        rows.append(list(zip(found, base, expected, strict=True)))
    for i, triples in enumerate(zip(*rows, strict=True)):
        assert_error_within(
            f"result {i}", *(torch.stack(part) for part in zip(*triples, strict=True))
        )


@kinds
def test_several_steps(kind: str) -> None:
    """The loop that cells are for: gradients reach the first state and every step's input."""
    mine, theirs = pair(kind, 5, 4)
    x, hx, grads = randn(6, 3, 5), state(kind, 3, 4), []
    for cell in (mine, theirs):
        leaf = x.clone().requires_grad_()
        h0 = tuple(t.clone().requires_grad_() for t in flat(hx))
        h, loss = (h0 if has_c(kind) else h0[0]), 0
        for step in leaf:
            h = cell(step, h)
            loss = loss + flat(h)[0].sin().sum()
        wanted = [leaf, *h0, *cell.parameters()]
        grads.append(torch.autograd.grad(loss, wanted))
    torch.testing.assert_close(*grads, **CLOSE)


@kinds
def test_only_one_gradient_is_needed(kind: str) -> None:
    mine, theirs = pair(kind, 5, 4)
    x, hx = randn(3, 5), state(kind, 3, 4)
    for part in range(len(flat(hx))):
        for wanted in ("x", "hx", "weight_hh", "bias_ih"):
            grads = []
            for cell in (mine, theirs):
                cell.requires_grad_(False)
                leaves = {"x": x.clone(), "hx": [t.clone() for t in flat(hx)]}
                leaves["hx"] = tuple(leaves["hx"]) if has_c(kind) else leaves["hx"][0]
                leaf = flat(leaves[wanted])[0] if wanted in leaves else getattr(cell, wanted)
                leaf.requires_grad_()
                output = flat(cell(leaves["x"], leaves["hx"]))[part]
                grads.append(torch.autograd.grad(output.sum(), leaf)[0])
            torch.testing.assert_close(*grads, **CLOSE)


@kinds
def test_gradcheck_to_second_order(kind: str) -> None:
    cell, _ = pair(kind, 3, 2)
    names = [name for name, _ in cell.named_parameters()]
    x, hx = randn(2, 3), flat(state(kind, 2, 2))
    leaves = [t.requires_grad_() for t in (x, *hx)]

    def function(x: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        h = rest[: len(hx)] if has_c(kind) else rest[0]
        parameters = dict(zip(names, rest[len(hx) :], strict=True))
        return tuple(flat(torch.func.functional_call(cell, parameters, (x, h))))

    assert torch.autograd.gradcheck(function, (*leaves, *cell.parameters()))
    assert torch.autograd.gradgradcheck(function, (*leaves, *cell.parameters()))


@kinds
def test_backward_twice(kind: str) -> None:
    cell, _ = pair(kind, 5, 4)
    loss = flat(cell(randn(3, 5), state(kind, 3, 4)))[0].sum()
    grads = [torch.autograd.grad(loss, list(cell.parameters()), retain_graph=True) for _ in "12"]
    assert all(map(torch.equal, *grads))


@kinds
def test_strides_do_not_matter(kind: str) -> None:
    mine, _ = pair(kind, 5, 4)
    x, hx = randn(3, 5), state(kind, 3, 4)

    def columns(t: Tensor) -> Tensor:
        return t.t().contiguous().t()

    strided = tuple(map(columns, hx)) if has_c(kind) else columns(hx)
    expanded = randn(1, 5).expand(3, 5)
    for args in ((x, strided), (columns(x), hx), (x[:, :], hx)):
        torch.testing.assert_close(
            results_and_grads(mine, *args), results_and_grads(mine, x, hx), **CLOSE
        )
    with torch.no_grad():
        assert all(map(torch.equal, flat(mine(columns(x), strided)), flat(mine(x, hx))))
        assert all(map(torch.equal, flat(mine(expanded)), flat(mine(expanded.contiguous()))))


@kinds
def test_empty_batch(kind: str) -> None:
    mine, _ = pair(kind, 5, 4)
    for results in (mine(randn(0, 5)), mine(randn(0, 5), state(kind, 0, 4))):
        assert all(t.shape == (0, 4) for t in flat(results))
        sum(t.sum() for t in flat(results)).backward()
        assert not mine.weight_hh.grad.any()


@kinds
def test_results_belong_to_the_caller(kind: str) -> None:
    mine, _ = pair(kind, 5, 4)
    x, hx = randn(3, 5), state(kind, 3, 4)
    kept = [t.clone() for t in (x, *flat(hx))]
    with torch.no_grad():
        results = flat(mine(x, hx))
        copies = [t.clone() for t in results]
        for t in flat(mine(2 * x, hx)):
            t.fill_(7)
        assert all(map(torch.equal, results, copies))
    assert all(map(torch.equal, kept, (x, *flat(hx))))


@kinds
@pytest.mark.parametrize("kwargs", [{}, {"bias": False}, {"dtype": torch.bfloat16}], ids=ids)
def test_same_parameters_from_the_same_seed(kind: str, kwargs: dict) -> None:
    cells = []
    for package in (nn, fastlstm):
        torch.manual_seed(7)
        cells.append((build(package, kind, 5, 4, cell=True, **kwargs), torch.rand(())))
    (theirs, last), (mine, my_last) = cells
    assert last == my_last and repr(mine) == repr(theirs)
    assert list(mine.state_dict()) == list(theirs.state_dict())
    assert all(map(torch.equal, mine.parameters(), theirs.parameters()))
    assert isinstance(mine, nn.RNNCellBase) and not isinstance(mine, type(theirs))
    theirs.load_state_dict(mine.state_dict(), strict=True)
    assert mine.bias is theirs.bias and mine.__constants__ == theirs.__constants__


@kinds
def test_pickle_and_deepcopy(kind: str) -> None:
    cell, theirs = pair(kind, 5, 4)
    x, expected = randn(3, 5), cell(randn(3, 5))
    expected = flat(cell(x))
    for other in (copy.deepcopy(cell), pickle.loads(pickle.dumps(cell))):
        assert type(other) is type(cell)
        assert all(map(torch.equal, flat(other(x)), expected))
    other = type(cell).__new__(type(cell))
    other.__setstate__(copy.deepcopy(theirs).__dict__)
    assert all(map(torch.equal, flat(other(x)), expected))


@kinds
@pytest.mark.parametrize("name", ["weight_ih", "weight_hh", "bias_hh"])
def test_parametrized(kind: str, name: str) -> None:
    mine, theirs = (parametrizations.weight_norm(cell, name) for cell in pair(kind, 5, 4))
    args = (randn(3, 5), state(kind, 3, 4))
    assert_same(mine, theirs, *args)
    with torch.no_grad():
        for cell in (mine, theirs):
            cell.parametrizations[name].original0.mul_(3)
    assert_same(mine, theirs, *args)
    with pytest.raises(ValueError, match=f"^{KINDS[kind][0]}Cell: Expected input to be 1D or 2D"):
        mine(randn(1, 1, 5))
    for cell in (mine, theirs):
        parametrize.remove_parametrizations(cell, name)
    assert_same(mine, theirs, *args)


@kinds
def test_parameters_replaced(kind: str) -> None:
    mine, theirs = pair(kind, 5, 4)
    args = (randn(3, 5), state(kind, 3, 4))
    new = {name: randn(*p.shape) for name, p in mine.named_parameters()}
    for grad in (False, True):
        with torch.set_grad_enabled(grad):
            found, expected = (torch.func.functional_call(m, new, args) for m in (mine, theirs))
            torch.testing.assert_close(flat(found), flat(expected), **CLOSE)
    for cell in (mine, theirs):
        del cell.weight_hh
        cell.weight_hh = new["weight_hh"]
    assert_same(mine, theirs, *args)


@kinds
def test_without_gradient_nothing_is_kept(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The everyday step of inference goes to the kernel at once, and to nothing else."""
    cell, _ = pair(kind, 5, 4)
    args = (randn(3, 5), state(kind, 3, 4))
    expected = flat(cell(*args))
    seen = []

    def spy(*given):
        seen.append(given[-1])
        return kernel(*given)

    def never(*given):
        raise AssertionError("autograd.cell called")

    kernel = _C.cell_fwd
    monkeypatch.setattr("fastlstm.cells._C.cell_fwd", spy)
    monkeypatch.setattr(autograd, "cell", never)
    for context in (torch.no_grad(), torch.inference_mode()):
        with context:
            for results in (cell(*args), cell(args[0]), parametrized(cell)(*args)):
                assert not any(t.requires_grad for t in flat(results))
            torch.testing.assert_close(flat(cell(*args)), expected)
    assert seen == [False] * 8


def parametrized(cell: nn.Module) -> nn.Module:
    return parametrizations.weight_norm(copy.deepcopy(cell), "weight_hh")


@kinds
def test_hooks_run(kind: str) -> None:
    cell, _ = pair(kind, 5, 4)
    seen = []
    cell.register_forward_hook(lambda module, args, output: seen.append(len(args)))
    cell(randn(3, 5))
    assert seen == [1]


@kinds
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "f16"])
def test_autocast(kind: str, dtype: torch.dtype) -> None:
    """As if operands had been rounded to autocast's dtype, computed in float32, and rounded again."""
    cell = build(fastlstm, kind, 5, 4, cell=True)
    x, hx = torch.randn(3, 5), state(kind, 3, 4, dtype=torch.float32)
    narrow = copy.deepcopy(cell).to(dtype)
    cast = tuple(t.to(dtype) for t in hx) if has_c(kind) else hx.to(dtype)
    for grad in (False, True):
        with torch.set_grad_enabled(grad):
            with torch.autocast("cpu", dtype):
                found = flat(cell(x, hx))
            assert all(t.dtype == dtype for t in found)
            assert all(map(torch.equal, found, flat(narrow(x.to(dtype), cast))))
    found[0].sum().backward()
    assert cell.weight_hh.grad.dtype == torch.float32
    with torch.autocast("cpu", dtype):
        assert flat(pair(kind, 5, 4)[0](randn(3, 5)))[0].dtype == torch.float64


@kinds
@batches
def test_functional(kind: str, batch: tuple[int, ...]) -> None:
    _, theirs = pair(kind, 5, 4)
    function = getattr(fastlstm.functional, KINDS[kind][0].lower() + "_cell")
    options = KINDS[kind][1]
    x, hx = randn(*batch, 5), state(kind, *batch, 4)
    weights = (theirs.weight_ih, theirs.weight_hh, theirs.bias_ih, theirs.bias_hh)
    found = flat(function(x, hx, *weights, **options))
    torch.testing.assert_close(found, flat(theirs(x, hx)), **CLOSE)
    for i in (2, 3):
        with torch.no_grad():
            weights[i].zero_()
    found = flat(function(x, hx, *weights[:2], **options))
    torch.testing.assert_close(found, flat(theirs(x, hx)), **CLOSE)
