"""torch.func and forward-mode AD, against the plain loop."""

from collections.abc import Callable

import pytest
import torch
from cell_kinds import GATES, has_c
from helpers import Case, Values, call, cases, modes, named, with_tokens
from module_pairs import build, randn
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import (
    functional_call,
    grad,
    hessian,
    jacfwd,
    jacrev,
    jvp,
    stack_module_state,
    vjp,
    vmap,
)

import fastlstm
from fastlstm import functional, reference
from fastlstm.dispatch import autograd
from fastlstm.dispatch.extension import _C
from fastlstm.dispatch.kernels import CELLS as CELL_CALLS

CELLS = ("LSTM", "GRU", "RNN_TANH")
SMALL = Case(2, 3, 2, 2, bidirectional=True)
SAMPLES = 4

# torch's own forward-mode formulas are still scripted.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")


def close(a, b) -> None:
    torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def module_of(mode: str, *args, **options) -> nn.Module:
    return build(fastlstm, mode, *args, dtype=torch.float64, **options)


def results_of(module, case: Case, values: Values, name: str) -> Callable[[Tensor], tuple]:
    """All outputs as a function of the input ``name``."""

    def function(t: Tensor) -> tuple[Tensor, ...]:
        results = named(case, call(module, case, values | {name: t}))
        return tuple(results[output] for output in case.outputs)

    return function


def loss_of(function: Callable) -> Callable[..., Tensor]:
    return lambda *args: sum(out.sin().sum() for out in function(*args))


# From a function f of one tensor to what is compared, at a tensor t and at a batch of them.
OF_RESULTS = {
    "jvp": lambda f, t, batch: jvp(f, (t,), (batch[0],)),
    "vjp": lambda f, t, batch: vjp(f, t)[1](tuple(out.cos() for out in f(t))),
    "jacrev": lambda f, t, batch: jacrev(f)(t),
    "jacfwd": lambda f, t, batch: jacfwd(f)(t),
    "vmap": lambda f, t, batch: vmap(f)(batch),
    "vmap_of_last_dim": lambda f, t, batch: vmap(f, in_dims=-1)(batch.movedim(0, -1)),
    "vmap_to_dim_1": lambda f, t, batch: vmap(f, out_dims=1)(batch),
    "vmap_vmap": lambda f, t, batch: vmap(vmap(f))(batch.unflatten(0, (2, -1))),
    "vmap_no_grad": lambda f, t, batch: vmap(torch.no_grad()(f))(batch),
    "vmap_jvp": lambda f, t, batch: vmap(lambda b: jvp(f, (b,), (t,)))(batch),
    "jvp_vmap": lambda f, t, batch: jvp(vmap(f), (batch,), (batch.flip(0),)),
    "vmap_jacrev": lambda f, t, batch: vmap(jacrev(f))(batch),
}
OF_LOSS = {
    "grad": lambda f, t, batch: grad(f)(t),
    "grad_grad": lambda f, t, batch: grad(lambda t: grad(f)(t).sin().sum())(t),
    "hessian": lambda f, t, batch: hessian(f)(t),
    "jacrev_jacfwd": lambda f, t, batch: jacrev(jacfwd(f))(t),
    "jacfwd_jacfwd": lambda f, t, batch: jacfwd(jacfwd(f))(t),
    "jacrev_jacrev": lambda f, t, batch: jacrev(jacrev(f))(t),
    "vmap_grad": lambda f, t, batch: vmap(grad(f))(batch),
    "grad_vmap": lambda f, t, batch: grad(lambda b: vmap(f)(b).sin().sum())(batch),
    "vmap_hessian": lambda f, t, batch: vmap(hessian(f))(batch[:2]),
    "vmap_vmap_grad": lambda f, t, batch: vmap(vmap(grad(f)))(batch.unflatten(0, (2, -1))),
}
of_one = pytest.mark.parametrize("name", ["x", "w_hh_0", "h0"])


def assert_same_transform(transform, wrap, functions, t: Tensor) -> None:
    batch = torch.randn(SAMPLES, *t.shape, dtype=t.dtype)
    mine, plain = (transform(wrap(f), t, batch) for f in functions)
    close(mine, plain)


@pytest.mark.parametrize("transform", OF_RESULTS)
@of_one
@cases(SMALL, modes=CELLS)
def test_transform_of_results(case: Case, name: str, transform: str) -> None:
    values = case.problem(torch.float64)
    functions = [results_of(module, case, values, name) for module in (functional, reference)]
    assert_same_transform(OF_RESULTS[transform], lambda f: f, functions, values[name])


