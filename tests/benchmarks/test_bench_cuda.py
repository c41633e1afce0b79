"""bench_cells.py on CUDA: everything but the events themselves, on a machine without a GPU."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
import torch
from bench_stand_ins import CudaOnCpu

from benchmarks import bench_cells, plot
from benchmarks.common import csv_rows, devices, machine, plan
from benchmarks.common.devices import DEVICES
from benchmarks.common.equality import Problem
from benchmarks.common.providers import CELLS, PROVIDERS, Provider
from benchmarks.common.shapes import Shape

RUN = "--device cuda --cells lstm --shape 20,8,33,17 --seconds 0.02 --threads 1"


@pytest.fixture(autouse=True)
def small_heap():
    """The collector, which runs before every timing, does not search all of torch."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def fake_cuda(monkeypatch) -> CudaOnCpu:
    device = CudaOnCpu()
    monkeypatch.setitem(DEVICES, "cuda", lambda: device)
    return device


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
            assert device.peak(dtype) == peak
            assert products == []


def test_settings_double_float32_only() -> None:
    cells, dtypes = [CELLS["lstm"], CELLS["gru"]], [torch.float32, torch.bfloat16]
    found = [str(s) for s in plan.settings(cells, dtypes, ["infer"], (True, False))]
    assert found == [
        "lstm, infer, float32, TF32 on",
        "lstm, infer, float32, TF32 off",
        "lstm, infer, bfloat16",
        "gru, infer, float32, TF32 on",
        "gru, infer, float32, TF32 off",
        "gru, infer, bfloat16",
    ]
    assert [str(s) for s in plan.settings(cells[:1], dtypes[:1], ["train"])] == [
        "lstm, train, float32"
    ]


def test_left_out_shapes_are_named_with_their_rows() -> None:
    settings = plan.settings([CELLS["lstm"]], [torch.float32], ["infer", "train"])
    shapes = [Shape(1, 2, 3, 4), Shape(5, 6, 7, 8)]
    jobs = [job for table in plan.tables(settings, shapes, by_shape=True) for job in table]
    assert [job.shape for job in jobs] == [shapes[0], shapes[0], shapes[1], shapes[1]]
    assert plan.left_out_text(jobs[1:], 2) == "1,2,3,4 (1 of 2) · 5,6,7,8"


def test_rows_of_a_gpu_carry_their_conditions(fake_cuda, tmp_path: Path, capsys) -> None:
    path = tmp_path / "rows.csv"
    argv = f"{RUN} --dtype float32,bfloat16 --tf32 both --csv {path}"
    assert bench_cells.main(argv.split()) == 0
    out = capsys.readouterr().out
    assert "RED" not in out
    assert out.count("% matmul") == out.count("base host") == 6
    assert out.count("checked at T = 12") == 6
    rows = csv_rows.read_rows(path)
    assert [(r["mode"], r["dtype"], r["tf32"]) for r in rows] == [
        ("infer", "float32", "on"),
        ("train", "float32", "on"),
        ("infer", "float32", "off"),
        ("train", "float32", "off"),
        ("infer", "bfloat16", "none"),
        ("train", "bfloat16", "none"),
    ]
    # The switches are those of the row while it is measured.
    assert fake_cuda.flags == [True, True, False, False, False, False]
    for r in rows:
        assert (r["device"], r["driver"], r["sm_mhz"]) == ("GPU", "1.2", "1980")
        assert (r["T"], r["checked_T"], r["kernels"]) == ("20", "12", "cell 75 %; gemm 25 %")
        assert r["peak_percent"] == ""
        assert float(r["matmul_percent"]) > 0
        assert 0 < float(r["host_ms"]) < 1e3
        assert 0 < float(r["baseline_host_ms"]) < 1e3
    labels = {plot.series_label(r, rows) for r in rows}
    assert labels == {
        "fastlstm, float32, TF32 on",
        "fastlstm, float32, TF32 off",
        "fastlstm, bfloat16",
    }


def test_budget_measures_all_of_the_first_shape_and_says_what_is_left_out(
    fake_cuda, tmp_path: Path, monkeypatch, capsys
) -> None:
    now = iter(range(1000))
    monkeypatch.setattr(bench_cells.time, "monotonic", lambda: float(next(now)))
    path = tmp_path / "rows.csv"
    argv = f"{RUN} --shape 21,8,33,17 --shape 22,8,33,17 --budget 4 --csv {path}"
    # Begun at 0: rows begin at 1, 2, 3 and not at 4.
    assert bench_cells.main(argv.split()) == 0
    rows = csv_rows.read_rows(path)
    assert [(r["T"], r["mode"]) for r in rows] == [
        ("20", "infer"),
        ("20", "train"),
        ("21", "infer"),
    ]
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == (
        "3 rows measured, 0 red, left out for want of time: 21,8,33,17 (1 of 2) · 22,8,33,17"
    )
    assert sum("geometric mean" in line for line in lines) == 2


