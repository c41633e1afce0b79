"""The benchmarks of layers: FLOPs, CSV rows, command lines, pictures."""

from __future__ import annotations

import random
import subprocess
import sys
import types
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks import bench_cells, plot
from benchmarks.common import cli, csv_rows, layers, machine
from benchmarks.common.equality import Problem
from benchmarks.common.providers import CELLS, PROVIDERS, STEPS, Provider
from benchmarks.common.shapes import GRIDS, Shape, flops, parse_shape

ROOT = Path(__file__).resolve().parents[2]
FULL_GRID = (
    "25,1,64,100 · 100,1,128,256 · 50,50,65,128 · 64,32,64,64 · 100,32,128,256 · 128,16,512,512 · "
    "50,64,512,512 · 50,50,128,512 · 20,64,300,512 · 35,20,650,650 · 64,128,256,1024 · 128,8,200,200"
)
GPU_GRID = (
    "1024,16,768,768 · 512,1,256,256 · 256,64,512,512 · 128,128,1024,1024 · 64,256,1024,1024 · "
    "512,32,128,128 · 512,44,160,160 · 512,16,64,64 · 128,64,2048,2048 · 35,20,1500,1500 · "
    "50,50,128,512 · 256,8,1024,1024"
)


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def short_peak(monkeypatch) -> None:
    monkeypatch.setattr(machine, "PEAK_SECONDS", 0.002)


@pytest.mark.parametrize("provider", ["torch", "fastlstm"])
@pytest.mark.parametrize("cells, suffix", [(CELLS, ""), (STEPS, "_cell")])
def test_rnn_is_measured_with_either_nonlinearity(provider: str, cells, suffix: str) -> None:
    for name, expected in (("rnn", "tanh"), ("rnn_relu", "relu")):
        module = PROVIDERS[provider].make(cells[name + suffix], 2, 3)
        assert module.nonlinearity == expected


@pytest.mark.parametrize("cell, gates", [("lstm", 4), ("gru", 3), ("rnn", 1), ("rnn_relu", 1)])
def test_flops_counts_every_weight_twice_a_row(cell: str, gates: int) -> None:
    layer = PROVIDERS["torch"].make(CELLS[cell], 4, 5)
    weights = layer.weight_ih_l0.numel() + layer.weight_hh_l0.numel()
    assert CELLS[cell].gates == gates
    assert flops(gates, Shape(2, 3, 4, 5), "infer") == 2 * weights * 2 * 3
    assert flops(gates, Shape(2, 3, 4, 5), "train") == 3 * 2 * weights * 2 * 3
    assert flops(gates, Shape(2, 3, 4, 5), "infer", rows=4) == 2 * weights * 4


def test_milliseconds_keep_three_digits() -> None:
    texts = [cli.milliseconds(value) for value in (0.00312, 0.125, 9.87654, 12.3456, 1234.56)]
    assert texts == ["0.00312", "0.125", "9.877", "12.35", "1234.6"]


def test_grids() -> None:
    assert GRIDS["full"] == tuple(parse_shape(text) for text in FULL_GRID.split(" · "))
    assert GRIDS["gpu"] == tuple(parse_shape(text) for text in GPU_GRID.split(" · "))
    assert set(GRIDS["quick"]) < set(GRIDS["full"])
    assert list(GRIDS) == ["quick", "full", "gpu"]


def row(**values: object) -> dict[str, object]:
    return {**{name: f"some {name}" for name in csv_rows.FIELDS}, **values}


def test_measured_results_that_are_kept_can_be_drawn() -> None:
    for path in (ROOT / "benchmarks" / "results").glob("*.csv"):
        # Of the exchange schemes and of the methods there are no pictures.
        if not path.name.startswith(("exchange_", "methods_")):
            assert csv_rows.read_rows(path), path


