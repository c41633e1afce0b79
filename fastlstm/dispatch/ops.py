"""The kernels as operators ``torch.ops.fastlstm.*``: what graphs of torch.compile and export hold.

An operator may not return an input, a part of another output, or None: what does not exist is an
empty tensor. Views are taken outside, where the compiler sees them.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.library import register_autograd, register_fake

from fastlstm.dispatch import flops
from fastlstm.dispatch.derivatives import are_kernels_enough, differentiable_pull_back
from fastlstm.dispatch.extension import _C
from fastlstm.dispatch.kernels import (
    CELLS,
    KEEP_ALL,
    KEEP_NOTHING,
    LAYERS,
    Call,
    Layer,
    Tensors,
    every_step,
    pick,
    spread,
)
from fastlstm.dispatch.precision import kernel_types
from fastlstm.dispatch.traits import CELL_TRAITS

_LAYER_INPUTS = (
    "str mode, Tensor x, Tensor? embedding, Tensor? h0, Tensor? c0, Tensor[] weights,"
    " int[] has_weight, Tensor? batch_sizes, Tensor? lengths, Tensor? reset"
)
_CELL_INPUTS = (
    "str mode, Tensor x, Tensor h, Tensor? c, Tensor w_ih, Tensor w_hh, Tensor? b_ih, Tensor? b_hh"
)
_SCHEMAS = {
    "layer": f"({_LAYER_INPUTS}, int keep)"
    " -> (Tensor h, Tensor c, Tensor reserve, Tensor h_n, Tensor c_n)",
    "layer_backward": f"({_LAYER_INPUTS}, Tensor? h, Tensor c, Tensor reserve, Tensor? grad_y,"
    " Tensor? grad_c, Tensor? grad_h_n, Tensor? grad_c_n, bool needs_x, bool needs_embedding,"
    " bool needs_state, bool needs_weights, Tensor[] witnesses)"
    " -> (Tensor dx, Tensor dembedding, Tensor dh0, Tensor dc0, Tensor[] dweights)",
    "cell": f"({_CELL_INPUTS}, bool keep) -> (Tensor h_out, Tensor c_out, Tensor reserve)",
    "cell_backward": f"({_CELL_INPUTS}, Tensor? h_out, Tensor? c_out, Tensor reserve,"
    " Tensor? grad_h, Tensor? grad_c, bool needs_x, bool needs_h, bool needs_c, bool needs_weights,"
    " Tensor[] witnesses)"
    " -> (Tensor dx, Tensor dh, Tensor dc, Tensor dw_ih, Tensor dw_hh, Tensor db_ih, Tensor db_hh)",
    # A clone that no compiler takes for superfluous: inductor removes aten's.
    "copy": "(Tensor t) -> Tensor",
}
for _name, _schema in _SCHEMAS.items():
    torch.library.define(f"fastlstm::{_name}", _schema, tags=(torch.Tag.pt2_compliant_tag,))


def are_needed(tensors: Tensors) -> bool:
    """Whether the call must go through torch's dispatcher: the kernels only know plain tensors.

    True for meta tensors, for FakeTensor, DTensor, functional tensors and their like, and while a
    mode such as ``make_fx`` or ``torch.jit.trace`` watches operators.
    """
    return (
        torch._C._len_torch_dispatch_stack() > 0
        or not _C.are_plain(tuple(tensors))
        or torch.jit.is_tracing()
    )


def run(call: Call, tensors: Tensors) -> Tensors:
    """Run forward as an operator; autograd, if it is needed, is that of the operator."""
    for t in tensors:
        if t is not None and t.is_nested:
            raise RuntimeError(
                f"arguments must not be nested tensors, got one of layout {t.layout} with"
                f" {t.size(0)} components; the input of a module may be of layout torch.jagged"
            )
    needs_grad = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
    # What torch.jit.trace records may be differentiated later or not.
    keep = KEEP_ALL if needs_grad or torch.jit.is_tracing() else int(call.needs_c)
    return call.run(tensors, keep, forward_of(call))[0]


def forward_of(call: Call) -> Callable:
    """The operator, with the arguments and results of the kernel that ``call`` runs."""
    return _run_layer if isinstance(call, Layer) else torch.ops.fastlstm.cell.default


def backward_of(call: Call, witnesses: Sequence[Tensor] = ()) -> Callable:
    """The operator, with the arguments and results of the kernel of its backward.

    Args:
        witnesses: have the version of outputs that lie in memory which is kept (outputs.h). It fails
            if there was a change when it runs, which a graph that calls it cannot ask before.
    """
    pull_back = _pull_layer_back if isinstance(call, Layer) else _pull_cell_back
    return partial(pull_back, list(witnesses))


def _run_layer(mode, x, embedding, h0, c0, weights, *rest):
    # A list of tensors with gaps has no gradient.
    has_weight = [int(w is not None) for w in weights]
    return torch.ops.fastlstm.layer.default(
        mode, x, embedding, h0, c0, pick(weights, has_weight), has_weight, *rest
    )


def _pull_cell_back(witnesses, *args):
    return torch.ops.fastlstm.cell_backward.default(*args, witnesses)


def _pull_layer_back(witnesses, mode, x, embedding, h0, c0, weights, *rest):
    has_weight = [int(w is not None) for w in weights]
    *grads, dweights = torch.ops.fastlstm.layer_backward.default(
        mode, x, embedding, h0, c0, pick(weights, has_weight), has_weight, *rest, witnesses
    )
    return *grads, spread(dweights, has_weight) if dweights else []


def _check_unchanged(witnesses: Sequence[Tensor]) -> None:
    if any(t._version for t in witnesses):
        raise RuntimeError(
            "one of the variables needed for gradient computation has been modified by an inplace"
            " operation: an output of fastlstm, whose backward pass runs in a graph"
        )


def _implements(name: str) -> Callable[[Callable], Callable]:
    """Make a function what operator ``name`` runs, uncompiled, on any device."""

    def register(function: Callable) -> Callable:
        torch.library.impl(f"fastlstm::{name}", "default", torch._disable_dynamo(function))
        return function

    return register


def _or_empty(t: Tensor | None, like: Tensor) -> Tensor:
    return like.new_empty(0) if t is None else t


@_implements("layer")
def _layer(mode, x, embedding, h0, c0, weights, has_weight, batch_sizes, lengths, reset, keep):
    weights = spread(weights, has_weight)
    h, c, reserve, h_n, c_n = _C.layer_fwd(
        mode, x, embedding, h0, c0, weights, batch_sizes, lengths, reset, keep
    )
    if not CELL_TRAITS[mode].has_c:
        c, c_n = h.new_empty(0), h.new_empty(0)
    _zero_unused(h, c, reserve, h_n.size(1), len(has_weight) // 5, lengths)
    return h, c, reserve, h_n, c_n


def _zero_unused(h, c, reserve, batch, directions, lengths) -> None:
    """Give a value to what nobody writes or reads, so that equal calls have equal results."""
    if directions == 2:
        for buffer in (h, c):
            if buffer.dim() == 2:
                width = buffer.size(1) // 2
                buffer[:batch, width:] = 0
                buffer[-1 - batch : -1, :width] = 0
    if lengths is not None and reserve.dim() == 3:
        reserve[:, int(lengths.sum()) :] = 0  # padding comes last


@register_fake("fastlstm::layer")
def _layer_fake(mode, x, embedding, h0, c0, weights, has_weight, batch_sizes, lengths, reset, keep):
    w_ih, w_hh = weights[:2]
    directions, H, P = len(has_weight) // 5, w_ih.size(0) // CELL_TRAITS[mode].gates, w_hh.size(1)
    if batch_sizes is None:
        N, rows = x.size(1), x.size(0) * x.size(1)
    else:
        N, rows = _packed_batch(batch_sizes, h0), x.size(0)
    has_c = CELL_TRAITS[mode].has_c
    h_type, c_type = kernel_types(w_ih)
    h = w_ih.new_empty(directions * N + rows + 1, directions * P, dtype=h_type)
    c = h.new_empty(0, dtype=c_type if has_c else h_type)
    if has_c and keep != KEEP_NOTHING:
        c = c.new_empty(h.size(0), directions * H)
    reserve = h.new_empty(0)
    if keep == KEEP_ALL:
        reserve = h.new_empty(directions, rows, (CELL_TRAITS[mode].reserve + has_weight[4]) * H)
    h_n = h.new_empty(directions, N, P)
    c_n = h.new_empty(directions, N, H) if has_c else h.new_empty(0)
    return h, c, reserve, h_n, c_n


def _packed_batch(batch_sizes: Tensor, h0: Tensor | None):
    """The number of sequences, which is data unless there is a state with as many rows."""
    if h0 is not None:
        return h0.size(1)
    if type(batch_sizes) is Tensor and not batch_sizes.is_meta:
        return int(batch_sizes[0]) if len(batch_sizes) else 0
    return torch.library.get_ctx().new_dynamic_size()


@_implements("layer_backward")
def _layer_backward(
    mode, x, embedding, h0, c0, weights, has_weight, batch_sizes, lengths, reset, h, c, reserve,
    grad_y, grad_c, grad_h_n, grad_c_n, needs_x, needs_embedding, needs_state, needs_weights,
    witnesses,
):  # fmt: skip
    _check_unchanged(witnesses)
    weights = spread(weights, has_weight)
    dx, dembedding, dh0, dc0, dweights = _C.layer_bwd(
        mode, x, embedding, h0, c0, weights, batch_sizes, lengths, reset, h, c, reserve,
        grad_y, grad_c, grad_h_n, grad_c_n, needs_x, needs_embedding, needs_state, needs_weights,
    )  # fmt: skip
    return (
        _or_empty(dx, reserve),
        _or_empty(dembedding, reserve),
        _or_empty(dh0, reserve),
        _or_empty(dc0 if needs_state else None, reserve),
        pick(dweights, has_weight) if needs_weights else [],
    )


@register_fake("fastlstm::layer_backward")
def _layer_backward_fake(
    mode, x, embedding, h0, c0, weights, has_weight, batch_sizes, lengths, reset, h, c, reserve,
    grad_y, grad_c, grad_h_n, grad_c_n, needs_x, needs_embedding, needs_state, needs_weights,
    witnesses,
):  # fmt: skip
    w_ih, w_hh = weights[:2]
    directions, H, P = len(has_weight) // 5, w_ih.size(0) // CELL_TRAITS[mode].gates, w_hh.size(1)
    # As forward made h and c: directions * N + rows + 1 rows.
    rows = x.size(0) if batch_sizes is not None else x.size(0) * x.size(1)
    states = c if h is None else h
    N = (states.size(0) - 1 - rows) // directions if batch_sizes is not None else x.size(1)

    def empty(needed: bool, *shape) -> Tensor:
        return reserve.new_empty(shape if needed else 0)

    return (
        empty(needs_x, *x.shape),
        empty(needs_embedding, *(() if embedding is None else embedding.shape)),
        empty(needs_state, directions, N, P),
        empty(needs_state and CELL_TRAITS[mode].has_c, directions, N, H),
        [w.new_empty(w.shape) for w in weights] if needs_weights else [],
    )


@_implements("cell")
def _cell(mode, x, h, c, w_ih, w_hh, b_ih, b_hh, keep):
    h_out, c_out, reserve = _C.cell_fwd(mode, x, h, c, w_ih, w_hh, b_ih, b_hh, keep)
    return h_out, _or_empty(c_out, h), _or_empty(reserve, h)


@register_fake("fastlstm::cell")
def _cell_fake(mode, x, h, c, w_ih, w_hh, b_ih, b_hh, keep):
    N, H = h.shape
    c_out = h.new_empty(N, H) if CELL_TRAITS[mode].has_c else h.new_empty(0)
    reserve = h.new_empty(N, CELL_TRAITS[mode].reserve * H) if keep else h.new_empty(0)
    return h.new_empty(N, H), c_out, reserve


@_implements("cell_backward")
def _cell_backward(
    mode, x, h, c, w_ih, w_hh, b_ih, b_hh, h_out, c_out, reserve, grad_h, grad_c,
    needs_x, needs_h, needs_c, needs_weights, witnesses,
):  # fmt: skip
    _check_unchanged(witnesses)
    grads = _C.cell_bwd(
        mode, x, h, c, w_ih, w_hh, b_ih, b_hh, h_out, c_out if CELL_TRAITS[mode].has_c else None,
        reserve, grad_h, grad_c, needs_x, needs_h, needs_c, needs_weights,
    )  # fmt: skip
    return tuple(_or_empty(grad, h) for grad in grads)


@register_fake("fastlstm::cell_backward")
def _cell_backward_fake(
    mode, x, h, c, w_ih, w_hh, b_ih, b_hh, h_out, c_out, reserve, grad_h, grad_c,
    needs_x, needs_h, needs_c, needs_weights, witnesses,
):  # fmt: skip
    needs = (needs_x, needs_h, needs_c, *(needs_weights,) * 4)
    inputs = (x, h, c, w_ih, w_hh, b_ih, b_hh)
    return tuple(
        h.new_empty(t.shape if needed and t is not None else 0)
        for t, needed in zip(inputs, needs, strict=True)
    )


@_implements("copy")
def _copy(t):
    return t.clone()


@register_fake("fastlstm::copy")
def _copy_fake(t):
    return torch.empty_like(t)


def _setup_layer(ctx, inputs, output):
    mode, x, embedding, h0, c0, weights, ctx.has_weight, batch_sizes, lengths, reset, _ = inputs
    ctx.call = LAYERS[mode, True]
    tensors = (x, embedding, h0, c0, batch_sizes, lengths, reset, *spread(weights, ctx.has_weight))
    ctx.save_for_backward(*tensors, *output[:3])
    ctx.set_materialize_grads(False)


def _layer_vjp(ctx, grad_h, grad_c, _, grad_h_n, grad_c_n):
    tensors, kept = ctx.saved_tensors[:-3], ctx.saved_tensors[-3:]
    _, x, embedding, h0, c0, weights, *_ = ctx.needs_input_grad
    needs = [x, embedding, h0, c0, False, False, False, *spread(weights, ctx.has_weight)]
    rows, directions = tensors[0].shape[: 2 if tensors[4] is None else 1], len(ctx.has_weight) // 5
    if grad_h is not None:
        grad_h = every_step(grad_h, rows, directions)
    if not ctx.call.has_c:
        grad_c = grad_c_n = None
    elif grad_c is not None:
        grad_c = every_step(grad_c, rows, directions)
    grads = (grad_h, grad_c, grad_h_n, grad_c_n)
    dx, dembedding, dh0, dc0, _, _, _, *dweights = _gradients(ctx.call, tensors, kept, grads, needs)
    return None, dx, dembedding, dh0, dc0, pick(dweights, ctx.has_weight), *[None] * 5


def _setup_cell(ctx, inputs, output):
    mode, *tensors, _ = inputs
    ctx.call = CELLS[mode]
    ctx.save_for_backward(*tensors, *output)
    ctx.set_materialize_grads(False)


def _cell_vjp(ctx, grad_h, grad_c, _):
    tensors, kept = ctx.saved_tensors[:-3], ctx.saved_tensors[-3:]
    grads, needs = (grad_h, grad_c if ctx.call.has_c else None), ctx.needs_input_grad[1:-1]
    return None, *_gradients(ctx.call, tensors, kept, grads, needs), None


def _gradients(call, tensors, kept, grads, needs):
    if all(grad is None for grad in grads):
        return [None] * len(needs)
    if not are_kernels_enough():
        return differentiable_pull_back(call, tensors, grads, needs)
    return call.pull_back(tensors, kept, grads, needs, backward_of(call))


register_autograd("fastlstm::copy", lambda ctx, grad: grad)
register_autograd("fastlstm::layer", _layer_vjp, setup_context=_setup_layer)
register_autograd("fastlstm::cell", _cell_vjp, setup_context=_setup_cell)
flops.register()
