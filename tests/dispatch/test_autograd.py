"""Around a call: checkpoints, hooks, second passes; and tensors without data."""

import pytest
import torch
from cell_kinds import GATES, has_c
from helpers import Case, Values, call, modes, named
from module_pairs import build, randn
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

import fastlstm
from fastlstm import functional
from fastlstm.dispatch import autograd


def module_of(mode: str, *args, **options) -> nn.Module:
    return build(fastlstm, mode, *args, dtype=torch.float64, **options)


def close(a, b) -> None:
    torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


@modes
@pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "not_reentrant"])
def test_checkpoint(mode: str, reentrant: bool) -> None:
    """The second forward draws the dropout of the first."""
    module, x = module_of(mode, 3, 4, 3, dropout=0.5), randn(5, 2, 3).requires_grad_()
    wanted = [x, *module.parameters()]
    found = []
    for run in (module, lambda x: checkpoint(module, x, use_reentrant=reentrant)):
        torch.manual_seed(3)
        loss = run(x)[0].sin().sum()
        if reentrant and run is not module:
            x.grad = None
            module.zero_grad()
            loss.backward()
            found.append([loss, *(t.grad for t in wanted)])
        else:
            found.append([loss, *torch.autograd.grad(loss, wanted)])
    close(*found)


@modes
def test_hooks(mode: str) -> None:
    module, x = module_of(mode, 3, 4, 2), randn(5, 2, 3).requires_grad_()
    seen = []
    module.register_forward_pre_hook(lambda m, args: seen.append("before forward"))
    module.register_forward_hook(lambda m, args, out: seen.append(out[0].shape))
    module.register_full_backward_pre_hook(lambda m, grads: seen.append("before backward"))
    module.register_full_backward_hook(lambda m, grads, _: seen.append(grads[0].shape))
    output = module(x)[0]
    output.register_hook(lambda g: 2 * g)
    module.weight_hh_l0.register_hook(lambda g: seen.append("weight"))
    module.bias_hh_l0.register_post_accumulate_grad_hook(lambda p: seen.append("accumulated"))
    output.sum().backward()
    assert seen[:3] == ["before forward", (5, 2, 4), "before backward"]
    assert set(seen[3:]) == {(5, 2, 3), "weight", "accumulated"}
    (expected,) = torch.autograd.grad(2 * module(x)[0].sum(), x)
    close(x.grad, expected)


@modes
def test_backward_in_eval_mode_and_again(mode: str) -> None:
    module, x = module_of(mode, 3, 4, 2, dropout=0.5).eval(), randn(5, 2, 3)
    loss = module(x)[0].sin().sum()
    wanted = list(module.parameters())
    first = torch.autograd.grad(loss, wanted, retain_graph=True)
    second = torch.autograd.grad(loss, wanted, create_graph=True)
    third = torch.autograd.grad(loss, wanted)
    close(first, second)
    close(first, third)
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(loss, wanted)


@modes
def test_second_derivative_with_saved_tensors_elsewhere(mode: str) -> None:
    module, x = module_of(mode, 3, 4), randn(5, 2, 3).requires_grad_()

    def second() -> Tensor:
        (gradient,) = torch.autograd.grad(module(x)[0].sin().sum(), x, create_graph=True)
        return torch.autograd.grad(gradient.square().sum(), x)[0]

    with torch.autograd.graph.save_on_cpu():
        moved = second()
    close(moved, second())


@modes
@pytest.mark.parametrize("fake", [False, True], ids=["meta", "fake"])
def test_shapes_without_numbers(mode: str, fake: bool) -> None:
    """Meta and fake tensors have the shapes and strides of real results and gradients."""
    case = Case(4, 3, 2, 5, mode=mode, layers=2, bidirectional=True)
    real = case.problem(torch.float32)

    def run(values: Values) -> list[Tensor]:
        leaves = {n: v.requires_grad_() for n, v in values.items()}
        results = named(case, call(functional, case, leaves)).values()
        grads = torch.autograd.grad([r.sum() for r in results], list(leaves.values()))
        return [*results, *grads]

    if fake:
        with torch._subclasses.FakeTensorMode() as mode_:
            found = run({n: mode_.from_tensor(v) for n, v in real.items()})
    else:
        found = run({n: v.to("meta") for n, v in real.items()})
    for a, b in zip(found, run(real), strict=True):
        assert (a.shape, a.stride(), a.dtype) == (b.shape, b.stride(), b.dtype)


@modes
def test_shapes_of_a_cell_without_numbers(mode: str) -> None:
    rows = 5 * GATES[mode]
    shapes = [(3, 2), (3, 5), (3, 5), (rows, 2), (rows, 5), (rows,), (rows,)]
    tensors = [torch.empty(s, device="meta", requires_grad=True) for s in shapes]
    tensors[2] = tensors[2] if has_c(mode) else None
    results = [t for t in autograd.cell(mode, *tensors) if t is not None]
    assert all(t.is_meta and t.shape == (3, 5) for t in results)
    wanted = [t for t in tensors if t is not None]
    grads = torch.autograd.grad([t.sum() for t in results], wanted)
    assert [g.shape for g in grads] == [t.shape for t in wanted]


class Marked(Tensor):
    """A subclass that changes nothing."""


@modes
def test_tensor_subclass(mode: str) -> None:
    module, x = module_of(mode, 3, 4, 2), randn(5, 2, 3)
    found = []
    for t in (x, x.as_subclass(Marked)):
        y = module(t)[0]
        found.append(
            (y.as_subclass(Tensor), torch.autograd.grad(y.sin().sum(), module.parameters()))
        )
    close(*[(y, [g.as_subclass(Tensor) for g in grads]) for y, grads in found])


def test_operators_seen_by_a_mode() -> None:
    """A dispatch mode sees one operator a layer, forward and backward."""

    class Names(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            names.append(str(func))
            return func(*args, **(kwargs or {}))

    names: list[str] = []
    module, x = module_of("LSTM", 3, 4, 2), randn(5, 2, 3)
    with Names():
        module(x)[0].sum().backward()
    seen = [name for name in names if name.startswith("fastlstm")]
    assert seen == ["fastlstm.layer.default"] * 2 + ["fastlstm.layer_backward.default"] * 2