@pytest.mark.parametrize("transform", OF_LOSS)
@of_one
@cases(SMALL, modes=CELLS)
def test_transform_of_loss(case: Case, name: str, transform: str) -> None:
    values = case.problem(torch.float64)
    functions = [results_of(module, case, values, name) for module in (functional, reference)]
    assert_same_transform(OF_LOSS[transform], loss_of, functions, values[name])


@pytest.mark.parametrize("transform", ["jvp", "jacrev", "vmap", "vmap_jacrev"])
@cases(
    Case(3, 3, 2, 2, layers=2, bidirectional=True),
    Case(3, 3, 2, 2, state=False, bias=False),
    Case(3, 3, 2, 3, proj_size=2, bidirectional=True),
    Case(3, 3, 2, 2, bidirectional=True, lengths=(2, 0, 3)),
    Case(3, 3, 2, 2, bidirectional=True, lengths=(3, 2, 2), packed=True),
    Case(4, 3, 2, 2, bidirectional=True, reset=0.4),
    Case(4, 3, 2, 2, mode="GRU", lengths=(3, 2, 4), reset=0.4),
)
def test_options(case: Case, transform: str) -> None:
    values = case.problem(torch.float64)
    for name in ("x", "w_ih_0"):
        functions = [results_of(module, case, values, name) for module in (functional, reference)]
        assert_same_transform(OF_RESULTS[transform], lambda f: f, functions, values[name])


@cases(Case(4, 3, 2, 2, bidirectional=True), modes=CELLS)
def test_vmap_of_tokens_lengths_and_resets(case: Case) -> None:
    """What is not differentiable is batched too, alone and together, and folds as x does."""
    values = with_tokens(case, case.problem(torch.float64), 5)
    values["embedding"] = torch.randn(5, case.I, dtype=torch.float64)
    batches = {
        "x": torch.randint(5, (SAMPLES, *case.size)),
        "lengths": torch.randint(case.T + 1, (SAMPLES, case.N)),
        "reset": torch.rand(SAMPLES, *case.size) < 0.4,
        "h0": torch.randn(SAMPLES, *values["h0"].shape, dtype=torch.float64),
        "embedding": torch.randn(SAMPLES, 5, case.I, dtype=torch.float64),
    }
    kept = [name for name in values if name not in batches]

    def run(names: tuple[str, ...], batched: bool):
        def function(*tensors: Tensor) -> tuple[Tensor, ...]:
            v = {n: values[n] for n in values if n in kept or n not in names}
            v |= dict(zip(names, tensors, strict=True))
            x, h0, c0 = v["x"], v["h0"], v.get("c0")
            weights = [
                tuple(v[f"{kind}_{d}"] for kind in ("w_ih", "w_hh", "b_ih", "b_hh")) + (None,)
                for d in range(2)
            ]
            options = {n: v.get(n) for n in ("embedding", "lengths", "reset")}
            y, _, h_n, _ = autograd.layer(case.mode, x, h0, c0, weights, **options)
            return y, h_n

        tensors = [batches[n] for n in names]
        if batched:
            return vmap(function)(*tensors)
        found = [function(*(t[k] for t in tensors)) for k in range(SAMPLES)]
        return tuple(map(torch.stack, zip(*found, strict=True)))

    for names in (("x",), ("lengths",), ("reset",), ("lengths", "reset", "h0"), ("embedding", "x")):
        close(run(names, True), run(names, False))


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """How many times each kernel ran."""
    counts = dict.fromkeys(("layer_fwd", "layer_bwd", "cell_fwd", "cell_bwd"), 0)

    def counted(name: str) -> Callable:
        kernel = getattr(_C, name)

        def run(*args):
            counts[name] += 1
            return kernel(*args)

        return run

    for name in counts:
        monkeypatch.setattr(_C, name, counted(name))
    return counts


@cases(Case(3, 3, 2, 2, bidirectional=True), modes=CELLS)
def test_vmap_is_one_call_where_weights_are_shared(case: Case, calls: dict[str, int]) -> None:
    values = case.problem(torch.float64)

    def count(transform: str, name: str) -> tuple[int, int]:
        calls.update(dict.fromkeys(calls, 0))
        t = values[name]
        batch = torch.randn(SAMPLES, *t.shape, dtype=t.dtype)
        function = results_of(functional, case, values, name)
        if transform in OF_LOSS:
            OF_LOSS[transform](loss_of(function), t, batch)
        else:
            OF_RESULTS[transform](function, t, batch)
        return calls["layer_fwd"], calls["layer_bwd"]

    for name in ("x", "h0"):
        assert count("vmap", name) == (1, 0)
        assert count("grad", name) == (1, 1)
        assert count("grad_vmap", name) == (1, 1)
        # Backward of the folded batch computes forward again.
        assert count("vmap_grad", name) == (2, 1)
    assert count("vmap", "w_ih_0") == (SAMPLES, 0)
    assert count("vmap_grad", "w_ih_0") == (SAMPLES, SAMPLES)


