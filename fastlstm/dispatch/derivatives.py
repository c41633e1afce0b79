"""Derivatives of derivatives, and tangents: those of the plain loop in reference.py.

The loop is made of operations that autograd and torch.func can take apart; the kernels are not.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor
from torch.autograd import forward_ad

from fastlstm.dispatch.kernels import Call, Tensors, pick, replaced, spread

_VMAP_MODE = torch._C._dispatch_key_parse("VmapMode")


def are_kernels_enough() -> bool:
    """Whether a backward pass may call the kernels.

    It may not with ``create_graph=True``, nor with ``is_grads_batched=True``, under which gradients
    are batched tensors of an older kind than torch.func's.
    """
    vectorized = torch._C._dispatch_tls_is_dispatch_key_included(_VMAP_MODE)
    return not (torch.is_grad_enabled() or vectorized)


def differentiable_pull_back(
    call: Call, tensors: Tensors, grads: Tensors, needs: Sequence[bool]
) -> Tensors:
    """Compute the gradients with operations, which autograd can differentiate if it is enabled."""
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad(), without_autocast(tensors):
        # Aliases: the gradient of one input must not flow on through the history of another.
        tensors = [None if t is None else t.view_as(t) for t in tensors]
        outputs = call.reference(tensors)
        # Without a step, an output depends on nothing but the state before, if there is one.
        given = [
            grad is not None and out.requires_grad for grad, out in zip(grads, outputs, strict=True)
        ]
        if not any(given):
            return spread([torch.zeros_like(t) for t in pick(tensors, needs)], needs)
        found = torch.autograd.grad(
            pick(outputs, given),
            pick(tensors, needs),
            pick(grads, given),
            create_graph=create_graph,
            allow_unused=True,
        )
    return spread(found, needs)


def gradients_of(
    call: Call, args: Tensors, varying: Sequence[bool], needs: Sequence[bool]
) -> Callable[..., tuple[Tensor, ...]]:
    """Return the backward of ``call`` as a differentiable function of the varying ``args``.

    Args:
        args: the inputs, and a gradient or None for each output.
        needs: the inputs whose gradients are returned.
    """

    def gradients(*values: Tensor) -> tuple[Tensor, ...]:
        full = replaced(args, varying, values)
        tensors, grads = full[: len(needs)], full[len(needs) :]
        given = [grad is not None for grad in grads]

        def outputs(*wanted: Tensor) -> tuple[Tensor, ...]:
            return tuple(pick(call.reference(replaced(tensors, needs, wanted)), given))

        _, pull = torch.func.vjp(outputs, *pick(tensors, needs))
        return pull(tuple(pick(grads, given)))

    return gradients


def jvp(function: Callable, primals: Tensors, tangents: Tensors) -> tuple[Tensor, ...]:
    """The tangents of ``function``'s outputs: its vjp is linear, and the vjp of that is the jvp.

    torch.func.jvp cannot be used inside of a forward_ad.dual_level().
    """
    if not torch._C._are_functorch_transforms_active():
        return _jvp(function, primals, tangents)
    # Forward-mode AD is off within jvp of a Function: on again for the levels below this one.
    with forward_ad._set_fwd_grad_enabled(True):
        primals = [forward_ad.unpack_dual(t, level=0).primal for t in primals]
        return _jvp(function, primals, tangents)


def _jvp(function, primals, tangents):
    outputs, pull = torch.func.vjp(function, *primals)
    zeros = [torch.zeros_like(out) for out in outputs]
    _, push = torch.func.vjp(lambda *cotangents: pull(cotangents), *zeros)
    return push(tuple(tangents))


def without_autocast(tensors: Tensors) -> AbstractContextManager:
    """The kernels take no notice of autocast, and the loop in their place must not either."""
    device_type = tensors[0].device.type
    if not torch.amp.is_autocast_available(device_type):
        return nullcontext()
    return torch.autocast(device_type, enabled=False)
