"""Which dtype a call computes in, and the casts into it and out of it.

On CUDA the kernels take every dtype as it is; of 16-bit tensors, sums and the state that goes from
step to step are float32.

On the CPU they take float32 and float64. float16, bfloat16 and whatever autocast asks for is computed
in float32 and rounded once, at the end. Weights may stay bfloat16: then the kernels of a layer
multiply bfloat16 operands, where the processor can, and still sum in float32.
"""

from typing import NamedTuple

import torch
from torch import Tensor

HALF_TYPES = (torch.float16, torch.bfloat16)
# Types of devices whose kernels take 16-bit tensors.
NATIVE_HALF = {"cuda"}


_CELL_STATE_TYPES = (torch.float32, *HALF_TYPES)


class Precision(NamedTuple):
    """The dtypes of one call.

    Attributes:
        weight: dtype of the weights.
        result: dtype of what the call returns.
        compute: dtype of the computation; None if it is ``result`` and nothing has to be cast.
        is_autocast: tensors of other dtypes than that of the weights are welcome.
    """

    weight: torch.dtype
    result: torch.dtype
    compute: torch.dtype | None
    is_autocast: bool

    def enter(self, name: str, t: Tensor | None) -> Tensor | None:
        """Cast the argument ``name`` to the dtype of the computation."""
        if t is None or self.compute is None:
            return t
        is_welcome = t.dtype == self.weight or (
            self.is_autocast and t.is_floating_point() and t.dtype != torch.float64
        )
        if not is_welcome:
            expected = "a dtype that autocast casts" if self.is_autocast else f"dtype {self.weight}"
            raise RuntimeError(f"{name} must have {expected}, got {t.dtype}")
        # Through the narrow type: under autocast, values are what a matmul in that type would see.
        return t.to(self.result).to(self.compute)

    def enter_cell_state(self, name: str, t: Tensor | None) -> Tensor | None:
        """Cast c, which may also have another dtype of at most 32 bits than the weights.

        As torch.nn does for a bfloat16 LSTM with a float32 c. Then c is not rounded on the way in.
        """
        compute = self.compute or self.result
        if t is None or self.is_autocast or t.dtype == self.weight:
            return self.enter(name, t)
        if t.dtype not in _CELL_STATE_TYPES:
            expected = f"dtype {self.weight}, or one of at most 32 bits"
            raise RuntimeError(f"{name} must have {expected}, got {t.dtype}")
        return t.to(compute)

    def leave_cell_state(self, t: Tensor, given: Tensor | None) -> Tensor:
        """Cast the last c to the dtype of the first, or of results where that is wider."""
        if given is None or self.is_autocast or given.dtype == self.weight:
            return self.leave(t)
        is_wider = self.weight == torch.float64
        return t.to(self.weight if is_wider else given.dtype)

    def enter_weight(self, name: str, t: Tensor | None) -> Tensor | None:
        """Cast a weight of a layer to the dtype in which its kernels take it."""
        if self.result == torch.bfloat16:
            return self._replace(compute=torch.bfloat16).enter(name, t)
        return self.enter(name, t)

    def leave(self, t: Tensor) -> Tensor:
        """Cast a result to the dtype of results."""
        return t if t.dtype == self.result else t.to(self.result)


def precision_of(weight: Tensor) -> Precision:
    """Return the dtypes of a call with ``weight`` among its weights.

    Under autocast, results have autocast's dtype. torch.nn agrees for LSTM and RNN; its GRU and its
    LSTM and GRU cells return float32 on the CPU, which here would only hide the rounding of the
    operands. As in torch.nn, float64 is not affected.
    """
    dtype, device_type = weight.dtype, weight.device.type
    # The cheap question first: a call of a small layer takes only a few times as long as the other.
    if (
        torch._C._is_any_autocast_enabled()
        and dtype != torch.float64
        and device_type in ("cpu", "cuda")
        and torch.is_autocast_enabled(device_type)
    ):
        result = torch.get_autocast_dtype(device_type)
        compute = result if device_type in NATIVE_HALF else torch.float32
        return Precision(dtype, result, compute, True)
    is_cast = dtype in HALF_TYPES and device_type not in NATIVE_HALF
    return Precision(dtype, dtype, torch.float32 if is_cast else None, False)


def kernel_types(weight: Tensor) -> tuple[torch.dtype, torch.dtype]:
    """Return the dtypes in which the kernels keep h and c, for weights of the dtype of ``weight``."""
    if weight.dtype not in HALF_TYPES:
        return weight.dtype, weight.dtype
    is_native = weight.device.type in NATIVE_HALF
    return weight.dtype if is_native else torch.float32, torch.float32