@pytest.mark.parametrize("mode", ["infer", "train"])
def test_timed_call_computes_gradients_in_train_mode_only(mode: str) -> None:
    problem = Problem(CELLS["lstm"], Shape(3, 2, 4, 5), mode, torch.float32)
    seen = []

    class Spy(nn.LSTM):
        def forward(self, input, hx=None):
            seen.append((input, self.training, torch.is_grad_enabled(), hx))
            return super().forward(input, hx)

    spy = Spy(4, 5)
    contender = layers.contender(problem, Provider("spy", lambda *_: spy))
    for _ in range(2):
        contender.prepare()
        contender.run()
    (first, *flags), (second, *_) = seen
    assert flags == [mode == "train", mode == "train", None]
    assert first is second
    if mode == "train":
        found = problem.results(PROVIDERS["torch"], torch.float32, with_state=False)
        assert torch.equal(first.grad, found["grad input"])
        assert torch.equal(spy.weight_hh_l0.grad, found["grad weight_hh_l0"])
        contender.prepare()
    assert first.grad is None
    assert all(parameter.grad is None for parameter in spy.parameters())


@pytest.mark.parametrize("library", ["mkldnn", "cudnn"])
def test_torch_native_turns_the_library_off_around_the_call_only(library: str) -> None:
    backend = getattr(torch.backends, library)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with PROVIDERS["torch-native"].context():
            assert not backend.enabled
    assert backend.enabled


def test_peak_is_measured_before_every_row(monkeypatch, capsys) -> None:
    asked = []
    extension = types.SimpleNamespace(fma_peak=lambda *call: asked.append(call) or 1e-6)
    monkeypatch.setitem(sys.modules, "fastlstm", types.SimpleNamespace(_C=extension))
    argv = "--shape 3,8,16,16 --shape 4,8,16,16 --cells lstm --mode infer"
    argv += " --providers torch,torch-native"
    assert bench_cells.main([*argv.split(), "--seconds", "0.01", "--threads", "1"]) == 0
    assert asked == [("float32", 1, machine.PEAK_SECONDS)] * 2
    lines = capsys.readouterr().out.splitlines()
    (line,) = (line for line in lines if line.split()[:4] == ["3", "8", "16", "16"])
    gflops, percent = map(float, line.split()[-3:-1])
    assert percent / 100 * 1e-6 == pytest.approx(gflops, abs=0.051)


def test_peak_is_none_without_the_extension(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "fastlstm", None)
    assert machine.fma_peak(torch.float32, 1) is None
    monkeypatch.setitem(sys.modules, "fastlstm", types.SimpleNamespace(_C=object()))
    assert machine.fma_peak(torch.float32, 1) is None


def test_peak_of_a_narrow_dtype_is_that_of_float32(monkeypatch) -> None:
    extension = types.SimpleNamespace(
        fma_peak=lambda dtype, *_: {"float32": 2.0, "float64": 1.0}[dtype]
    )
    monkeypatch.setitem(sys.modules, "fastlstm", types.SimpleNamespace(_C=extension))
    dtypes = (torch.float32, torch.bfloat16, torch.float64)
    assert [machine.fma_peak(dtype, 1) for dtype in dtypes] == [2.0, 2.0, 1.0]


