"""gpu_check.py: phases, limits, exit codes and what is kept, on a machine without a GPU."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).resolve().parents[1]))

from benchmarks import bench_cells, gpu_check, gpu_phases, gpu_smoke, processes
from benchmarks.devices import DEVICES, Cuda
from benchmarks.gpu_phases import Result, Workplace
from benchmarks.processes import Finished, run_logged
from benchmarks.providers import CELLS, PROVIDERS, STEPS, Provider

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def place(tmp_path: Path) -> Workplace:
    """A workplace whose extension is built."""
    package = tmp_path / "build" / "lib" / "fastlstm"
    package.mkdir(parents=True)
    (package / "_C.so").touch()
    logs = tmp_path / "logs"
    logs.mkdir()
    csv, picture = tmp_path / "rows.csv", tmp_path / "ratios.png"
    environ = {"PATH": os.environ["PATH"], "PYTHONPATH": "elsewhere"}
    return Workplace((9, 0), tmp_path / "build", logs, csv, picture, 0.3, environ)


class Commands:
    """Stands in for run_logged: keeps what was asked, answers with (code, output) in turn."""

    def __init__(self, *answers: tuple[int | None, str]) -> None:
        self.answers = list(answers)
        self.asked: list[dict] = []

    def __call__(self, command, log: Path, seconds: float, *, environ, cwd: Path) -> Finished:
        self.asked.append({"command": command, "seconds": seconds, "environ": environ, "cwd": cwd})
        code, output = self.answers.pop(0)
        log.write_text(output)
        return Finished(code, 2.0, log)


def answer(monkeypatch, *answers: tuple[int | None, str]) -> Commands:
    commands = Commands(*answers)
    monkeypatch.setattr(gpu_phases, "run_logged", commands)
    return commands


def python(code: str, log: Path, seconds: float) -> Finished:
    command = [sys.executable, "-S", "-c", code]
    return run_logged(command, log, seconds, environ=os.environ, cwd=log.parent)


def test_command_leaves_its_code_and_all_it_says(tmp_path: Path) -> None:
    code = "import sys; print('out', flush=True); print('err\\n', file=sys.stderr); sys.exit(3)"
    done = python(code, tmp_path / "log", 20)
    assert done.code == 3
    assert done.lines() == ["out", "err", ""]
    assert done.last_line() == "err"
    assert python("", tmp_path / "log", 20).last_line() == ""


def test_command_at_its_limit_may_write_what_it_has_and_is_killed(
    tmp_path: Path, monkeypatch
) -> None:
    polite = "import time\ntry: time.sleep(60)\nexcept KeyboardInterrupt: print('kept')"
    done = python(polite, tmp_path / "log", 1.0)
    assert (done.code, done.last_line()) == (None, "kept")
    monkeypatch.setattr(processes, "GRACE_SECONDS", 0.5)
    # It ignores the interrupt, and has started a process that does so too.
    stubborn = "trap '' INT; sleep 60 & echo $! > pid; wait; wait; sleep 60"
    start = time.monotonic()
    done = run_logged(["sh", "-c", stubborn], tmp_path / "log", 0.5, environ={}, cwd=tmp_path)
    assert done.code is None
    assert time.monotonic() - start < 20
    stat = Path(f"/proc/{(tmp_path / 'pid').read_text().strip()}/stat")
    deadline = time.monotonic() + 10
    while stat.exists() and stat.read_text().split()[2] != "Z" and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not stat.exists() or stat.read_text().split()[2] == "Z"


def test_interrupt_stops_the_command_and_is_raised_again(tmp_path: Path) -> None:
    code = f"""
import os, signal, sys, threading
sys.path.append({str(ROOT)!r})
from pathlib import Path
from benchmarks.processes import run_logged
log = Path("log")
def interrupt():
    while "ready" not in (log.read_text() if log.exists() else ""):
        pass
    os.kill(os.getpid(), signal.SIGINT)
threading.Thread(target=interrupt, daemon=True).start()
child = "import time\\nprint('ready', flush=True)\\ntry: time.sleep(60)\\nexcept KeyboardInterrupt: print('kept')"
try:
    run_logged([sys.executable, "-S", "-c", child], log, 50, environ=os.environ, cwd=Path("."))
except KeyboardInterrupt:
    sys.exit(7)