def test_interrupt_keeps_what_was_measured(fake_cuda, tmp_path: Path, monkeypatch, capsys) -> None:
    pytest.importorskip("matplotlib")
    path, picture = tmp_path / "rows.csv", tmp_path / "ratios.png"
    bench_job, calls = bench_cells.bench_job, []

    def interrupted(*args):
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return bench_job(*args)

    monkeypatch.setattr(bench_cells, "bench_job", interrupted)
    argv = f"{RUN} --csv {path} --plot {picture}"
    assert bench_cells.main(argv.split()) == 130
    assert len(csv_rows.read_rows(path)) == 1
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "interrupted: 1 rows measured" in capsys.readouterr().out


@pytest.mark.parametrize("asked", ["", "grid:16x4x8x1"])
def test_kernel_that_is_asked_for_is_a_condition(
    fake_cuda, asked: str, tmp_path: Path, monkeypatch, capsys
) -> None:
    """No row of a forced run passes for one of the default."""
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "GPU")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setenv("FASTLSTM_CUDA_KERNEL", asked)
    kernel = asked or "auto"
    assert machine.environment("cuda")["wanted_kernel"] == kernel
    assert machine.environment("cpu")["wanted_kernel"] == "none"
    path = tmp_path / "rows.csv"
    assert bench_cells.main([*RUN.split(), "--mode", "infer", "--csv", str(path)]) == 0
    (row,) = csv_rows.read_rows(path)
    assert row["wanted_kernel"] == kernel
    assert f"wanted_kernel {kernel}" in capsys.readouterr().out.splitlines()[0]


def plant(monkeypatch, change) -> None:
    def make(cell, input_size: int, hidden_size: int):
        module = PROVIDERS["torch"].make(cell, input_size, hidden_size)
        module.register_forward_hook(change)
        return module

    monkeypatch.setitem(PROVIDERS, "fastlstm", Provider("fastlstm", make))


def test_wrong_layer_is_red_and_has_no_row(fake_cuda, tmp_path: Path, monkeypatch, capsys) -> None:
    plant(monkeypatch, lambda _module, _inputs, found: (1.001 * found[0], found[1]))
    path = tmp_path / "rows.csv"
    argv = f"{RUN} --mode infer --budget 100 --csv {path}"
    assert bench_cells.main(argv.split()) == 1
    out = capsys.readouterr().out
    assert "RED  fastlstm: output: error" in out
    assert "no summary" in out
    assert out.splitlines()[-1] == "0 rows measured, 1 red"
    assert not path.exists()
    assert fake_cuda.flags == []


def test_call_that_fails_is_red_and_the_others_go_on(
    fake_cuda, tmp_path: Path, monkeypatch, capsys
) -> None:
    def fail(module, inputs, _found) -> None:
        if inputs[0].size(2) == 31:
            raise RuntimeError("out of memory\nsecond line")

    plant(monkeypatch, fail)
    path = tmp_path / "rows.csv"
    argv = f"{RUN} --shape 20,8,31,17 --shape 21,8,33,17 --mode infer --csv {path}"
    assert bench_cells.main(argv.split()) == 1
    out = capsys.readouterr().out
    assert "RED  RuntimeError: out of memory\n" in out
    assert "second line" not in out
    assert [r["T"] for r in csv_rows.read_rows(path)] == ["20", "21"]


def test_no_gpu_is_one_line_and_code_2(monkeypatch, capsys) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for version, message in ((None, "is built without CUDA"), ("13.0", "CUDA 13.0 finds no GPU")):
        monkeypatch.setattr(torch.version, "cuda", version)
        with pytest.raises(SystemExit) as exit:
            bench_cells.main(["--device", "cuda", "--grid", "gpu"])
        assert exit.value.code == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.startswith("bench_cells.py: error: argument --device: torch ")
        assert message in captured.err
        assert captured.err.count("\n") == 1


def test_provider_without_kernels_is_one_line(fake_cuda, monkeypatch, capsys) -> None:
    def fail(*_: object) -> None:
        raise NotImplementedError("built without CUDA kernels\nmore")

    plant(monkeypatch, fail)
    fake_cuda.tensors = "cpu:0"
    with pytest.raises(SystemExit) as exit:
        bench_cells.main(RUN.split())
    assert exit.value.code == 2
    error = capsys.readouterr().err
    assert "fastlstm cannot provide lstm on cpu:0: built without CUDA kernels" in error
    assert error.count("\n") == 1


def test_truth_on_a_gpu_is_not_that_of_the_library(monkeypatch) -> None:
    asked = []
    problem = Problem(CELLS["lstm"], Shape(3, 2, 4, 5), "infer", torch.float32)
    monkeypatch.setattr(
        Problem, "results", lambda self, provider, *_, **__: asked.append(provider.name)
    )
    problem.truth(with_state=False)
    problem.device = "cuda"
    problem.truth(with_state=False)
    assert asked == ["torch", "torch-native"]
