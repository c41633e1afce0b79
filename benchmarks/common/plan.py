"""What a run measures, and in which order."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from benchmarks.common.providers import Cell
from benchmarks.common.shapes import Shape


# Told apart by identity: a Cell has a dict in it, and a run makes each setting once.
@dataclass(frozen=True, eq=False)
class Setting:
    """What the rows of a summary have in common. tf32: None where there is no such choice."""

    cell: Cell
    mode: str
    dtype: torch.dtype
    tf32: bool | None = None

    @property
    def tf32_name(self) -> str:
        return {True: "on", False: "off", None: "none"}[self.tf32]

    @property
    def precision(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        return dtype if self.tf32 is None else f"{dtype}, TF32 {self.tf32_name}"

    def __str__(self) -> str:
        return f"{self.cell.name}, {self.mode}, {self.precision}"


@dataclass(frozen=True)
class Job:
    """One row for every contender."""

    setting: Setting
    shape: Shape


def settings(
    cells: Sequence[Cell],
    dtypes: Sequence[torch.dtype],
    modes: Sequence[str],
    tf32: Sequence[bool] = (),
) -> list[Setting]:
    """Every combination. tf32: the flags under which float32 is measured; empty: no such choice."""
    return [
        Setting(cell, mode, dtype, flag)
        for cell, dtype in itertools.product(cells, dtypes)
        for flag in (tf32 if dtype == torch.float32 and tf32 else (None,))
        for mode in modes
    ]


def tables(settings: Sequence[Setting], shapes: Sequence[Shape], *, by_shape: bool) -> list[list]:
    """Every setting with every shape, as the jobs of each table in turn.

    A table is one setting over all shapes or, `by_shape`, one shape in all settings: a run that
    must end early has everything about the first shapes then.
    """
    if by_shape:
        return [[Job(setting, shape) for setting in settings] for shape in shapes]
    return [[Job(setting, shape) for shape in shapes] for setting in settings]


def left_out_text(jobs: Sequence[Job], rows_of_a_shape: int) -> str:
    """`jobs` as text: their shapes, with how many rows where some of a shape were measured."""
    counts: dict[Shape, int] = {}
    for job in jobs:
        counts[job.shape] = counts.get(job.shape, 0) + 1
    return " · ".join(
        str(shape) if count == rows_of_a_shape else f"{shape} ({count} of {rows_of_a_shape})"
        for shape, count in counts.items()
    )
