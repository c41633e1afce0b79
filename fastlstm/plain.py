"""Telling everyday calls from those that somebody looks on at, and what the modules say of bad ones."""

import torch
from torch import Tensor
from torch.autograd import forward_ad

# What the kernels, which look at their arguments themselves, and torch raise for bad ones.
REFUSED = (RuntimeError, TypeError, ValueError, IndexError, AttributeError)

# Names of this module, since a small cell takes only a few times as long as looking them up.
_is_compiling = torch.compiler.is_compiling
_is_transforming = torch._C._are_functorch_transforms_active
_num_dispatch_modes = torch._C._len_torch_dispatch_stack
_tracing_state = torch._C._get_tracing_state


def is_plain(input: Tensor) -> bool:
    """Whether the kernels will see ``input`` as it is: no capture, transform, mode or subclass.

    Then nobody has to check arguments before the kernels do; otherwise they may never reach one.
    """
    return (
        not _is_compiling()
        and type(input) is Tensor
        and (input.is_cpu or input.is_cuda)
        and not _is_transforming()
        and not _num_dispatch_modes()
        and forward_ad._current_level < 0
        and _tracing_state() is None
    )


def other_device(kind: str, input: Tensor, other: Tensor) -> str:
    """torch.nn's words for a hidden or parameter tensor ``other`` that is not where ``input`` is."""
    return (
        f"Input and {kind} tensors are not at the same device, found input tensor at"
        f" {input.device} and {kind} tensor at {other.device}"
    )
