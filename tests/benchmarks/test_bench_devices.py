"""What a device is asked: switches, peaks, kernels and conditions, on a machine without a GPU."""

from __future__ import annotations

import subprocess
import types
from pathlib import Path

import pytest
import torch
from bench_stand_ins import CudaOnCpu

from benchmarks.common import devices, machine, rows
from benchmarks.common.devices import Cpu, Cuda, heaviest, trimmed
from benchmarks.common.providers import CELLS
from benchmarks.common.shapes import GRIDS, Shape, flops
from benchmarks.common.timing import Contender


def test_tf32_switches_are_set_together_and_put_back() -> None:
    def now() -> tuple[bool, bool]:
        return torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32

    before = now()
    for flag in (True, False, None):
        with Cuda().precision(flag):
            assert now() == (bool(flag), bool(flag))
    assert now() == before


def test_peak_is_a_product_of_the_dtype_measured_once_for_each_switch(monkeypatch) -> None:
    device, products = CudaOnCpu(), []
    mm = torch.mm
    monkeypatch.setattr(
        devices.torch, "mm", lambda a, b, out: products.append(a) or mm(a, b, out=out)
    )
    for dtype, tf32, side in [
        (torch.float32, True, 32),
        (torch.float32, False, 32),
        (torch.bfloat16, None, 32),
        (torch.float64, None, 16),
    ]:
        with device.precision(tf32):
            products.clear()
            peak = device.peak(dtype)
            assert 0 < peak < 1e6
            assert {(a.dtype, tuple(a.shape)) for a in products} == {(dtype, (side, side))}
            products.clear()
            assert device.peak(dtype) == peak and products == []


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
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: log.append("wait"))
    contender = Contender("a", lambda: log.append("run"), lambda: log.append("prepare"))
    assert Cuda().kernel_times(contender) == [("cell", 3.0)]
    assert log == ["prepare", "on", "run", "wait", "off"]


def test_driver_version_is_unknown_without_the_tool(monkeypatch) -> None:
    def answer(code: int, text: str):
        def run(command, check: bool, **_):
            done = subprocess.CompletedProcess(command, code, text)
            if check:
                done.check_returncode()
            return done

        monkeypatch.setattr(machine.subprocess, "run", run)
        return machine.gpu_driver()

    assert answer(0, "580.1\n580.1\n") == "580.1"
    assert answer(9, "No devices were found\n") == answer(0, "") == "unknown"
    monkeypatch.undo()
    monkeypatch.setenv("PATH", "")
    assert machine.gpu_driver() == "unknown"


def test_commit_is_unknown_outside_git(tmp_path: Path, monkeypatch) -> None:
    assert machine.commit() != "unknown"
    monkeypatch.setattr(machine, "__file__", str(tmp_path / "machine.py"))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert machine.commit() == "unknown"


def test_conditions_of_a_gpu(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "GPU")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(machine, "gpu_driver", lambda: "1.2")
    found = Cuda().conditions()
    assert (found["device"], found["capability"], found["driver"]) == ("GPU", "sm_90", "1.2")
    # TF32 is a matter of each row.
    assert set(found) <= set(rows.FIELDS) - {"tf32"}


def test_clock_is_unknown_where_it_cannot_be_asked(monkeypatch) -> None:
    def fail() -> int:
        raise ModuleNotFoundError("pynvml")

    monkeypatch.setattr(torch.cuda, "clock_rate", lambda: 1980)
    assert Cuda().clock_mhz() == "1980"
    monkeypatch.setattr(torch.cuda, "clock_rate", fail)
    assert Cuda().clock_mhz() == ""