"""
    done = subprocess.run([sys.executable, "-S", "-c", code], cwd=tmp_path, timeout=60, check=False)
    assert done.returncode == 7
    assert (tmp_path / "log").read_text().split() == ["ready", "kept"]


@pytest.mark.parametrize(
    "capability, expected", [((9, 0), "9.0a"), ((8, 6), "8.6"), ((12, 0), "12.0")]
)
def test_built_for_the_gpu_at_hand(capability: tuple[int, int], expected: str) -> None:
    assert gpu_phases.arch(capability) == expected


def test_build_is_out_of_place_and_tried_on_every_layer(place: Workplace, monkeypatch) -> None:
    commands = answer(monkeypatch, (0, "built"), (0, "96 calls, 0 wrong"))
    make = commands.__call__

    def compile(command, *args, **options) -> Finished:
        if "setup.py" in command:
            # What an earlier build left is gone, so that it cannot pass for this one.
            assert place.extension is None
            (place.package_folder / "fastlstm" / "_C.so").touch()
        return make(command, *args, **options)

    monkeypatch.setattr(gpu_phases, "run_logged", compile)
    result = gpu_phases.run_phase("build", place, 240)
    assert result.state == "green"
    assert "for 9.0a" in result.text
    assert "96 calls, 0 wrong" in result.text
    build, smoke = commands.asked
    wanted = {"FORCE_CUDA": "1", "TORCH_CUDA_ARCH_LIST": "9.0a"}
    assert wanted.items() <= build["environ"].items()
    assert int(build["environ"]["MAX_JOBS"]) == len(os.sched_getaffinity(0))
    assert build["cwd"] == ROOT
    assert str(place.package_folder) in build["command"]
    # Not the package beside the sources, and not one that is installed.
    assert smoke["environ"]["PYTHONPATH"] == f"{place.package_folder}{os.pathsep}elsewhere"
    assert smoke["cwd"] == place.package_folder
    assert smoke["seconds"] == 238


def test_build_that_fails_shows_the_end_of_its_log(place: Workplace, monkeypatch) -> None:
    answer(monkeypatch, (1, "\n".join(f"line {n}" for n in range(100))))
    result = gpu_phases.run_phase("build", place, 240)
    assert result.state == "red"
    assert "exit code 1" in result.text
    assert result.detail.splitlines()[-1] == "line 99"
    assert len(result.detail.splitlines()) == processes.TAIL_LINES
    # The earlier extension is not taken for it by what follows.
    for name in ("test", "sanitize", "bench"):
        result = gpu_phases.run_phase(name, place, 100)
        assert result.state == "red"
        assert "it needs the phase build" in result.text


def test_build_or_first_calls_at_the_limit_are_red(place: Workplace, monkeypatch) -> None:
    answer(monkeypatch, (None, "compiling"))
    assert "stopped after 2 s" in gpu_phases.run_phase("build", place, 240).text


@pytest.mark.parametrize(
    "body, state, text",
    [
        ("pass", "green", "1 tests passed, 1 skipped"),
        ("assert False", "red", "1 of 1 tests failed: exit code 1"),
        ("pytest.skip('no GPU')", "red", "0 tests passed, 2 skipped: nothing was tested"),
    ],
)
def test_tests_that_are_marked_are_run(
    body: str, state: str, text: str, place: Workplace, tmp_path: Path, monkeypatch
) -> None:
    tests = tmp_path / "tests"
    tests.mkdir()
    # In two parts, so that this file is not taken for one with such tests.
    mark = "@pytest.mark." + "cuda"
    (tests / "test_gpu.py").write_text(
        f"import pytest\n{mark}\ndef test_a():\n    {body}\n"
        f"{mark}\ndef test_b():\n    pytest.skip('why')\ndef test_c():\n    assert False\n"
    )
    (tests / "test_cpu.py").write_text("import not_installed\n")
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = cuda\n")
    monkeypatch.setattr(gpu_phases, "ROOT", tmp_path)
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    result = gpu_phases.run_phase("test", place, 60)
    assert (result.state, result.text[: len(text)]) == (state, text), result
    assert ("test_gpu.py" in result.detail) == (state == "red" and "passed" not in text)


def test_every_file_with_something_for_a_gpu_is_found() -> None:
    names = {path.name for path in gpu_phases.marked_tests(Path(__file__).parent)}
    assert {"test_cuda.py", "test_cuda_gpu.py", "test_simt.py"} <= names
    assert "test_parity.py" not in names


def test_tests_stopped_at_their_limit_are_red(place: Workplace, monkeypatch) -> None:
    monkeypatch.setattr(gpu_phases, "marked_tests", lambda _: [Path("test_gpu.py")])
    # An older report is not taken for that of this run.
    (place.logs / "test.xml").write_text('<testsuite tests="1"/>')
    answer(monkeypatch, (None, "..."))
    result = gpu_phases.run_phase("test", place, 60)
    assert (result.state, result.text[:25]) == ("red", "tests: stopped after 2 s ")


def test_no_tests_and_no_pytest_are_red(place: Workplace, monkeypatch) -> None:
    monkeypatch.setattr(gpu_phases, "marked_tests", lambda _: [])
    assert gpu_phases.run_phase("test", place, 60) == Result("red", "no test is marked cuda")
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    result = gpu_phases.run_phase("test", place, 60)
    assert result.state == "red"
    assert result.text.startswith("pytest is not installed")


def test_sanitizer_runs_both_tools(place: Workplace, monkeypatch) -> None:
    monkeypatch.setattr(gpu_phases, "find_sanitizer", lambda _: "/bin/compute-sanitizer")
    commands = answer(monkeypatch, (0, ""), (0, ""))
    result = gpu_phases.run_phase("sanitize", place, 80)
    assert result == Result("green", "memcheck and racecheck: nothing found")
    for asked, tool in zip(commands.asked, ("memcheck", "racecheck"), strict=True):
        assert asked["command"][:3] == ["/bin/compute-sanitizer", "--tool", tool]
        assert asked["seconds"] == 40
        assert asked["environ"]["PYTORCH_NO_CUDA_MEMORY_CACHING"] == "1"
    answer(monkeypatch, (0, ""), (86, "a race"))
    result = gpu_phases.run_phase("sanitize", place, 80)
    assert (result.state, result.detail) == ("red", "a race")
    answer(monkeypatch, (1, "========= Device not supported. Please refer to the documentation"))
    assert gpu_phases.run_phase("sanitize", place, 80).state == "skipped"


def test_sanitizer_that_is_missing_is_skipped(place: Workplace, tmp_path, monkeypatch) -> None:
    tool = tmp_path / "bin" / "compute-sanitizer"
    assert gpu_phases.find_sanitizer({"CUDA_HOME": str(tmp_path)}) != str(tool)
    tool.parent.mkdir()
    tool.write_text("#!/bin/sh\n")
    tool.chmod(0o755)
    assert gpu_phases.find_sanitizer({"CUDA_HOME": str(tmp_path)}) == str(tool)
    monkeypatch.setattr(gpu_phases, "find_sanitizer", lambda _: None)
    result = gpu_phases.run_phase("sanitize", place, 80)
    assert result.state == "skipped"
    assert "not installed" in result.text


def test_benchmark_gets_the_time_that_is_left(place: Workplace, monkeypatch) -> None:
    commands = answer(monkeypatch, (0, "tables\n\n3 rows measured, 0 red\n"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    result = gpu_phases.run_phase("bench", place, 100)
    assert result == Result("green", "3 rows measured, 0 red")
    (asked,) = commands.asked
    # A command line that bench_cells.py takes.
    args = bench_cells.build_parser().parse_args(asked["command"][2:])
    assert (args.device, args.grid, args.tf32, args.budget) == ("cuda", "gpu", "both", 80.0)
    assert (args.csv, args.plot, args.seconds) == (place.csv, place.picture, 0.3)
    assert (args.cells, args.dtype) == (["lstm", "gru"], ["float32", "bfloat16", "float16"])
    answer(monkeypatch, (1, "RED  fastlstm: output\n2 rows measured, 1 red\n"))
    result = gpu_phases.run_phase("bench", place, 100)
    assert (result.state, result.text[:15]) == ("red", "2 rows measured")
    assert gpu_phases.run_phase("bench", place, 15).state == "skipped"


def test_benchmark_without_matplotlib_has_no_picture(place: Workplace, monkeypatch) -> None:
    commands = answer(monkeypatch, (0, "3 rows measured"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    result = gpu_phases.run_phase("bench", place, 100)
    assert result.text == "3 rows measured (no picture: matplotlib is not installed)"
    assert "--plot" not in commands.asked[0]["command"]


@pytest.fixture
def gpu(monkeypatch, tmp_path: Path) -> None:
    """A GPU that can be asked for its name, and folders of the test's own."""
    monkeypatch.setattr(Cuda, "why_unusable", lambda _: None)
    conditions = {"device": "NVIDIA H100 80GB HBM3", "torch": "x"}
    monkeypatch.setattr(Cuda, "conditions", lambda _: conditions)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(gpu_check, "ROOT", tmp_path)


