"""bench_cells.py on a CPU, and on all of a GPU but its events: rows, gates, budget, exit codes."""

from __future__ import annotations

import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch
from bench_stand_ins import CudaOnCpu, plant, spoil_output
from cell_kinds import TORCH_MODES

from benchmarks import bench_cells, plot
from benchmarks.common import cli, equality, machine, rows
from benchmarks.common.devices import DEVICES
from benchmarks.common.layers import all_settings
from benchmarks.common.providers import CELLS, KINDS, PROVIDERS, STEPS
from benchmarks.common.shapes import GRIDS, Shape, flops
from benchmarks.common.tf32 import TORCH_TF32
from fastlstm.dispatch.traits import CELL_TRAITS

ROOT = Path(__file__).resolve().parents[2]
ONE = "--shape 20,8,33,17 --cells lstm --seconds 0.01 --threads 1"
NATIVE = "--providers torch,torch-native"
GPU = f"--device cuda {ONE}"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "rows.csv"


@pytest.fixture
def fake_cuda(monkeypatch) -> CudaOnCpu:
    device = CudaOnCpu()
    monkeypatch.setitem(DEVICES, "cuda", lambda: device)
    return device


def run(*argv: object) -> int:
    """The exit code of a command line."""
    return bench_cells.main(" ".join(map(str, argv)).split())


# What is measured.


@pytest.mark.parametrize("provider", ["torch", "fastlstm"])
@pytest.mark.parametrize("cells, suffix", [(CELLS, ""), (STEPS, "_cell")])
def test_rnn_is_measured_with_either_nonlinearity(provider: str, cells, suffix: str) -> None:
    for name, expected in (("rnn", "tanh"), ("rnn_relu", "relu")):
        assert PROVIDERS[provider].make(cells[name + suffix], 2, 3).nonlinearity == expected


@pytest.mark.parametrize("cell, gates", [("lstm", 4), ("gru", 3), ("rnn", 1), ("rnn_relu", 1)])
def test_flops_counts_every_weight_twice_a_row(cell: str, gates: int) -> None:
    layer = PROVIDERS["torch"].make(CELLS[cell], 4, 5)
    weights = layer.weight_ih_l0.numel() + layer.weight_hh_l0.numel()
    assert CELLS[cell].gates == gates
    assert flops(gates, Shape(2, 3, 4, 5), "infer") == 2 * weights * 2 * 3
    assert flops(gates, Shape(2, 3, 4, 5), "train") == 3 * 2 * weights * 2 * 3
    assert flops(gates, Shape(2, 3, 4, 5), "infer", rows=4) == 2 * weights * 4


def test_grids() -> None:
    assert {name: len(set(shapes)) for name, shapes in GRIDS.items()} == {
        "quick": 4,
        "full": 12,
        "gpu": 12,
    }
    assert set(GRIDS["quick"]) < set(GRIDS["full"])


def test_milliseconds_keep_three_digits() -> None:
    texts = [cli.milliseconds(value) for value in (0.00312, 0.125, 9.87654, 12.3456, 1234.56)]
    assert texts == ["0.00312", "0.125", "9.877", "12.35", "1234.6"]


def test_settings_double_float32_only() -> None:
    cells, dtypes = [CELLS["lstm"], CELLS["gru"]], [torch.float32, torch.bfloat16]
    found = [str(s) for s in all_settings(cells, dtypes, ["infer"], (True, False))]
    precisions = ("float32, TF32 on", "float32, TF32 off", "bfloat16")
    assert found == [f"{cell}, infer, {p}" for cell in ("lstm", "gru") for p in precisions]
    (found,) = all_settings(cells[:1], dtypes[:1], ["train"])
    assert str(found) == "lstm, train, float32"


# On a CPU.


