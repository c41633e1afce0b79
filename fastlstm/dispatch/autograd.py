"""From the tensors of a layer or a cell to the kernels and back, on one of three routes.

Compiling, exporting, or tensors that are not plain ones: the operators of ops.py. A transform of
torch.func or forward-mode AD: transforms.py. Otherwise straight to the kernels, which costs the
least. Only transforms that are compiled themselves leave the kernels, for the loop of reference.py.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from fastlstm.dispatch import ops, transforms
from fastlstm.dispatch.derivatives import (
    are_kernels_enough,
    differentiable_pull_back,
    without_autocast,
)
from fastlstm.dispatch.extension import _C
from fastlstm.dispatch.kernels import CELLS, KEEP_ALL, LAYERS, Call, Tensors


def layer(
    mode: str,
    x: Tensor,
    h0: Tensor | None,
    c0: Tensor | None,
    weights: Sequence[Sequence[Tensor | None]],
    *,
    embedding: Tensor | None = None,
    batch_sizes: Tensor | None = None,
    lengths: Tensor | None = None,
    reset: Tensor | None = None,
    return_c: bool = False,
) -> tuple[Tensor, Tensor | None, Tensor, Tensor | None]:
    """Run one layer in D directions. G: gates of the cell.

    Args:
        mode: the cell, a key of ``traits.CELL_TRAITS``.
        x: ``[T, N, I]`` float32 or float64 of any strides, or int64 tokens ``[T, N]``; with
            ``batch_sizes``, ``[rows, I]`` or ``[rows]``.
        h0: ``[D, N, P]``, zero if None.
        c0: ``[D, N, H]``, zero if None; None of a cell without a c.
        weights: D times ``(w_ih, w_hh, b_ih, b_hh, w_hr)``, ``[G * H, I]``, ``[G * H, P]``,
            ``[G * H]`` twice and ``[P, H]``, the last three possibly None (w_hr unless LSTM).
        embedding: ``[V, I]``, the table of the tokens; None means one-hot.
        batch_sizes: int64 ``[T]`` on the CPU: x is the data of a packed sequence.
        lengths: int64 ``[N]`` on the CPU: steps of each row; None means T.
        reset: bool ``[T, N]``: no state passes from the step before to this one.
        return_c: also return every cell state, if the cell has one.

    Returns:
        ``(y, c, h_n, c_n)``: y ``[T, N, D * P]`` or ``[rows, D * P]``, c likewise with D * H, None
        unless asked for; h_n ``[D, N, P]``; c_n ``[D, N, H]``, None of a cell without a c.

    Raises:
        RuntimeError, ValueError, IndexError: what the kernels find wrong with the arguments.
    """
    call = LAYERS[mode, return_c]
    flat = [t for direction in weights for t in direction]
    return _run(call, (x, embedding, h0, c0, batch_sizes, lengths, reset, *flat))


def cell(
    mode: str,
    x: Tensor,
    h: Tensor,
    c: Tensor | None,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None,
    b_hh: Tensor | None,
) -> tuple[Tensor, Tensor | None]:
    """Take one step. Arguments as for :func:`layer`, without T and D; c is None of a cell without.

    Args:
        x: ``[N, I]`` float32 or float64.
        h, c: ``[N, H]``.

    Returns:
        ``(h, c)`` after the step, c None of a cell without.

    Raises:
        RuntimeError: what the kernels find wrong with the arguments.
    """
    return _run(CELLS[mode], (x, h, c, w_ih, w_hh, b_ih, b_hh))


def _run(call: Call, tensors: Tensors) -> Tensors:
    if torch.compiler.is_compiling():
        if torch._C._are_functorch_transforms_active():
            # Operators have no rules for torch.func, and a graph cannot be broken inside of it.
            with without_autocast(tensors):
                return call.reference(tensors)
        return ops.run(call, tensors)
    if transforms.are_active():
        return transforms.run(call, tensors)[: call.num_outputs]
    if ops.are_needed(tensors):
        return ops.run(call, tensors)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors):
        return _apply(call, *tensors)
    return call.run(tensors, int(call.needs_c))[0]


class Recurrence(torch.autograd.Function):
    """The everyday route. Backward may run many times: nothing saved is overwritten.

    Saved is what backward reads for the gradients that are wanted. The other inputs are held for
    higher derivatives alone, so that until then they may change.
    """

    @staticmethod
    def forward(ctx, call, *tensors):
        outputs, kept = call.run(tensors, KEEP_ALL)
        unread, unread_kept = call.unread(ctx.needs_input_grad[1:])
        saved, held = list(tensors), []
        for i in unread:
            if tensors[i] is not None:
                held.append((i, tensors[i], _version(tensors[i])))
                saved[i] = None
        if unread_kept:
            kept = [None if i in unread_kept else t for i, t in enumerate(kept)]
        ctx.save_for_backward(*saved, *kept)
        ctx.call, ctx.held = call, held
        # Outputs lie in the memory of what is kept, and they may be changed in place.
        ctx.witnesses = [
            _C.version_of(outputs[i]) for i in call.kept_outputs if kept[i] is not None
        ]
        ctx.set_materialize_grads(False)
        return outputs

    @staticmethod
    def backward(ctx, *grads):
        call, needs, saved = ctx.call, ctx.needs_input_grad[1:], ctx.saved_tensors
        if all(grad is None for grad in grads):
            return (None,) * (1 + len(needs))
        tensors, kept = list(saved[: len(needs)]), saved[len(needs) :]
        for i, t, _ in ctx.held:
            tensors[i] = t
        if torch.compiler.is_compiling():  # by compiled autograd
            kernel = ops.backward_of(call, ctx.witnesses)
            return None, *call.pull_back(tensors, kept, grads, needs, kernel)
        is_changed = any(_version(t) for t in ctx.witnesses)
        is_everyday = not transforms.are_active() and are_kernels_enough()
        if is_changed or not is_everyday:
            _check_unchanged(ctx.held)
        if is_changed:
            _, kept = call.run(tensors, KEEP_ALL)
        if is_everyday:
            # A mode that was not there in the forward pass, such as FlopCounterMode, sees operators.
            is_watched = torch._C._len_torch_dispatch_stack() > 0
            kernel = ops.backward_of(call) if is_watched else None
            return None, *call.pull_back(tensors, kept, grads, needs, kernel)
        if transforms.are_active():  # a transform of the backward pass alone
            return None, *transforms.pull_back(call, tensors, kept, grads, needs)
        return None, *differentiable_pull_back(call, tensors, grads, needs)


# Past Function.apply, which looks for wrappers of torch.func that have outlived it: are_needed() has
# seen that there are none. It takes 3 of the 20 us of a small cell.
_apply = super(torch.autograd.Function, Recurrence).apply


def _version(t: Tensor) -> int:
    """How often ``t`` was changed in place; 0 for tensors of inference mode, which nobody counts."""
    return 0 if t.is_inference() else t._version


def _check_unchanged(held: Sequence[tuple[int, Tensor, int]]) -> None:
    for _, t, version in held:
        if _version(t) != version:
            raise RuntimeError(
                "one of the variables needed for gradient computation has been modified by an inplace"
                f" operation: a tensor of shape {list(t.shape)} is at version {_version(t)}; expected"
                f" version {version} instead. Higher derivatives, and gradients after an output was"
                " changed in place, need every argument as it was in forward"
            )
