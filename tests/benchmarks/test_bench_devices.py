"""How the benchmarks measure on a GPU: events, switches, kernels and conditions, on fake ones."""

from __future__ import annotations

import dataclasses
import subprocess
import types

import pytest
import torch

from benchmarks.common import csv_rows, machine
from benchmarks.common.devices import Cpu, Cuda
from benchmarks.common.providers import CELLS
from benchmarks.common.shapes import GRIDS, Shape, flops
from benchmarks.common.timing import Contender, EventTimer, WallTimer, measure_pairs
from benchmarks.gpu.kernel_names import heaviest, trimmed


class FakeGpu:
    """A stream: calls cost host time, and their work takes its own time there. A call waits while
    more than `queue` seconds of work are ahead of it."""

    def __init__(self, queue: float = 1e9) -> None:
        self.queue = queue
        self.host = 0.0
        self.busy_until = 0.0
        self.batches: list[float] = []

    def clock(self) -> float:
        return self.host

    def contender(self, name: str, device_seconds: float, host_seconds: float = 0.0) -> Contender:
        def run() -> None:
            self.host = max(self.host + host_seconds, self.busy_until - self.queue)
            self.busy_until = max(self.busy_until, self.host) + device_seconds

        return Contender(name, run)

    def synchronize(self) -> None:
        self.host = max(self.host, self.busy_until)

    def event(self) -> FakeEvent:
        return FakeEvent(self)


class FakeEvent:
    def __init__(self, gpu: FakeGpu) -> None:
        self.gpu = gpu

    def record(self) -> None:
        self.time = max(self.gpu.host, self.gpu.busy_until)

    def synchronize(self) -> None:
        self.gpu.synchronize()

    def elapsed_time(self, end: FakeEvent) -> float:
        self.gpu.batches.append(end.time - self.time)
        return 1e3 * (end.time - self.time)


def test_batches_are_long_and_their_time_is_that_of_a_call() -> None:
    gpu = FakeGpu()
    timer = EventTimer(gpu.event, min_seconds=0.01)
    fast, slow = gpu.contender("fast", 20e-6, 5e-6), gpu.contender("slow", 30e-3)
    # The 5 us until the first call is on the device are a part of the batch, of 500 calls or more.
    assert timer.seconds(fast) == pytest.approx(20e-6, rel=1e-3)
    assert timer.seconds(slow) == pytest.approx(30e-3)
    gpu.batches.clear()
    pairs = measure_pairs(fast, slow, 0.5, timer=timer, clock=gpu.clock)
    assert len(pairs) > 10
    assert pairs[0] == pytest.approx((20e-6, 30e-3), rel=1e-3)
    assert min(gpu.batches) >= 0.01
    assert max(gpu.batches) < 0.05


def test_a_slow_host_is_on_the_device_clock() -> None:
    # Calls that the host cannot hand over fast enough take what the host takes.
    gpu = FakeGpu()
    contender = gpu.contender("a", 5e-6, 40e-6)
    assert EventTimer(gpu.event).seconds(contender) == pytest.approx(40e-6, rel=0.01)