def plan(monkeypatch, **results: Result | type[KeyboardInterrupt]) -> list[tuple[str, float]]:
    """Let phases end as `results` says; returns where their names and limits are kept."""
    asked = []

    def run_phase(name: str, place: Workplace, seconds: float) -> Result:
        asked.append((name, seconds))
        result = results.get(name, Result("green", "well"))
        if result is KeyboardInterrupt:
            raise KeyboardInterrupt
        return result

    monkeypatch.setattr(gpu_check, "run_phase", run_phase)
    return asked


def test_every_phase_runs_and_a_red_one_makes_code_1(
    gpu, tmp_path: Path, monkeypatch, capsys
) -> None:
    asked = plan(monkeypatch, test=Result("red", "2 of 9 tests failed", "the end\nof the log"))
    assert gpu_check.main([]) == 1
    assert [name for name, _ in asked] == ["build", "test", "sanitize", "exchange", "bench"]
    limits = dict(asked)
    assert (limits["build"], limits["test"], limits["sanitize"]) == (240, 130, 80)
    # All that is left, of nine minutes less what stopping and writing take.
    assert 500 < limits["bench"] <= 530
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines if " s  " in line] == [
        ["build", "green"],
        ["test", "red"],
        ["sanitize", "green"],
        ["exchange", "green"],
        ["bench", "green"],
    ]
    assert "the end" in lines
    summary = json.loads((tmp_path / "build" / "gpu-check" / "summary.json").read_text())
    assert summary["conditions"]["device"] == "NVIDIA H100 80GB HBM3"
    assert summary["phases"]["test"]["state"] == "red"
    assert summary["phases"]["bench"]["text"] == "well"


