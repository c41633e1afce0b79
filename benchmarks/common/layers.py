"""One layer of several providers, checked and then timed: a row of bench_cells.py each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from benchmarks.common import cli, equality, measure
from benchmarks.common.devices import Device
from benchmarks.common.equality import Problem, Verdict
from benchmarks.common.measure import Measured
from benchmarks.common.plan import Job
from benchmarks.common.providers import Provider
from benchmarks.common.shapes import Shape, flops
from benchmarks.common.timing import Contender


@dataclass(frozen=True)
class Row:
    """One measured job of one provider.

    checked: the shape that was proved equal. clock_mhz, kernels: of the device right after the
    timing, and of the baseline; "" where unknown. remarks: lines of the check that a reader should
    see.
    """

    job: Job
    provider: str
    measured: Measured
    checked: Shape
    clock_mhz: str = ""
    kernels: str = ""
    remarks: Sequence[str] = ()


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
    leaves = [x, *module.parameters()]

    def forget_gradients() -> None:
        for leaf in leaves:
            leaf.grad = None

    def forward_and_backward() -> object:
        output, final = module(x)
        output.backward(grad_output)
        return output, final

    return Contender(provider.name, forward_and_backward, forget_gradients, provider.context)


def bench_job(
    job: Job, providers: Sequence[Provider], device: Device, seconds: float, seed: int
) -> tuple[list[Row], list[str]]:
    """Check and time providers[1:] against providers[0].

    Returns the rows of those that are equal, and a line for each tensor that is not. Where the
    baseline itself is wrong there is no row.
    """
    setting, (baseline, *others) = job.setting, providers
    with device.precision(setting.tf32):

        def problem(shape: Shape) -> Problem:
            return Problem(setting.cell, shape, setting.mode, setting.dtype, device.tensors, seed)

        checked = device.checked_shape(job.shape, setting.cell.gates)
        verdicts = check(problem(checked), providers)
        failures = {name: verdict.failures for name, verdict in verdicts.items()}
        lines = [f"{name}: {line}" for name, found in failures.items() for line in found]
        equal = [other for other in others if not failures[baseline.name] + failures[other.name]]
        timed = problem(job.shape)
        rows = []
        for other in equal:
            pair = contender(timed, baseline), contender(timed, other)
            measured = measure.measure(
                *pair,
                operations=flops(setting.cell.gates, job.shape, setting.mode),
                dtype=setting.dtype,
                seconds=seconds,
                seed=seed,
                device=device,
            )
            clock_mhz = device.clock_mhz()
            kernels = device.kernels(pair[0])
            remarks = verdicts[other.name].remarks
            rows.append(Row(job, other.name, measured, checked, clock_mhz, kernels, remarks))
    return rows, lines


def check(problem: Problem, providers: Sequence[Provider]) -> dict[str, Verdict]:
    return {provider.name: equality.check(problem, provider) for provider in providers}


def as_csv(row: Row, baseline: str, device: Device, conditions: Mapping[str, str]) -> dict:
    setting, measured = row.job.setting, row.measured
    found = cli.csv_row(
        conditions,
        cell=setting.cell.name,
        mode=setting.mode,
        provider=row.provider,
        baseline=baseline,
        shape=row.job.shape,
        dtype=setting.dtype,
        stats=measured.stats,
        gflops=measured.gflops,
        peak_percent=None,
    )
    if measured.peak_percent is not None:
        found[device.peak_field] = f"{measured.peak_percent:.4g}"
    if measured.host is not None:
        found["host_ms"] = f"{measured.host.ms:.6g}"
        found["baseline_host_ms"] = f"{measured.host.baseline_ms:.6g}"
    return found | {
        "tf32": setting.tf32_name,
        "checked_T": row.checked.T,
        "sm_mhz": row.clock_mhz,
        "kernels": row.kernels,
    }