@modes
def test_per_sample_gradients(mode: str, calls: dict[str, int]) -> None:
    module = module_of(mode, 3, 4, 2)
    parameters = dict(module.named_parameters())
    xs, targets = randn(SAMPLES, 5, 3), randn(SAMPLES, 5, 4)

    def loss(parameters: Values, x: Tensor, target: Tensor) -> Tensor:
        return (functional_call(module, parameters, (x.unsqueeze(1),))[0][:, 0] - target).norm()

    found = vmap(grad(loss), (None, 0, 0))(parameters, xs, targets)
    # Nothing is computed twice.
    assert calls["layer_fwd"] == calls["layer_bwd"] == 2 * SAMPLES
    for k in range(SAMPLES):
        expected = torch.autograd.grad(
            loss(parameters, xs[k], targets[k]), list(parameters.values())
        )
        close([g[k] for g in found.values()], list(expected))


@modes
def test_no_samples(mode: str) -> None:
    module = module_of(mode, 3, 4, 2)
    parameters = dict(module.named_parameters())

    def loss(parameters: Values, x: Tensor) -> Tensor:
        return functional_call(module, parameters, (x,))[0].sum()

    xs = randn(0, 5, 2, 3)
    assert vmap(torch.no_grad()(lambda x: module(x)[0]))(xs).shape == (0, 5, 2, 4)
    assert vmap(lambda x: module(x)[0])(xs).shape == (0, 5, 2, 4)
    found = vmap(grad(loss), (None, 0))(parameters, xs)
    assert all(g.shape == (0, *parameters[name].shape) for name, g in found.items())


@modes
def test_ensemble(mode: str) -> None:
    modules = [module_of(mode, 3, 4, 2) for _ in range(SAMPLES)]
    parameters, buffers = stack_module_state(modules)
    x = randn(5, 2, 3)

    def results(parameters: Values, buffers: Values, x: Tensor) -> Tensor:
        return functional_call(modules[0], (parameters, buffers), (x,))[0]

    close(
        vmap(results, (0, 0, None))(parameters, buffers, x), torch.stack([m(x)[0] for m in modules])
    )
    xs = randn(SAMPLES, 5, 2, 3)
    expected = torch.stack([m(x)[0] for m, x in zip(modules, xs, strict=True)])
    close(vmap(results)(parameters, buffers, xs), expected)
    found = vmap(grad(lambda p, b, x: results(p, b, x).sin().sum()))(parameters, buffers, xs)
    for k, module in enumerate(modules):
        loss = module(xs[k])[0].sin().sum()
        expected = torch.autograd.grad(loss, list(module.parameters()))
        close([found[name][k] for name, _ in module.named_parameters()], list(expected))


def cell_functions(mode: str, wanted: int) -> tuple[list[Callable], list[Tensor | None]]:
    """A step as a function of one of its inputs: on the kernels, and in plain operations."""
    N, I, H = 3, 2, 2  # noqa: E741
    rows = GATES[mode] * H
    tensors = [randn(N, I), randn(N, H), randn(N, H) if has_c(mode) else None]
    tensors += [randn(rows, I), randn(rows, H), randn(rows), randn(rows)]

    def function(step: Callable) -> Callable:
        def run(t: Tensor) -> tuple[Tensor, ...]:
            changed = [*tensors[:wanted], t, *tensors[wanted + 1 :]]
            return tuple(t for t in step(changed) if t is not None)

        return run

    kernels = function(lambda tensors: autograd.cell(mode, *tensors))
    return [kernels, function(CELL_CALLS[mode].reference)], tensors


@pytest.mark.parametrize("transform", [*OF_RESULTS, *OF_LOSS])
@pytest.mark.parametrize("wanted", [0, 1, 4], ids=["x", "h", "w_hh"])
@pytest.mark.parametrize("mode", CELLS)
def test_transform_of_cell(mode: str, wanted: int, transform: str) -> None:
    functions, tensors = cell_functions(mode, wanted)
    if transform in OF_LOSS:
        assert_same_transform(OF_LOSS[transform], loss_of, functions, tensors[wanted])
    else:
        assert_same_transform(OF_RESULTS[transform], lambda f: f, functions, tensors[wanted])