def test_skipped_phases_are_not_red(gpu, monkeypatch) -> None:
    plan(monkeypatch, sanitize=Result("skipped", "not installed"))
    assert gpu_check.main([]) == 0


def test_phases_are_picked_and_the_last_one_gets_the_time(gpu, monkeypatch) -> None:
    asked = plan(monkeypatch)
    assert gpu_check.main(["--phases", "build,test", "--budget", "310"]) == 0
    assert asked[0] == ("build", 240)
    assert asked[1] == ("test", pytest.approx(300, abs=5))
    assert gpu_check.main(["--phases", "build,test", "--budget", "100"]) == 0
    assert asked[2] == ("build", pytest.approx(90, abs=5))


def test_interrupt_leaves_the_summary(gpu, tmp_path: Path, monkeypatch) -> None:
    asked = plan(monkeypatch, test=KeyboardInterrupt)
    assert gpu_check.main(["--out", str(tmp_path / "out")]) == 130
    assert [name for name, _ in asked] == ["build", "test"]
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert list(summary["phases"]) == ["build", "test"]
    assert summary["phases"]["test"]["text"] == "interrupted"


def test_files_lie_in_the_project_or_in_one_folder(gpu, tmp_path: Path) -> None:
    def place(*argv: str) -> Workplace:
        args = gpu_check.build_parser().parse_args(argv)
        return gpu_check.workplace(args, "NVIDIA H100 80GB HBM3")

    found, name = place(), "cells_nvidia_h100_80gb_hbm3"
    assert found.csv == tmp_path / "benchmarks" / "results" / f"{name}.csv"
    assert found.picture == tmp_path / "docs" / f"{name}.png"
    assert found.logs == found.build == tmp_path / "build" / "gpu-check"
    out = tmp_path / "out"
    found = place("--out", str(out))
    assert (found.csv, found.picture, found.logs) == (out / f"{name}.csv", out / f"{name}.png", out)
    assert found.build == tmp_path / "build" / "gpu-check"


@pytest.mark.parametrize(
    "argv, message",
    [
        ("--phases build,paint", "argument --phases: unknown phase 'paint'; known: build, test, "),
        ("--budget -1", "argument --budget: expected a positive number, got '-1'"),
    ],
)
def test_wrong_command_line_is_one_line_and_code_2(argv: str, message: str, capsys) -> None:
    with pytest.raises(SystemExit) as exit:
        gpu_check.main(argv.split())
    assert exit.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith(f"gpu_check.py: error: {message}")
    assert error.count("\n") == 1


def test_no_gpu_is_one_line_and_code_2(monkeypatch, capsys) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "cuda" in DEVICES
    with pytest.raises(SystemExit) as exit:
        gpu_check.main([])
    assert exit.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("gpu_check.py: error: needs a GPU: torch ")
    assert error.count("\n") == 1


def test_smoke_calls_every_cell_in_every_dtype(monkeypatch, capsys) -> None:
    monkeypatch.setattr(gpu_smoke, "SHAPES", gpu_smoke.SHAPES[:1])
    assert gpu_smoke.main(["--device", "cpu"]) == 0
    calls = len(gpu_smoke.DTYPES) * (len(CELLS) + len(STEPS))
    assert f"{calls} calls, 0 wrong" in capsys.readouterr().out

    def make(cell, input_size: int, hidden_size: int):
        module = PROVIDERS["torch"].make(cell, input_size, hidden_size)
        if cell.name == "gru_cell":
            module.weight_hh.register_hook(lambda grad: grad * torch.nan)
        return module

    monkeypatch.setattr(gpu_smoke, "DTYPES", (torch.float32,))
    monkeypatch.setitem(PROVIDERS, "fastlstm", Provider("fastlstm", make))
    assert gpu_smoke.main(["--device", "cpu"]) == 1
    assert "gru_cell torch.float32 3,5,3,7: not finite" in capsys.readouterr().out