def test_commit_is_unknown_outside_git(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(machine, "__file__", str(tmp_path / "machine.py"))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert machine.commit() == "unknown"


@pytest.mark.parametrize(
    "argv, code, missed",
    [
        ("--min-ratio 1e9", 1, ["minimum"]),
        ("--min-geomean 1e9", 1, ["geometric mean"]),
        ("--min-ratio 1e-9 --min-geomean 1e-9", 0, []),
    ],
)
def test_required_ratios_decide_the_exit_code(argv: str, code: int, missed, capsys) -> None:
    run = "--shape 20,8,33,17 --cells lstm --mode infer --seconds 0.01 --threads 1"
    run += " --providers torch,torch-native"
    assert bench_cells.main([*run.split(), *argv.split()]) == code
    lines = capsys.readouterr().out.splitlines()
    found = [line.removeprefix("MISSED: ") for line in lines if line.startswith("MISSED")]
    assert [line.rsplit(" ", 4)[0] for line in found] == missed


def test_a_summary_for_each_cell_dtype_and_mode(tmp_path: Path, capsys) -> None:
    path = tmp_path / "rows.csv"
    argv = "--shape 6,16,40,32 --cells lstm,gru,rnn,rnn_relu --dtype float64,bfloat16"
    argv += " --providers torch,torch-native --seconds 0.01 --threads 1"
    assert bench_cells.main([*argv.split(), "--csv", str(path)]) == 0
    expected = [
        (cell, mode, dtype)
        for cell in ("lstm", "gru", "rnn", "rnn_relu")
        for dtype in ("float64", "bfloat16")
        for mode in ("infer", "train")
    ]
    lines = [line for line in capsys.readouterr().out.splitlines() if "geometric mean" in line]
    assert [tuple(line.split(", ")[:3]) for line in lines] == expected
    assert all("minimum" in line for line in lines)
    rows = csv_rows.read_rows(path)
    assert [(r["cell"], r["mode"], r["dtype"]) for r in rows] == expected
    for r in rows:
        operations = flops(CELLS[r["cell"]].gates, Shape(6, 16, 40, 32), r["mode"])
        assert float(r["gflops"]) == pytest.approx(operations / float(r["ms"]) / 1e6, rel=1e-3)


def test_fastlstm_is_measured(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    argv = "--shape 16,16,40,48 --dtype float32,bfloat16 --seconds 0.01 --threads 1"
    assert bench_cells.main([*argv.split(), "--csv", str(path)]) == 0
    rows = csv_rows.read_rows(path)
    assert [r["cell"] for r in rows[::4]] == ["lstm", "gru", "rnn"]
    assert [r["dtype"] for r in rows] == 3 * (2 * ["float32"] + 2 * ["bfloat16"])
    assert {(r["provider"], r["baseline"]) for r in rows} == {("fastlstm", "torch")}
    assert all(float(r["peak_percent"]) > 0 for r in rows)


@pytest.mark.parametrize(
    "argv, message",
    [
        ("--shape 3,2,4", "argument --shape: a shape is four integers T,N,I,H, got '3,2,4'"),
        ("--shape 3,2,4,x", "argument --shape: a shape is four integers T,N,I,H, got '3,2,4,x'"),
        ("--shape 3,0,4,5", "argument --shape: the sizes of a shape are at least 1, got '3,0,4,5'"),
        ("--shape 3,2,4,5 --grid full", "argument --grid: not allowed with argument --shape"),
        ("--providers torch,tensorflow", "argument --providers: unknown provider 'tensorflow'"),
        ("--providers torch,torch", "argument --providers: a provider is named twice"),
        ("--providers torch", "argument --providers: needs a baseline and at least one more"),
        ("--cells lstm,tree", "argument --cells: unknown cell 'tree'; known: lstm, gru, rnn, "),
        ("--dtype float32,int8", "argument --dtype: unknown dtype 'int8'; known: float32, float64"),
        ("--dtype float32,float32", "argument --dtype: a dtype is named twice"),
        ("--seconds 0", "argument --seconds: expected a positive number, got '0'"),
        ("--seconds nan", "argument --seconds: expected a positive number, got 'nan'"),
        ("--threads 0", "argument --threads: expected a positive integer, got '0'"),
        ("--min-ratio -1", "argument --min-ratio: expected a positive number"),
        ("--grid huge", "argument --grid: invalid choice: 'huge'"),
        ("--tf32 on", "argument --tf32: needs --device cuda"),
        ("--budget 0", "argument --budget: expected a positive number, got '0'"),
        ("--providers torch,torch-native --csv no/x.csv", "argument --csv: no such directory"),
        ("--providers torch,torch-native --plot no/x.png", "argument --plot: no such directory"),
    ],
)
def test_wrong_command_line_is_one_line_and_code_2(
    argv: str, message: str, tmp_path: Path, monkeypatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as exit:
        bench_cells.main(argv.split())
    assert exit.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"bench_cells.py: error: {message}")
    assert captured.err.count("\n") == 1


def test_missing_provider_and_foreign_csv_are_one_line(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setitem(sys.modules, "fastlstm", None)
    foreign = tmp_path / "foreign.csv"
    foreign.write_text("name,value\n")
    for argv in ([], ["--providers", "torch,torch-native", "--csv", str(foreign)]):
        with pytest.raises(SystemExit) as exit:
            bench_cells.main(argv)
        assert exit.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert "fastlstm cannot provide lstm" in lines[0]
    assert "other columns" in lines[1]


def test_script_runs_from_any_directory(tmp_path: Path) -> None:
    # float64, where torch has one path: on so few elements two float32 paths may differ by luck.
    argv = "--shape 3,2,4,5 --cells lstm --seconds 0.05 --threads 1"
    argv += " --providers torch,torch-native"
    command = [sys.executable, str(ROOT / "benchmarks" / "bench_cells.py"), *argv.split()]
    done = subprocess.run(
        [*command, "--dtype", "float64", "--csv", "rows.csv"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("minimum") == 2
    rows = csv_rows.read_rows(tmp_path / "rows.csv")
    assert [r["mode"] for r in rows] == ["infer", "train"]
    for r in rows:
        assert [r[name] for name in "TNIH"] == ["3", "2", "4", "5"]
        assert (r["provider"], r["baseline"], r["dtype"]) == ("torch-native", "torch", "float64")
        assert (r["cell"], r["threads"], r["torch"]) == ("lstm", "1", torch.__version__)
        assert float(r["ms_p10"]) <= float(r["ms"]) <= float(r["ms_p90"])
        assert float(r["ratio_p10"]) <= float(r["ratio"]) <= float(r["ratio_p90"])
        operations = flops(4, Shape(3, 2, 4, 5), r["mode"])
        assert float(r["gflops"]) == pytest.approx(operations / float(r["ms"]) / 1e6, rel=1e-3)


def plotted_rows() -> list[dict[str, object]]:
    rng = random.Random(0)
    return [
        row(
            cell="lstm", mode=mode, provider=provider, wanted_kernel="auto", **shape._asdict(),
            ratio=2.0, ratio_p10=1.0 + rng.random(), ratio_p90=2.0 + rng.random(),
        )
        for mode in ("infer", "train")
        for provider in ("fastlstm", "reference")
        for shape in GRIDS["quick"]
    ]  # fmt: skip


def test_plot_draws_the_latest_row_of_each_shape() -> None:
    rows = plotted_rows()
    newer = {**rows[0], "date": "later", "ratio": 3.0}
    latest = plot.latest([*rows, newer])
    assert len(latest) == len(rows)
    assert latest[0]["ratio"] == "3.0"
    labels = {plot.series_label(r, latest) for r in latest}
    assert labels == {"fastlstm", "reference"}
    other_threads = {**latest[0], "threads": "9"}
    assert plot.series_label(other_threads, [*latest, other_threads]) == "fastlstm, threads 9"


def test_plot_tells_a_kernel_that_was_asked_for() -> None:
    rows = plot.latest(plotted_rows())
    forced = [{**r, "wanted_kernel": "grid"} for r in rows]
    assert plot.series_label(forced[0], forced) == "fastlstm, kernel grid"
    assert plot.series_label(forced[0], [*rows, *forced]) == "fastlstm, kernel grid"
    assert plot.series_label(rows[0], [*rows, *forced]) == "fastlstm, kernel auto"
    # Of the files without that column, and of a CPU.
    for without in ("", "none"):
        row = {**rows[0], "wanted_kernel": without}
        assert plot.series_label(row, [row, *forced]) == "fastlstm"


def test_plot_writes_a_picture(tmp_path: Path, capsys) -> None:
    pytest.importorskip("matplotlib")
    source, picture = tmp_path / "rows.csv", tmp_path / "ratios.png"
    # One more, in a panel without the other series, beside panels without any.
    step = {**plotted_rows()[0], "cell": "gru", "mode": "infer, lengths 20..200", "T": 200}
    csv_rows.append_rows(source, [*plotted_rows(), step])
    assert plot.main([str(source), str(picture)]) == 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(SystemExit) as exit:
        plot.main([str(tmp_path / "none.csv"), str(picture)])
    assert exit.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1