def test_vmap_of_a_cell_is_one_call(calls: dict[str, int]) -> None:
    (function, _), tensors = cell_functions("LSTM", 0)
    vmap(function)(randn(SAMPLES, *tensors[0].shape))
    assert calls["cell_fwd"] == 1
    vmap(cell_functions("LSTM", 4)[0][0])(randn(SAMPLES, *tensors[4].shape))
    assert calls["cell_fwd"] == 1 + SAMPLES


@modes
def test_pullback_after_the_transform(mode: str) -> None:
    """The function that vjp returns, called and differentiated where the transform is over."""
    case = Case(3, 2, 2, 3, mode=mode)
    values = case.problem(torch.float64)
    found = []
    for module in (functional, reference):
        results, pull = vjp(results_of(module, case, values, "x"), values["x"])
        cotangents = [torch.ones_like(out).requires_grad_() for out in results]
        (gradient,) = pull(tuple(cotangents))
        found.append((gradient, torch.autograd.grad(gradient.sin().sum(), cotangents)))
    close(*found)


@modes
def test_transform_of_what_autograd_records(mode: str) -> None:
    """torch.func.grad of a tensor that itself requires a gradient."""
    case = Case(3, 2, 2, 3, mode=mode)
    values = case.problem(torch.float64)
    leaf = values["w_hh_0"].requires_grad_()
    found = []
    for module in (functional, reference):
        gradient = grad(loss_of(results_of(module, case, values, "x")))(values["x"])
        found.append((gradient, torch.autograd.grad(gradient.sin().sum(), leaf)))
    close(*found)


@modes
def test_in_place_under_a_transform(mode: str) -> None:
    """Outputs under torch.func are nobody's view: changing them changes no gradient."""
    case = Case(3, 2, 2, 3, mode=mode)
    values = case.problem(torch.float64)

    def doubled(module) -> Callable[[Tensor], Tensor]:
        function = results_of(module, case, values, "x")
        return lambda t: function(t)[0].mul_(2).sum()

    close(grad(doubled(functional))(values["x"]), grad(doubled(reference))(values["x"]))


@modes
def test_forward_mode(mode: str) -> None:
    """Dual tensors, recorded by autograd or not, some of them without a tangent."""
    case = Case(3, 2, 2, 3, mode=mode, bidirectional=True)
    values = case.problem(torch.float64)
    for enabled in (True, False):
        found = []
        for module in (functional, reference):
            with forward_ad.dual_level(), torch.set_grad_enabled(enabled):
                x = values["x"].clone().requires_grad_(enabled)
                dual = forward_ad.make_dual(x, values["x"].cos())
                results = results_of(module, case, values, "x")(dual)
                tangents = [forward_ad.unpack_dual(out).tangent for out in results]
                if enabled:
                    tangents.append(torch.autograd.grad(tangents[0].sin().sum(), x)[0])
                found.append(tangents)
        close(*found)


@modes
def test_transform_of_backward_alone(mode: str) -> None:
    """What was recorded outside of a transform is differentiated inside of one."""
    case = Case(3, 2, 2, 3, mode=mode, bidirectional=True)
    values = {n: v.requires_grad_() for n, v in case.problem(torch.float64).items()}
    found = []
    for module in (functional, reference):
        y = named(case, call(module, case, values))["output"]
        wanted = list(values.values())

        def pull(g: Tensor, y=y, wanted=wanted) -> tuple[Tensor, ...]:
            return torch.autograd.grad(y, wanted, g, retain_graph=True, materialize_grads=True)

        many = torch.linspace(-1, 1, 2 * y.numel(), dtype=y.dtype).view(2, *y.shape)
        with forward_ad.dual_level():
            duals = pull(forward_ad.make_dual(many[0], many[1]))
            tangents = [forward_ad.unpack_dual(g).tangent for g in duals]
        found.append((vmap(pull)(many), tangents))
    close(*found)


@modes
@pytest.mark.parametrize("strategy", ["reverse-mode", "forward-mode"])
def test_vectorized_jacobian(mode: str, strategy: str) -> None:
    case = Case(2, 2, 2, 2, mode=mode, layers=2)
    values = case.problem(torch.float64)
    functions = [results_of(module, case, values, "x") for module in (functional, reference)]
    close(
        *(
            torch.autograd.functional.jacobian(f, values["x"], vectorize=True, strategy=strategy)
            for f in functions
        )
    )
