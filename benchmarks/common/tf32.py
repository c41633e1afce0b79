"""torch.nn with TF32 products for certain: every operand is rounded, whatever library multiplies.

torch's switches allow TF32 and do not demand it. Where a library takes float32 all the same, as it
may for a batch of one row, its error says nothing about what products in TF32 cost.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.common.providers import Provider, libraries_off, make_torch

aten = torch.ops.aten
# Of each product the arguments that are multiplied.
OPERANDS = {
    aten.mm.default: (0, 1),
    aten.bmm.default: (0, 1),
    aten.addmm.default: (1, 2),
    aten.baddbmm.default: (1, 2),
}


def rounded(value: Tensor) -> Tensor:
    """float32 to the nearest number with 10 bits of mantissa."""
    bits = value.contiguous().view(torch.int32)
    return (bits + 0x1000).bitwise_and(~0x1FFF).view(torch.float32)


class RoundedProducts(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function in OPERANDS and args[0].dtype == torch.float32:
            args = [rounded(a) if i in OPERANDS[function] else a for i, a in enumerate(args)]
        return function(*args, **(kwargs or {}))


@contextlib.contextmanager
def rounded_products() -> Iterator[None]:
    """torch's own loop over time, with operands rounded to TF32, forward and backward."""
    with libraries_off(), RoundedProducts():
        yield


TORCH_TF32 = Provider("torch, operands rounded to TF32", make_torch, context=rounded_products)