def test_script_runs_from_any_directory(tmp_path: Path) -> None:
    # float64, where torch has one path: on so few elements two float32 paths may differ by luck.
    argv = f"--shape 3,2,4,5 --cells lstm --seconds 0.05 --threads 1 --dtype float64 {NATIVE}"
    command = [sys.executable, str(ROOT / "benchmarks" / "bench_cells.py"), *argv.split()]
    command += ["--csv", "rows.csv"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("minimum") == 2
    found = rows.read(tmp_path / "rows.csv")
    assert [r["mode"] for r in found] == ["infer", "train"]
    for r in found:
        assert [r[name] for name in "TNIH"] == ["3", "2", "4", "5"]
        assert (r["provider"], r["baseline"], r["dtype"]) == ("torch-native", "torch", "float64")
        assert (r["cell"], r["threads"], r["torch"]) == ("lstm", "1", torch.__version__)
        assert float(r["ms_p10"]) <= float(r["ms"]) <= float(r["ms_p90"])
        assert float(r["ratio_p10"]) <= float(r["ratio"]) <= float(r["ratio_p90"])


def test_a_summary_for_each_cell_dtype_and_mode(path: Path, capsys) -> None:
    argv = "--shape 6,16,40,32 --cells lstm,gru,rnn,rnn_relu --dtype float64,bfloat16"
    assert run(argv, NATIVE, "--seconds 0.01 --threads 1 --csv", path) == 0
    expected = [
        (cell, mode, dtype)
        for cell in ("lstm", "gru", "rnn", "rnn_relu")
        for dtype in ("float64", "bfloat16")
        for mode in ("infer", "train")
    ]
    lines = [line for line in capsys.readouterr().out.splitlines() if "geometric mean" in line]
    assert [tuple(line.split(", ")[:3]) for line in lines] == expected
    assert all("minimum" in line for line in lines)
    found = rows.read(path)
    assert [(r["cell"], r["mode"], r["dtype"]) for r in found] == expected
    for r in found:
        operations = flops(CELLS[r["cell"]].gates, Shape(6, 16, 40, 32), r["mode"])
        assert float(r["gflops"]) == pytest.approx(operations / float(r["ms"]) / 1e6, rel=1e-3)


def test_fastlstm_is_measured(path: Path) -> None:
    argv = "--shape 16,16,40,48 --dtype float32,bfloat16 --seconds 0.01 --threads 1"
    assert run(argv, "--csv", path) == 0
    found = rows.read(path)
    assert [r["cell"] for r in found[::4]] == ["lstm", "gru", "rnn"]
    assert [r["dtype"] for r in found] == 3 * (2 * ["float32"] + 2 * ["bfloat16"])
    assert {(r["provider"], r["baseline"]) for r in found} == {("fastlstm", "torch")}
    assert all(float(r["peak_percent"]) > 0 for r in found)


@pytest.mark.parametrize(
    "argv, missed",
    [
        ("--min-ratio 1e9", ["minimum"]),
        ("--min-geomean 1e9", ["geometric mean"]),
        ("--min-ratio 1e-9 --min-geomean 1e-9", []),
    ],
)
def test_required_ratios_decide_the_exit_code(argv: str, missed, capsys) -> None:
    assert run(ONE, NATIVE, "--mode infer", argv) == len(missed)
    lines = capsys.readouterr().out.splitlines()
    found = [line.removeprefix("MISSED: ") for line in lines if line.startswith("MISSED")]
    assert [line.rsplit(" ", 4)[0] for line in found] == missed


def stand_in_peak(monkeypatch, measure) -> None:
    extension = types.SimpleNamespace(fma_peak=measure)
    monkeypatch.setitem(sys.modules, "fastlstm", types.SimpleNamespace(_C=extension))
    monkeypatch.setitem(sys.modules, "fastlstm._C", extension)


def test_peak_is_measured_before_every_row(monkeypatch, capsys) -> None:
    asked = []
    stand_in_peak(monkeypatch, lambda *call: asked.append(call) or 1e-6)
    argv = "--shape 3,8,16,16 --shape 4,8,16,16 --cells lstm --mode infer --seconds 0.01"
    assert run(argv, NATIVE, "--threads 1") == 0
    assert asked == [("float32", 1, machine.PEAK_SECONDS)] * 2
    lines = capsys.readouterr().out.splitlines()
    (line,) = (line for line in lines if line.split()[:4] == ["3", "8", "16", "16"])
    gflops, percent = map(float, line.split()[-3:-1])
    assert percent / 100 * 1e-6 == pytest.approx(gflops, abs=0.051)


def test_peak_is_that_of_the_dtype_in_which_sums_are_or_none(monkeypatch) -> None:
    stand_in_peak(monkeypatch, lambda dtype, *_: {"float32": 2.0, "float64": 1.0}[dtype])
    dtypes = (torch.float32, torch.bfloat16, torch.float64)
    assert [machine.fma_peak(dtype, 1) for dtype in dtypes] == [2.0, 2.0, 1.0]
    for without in (object(), None):
        monkeypatch.setitem(sys.modules, "fastlstm._C", without)
        assert machine.fma_peak(torch.float32, 1) is None


def test_red_check_reports_nothing(path: Path, monkeypatch, capsys) -> None:
    def spoil(module) -> None:
        module.weight_hh_l0.register_hook(lambda grad: 1.001 * grad)

    plant(monkeypatch, spoil)
    assert run(ONE, "--mode train --csv", path) == 1
    out = capsys.readouterr().out
    assert "RED  fastlstm: grad weight_hh_l0: error" in out
    assert "no summary" in out and "geometric mean" not in out
    assert not path.exists()


def test_remark_is_a_line_below_its_row(monkeypatch, capsys) -> None:
    monkeypatch.setattr(equality, "may_be_tf32", lambda _: True)
    monkeypatch.setitem(PROVIDERS, "fastlstm", TORCH_TF32)
    assert run(ONE, "--mode infer") == 0
    out = capsys.readouterr().out
    assert "RED" not in out
    assert "torch.nn does not round to TF32: output: error" in out


# On a GPU.


def test_rows_of_a_gpu_carry_their_conditions(fake_cuda, path: Path, capsys) -> None:
    assert run(GPU, "--dtype float32,bfloat16 --tf32 both --csv", path) == 0
    out = capsys.readouterr().out
    assert "RED" not in out
    assert out.count("% matmul") == out.count("base host") == 6
    assert out.count("checked at T = 12") == 6
    found = rows.read(path)
    precisions = [("float32", "on"), ("float32", "off"), ("bfloat16", "none")]
    assert [(r["dtype"], r["tf32"], r["mode"]) for r in found] == [
        (*precision, mode) for precision in precisions for mode in ("infer", "train")
    ]
    # The switches are those of the row while it is measured.
    assert fake_cuda.flags == [True, True, False, False, False, False]
    for r in found:
        assert (r["device"], r["driver"], r["sm_mhz"]) == ("GPU", "1.2", "1980")
        assert (r["T"], r["checked_T"], r["kernels"]) == ("20", "12", "cell 75 %; gemm 25 %")
        assert r["peak_percent"] == "" and float(r["matmul_percent"]) > 0
        assert 0 < float(r["host_ms"]) < 1e3 and 0 < float(r["baseline_host_ms"]) < 1e3
    labels = {plot.series_label(r, found) for r in found}
    assert labels == {
        *("fastlstm, float32, TF32 on", "fastlstm, float32, TF32 off", "fastlstm, bfloat16")
    }


@pytest.mark.parametrize("asked", ["", "grid:16x4x8x1"])
def test_kernel_that_is_asked_for_is_a_condition(
    fake_cuda, asked: str, path: Path, monkeypatch, capsys
) -> None:
    """No row of a forced run passes for one of the default."""
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "GPU")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setenv("FASTLSTM_CUDA_KERNEL", asked)
    kernel = asked or "auto"
    assert machine.environment("cuda")["wanted_kernel"] == kernel
    assert machine.environment("cpu")["wanted_kernel"] == "none"
    assert run(GPU, "--mode infer --csv", path) == 0
    (row,) = rows.read(path)
    assert row["wanted_kernel"] == kernel
    assert f"wanted_kernel {kernel}" in capsys.readouterr().out.splitlines()[0]


