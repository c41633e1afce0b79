"""One layer of several providers, checked and then timed: a row of bench_cells.py each."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from benchmarks.common import equality, rows
from benchmarks.common.devices import Cpu
from benchmarks.common.equality import Problem
from benchmarks.common.measure import Measured, measure
from benchmarks.common.providers import Cell, Provider
from benchmarks.common.shapes import Shape, dtype_name, flops
from benchmarks.common.timing import Contender, training

TF32_FLAGS = {"on": (True,), "off": (False,), "both": (True, False)}
TF32_NAMES = {True: "on", False: "off", None: "none"}


def precision_text(dtype: str, tf32: bool | None) -> str:
    return dtype if tf32 is None else f"{dtype}, TF32 {TF32_NAMES[tf32]}"


# Told apart by identity: a Cell has a dict in it, and a run makes each setting once.
@dataclass(frozen=True, eq=False)
class Setting:
    """What the rows of a summary have in common. tf32: None where there is no such choice."""

    cell: Cell
    mode: str
    dtype: torch.dtype
    tf32: bool | None = None

    @property
    def precision(self) -> str:
        return precision_text(dtype_name(self.dtype), self.tf32)

    def __str__(self) -> str:
        return f"{self.cell.name}, {self.mode}, {self.precision}"


def all_settings(
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


@dataclass(frozen=True)
class Row:
    """One shape of one provider.

    checked: the shape that was proved equal. clock_mhz, kernels: of the device right after the
    timing, and of the baseline; "" where unknown. remarks: lines of the check that a reader should
    see.
    """

    provider: str
    shape: Shape
    measured: Measured
    checked: Shape
    clock_mhz: str
    kernels: str
    remarks: Sequence[str]

    def as_csv(
        self, setting: Setting, baseline: str, device: Cpu, conditions: Mapping[str, str]
    ) -> dict[str, object]:
        measured = self.measured
        found = rows.row(
            conditions,
            measured.stats,
            self.shape,
            dtype_name(setting.dtype),
            measured.gflops,
            cell=setting.cell.name,
            mode=setting.mode,
            provider=self.provider,
            baseline=baseline,
            tf32=TF32_NAMES[setting.tf32],
            checked_T=self.checked.T,
            sm_mhz=self.clock_mhz,
            kernels=self.kernels,
        )
        if measured.peak_percent is not None:
            found[device.peak_field] = f"{measured.peak_percent:.4g}"
        if measured.host is not None:
            found["host_ms"] = f"{measured.host.ms:.6g}"
            found["baseline_host_ms"] = f"{measured.host.baseline_ms:.6g}"
        return found


def contender(problem: Problem, provider: Provider) -> Contender:
    """The call of `provider` that is timed: in train mode forward, and backward to every gradient,
    dx included, from a fixed cotangent of the output; in infer mode forward without autograd."""
    module = problem.model(provider)
    x = problem.tensor(problem.x, leaf=True)
    if problem.mode == "infer":

        def forward() -> object:
            with torch.no_grad():
                return module(x)

        return Contender(provider.name, forward, context=provider.context)

    grad_output = problem.tensor(problem.grad_output)

    def forward_and_backward() -> object:
        output, final = module(x)
        output.backward(grad_output)
        return output, final

    leaves = [x, *module.parameters()]
    return training(provider.name, forward_and_backward, leaves, provider.context)


def bench_shape(
    setting: Setting,
    shape: Shape,
    providers: Sequence[Provider],
    device: Cpu,
    seconds: float,
    seed: int,
) -> tuple[list[Row], list[str]]:
    """Check and time providers[1:] against providers[0].

    Returns the rows of those that are equal, and a line for each tensor that is not. Where the
    baseline itself is wrong there is no row.
    """

    def problem(shape: Shape) -> Problem:
        return Problem(setting.cell, shape, setting.mode, setting.dtype, device.tensors, seed)

    with device.precision(setting.tf32):
        checked = device.checked_shape(shape, setting.cell.gates)
        # Of all providers: what they are held to is computed once.
        proved = problem(checked)
        verdicts = {provider.name: equality.check(proved, provider) for provider in providers}
        lines = [f"{name}: {line}" for name, v in verdicts.items() for line in v.failures]
        baseline, *others = providers
        timed, found = problem(shape), []
        for other in others:
            if verdicts[baseline.name].failures or verdicts[other.name].failures:
                continue
            pair = contender(timed, baseline), contender(timed, other)
            measured = measure(
                *pair,
                operations=flops(setting.cell.gates, shape, setting.mode),
                dtype=setting.dtype,
                seconds=seconds,
                seed=seed,
                device=device,
            )
            known = device.clock_mhz(), device.kernels(pair[0]), verdicts[other.name].remarks
            found.append(Row(other.name, shape, measured, checked, *known))
    return found, lines
