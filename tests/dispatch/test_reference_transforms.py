"""torch.func through the reference loops, in float64: vmap, jvp, grad and hessian."""

import pytest
import torch
from helpers import MODES, Case, cases, plain
from torch import Tensor
from torch.func import grad, hessian, jvp, vmap


@cases(
    Case(3, 2, 2, 3, bidirectional=True),
    Case(3, 2, 2, 3, lengths=(3, 1), bidirectional=True, reset=0.5),
    Case(3, 2, 2, 3, lengths=(3, 1), packed=True, layers=2),
    modes=MODES,
)
@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
def test_transforms(case: Case) -> None:
    """vmap over each floating-point input, of gradients too; jvp, hessian."""
    values = case.problem(torch.float64)

    def loss(v: Tensor, name: str) -> Tensor:
        return sum(r.sin().sum() for r in plain(case, values | {name: v}).values())

    for name in [n for n, v in values.items() if v.is_floating_point()]:
        several = torch.stack([values[name] * s for s in (0.5, 1.0, 2.0)])
        for function in (
            lambda v, name=name: loss(v, name),
            grad(lambda v, name=name: loss(v, name)),
        ):
            expected = torch.stack([function(v) for v in several])
            torch.testing.assert_close(vmap(function)(several), expected, rtol=0, atol=1e-12)
        tangent = torch.randn_like(values[name])
        _, along = jvp(lambda v, name=name: loss(v, name), (values[name],), (tangent,))
        gradient = grad(lambda v, name=name: loss(v, name))(values[name])
        torch.testing.assert_close(along, (gradient * tangent).sum(), rtol=1e-10, atol=1e-12)
    x = values["x"]
    second = hessian(lambda v: loss(v, "x"))(x).view(x.numel(), x.numel())
    torch.testing.assert_close(second, second.t(), rtol=0, atol=1e-12)
    step = 1e-5 * torch.randn_like(x)
    slope = grad(lambda v: loss(v, "x"))
    found = (slope(x + step) - slope(x - step)) / 2
    torch.testing.assert_close(second @ step.view(-1), found.view(-1), rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("embed", [False, True], ids=["one_hot", "embedding"])
def test_transforms_of_tokens(embed: bool) -> None:
    """Per-sample gradients, the tokens themselves batched."""
    case = Case(4, 3, 5, 3)
    values = case.problem(torch.float64)
    tokens = torch.randint(5, (2, 4, 3))
    if embed:
        values["embedding"] = torch.randn(5, 5, dtype=torch.float64)
    name = "embedding" if embed else "w_ih_0"

    def loss(weight: Tensor, tokens: Tensor) -> Tensor:
        return plain(case, values | {"x": tokens, name: weight})["output"].sin().sum()

    found = vmap(grad(loss), (None, 0))(values[name], tokens)
    for gradient, own in zip(found, tokens, strict=True):
        torch.testing.assert_close(gradient, grad(loss)(values[name], own), rtol=0, atol=1e-13)
