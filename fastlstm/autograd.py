"""From one layer's tensors to the kernels and back: the autograd side of the package."""

from collections.abc import Sequence

import torch
from torch import Tensor

from fastlstm import reference
from fastlstm._extension import _C

# How much forward keeps, as in csrc/layer.h.
_KEEP_NOTHING, _KEEP_CELL_STATES, _KEEP_ALL = 0, 1, 2


class LSTMLayer(torch.autograd.Function):
    """One layer, one or two directions. Backward may run twice: nothing saved is overwritten."""

    @staticmethod
    def forward(ctx, return_c, x, embedding, h0, c0, *weights):
        h, c, gates, h_n, c_n = _C.lstm_layer_fwd(x, embedding, h0, c0, weights, _KEEP_ALL)
        ctx.save_for_backward(x, embedding, h0, c0, *weights, h, c, gates)
        ctx.set_materialize_grads(False)
        steps = slice(1, x.size(0) + 1)
        return h[steps], c[steps] if return_c else None, h_n, c_n

    @staticmethod
    def backward(ctx, grad_y, grad_c, grad_h_n, grad_c_n):
        inputs = ctx.saved_tensors[:-3]
        grads = (grad_y, grad_c, grad_h_n, grad_c_n)
        needs = ctx.needs_input_grad[1:]
        if all(grad is None for grad in grads):
            return (None,) * (1 + len(inputs))
        if torch.is_grad_enabled():
            return None, *_differentiable_backward(inputs, grads, needs)
        x, embedding, h0, c0, *weights = inputs
        needs_x, needs_embedding, needs_h0, needs_c0, *needs_weights = needs
        dx, dembedding, dh0, dc0, dweights = _C.lstm_layer_bwd(
            x, embedding, h0, c0, weights, *ctx.saved_tensors[-3:], *grads,
            needs_x, needs_embedding, needs_h0 or needs_c0, any(needs_weights),
        )  # fmt: skip
        result = [dx, dembedding, dh0 if needs_h0 else None, dc0 if needs_c0 else None]
        for direction, (dw_ih, dw_hh, db) in enumerate(dweights):
            needs_b_ih, needs_b_hh = needs_weights[4 * direction + 2 : 4 * direction + 4]
            # Both biases have the same gradient, but .grad of two parameters must not share memory.
            db_hh = db.clone() if needs_b_ih and needs_b_hh else db
            result += [dw_ih, dw_hh, db if needs_b_ih else None, db_hh if needs_b_hh else None]
        result += [None] * (len(inputs) - len(result))
        return None, *(grad if needed else None for grad, needed in zip(result, needs, strict=True))


def _differentiable_backward(inputs, grads, needs):
    """Gradients as a function autograd can differentiate: for ``create_graph=True``."""
    # Aliases, so that the gradient of one input does not flow on through the history of another.
    inputs = [None if t is None else t.view_as(t) for t in inputs]
    x, embedding, h0, c0, *weights = inputs
    hx = None
    if h0 is not None or c0 is not None:
        hx = (
            torch.zeros_like(c0) if h0 is None else h0,
            torch.zeros_like(h0) if c0 is None else c0,
        )
    _, (h_n, c_n), states = reference.lstm(
        x,
        hx,
        [weights[i : i + 4] for i in range(0, len(weights), 4)],
        bidirectional=len(weights) == 8,
        embedding=embedding,
        return_states=True,
    )
    outputs = (states.h[0], states.c[0], h_n, c_n)
    pairs = [(out, grad) for out, grad in zip(outputs, grads, strict=True) if grad is not None]
    wanted = [t for t, needed in zip(inputs, needs, strict=True) if needed]
    found = iter(
        torch.autograd.grad(
            [out for out, _ in pairs],
            wanted,
            [grad for _, grad in pairs],
            create_graph=True,
            allow_unused=True,
        )
    )
    return tuple(next(found) if needed else None for needed in needs)


def lstm_layer(
    x: Tensor,
    h0: Tensor | None,
    c0: Tensor | None,
    weights: Sequence[Sequence[Tensor | None]],
    *,
    embedding: Tensor | None = None,
    return_c: bool = False,
) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    """Run one layer on the kernels. D is the number of directions.

    Args:
        x: ``[T, N, I]`` float32 or float64 of any strides, or int64 tokens ``[T, N]``.
        h0: ``[D, N, H]``, zero if None.
        c0: ``[D, N, H]``, zero if None.
        weights: D times ``(w_ih, w_hh, b_ih, b_hh)``, the biases possibly None.
        embedding: ``[V, I]``, the table of the tokens; None means one-hot.
        return_c: also return every cell state.

    Returns:
        ``(y, c, h_n, c_n)``: y and c ``[T, N, D * H]`` (c None unless ``return_c``), h_n and c_n
        ``[D, N, H]``.
    """
    flat = [t for direction in weights for t in direction]
    if x.is_meta or flat[0].is_meta:
        return _shapes_only(x, flat, return_c)
    tensors = (x, embedding, h0, c0, *flat)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors):
        return LSTMLayer.apply(return_c, *tensors)
    keep = _KEEP_CELL_STATES if return_c else _KEEP_NOTHING
    h, c, _, h_n, c_n = _C.lstm_layer_fwd(x, embedding, h0, c0, flat, keep)
    steps = slice(1, x.size(0) + 1)
    return h[steps], c[steps] if return_c else None, h_n, c_n


def _shapes_only(x, flat, return_c):
    w_hh = flat[1]
    directions = len(flat) // 4
    y = w_hh.new_empty(x.size(0), x.size(1), directions * w_hh.size(1))
    state = w_hh.new_empty(directions, x.size(1), w_hh.size(1))
    return y, torch.empty_like(y) if return_c else None, state, torch.empty_like(state)
