"""The processes of one run, as ``torchrun`` starts them: each has some rows of every batch.

All of them take the same decisions, and the methods of Group that exchange something must be
called by all at the same point. Only number 0 writes files and speaks.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from .launch import started_by_torchrun


@dataclass(frozen=True)
class Group:
    """``size`` processes, of which this is number ``rank``; by default there is only this one."""

    rank: int = 0
    size: int = 1

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def part_of(self, count: int) -> slice:
        """Which of ``count`` rows are this process's: contiguous, sizes differ by at most one."""
        return slice(count * self.rank // self.size, count * (self.rank + 1) // self.size)

    def wait(self) -> None:
        """Returns when all processes have come here."""
        self.maximum(0.0)

    def sum_(self, tensors: Sequence[Tensor]) -> None:
        """Replaces each tensor by its sum over the processes, the same bits in all of them."""
        if self.size == 1:
            return
        # One message: gradients are many and mostly small.
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        dist.all_reduce(flat)
        for tensor, total in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
            tensor.copy_(total.view_as(tensor))

    def maximum(self, *values: float) -> tuple[float, ...]:
        """The largest of each value, so that all go on with the same times and requests."""
        if self.size == 1:
            return values
        largest = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(largest, dist.ReduceOp.MAX)
        return tuple(largest.tolist())

    def whole(self, part: Tensor, count: int, dim: int) -> Tensor:
        """The tensor of ``count`` rows along ``dim`` of which each process holds its part."""
        if self.size == 1:
            return part
        shape = list(part.shape)
        shape[dim] = count
        rows = self.part_of(count)
        whole = part.new_zeros(shape)
        whole.narrow(dim, rows.start, rows.stop - rows.start).copy_(part)
        self.sum_([whole])
        return whole


ALONE = Group()


@contextlib.contextmanager
def processes() -> Iterator[Group]:
    """The Group of this run: of one process, unless torchrun started it.

    To be entered before anything can fail: torchrun ends all processes when the first of them ends
    with an error, and number 0 might not have come as far as to say which.
    """
    if not started_by_torchrun():
        yield ALONE
        return
    dist.init_process_group("cpu:gloo,cuda:nccl" if dist.is_nccl_available() else "gloo")
    try:
        yield Group(dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()
