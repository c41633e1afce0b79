"""The registered operators: schema, autograd, and fake results like the real ones."""

import subprocess
import sys

import pytest
import torch
from cell_kinds import GATES, has_c
from helpers import modes
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.library import opcheck
from torch.utils._pytree import tree_leaves, tree_map_only

from fastlstm.dispatch import ops  # noqa: F401  registers them

T, N, I, H = 3, 2, 3, 4
OPS = torch.ops.fastlstm

# What differs from a padded input of floats with biases and a state.
KINDS = {
    "plain": {},
    "bare": {"bias": False, "state": False},
    "one_hot": {"tokens": True},
    "embedding": {"tokens": True, "table": True},
    "lengths": {"lengths": torch.tensor([3, 1])},
    "reset": {"reset": torch.tensor([[True, False], [False, True], [False, False]])},
    "packed": {"batch_sizes": torch.tensor([2, 2, 1])},
    "projected": {"width": 2},
    "bfloat16": {"weight_dtype": torch.bfloat16},
}
# Of the cells with fewer outputs, what has to do with these.
KINDS_OF = {
    "LSTM": KINDS,
    "GRU": ("plain", "one_hot", "lengths", "packed", "bfloat16"),
    "RNN_TANH": ("plain",),
}
COMBINATIONS = [
    pytest.param(mode, kind, D, id=f"{mode}-{kind}-{D}")
    for mode, kinds in KINDS_OF.items()
    for kind in kinds
    for D in (1, 2)
    if D == 2 or kind == "plain"
]
every_kind = pytest.mark.parametrize(("mode", "kind", "D"), COMBINATIONS)


cells = pytest.mark.parametrize(
    ("mode", "bias"), [("LSTM", True), ("LSTM", False), ("GRU", True), ("RNN_RELU", True)]
)


def layer_arguments(mode: str, kind: str, D: int, needs_grad: bool) -> tuple:
    """Everything but ``keep``."""
    options = KINDS[kind]

    def leaf(*shape: int) -> Tensor:
        return torch.randn(shape).requires_grad_(needs_grad)

    size = (5,) if kind == "packed" else (T, N)
    x = torch.randint(I, size) if "tokens" in options else leaf(*size, I)
    P = options.get("width", H)
    weights, has_weight = [], []
    for _ in range(D):
        weights += [leaf(GATES[mode] * H, I), leaf(GATES[mode] * H, P)]
        weights += [leaf(GATES[mode] * H), leaf(GATES[mode] * H)] if kind != "bare" else []
        weights += [leaf(P, H)] if kind == "projected" else []
        bias = int(kind != "bare")
        has_weight += [1, 1, bias, bias, int(kind == "projected")]
    dtype = options.get("weight_dtype", torch.float32)
    weights = [w.detach().to(dtype).requires_grad_(needs_grad) for w in weights]
    state = options.get("state", True)
    return (
        mode,
        x,
        leaf(7, I) if "table" in options else None,
        leaf(D, N, P) if state else None,
        leaf(D, N, H) if state and has_c(mode) else None,
        weights,
        has_weight,
        options.get("batch_sizes"),
        options.get("lengths"),
        options.get("reset"),
    )


def check(op, arguments: tuple) -> None:
    """Run torch's checks of an operator, and compare the sizes and strides of fake results."""
    opcheck(op, arguments)
    results = op(*arguments)
    with FakeTensorMode() as mode:
        fakes = op(*tree_map_only(Tensor, mode.from_tensor, arguments))
    for fake, real in zip(tree_leaves(fakes), tree_leaves(results), strict=True):
        assert (fake.shape, fake.stride(), fake.dtype) == (real.shape, real.stride(), real.dtype)


@pytest.mark.slow
@every_kind
def test_layer(mode: str, kind: str, D: int) -> None:
    check(OPS.layer.default, (*layer_arguments(mode, kind, D, True), 2))


@pytest.mark.parametrize("keep", [0, 1])
@pytest.mark.parametrize("kind", ["plain", "packed"])
@modes
def test_layer_without_gradient(mode: str, kind: str, keep: int) -> None:
    check(OPS.layer.default, (*layer_arguments(mode, kind, 2, False), keep))


@pytest.mark.slow
@every_kind
def test_layer_backward(mode: str, kind: str, D: int) -> None:
    arguments = layer_arguments(mode, kind, D, False)
    h, c, reserve, h_n, c_n = OPS.layer(*arguments, 2)
    with_c = has_c(mode)
    x, is_tokens = arguments[1], "tokens" in KINDS[kind]
    rows = x.shape if is_tokens else x.shape[:-1]
    grad_y = torch.randn(*rows, h.size(1))
    grad_c = torch.randn(*rows, c.size(1)) if with_c else None
    grad_h_n, grad_c_n = torch.randn_like(h_n), torch.randn_like(c_n) if with_c else None
    table = "table" in KINDS[kind]
    for grads, needs in (
        ((grad_y, grad_c, grad_h_n, grad_c_n), (not is_tokens, table, True, True)),
        ((None, None, grad_h_n, None), (False, False, True, False)),
    ):
        check(OPS.layer_backward.default, (*arguments, h, c, reserve, *grads, *needs, []))


def cell_arguments(mode: str, bias: bool, needs_grad: bool) -> tuple:
    def leaf(*shape: int) -> Tensor:
        return torch.randn(shape).requires_grad_(needs_grad)

    rows = GATES[mode] * H
    return (
        mode,
        leaf(N, I),
        leaf(N, H),
        leaf(N, H) if has_c(mode) else None,
        leaf(rows, I),
        leaf(rows, H),
        *((leaf(rows), leaf(rows)) if bias else (None, None)),
    )


@pytest.mark.parametrize("keep", [False, True])
@cells
def test_cell(mode: str, bias: bool, keep: bool) -> None:
    check(OPS.cell.default, (*cell_arguments(mode, bias, keep), keep))


@cells
def test_cell_backward(mode: str, bias: bool) -> None:
    arguments = cell_arguments(mode, bias, False)
    kept = OPS.cell(*arguments, True)
    with_c = has_c(mode)
    grad_h, grad_c = torch.randn(N, H), torch.randn(N, H) if with_c else None
    for grads, needs in (
        ((grad_h, grad_c), (True, True, with_c, True)),
        ((grad_h, None), (True, False, False, False)),
    ):
        check(OPS.cell_backward.default, (*arguments, *kept, *grads, *needs, []))


def test_import_leaves_the_compiler_alone() -> None:
    """Who does not compile does not wait for the compiler to be imported."""
    code = "import sys, fastlstm; sys.exit('torch._dynamo' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
