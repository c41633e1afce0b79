"""The kernels under ``torch.func`` and forward-mode AD.

Two Functions, forward and backward, each of which can be differentiated (derivatives.py), pushed
forward and vectorized. Samples of a vmap go into one batch where the weights are the same for all.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.autograd import forward_ad

from fastlstm.dispatch import ops
from fastlstm.dispatch.derivatives import gradients_of, jvp, without_autocast
from fastlstm.dispatch.kernels import KEEP_ALL, Call, Tensors, pick, replaced, spread


def are_active() -> bool:
    """Whether a transform of ``torch.func``, or forward-mode AD, sees what is computed now."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def run(call: Call, tensors: Tensors, keep_each: bool = False) -> Tensors:
    """Run forward so that every transform applies to it.

    Args:
        keep_each: should a batch of samples come in, then what is kept is needed for each of them.
    """
    needs_grad = weights_need_grad = False
    if torch.is_grad_enabled():
        needs = [t is not None and t.requires_grad for t in tensors]
        needs_grad = any(needs)
        row_dims = call.input_row_dims(tensors) or [None] * len(tensors)
        weights_need_grad = any(n and d is None for n, d in zip(needs, row_dims, strict=True))
    keep_each = keep_each or weights_need_grad
    keep = KEEP_ALL if needs_grad or keep_each else int(call.needs_c)
    return _Forward.apply(call, keep, keep_each, *tensors)


def pull_back(
    call: Call, tensors: Tensors, kept: Tensors, grads: Tensors, needs: Sequence[bool]
) -> Tensors:
    """Run backward so that every transform applies to it. ``kept`` may be Nones: recomputed."""
    return _Backward.apply(call, tuple(needs), *tensors, *grads, *kept)


class _Forward(torch.autograd.Function):
    """The outputs, and then what is kept, all None if a batch of samples went in as one call."""

    @staticmethod
    def forward(call, keep, keep_each, *tensors):
        outputs, kept = call.run(tensors, keep, _operator(ops.forward_of, call, tensors))
        # Views of what is kept otherwise, which in-place operations and tangents do not go with.
        outputs = (None if t is None else t.clone() for t in outputs)
        return *outputs, *(kept if keep == KEEP_ALL else [None] * call.num_kept)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.call, _, _, *tensors = inputs
        outputs, kept = output[: ctx.call.num_outputs], output[ctx.call.num_outputs :]
        ctx.exists = [t is not None for t in outputs]
        ctx.save_for_backward(*tensors, *kept)
        ctx.save_for_forward(*tensors)
        ctx.mark_non_differentiable(*(t for t in kept if t is not None))
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx, *grads):
        call, needs = ctx.call, ctx.needs_input_grad[3:]
        grads = grads[: call.num_outputs]
        if all(grad is None for grad in grads):
            return (None,) * (3 + len(needs))
        tensors, kept = ctx.saved_tensors[: len(needs)], ctx.saved_tensors[len(needs) :]
        return None, None, None, *pull_back(call, tensors, kept, grads, needs)

    @staticmethod
    def jvp(ctx, _call, _keep, _keep_each, *tangents):
        call, tensors = ctx.call, ctx.saved_tensors
        varying = [t is not None for t in tangents]

        def outputs(*values: Tensor) -> tuple[Tensor, ...]:
            found = call.reference(replaced(tensors, varying, values))
            return tuple(pick(found, ctx.exists))

        with without_autocast(tensors):
            found = jvp(outputs, pick(tensors, varying), pick(tangents, varying))
        return *spread(found, ctx.exists), *[None] * call.num_kept

    @staticmethod
    def vmap(info, in_dims, call, keep, keep_each, *tensors):
        dims = in_dims[3:]
        row_dims = call.input_row_dims(tensors)
        # What a folded call keeps is of no use to a backward that must take the samples one by one.
        if not keep_each and _is_foldable(dims, row_dims, info.batch_size):
            folded = _fold(tensors, dims, row_dims, info.batch_size)
            outputs = run(call, folded)[: call.num_outputs]
            outputs, out_dims = _unfold(outputs, call.output_row_dims, info.batch_size)
            return (*outputs, *[None] * call.num_kept), (*out_dims, *[None] * call.num_kept)
        return _one_by_one(
            info.batch_size, dims, tensors, lambda sample: run(call, sample, keep_each)
        )