def test_a_batch_prepares_every_call_and_counts_the_calls_of_a_run() -> None:
    gpu, log = FakeGpu(), []
    inner = gpu.contender("a", 0.02)
    contender = dataclasses.replace(
        inner,
        prepare=lambda: log.append("prepare"),
        run=lambda: log.append("run") or inner.run(),
        calls=4,
    )
    assert EventTimer(gpu.event).seconds(contender) == pytest.approx(0.005)
    assert log == ["prepare", "run"] * (len(log) // 2)


def test_host_time_is_that_until_the_call_returns() -> None:
    # A queue that the work of earlier calls would fill.
    gpu = FakeGpu(queue=0.5)
    timer = WallTimer(gpu.clock, gpu.synchronize)
    contender = gpu.contender("a", 1.0, 0.25)
    assert [timer.seconds(contender) for _ in range(3)] == [0.25] * 3


def test_tf32_switches_are_set_together_and_put_back() -> None:
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    for flag in (True, False, None):
        with Cuda().precision(flag):
            now = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
            assert now == (bool(flag), bool(flag))
    assert (torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32) == before


def test_checked_steps_are_affordable_and_at_least_eight() -> None:
    for shape in GRIDS["gpu"]:
        for cell in (CELLS["lstm"], CELLS["gru"]):
            checked = Cuda().checked_shape(shape, cell.gates)
            assert checked[1:] == shape[1:]
            assert min(8, shape.T) <= checked.T <= shape.T
            assert checked.T == 8 or flops(cell.gates, checked, "train") <= 2.5e11
    assert Cuda().checked_shape(Shape(512, 44, 160, 160), 4).T == 512
    assert Cuda().checked_shape(Shape(128, 64, 2048, 2048), 4).T < 128
    assert Cuda().checked_shape(Shape(100, 4096, 4096, 4096), 4).T == 8
    assert Cpu().checked_shape(GRIDS["gpu"][0], 4) == GRIDS["gpu"][0]


@pytest.mark.parametrize(
    "name, expected",
    [
        ("void cudnn::rnn::cell<float, 2>(int, float const*)", "cell"),
        ("void (anonymous namespace)::f<g<int>, (int)3>(h<int>)", "f"),
        ("void cutlass::Kernel2<cutlass_80_gemm_s1688>(Params)", "cutlass_80_gemm_s1688"),
        ("sm90_xmma_gemm_f32f32_tf32f32_f32_tn_n", "sm90_xmma_gemm_f32f32_tf32f32_f32_tn_n"),
        ("x" * 200, "x" * 60),
    ],
)
def test_kernel_names_are_trimmed(name: str, expected: str) -> None:
    assert trimmed(name) == expected


def test_kernels_that_take_most_of_the_time_are_named() -> None:
    times = [("void a<1>(int)", 20.0), ("b", 60.0), ("void a<2>(int)", 5.0), ("c", 15.0)]
    assert heaviest(times) == "b 60 %; a 25 %; c 15 %"
    assert heaviest([("a", 90.0), ("b", 6.0), ("c", 4.0)]) == "a 90 %; b 6 %"
    assert heaviest([]) == ""


def test_kernels_are_the_device_events_of_one_call(monkeypatch) -> None:
    kinds = torch.autograd.DeviceType
    events = [
        types.SimpleNamespace(key="cell", device_type=kinds.CUDA, self_device_time_total=3.0),
        types.SimpleNamespace(key="launch", device_type=kinds.CPU, self_device_time_total=0.0),
    ]
    log = []

    class Profile:
        def __init__(self, activities) -> None:
            assert activities == [torch.profiler.ProfilerActivity.CUDA]

        def __enter__(self) -> Profile:
            log.append("on")
            return self

        def __exit__(self, *_: object) -> None:
            log.append("off")

        def key_averages(self):
            return events

    monkeypatch.setattr(torch.profiler, "profile", Profile)
    device = Cuda(synchronize=lambda: log.append("wait"))
    contender = Contender("a", lambda: log.append("run"), lambda: log.append("prepare"))
    assert device.kernel_times(contender) == [("cell", 3.0)]
    assert log == ["prepare", "on", "run", "wait", "off"]


def test_driver_version_is_unknown_without_the_tool(monkeypatch) -> None:
    def answer(code: int, text: str):
        done = subprocess.CompletedProcess([], code, text)
        monkeypatch.setattr(machine.subprocess, "run", lambda *_, **__: done)
        return machine.gpu_driver()

    assert answer(0, "580.1\n580.1\n") == "580.1"
    assert answer(9, "No devices were found\n") == "unknown"
    assert answer(0, "") == "unknown"
    monkeypatch.undo()
    monkeypatch.setenv("PATH", "")
    assert machine.gpu_driver() == "unknown"


def test_conditions_of_a_gpu(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "GPU")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(machine, "gpu_driver", lambda: "1.2")
    found = Cuda().conditions()
    assert (found["device"], found["capability"], found["driver"]) == ("GPU", "sm_90", "1.2")
    assert set(found) <= set(csv_rows.FIELDS)
    # It is a matter of each row.
    assert "tf32" not in found


def test_clock_is_unknown_where_it_cannot_be_asked(monkeypatch) -> None:
    def fail() -> int:
        raise ModuleNotFoundError("pynvml")

    monkeypatch.setattr(torch.cuda, "clock_rate", lambda: 1980)
    assert Cuda().clock_mhz() == "1980"
    monkeypatch.setattr(torch.cuda, "clock_rate", fail)
    assert Cuda().clock_mhz() == ""
