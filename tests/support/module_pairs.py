"""Modules of fastlstm beside those of torch.nn: how tests make, call and compare the two."""

from collections.abc import Sequence

import pytest
import torch
from cell_kinds import has_c
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

import fastlstm

# Class and keyword of every kind of recurrence.
KINDS = {
    "LSTM": ("LSTM", {}),
    "GRU": ("GRU", {}),
    "RNN_TANH": ("RNN", {}),
    "RNN_RELU": ("RNN", {"nonlinearity": "relu"}),
}
kinds = pytest.mark.parametrize("kind", KINDS)
directions = pytest.mark.parametrize("bidirectional", [False, True], ids=["forward", "both"])

State = Tensor | tuple[Tensor, Tensor] | None
# torch.nn's words for a cell's state of the wrong rank are new in 2.15; fastlstm has them everywhere.
HAS_WORDS_FOR_RANK = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 15)
CLOSE = {"rtol": 1e-11, "atol": 1e-12}


def build(package, kind: str, *args, cell: bool = False, **kwargs) -> nn.Module:
    """The module (or the cell) of ``kind`` from ``package``: fastlstm or torch.nn."""
    name, options = KINDS[kind]
    return getattr(package, name + "Cell" * cell)(*args, **options, **kwargs)


def pair(kind: str, *args, **kwargs) -> tuple[nn.Module, nn.Module]:
    """One module of each package with the same weights, in float64."""
    kwargs.setdefault("dtype", torch.float64)
    theirs = build(nn, kind, *args, **kwargs)
    mine = build(fastlstm, kind, *args, **kwargs)
    mine.load_state_dict(theirs.state_dict())
    return mine, theirs


def randn(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def state_for(module: nn.RNNBase, *batch: int) -> State:
    """A random hx for ``module``, of its dtype."""
    layers = len(module.all_weights)
    like = module.all_weights[0][0]

    def state(width: int) -> Tensor:
        return torch.randn(layers, *batch, width).to(like.dtype)

    h = state(module.proj_size or module.hidden_size)
    return (h, state(module.hidden_size)) if has_c(module.mode) else h


def flat(results: object) -> list[Tensor]:
    """Every tensor in a result, those of a PackedSequence included."""
    if isinstance(results, Tensor):
        return [results]
    if isinstance(results, PackedSequence):
        return [results.data]
    return [t for part in results for t in flat(part)]


def results_and_grads(
    module: nn.Module, input: Tensor | PackedSequence, hx: State = None, **options
) -> list[Tensor]:
    """Outputs, then the gradients of input, state and parameters; dropout drawn from seed 5."""

    def leaf(t: Tensor) -> Tensor:
        return t.detach().clone().requires_grad_(t.is_floating_point())

    x = input._replace(data=leaf(input.data)) if isinstance(input, PackedSequence) else leaf(input)
    hx = hx if hx is None else leaf(hx) if isinstance(hx, Tensor) else tuple(map(leaf, hx))
    torch.manual_seed(5)
    results = flat(module(x, hx, **options))
    g = torch.Generator().manual_seed(6)
    cotangents = [torch.randn(r.shape, generator=g).to(r.dtype) for r in results]
    wanted = [t for t in flat(x) + flat(() if hx is None else hx) if t.requires_grad] + list(
        module.parameters()
    )
    grads = torch.autograd.grad(results, wanted, cotangents, materialize_grads=True)
    return [*(r.detach() for r in results), *grads]


def assert_same_module(mine: nn.Module, theirs: nn.Module, *args) -> None:
    """Fail unless both give the same results and gradients for the same arguments."""
    torch.testing.assert_close(
        results_and_grads(mine, *args), results_and_grads(theirs, *args), **CLOSE
    )


def ids(options: Sequence[dict] | dict) -> str:
    """A name for a dict of keyword arguments."""
    return "-".join(f"{k}={v}" for k, v in options.items()) or "default"
