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


def described(value: object) -> str:
    """Say what came in the place of a Tensor or a pair of them."""
    if isinstance(value, (tuple, list)):
        return f"a {type(value).__name__} of {len(value)}"
    return f"a {type(value).__name__}"


def check_is_tensor(name: str, value: object) -> None:
    """Raise TypeError, as torch's functions do, unless ``value`` is a Tensor."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a Tensor, got {type(value).__name__}")


def check_is_number(input: Tensor, expected: str) -> None:
    """Raise TypeError if ``input`` is boolean, complex or quantized: no module makes sense of it."""
    if input.dtype == torch.bool or input.is_complex() or input.is_quantized:
        raise TypeError(f"input must be {expected}, got {input.dtype}")


def check_pair(kind: str, names: str, hx: object) -> None:
    """Raise what torch's ``lstm`` and ``lstm_cell`` (``kind``) do unless ``hx`` is two Tensors."""
    if not isinstance(hx, (tuple, list)):
        raise TypeError(f"hx must be a pair {names}, got {described(hx)}")
    for i, state in enumerate(hx):
        check_is_tensor(f"hx[{i}]", state)
    if len(hx) != 2:
        raise RuntimeError(f"{kind} expects two hidden states, got {len(hx)}")


def wrong_tokens(input: Tensor, dtype: torch.dtype) -> str:
    """Words for integer ``input`` of other dimensions than token ids have."""
    return (
        f"input has dtype {input.dtype} and {input.dim()} dimensions, but integer input is token"
        " ids, of 2 dimensions, or of 1 if packed or without a batch. Convert features to floating"
        f" point: input.to({dtype})"
    )


def other_device(kind: str, input: Tensor, other: Tensor) -> str:
    """torch.nn's words for a hidden or parameter tensor ``other`` that is not where ``input`` is."""
    return (
        f"Input and {kind} tensors are not at the same device, found input tensor at"
        f" {input.device} and {kind} tensor at {other.device}"
    )
