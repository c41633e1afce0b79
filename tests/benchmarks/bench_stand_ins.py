"""What stands in for a GPU, and for the commands of gpu/check.py, in the tests of the benchmarks."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import nn

from benchmarks.common import machine
from benchmarks.common.devices import Cuda
from benchmarks.common.processes import Command, Finished
from benchmarks.common.providers import PROVIDERS, Cell, Provider
from benchmarks.common.shapes import Shape
from benchmarks.common.timing import Contender, EventTimer
from benchmarks.gpu import phases, workplace
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

    tensors = "cpu"
    matmul_size = 32

    def __init__(self) -> None:
        super().__init__()
        self.flags = []

    def synchronize(self) -> None:
        pass

    def timer(self) -> EventTimer:
        return EventTimer(WallEvent, min_seconds=0.001)

    def why_unusable(self) -> None:
        return None

    def conditions(self) -> dict[str, str]:
        found = {**machine.environment("cpu"), "device": "GPU", "driver": "1.2"}
        del found["tf32"]
        return found | {"wanted_kernel": machine.wanted_kernel()}

    def clock_mhz(self) -> str:
        return "1980"

    def kernel_times(self, contender: Contender) -> list[tuple[str, float]]:
        contender.prepare()
        contender.run()
        self.flags.append(torch.backends.cudnn.allow_tf32)
        return [("void cell<4>(int)", 3.0), ("gemm", 1.0)]

    def checked_shape(self, shape: Shape, gates: int) -> Shape:
        return shape._replace(T=min(shape.T, 12))


def plant(monkeypatch, spoil: Callable[[nn.Module], object], of: str = "fastlstm") -> None:
    """Let `spoil` change every module that the provider fastlstm makes: those of the provider `of`."""
    make_sound = PROVIDERS[of].make

    def make(cell: Cell, input_size: int, hidden_size: int) -> nn.Module:
        module = make_sound(cell, input_size, hidden_size)
        spoil(module)
        return module

    monkeypatch.setitem(PROVIDERS, "fastlstm", Provider("fastlstm", make))


def spoil_output(module: nn.Module) -> None:
    def wrong(_module, _inputs, found):
        # Of a cell h alone, of an LSTM cell (h, c), of a layer (output, hidden).
        return 1.001 * found if isinstance(found, torch.Tensor) else (1.001 * found[0], found[1])

    module.register_forward_hook(wrong)


def make_job(**settings) -> Job:
    """An LSTM without gradients on an H100, timed for a moment."""
    short = dict(cell="lstm", mode="infer", forward="auto", multiprocessors=132, seconds=0.01)
    return Job(**short, **settings)


class Commands:
    """Stands in for run_together: keeps what was asked, by the name of the log, and answers with
    what `answers` has under it, (code, output), or else with code 0. before: called first."""

    def __init__(
        self,
        answers: Mapping[str, tuple[int | None, str]],
        before: Callable[[Sequence[Command]], object] = lambda _: None,
    ) -> None:
        self.answers = answers
        self.before = before
        self.asked: dict[str, Command] = {}
        self.seconds: dict[str, float] = {}

    def __call__(self, commands: Sequence[Command], seconds: float) -> list[Finished]:
        self.before(commands)
        return [self._answer(command, seconds) for command in commands]

    def _answer(self, command: Command, seconds: float) -> Finished:
        name = command.log.stem
        self.asked[name], self.seconds[name] = command, seconds
        code, output = self.answers.get(name, (0, ""))
        command.log.write_text(output)
        return Finished(code, 2.0, command.log)


def answer(monkeypatch, answers: Mapping[str, tuple] | None = None, **more) -> Commands:
    """Let the commands of every phase end as `answers` says."""
    commands = Commands(answers or {}, **more)
    for module in (phases, workplace):
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
