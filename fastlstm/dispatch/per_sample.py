"""Gradients of every sample, by ``call_for_per_sample_grads`` of ``torch.nn.utils``.

It puts an ExpandedWeight in the place of each parameter, which no operation takes but those that
know it: their backward leaves the gradients, one for each row of the batch, in ``grad_sample`` of
the parameter. Here a layer is such an operation.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.utils._expanded_weights.expanded_weights_impl import ExpandedWeight
from torch.nn.utils._expanded_weights.expanded_weights_utils import set_grad_sample_if_exists

from fastlstm.dispatch.kernels import KEEP_ALL, LAYERS, Call, Tensors

Owners = Sequence[ExpandedWeight | None]


def unwrapped(t: Tensor | None) -> Tensor | None:
    """Return the parameter that ``t`` stands for, or ``t`` if it stands for itself."""
    return t.orig_weight if type(t) is ExpandedWeight else t


def looked_up(tokens: Tensor, table: ExpandedWeight, padding_idx: int | None) -> Tensor:
    """Return rows ``[T, N, I]`` of ``table`` for ``tokens`` ``[T, N]``; torch wants the batch first."""
    if tokens.dim() == 1:
        raise RuntimeError("embedding cannot have gradients of every sample with packed input")
    return F.embedding(tokens.transpose(0, 1), table, padding_idx).transpose(0, 1)


def layer(
    owners: Sequence[Tensors],
    mode: str,
    x: Tensor,
    h0: Tensor | None,
    c0: Tensor | None,
    weights: Sequence[Tensors],
    *,
    embedding: Tensor | None = None,
    batch_sizes: Tensor | None = None,
    lengths: Tensor | None = None,
    reset: Tensor | None = None,
    return_c: bool = False,
) -> Tensors:
    """Do what :func:`fastlstm.dispatch.autograd.layer` does.

    Args:
        owners: ``weights`` as they were before they were unwrapped.

    Raises:
        RuntimeError: the batch is not the one that the weights are expanded for.
    """
    call = LAYERS[mode, return_c]
    flat_owners = [w if type(w) is ExpandedWeight else None for entry in owners for w in entry]
    _check_batch(flat_owners, x, batch_sizes)
    flat = [t for direction in weights for t in direction]
    return _Layer.apply(call, flat_owners, x, embedding, h0, c0, batch_sizes, lengths, reset, *flat)


def _check_batch(owners: Owners, x: Tensor, batch_sizes: Tensor | None) -> None:
    batch = _batch_of(x, batch_sizes)
    if batch == 0:
        raise RuntimeError("0 is not a valid batch size for Expanded Weights")
    for owner in owners:
        # Of packed sequences torch.nn takes fewer too.
        if owner is not None and (
            batch > owner.batch_size or (batch < owner.batch_size and batch_sizes is None)
        ):
            raise RuntimeError(
                "Expected ExpandedWeights to have batch size matching input but got input batch size"
                f" of {batch} with ExpandedWeight of batch size {owner.batch_size}"
            )


def _batch_of(x: Tensor, batch_sizes: Tensor | None) -> int:
    return x.size(1) if batch_sizes is None else int(batch_sizes[0])


class _Layer(torch.autograd.Function):
    """A layer whose weights get the gradients of rows, run one by one, and all else the usual one."""

    @staticmethod
    def forward(ctx, call, owners, *tensors):
        outputs, kept = call.run(tensors, KEEP_ALL)
        ctx.call, ctx.owners = call, owners
        ctx.save_for_backward(*tensors, *kept)
        ctx.set_materialize_grads(False)
        # Otherwise they lie in the memory of what is kept.
        return tuple(None if t is None else t.clone() for t in outputs)

    @staticmethod
    @once_differentiable
    def backward(ctx, *grads):
        call, owners, needs = ctx.call, ctx.owners, ctx.needs_input_grad[2:]
        tensors, kept = ctx.saved_tensors[: len(needs)], ctx.saved_tensors[len(needs) :]
        if all(grad is None for grad in grads):
            return (None,) * (2 + len(needs))
        is_owned = [False] * (len(needs) - len(owners)) + [owner is not None for owner in owners]
        usual = [need and not owned for need, owned in zip(needs, is_owned, strict=True)]
        found = [None] * len(needs)
        if any(usual):
            found = call.pull_back(tensors, kept, grads, usual)
        rows = _gradients_of_rows(call, tensors, grads, is_owned)
        for owner, gradients in zip(owners, rows[len(needs) - len(owners) :], strict=True):
            if owner is not None:
                gradients = gradients.to(owner.dtype)
                set_grad_sample_if_exists(owner, lambda _, found=gradients: found)
        return None, None, *found


def _gradients_of_rows(
    call: Call, tensors: Tensors, grads: Tensors, needs: Sequence[bool]
) -> list[Tensor | None]:
    """Return for each tensor in need its gradients ``[N, ...]``, of one row of the batch each."""
    found = []
    for n in range(_batch_of(tensors[0], tensors[4])):
        row, row_grads = _row(n, tensors, grads)
        _, kept = call.run(row, KEEP_ALL)
        found.append(call.pull_back(row, kept, row_grads, needs))
    of_tensors = zip(*found, strict=True)
    return [None if of_rows[0] is None else torch.stack(of_rows) for of_rows in of_tensors]


def _row(n: int, tensors: Tensors, grads: Tensors) -> tuple[Tensors, Tensors]:
    """Cut row n of the batch out of the inputs of a layer and the gradients of its outputs."""
    x, embedding, h0, c0, batch_sizes, lengths, reset, *weights = tensors
    y, c, h_n, c_n = grads
    # [steps of row n]: where it is in packed data.
    at = None
    if batch_sizes is not None:
        begins = batch_sizes.cumsum(0) - batch_sizes
        at = (begins[batch_sizes > n] + n).to(x.device)

    def state(t: Tensor) -> Tensor:
        return t[:, n : n + 1]

    def steps(t: Tensor) -> Tensor:
        return state(t) if at is None else t[at].unsqueeze(1)

    x, y, c = _each(steps, x, y, c)
    h0, c0, h_n, c_n, reset = _each(state, h0, c0, h_n, c_n, reset)
    lengths = None if lengths is None else lengths[n : n + 1]
    return (x, embedding, h0, c0, None, lengths, reset, *weights), (y, c, h_n, c_n)


def _each(cut: Callable[[Tensor], Tensor], *tensors: Tensor | None) -> list[Tensor | None]:
    return [None if t is None else cut(t) for t in tensors]