def test_budget_measures_all_of_the_first_shape_and_says_what_is_left_out(
    fake_cuda, path: Path, monkeypatch, capsys
) -> None:
    now = iter(range(1000))
    monkeypatch.setattr(bench_cells.time, "monotonic", lambda: float(next(now)))
    # Begun at 0: rows begin at 1, 2, 3 and not at 4.
    assert run(GPU, "--shape 21,8,33,17 --shape 22,8,33,17 --budget 4 --csv", path) == 0
    measured = [(r["T"], r["mode"]) for r in rows.read(path)]
    assert measured == [("20", "infer"), ("20", "train"), ("21", "infer")]
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == (
        "3 rows measured, 0 red, left out for want of time: 21,8,33,17 (1 of 2) · 22,8,33,17"
    )
    assert sum("geometric mean" in line for line in lines) == 2


def test_interrupt_keeps_what_was_measured(fake_cuda, path: Path, monkeypatch, capsys) -> None:
    pytest.importorskip("matplotlib")
    picture = path.with_name("ratios.png")
    bench_shape, calls = bench_cells.bench_shape, []

    def interrupted(*args):
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return bench_shape(*args)

    monkeypatch.setattr(bench_cells, "bench_shape", interrupted)
    assert run(GPU, "--csv", path, "--plot", picture) == 130
    assert len(rows.read(path)) == 1
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "interrupted: 1 rows measured" in capsys.readouterr().out