class _Backward(torch.autograd.Function):
    """From the inputs, a gradient or None for each output, and what is kept, to the gradients."""

    @staticmethod
    def forward(call, needs, *args):
        tensors, grads = args[: len(needs)], args[len(needs) : -call.num_kept]
        kept = args[-call.num_kept :]
        if all(t is None for t in kept):
            _, kept = call.run(tensors, KEEP_ALL, _operator(ops.forward_of, call, tensors))
        backward = _operator(ops.backward_of, call, (*tensors, *grads))
        return tuple(call.pull_back(tensors, kept, grads, needs, backward))

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.call, ctx.needs, *args = inputs
        # What is kept is no variable of its own: it depends on the inputs.
        args = args[: len(args) - ctx.call.num_kept]
        ctx.save_for_backward(*args)
        ctx.save_for_forward(*args)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx, *cotangents):
        args, nothing = ctx.saved_tensors, [None] * ctx.call.num_kept
        varying = ctx.needs_input_grad[2 : 2 + len(args)]
        given = [cotangent is not None for cotangent in cotangents]
        if not any(given):
            return None, None, *[None] * len(args), *nothing
        gradients = gradients_of(ctx.call, args, varying, given)
        with without_autocast(args):
            _, pull = torch.func.vjp(gradients, *pick(args, varying))
            found = pull(tuple(pick(cotangents, given)))
        return None, None, *spread(found, varying), *nothing

    @staticmethod
    def jvp(ctx, _call, _needs, *tangents):
        args = ctx.saved_tensors
        tangents = tangents[: len(args)]
        varying = [t is not None for t in tangents]
        gradients = gradients_of(ctx.call, args, varying, ctx.needs)
        with without_autocast(args):
            found = jvp(gradients, pick(args, varying), pick(tangents, varying))
        return tuple(spread(found, ctx.needs))

    @staticmethod
    def vmap(info, in_dims, call, needs, *args):
        dims, count = in_dims[2:], len(args) - call.num_kept
        row_dims = call.input_row_dims(args[: len(needs)])
        if row_dims is not None:
            every_row_dim = (*row_dims, *call.output_row_dims)
            weights_need_grad = any(
                n and dim is None for n, dim in zip(needs, row_dims, strict=True)
            )
            if not weights_need_grad and _is_foldable(dims[:count], every_row_dim, info.batch_size):
                folded = _fold(args[:count], dims[:count], every_row_dim, info.batch_size)
                found = _Backward.apply(call, needs, *folded, *[None] * call.num_kept)
                return _unfold(found, row_dims, info.batch_size)
        return _one_by_one(
            info.batch_size, dims, args, lambda sample: _Backward.apply(call, needs, *sample)
        )


def _operator(choose: Callable, call: Call, tensors: Tensors) -> Callable | None:
    """The operator in place of the kernel, where tensors are not plain ones."""
    return choose(call) if ops.are_needed(tensors) else None


def _is_foldable(
    dims: Sequence[int | None], row_dims: Sequence[int | None] | None, samples: int
) -> bool:
    """Whether only tensors whose rows are those of the batch differ between the samples."""
    if row_dims is None or samples == 0:
        return False
    return all(dim is None or row is not None for dim, row in zip(dims, row_dims, strict=True))


def _fold(
    tensors: Tensors,
    dims: Sequence[int | None],
    row_dims: Sequence[int | None],
    samples: int,
) -> list[Tensor | None]:
    """Make one batch of all samples: row n of sample k becomes row n * samples + k."""
    folded = []
    for t, dim, row_dim in zip(tensors, dims, row_dims, strict=True):
        if t is not None and row_dim is not None:
            if dim is None:
                t = t.unsqueeze(row_dim + 1).expand(
                    *t.shape[: row_dim + 1], samples, *t.shape[row_dim + 1 :]
                )
            else:
                t = t.movedim(dim, row_dim + 1)
            t = t.flatten(row_dim, row_dim + 1)
        folded.append(t)
    return folded


def _unfold(
    tensors: Tensors, row_dims: Sequence[int | None], samples: int
) -> tuple[tuple[Tensor | None, ...], tuple[int | None, ...]]:
    """Undo :func:`_fold`; return the tensors, and the dimension of the samples in each."""
    pairs = [
        (None, None)
        if t is None
        else (t.unflatten(row_dim, (t.size(row_dim) // samples, samples)), row_dim + 1)
        for t, row_dim in zip(tensors, row_dims, strict=True)
    ]
    return tuple(t for t, _ in pairs), tuple(dim for _, dim in pairs)


def _one_by_one(
    samples: int, dims: Sequence[int | None], args: Tensors, function: Callable
) -> tuple[tuple[Tensor | None, ...], tuple[int | None, ...]]:
    """Call ``function`` for every sample and stack the results, of which some may be None."""
    if samples == 0:  # a sample of zeros has the shapes
        args = [
            t if dim is None else t.new_zeros(t.movedim(dim, 0).shape[1:]).unsqueeze(dim)
            for t, dim in zip(args, dims, strict=True)
        ]

    def sample(k: int) -> list[Tensor | None]:
        return [t if dim is None else t.select(dim, k) for t, dim in zip(args, dims, strict=True)]

    results = [function(sample(k)) for k in range(max(samples, 1))]
    stacked = tuple(
        None if parts[0] is None else torch.stack(parts)[:samples]
        for parts in zip(*results, strict=True)
    )
    return stacked, tuple(None if t is None else 0 for t in stacked)
