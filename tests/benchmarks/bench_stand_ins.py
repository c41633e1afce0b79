"""What stands in for a GPU, and for the commands of gpu_check.py, in the tests of the benchmarks."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from benchmarks.common import machine
from benchmarks.common.devices import Cuda
from benchmarks.common.processes import Command, Finished
from benchmarks.common.shapes import Shape
from benchmarks.common.timing import Contender, EventTimer
from benchmarks.gpu import kernels as kernel_choice
from benchmarks.gpu import phases as gpu_phases
from benchmarks.gpu import workplace as gpu_workplace
from benchmarks.gpu.methods.jobs import Job
from benchmarks.gpu.workplace import Workplace


class WallEvent:
    """An event of a device that has done its work when a call returns."""

    def record(self) -> None:
        self.time = time.perf_counter()

    def synchronize(self) -> None:
        pass

    def elapsed_time(self, end: WallEvent) -> float:
        return 1e3 * (end.time - self.time)


class CudaOnCpu(Cuda):
    """Cuda, with what asks the GPU or its driver answered here."""

    def __init__(self) -> None:
        super().__init__("cpu", WallEvent, lambda: None, matmul_size=32)
        self.flags = []

    def timer(self) -> EventTimer:
        return EventTimer(WallEvent, min_seconds=0.001)

    def why_unusable(self) -> None:
        return None

    def conditions(self) -> dict[str, str]:
        found = {**machine.environment("cpu"), "device": "GPU", "driver": "1.2"}
        del found["tf32"]
        return found | {"wanted_kernel": kernel_choice.wanted()}

    def clock_mhz(self) -> str:
        return "1980"

    def kernel_times(self, contender: Contender) -> list[tuple[str, float]]:
        contender.prepare()
        contender.run()
        self.flags.append(torch.backends.cudnn.allow_tf32)
        return [("void cell<4>(int)", 3.0), ("gemm", 1.0)]

    def checked_shape(self, shape: Shape, gates: int) -> Shape:
        return shape._replace(T=min(shape.T, 12))


def make_job(**settings) -> Job:
    """An LSTM without gradients on an H100, timed for a moment."""
    short = dict(cell="lstm", mode="infer", forward="auto", multiprocessors=132, seconds=0.01)
    return Job(**short, **settings)


class Commands:
    """Stands in for run_together: keeps what was asked, by the name of the log, and answers with
    what `answers` has under it, (code, output), or else with code 0."""

    def __init__(self, answers: Mapping[str, tuple[int | None, str]]) -> None:
        self.answers = answers
        self.asked: dict[str, Command] = {}
        self.seconds: dict[str, float] = {}

    def __call__(self, commands: Sequence[Command], seconds: float) -> list[Finished]:
        return [self._answer(command, seconds) for command in commands]

    def _answer(self, command: Command, seconds: float) -> Finished:
        name = command.log.stem
        self.asked[name], self.seconds[name] = command, seconds
        code, output = self.answers.get(name, (0, ""))
        command.log.write_text(output)
        return Finished(code, 2.0, command.log)


def answer(monkeypatch, answers: Mapping[str, tuple[int | None, str]] | None = None) -> Commands:
    """Let the commands of every phase end as `answers` says."""
    commands = Commands(answers or {})
    for module in (gpu_phases, gpu_workplace):
        monkeypatch.setattr(module, "run_together", commands)
    return commands


def make_place(folder: Path) -> Workplace:
    """A workplace whose extension is built."""
    package = folder / "build" / "lib" / "fastlstm"
    package.mkdir(parents=True)
    (package / "_C.so").touch()
    logs = folder / "logs"
    logs.mkdir()
    environ = {"PATH": os.environ["PATH"], "PYTHONPATH": "elsewhere"}
    csv, picture = folder / "cells_h100.csv", folder / "ratios.png"
    return Workplace((9, 0), folder / "build", logs, csv, picture, 0.3, environ)