def test_wrong_layer_is_red_and_has_no_row(fake_cuda, path: Path, monkeypatch, capsys) -> None:
    plant(monkeypatch, spoil_output)
    assert run(GPU, "--mode infer --budget 100 --csv", path) == 1
    out = capsys.readouterr().out
    assert "RED  fastlstm: output: error" in out and "no summary" in out
    assert out.splitlines()[-1] == "0 rows measured, 1 red"
    assert not path.exists() and fake_cuda.flags == []


def test_call_that_fails_is_red_and_the_others_go_on(
    fake_cuda, path: Path, monkeypatch, capsys
) -> None:
    def fail(_module, inputs) -> None:
        if inputs[0].size(2) == 31:
            raise RuntimeError("out of memory\nsecond line")

    plant(monkeypatch, lambda module: module.register_forward_pre_hook(fail))
    shapes = "--shape 20,8,31,17 --shape 21,8,33,17 --mode infer"
    assert run(GPU, shapes, "--csv", path) == 1
    out = capsys.readouterr().out
    assert "RED  RuntimeError: out of memory\n" in out and "second line" not in out
    assert [r["T"] for r in rows.read(path)] == ["20", "21"]


def test_provider_without_kernels_is_one_line(fake_cuda, monkeypatch, capsys) -> None:
    def fail(*_: object) -> None:
        raise NotImplementedError("built without CUDA kernels\nmore")

    plant(monkeypatch, lambda module: module.register_forward_pre_hook(fail))
    fake_cuda.tensors = "cpu:0"
    with pytest.raises(SystemExit) as exit:
        run(GPU)
    assert exit.value.code == 2
    error = capsys.readouterr().err
    why = "fastlstm cannot provide lstm on cpu:0: built without CUDA kernels"
    assert f"argument --providers: {why}" in error
    assert error.count("\n") == 1


def test_cells_are_those_of_the_library() -> None:
    of_library = {(t.mode, t.gates, t.has_c) for t in CELL_TRAITS.values()}
    assert set(KINDS) == {row for row in of_library if row[0] in TORCH_MODES}
