"""The phases of gpu/check.py: what they run, and how they read what comes back."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
from bench_stand_ins import answer, make_place

from benchmarks import bench_cells, bench_methods
from benchmarks.common import processes
from benchmarks.gpu import phases, smoke
from benchmarks.gpu.kernels import METHODS
from benchmarks.gpu.workplace import Result, Workplace, arch, find_tool, merged

ROOT = Path(__file__).resolve().parents[2]
FAMILIES = "test_families.py"


@pytest.fixture
def place(tmp_path: Path) -> Workplace:
    return make_place(tmp_path)


@pytest.mark.parametrize(
    "capability, expected", [((9, 0), "9.0a"), ((8, 6), "8.6"), ((12, 0), "12.0")]
)
def test_built_for_the_gpu_at_hand(capability: tuple[int, int], expected: str) -> None:
    assert arch(capability) == expected


# build


def test_build_is_out_of_place_and_tried_on_every_layer(place: Workplace, monkeypatch) -> None:
    def compile(together) -> None:
        if together[0].log.stem == "build":
            # What an earlier build left is gone, so that it cannot pass for this one.
            assert place.extension is None
            (place.package_folder / "fastlstm" / "_C.so").touch()

    commands = answer(monkeypatch, before=compile)
    result = phases.run_phase("build", place, 240)
    assert result.state == "green"
    assert "for 9.0a" in result.text
    assert "tiny layers by stepwise, block, cluster, grid" in result.text
    build = commands.asked["build"]
    wanted = {"FORCE_CUDA": "1", "TORCH_CUDA_ARCH_LIST": "9.0a"}
    assert wanted.items() <= build.environ.items()
    assert int(build.environ["MAX_JOBS"]) == len(os.sched_getaffinity(0))
    assert build.cwd == ROOT
    assert str(place.package_folder) in build.arguments
    for method in METHODS:
        tried = commands.asked[f"smoke-{method}"]
        assert tried.arguments[-2:] == ["--methods", method]
        assert Path(tried.arguments[1]).is_file() and list(smoke.calls(method))
        # Not the package beside the sources, and not one that is installed.
        assert tried.environ["PYTHONPATH"] == f"{place.package_folder}{os.pathsep}elsewhere"
        assert tried.cwd == place.package_folder
    assert commands.seconds["smoke-grid"] == 238


def test_build_that_fails_shows_the_end_of_its_log(place: Workplace, monkeypatch) -> None:
    answer(monkeypatch, {"build": (1, "\n".join(f"line {n}" for n in range(100)))})
    result = phases.run_phase("build", place, 240)
    assert result.state == "red"
    assert "exit code 1" in result.text
    assert result.detail.splitlines()[-1] == "line 99"
    assert len(result.detail.splitlines()) == processes.TAIL_LINES
    # The earlier extension is not taken for it by what follows.
    for name in ("test", "sanitize", "methods", "bench", "profile"):
        result = phases.run_phase(name, place, 100)
        assert result.state == "red" and "it needs the phase build" in result.text
    answer(monkeypatch, {"build": (None, "compiling")})
    assert "stopped after 2 s" in phases.run_phase("build", place, 240).text


def test_tiny_layer_that_fails_is_named(place: Workplace, monkeypatch) -> None:
    log = "grid:16x3x16x1: lstm torch.float32 3,9,5,33\ngrid:32x2x8x2: gru torch.float16\nError\n"
    failing = {"smoke-grid": (1, log), "smoke-block": (None, "block: rnn torch.float32 1")}
    answer(monkeypatch, failing)
    result = phases.judge_smoke(place.run_all(phases.smoke_commands("smoke"), 10))
    assert result.state == "red"
    block, grid = result.text.split("; ")
    assert block.startswith("smoke-block at block: rnn torch.float32 1: stopped after 2 s (")
    assert grid.startswith("smoke-grid at grid:32x2x8x2: gru torch.float16: exit code 1 (")
    assert "Error" in result.detail


def test_several_red_results_are_not_longer_than_one() -> None:
    long = [Result("red", f"part {i}", "\n".join(f"{i}.{n}" for n in range(30))) for i in range(4)]
    found = merged(long)
    assert found.text == "part 0; part 1; part 2; part 3"
    lines = found.detail.splitlines()
    assert len(lines) == 4 * (1 + 7)
    assert lines[:3] == ["part 0", "0.23", "0.24"] and lines[-1] == "3.29"
    assert merged(long[:1]).detail.count("\n") == 30


# test


@pytest.fixture
def project(tmp_path: Path, monkeypatch) -> Path:
    """The folder of the tests of a project that is tested in place of this one."""
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = cuda\n")
    folder = tmp_path / "tests" / "room"
    folder.mkdir(parents=True)
    monkeypatch.setattr(phases, "ROOT", tmp_path)
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    return folder


# In two parts, so that this file is not taken for one with such tests.
MARK = "@pytest.mark." + "cuda\n"


@pytest.mark.parametrize(
    "body, state, text",
    [
        ("pass", "green", "1 tests passed, 1 skipped"),
        ("assert False", "red", "1 of 1 tests failed: exit code 1"),
        ("pytest.skip('no GPU')", "red", "0 tests passed, 2 skipped: nothing was tested"),
    ],
)
def test_tests_that_are_marked_are_run(
    body: str, state: str, text: str, place: Workplace, project: Path
) -> None:
    tests = f"import pytest\n{MARK}def test_a():\n    {body}\n"
    tests += f"{MARK}def test_b():\n    pytest.skip('why')\n"
    (project / "test_gpu.py").write_text(f"{tests}def test_c():\n    assert False\n")
    (project / "test_cpu.py").write_text("import not_installed\n")
    result = phases.run_phase("test", place, 60)
    assert (result.state, result.text[: len(text)]) == (state, text), result
    assert ("test_gpu.py" in result.detail) == ("failed" in text)


def test_methods_are_tested_in_processes_of_their_own(place: Workplace, project: Path) -> None:
    """One that loses the GPU is red, and the others are tested all the same."""
    text = "import pytest\n" + MARK
    text += "@pytest.mark.parametrize('method', ['auto', 'block', 'cluster', 'grid'])\n"
    text += "def test_a(method):\n    method != 'cluster' or pytest.exit('lost', returncode=3)\n"
    (project / FAMILIES).write_text(text)
    result = phases.run_phase("test", place, 60)
    assert result.state == "red"
    assert "lost" in result.detail
    assert result.text.startswith("test_families-cluster: ")
    assert result.text.count("exit code") == 1
    (project / FAMILIES).write_text(text.replace("cluster' or", "none' or"))
    assert phases.run_phase("test", place, 60) == Result("green", "4 tests passed, 0 skipped")


def test_every_file_with_something_for_a_gpu_is_found() -> None:
    files = phases.marked_tests(ROOT / "tests")
    names = {path.name for path in files}
    assert {"test_gpu.py", "test_simt.py", *phases.SPLIT_TESTS} <= names
    assert "test_parity.py" not in names
    groups = phases.test_groups(files)
    assert groups["test"] == [p for p in files if p.name not in phases.SPLIT_TESTS]
    (families,) = (path for path in files if path.name == FAMILIES)
    assert groups["test_families-grid"] == [families, "-k", "grid"]
    # Each test of a split file is in one process.
    split = [path for path in files if path.name in phases.SPLIT_TESTS]
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-m", "cuda", *split]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    tests = [line for line in done.stdout.splitlines() if "::" in line]
    assert len(tests) > 500
    for test in tests:
        file, _, name = test.partition("::")
        words = phases.SPLIT_TESTS[Path(file).name]
        assert sum(word in name for word in words) == 1, test


def test_tests_that_cannot_be_run_are_red(place: Workplace, monkeypatch) -> None:
    monkeypatch.setattr(phases, "marked_tests", lambda _: [Path("test_gpu.py")])
    # An older report is not taken for that of this run.
    (place.logs / "test.xml").write_text('<testsuite tests="1"/>')
    answer(monkeypatch, {"test": (None, "...")})
    result = phases.run_phase("test", place, 60)
    assert (result.state, result.text[:25]) == ("red", "tests: stopped after 2 s ")
    monkeypatch.setattr(phases, "marked_tests", lambda _: [])
    assert phases.run_phase("test", place, 60) == Result("red", "no test is marked cuda")
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    result = phases.run_phase("test", place, 60)
    assert result.state == "red" and result.text.startswith("pytest is not installed")


# sanitize


@pytest.fixture
def sanitizer(monkeypatch) -> None:
    monkeypatch.setattr(phases, "find_tool", lambda name, _: f"/bin/{name}")


def test_sanitizer_runs_both_tools_over_every_method(sanitizer, place, monkeypatch) -> None:
    commands = answer(monkeypatch)
    result = phases.run_phase("sanitize", place, 80)
    words = "memcheck and racecheck: nothing found in tiny layers by stepwise, block, cluster, grid"
    assert result == Result("green", words)
    names = [f"{tool}-{method}" for tool in ("memcheck", "racecheck") for method in METHODS]
    assert list(commands.asked) == names
    for name, asked in commands.asked.items():
        tool, _, method = name.partition("-")
        assert asked.arguments[:3] == ["/bin/compute-sanitizer", "--tool", tool]
        assert asked.arguments[-2:] == ["--methods", method]
        assert asked.environ["PYTORCH_NO_CUDA_MEMORY_CACHING"] == "1"
        assert commands.seconds[name] == 80


MEMCHECK = """\
========= COMPUTE-SANITIZER
cluster:16x4x8: lstm torch.float32 3,9,5,33
cluster:16x4x8: gru torch.float32 3,9,5,33
========= Invalid __shared__ write of size 4 bytes
cluster:32x2x16: lstm torch.float32 3,9,8,64
========= ERROR SUMMARY: 1 error
"""


def test_what_a_sanitizer_finds_is_red_with_the_layer_at_work(
    sanitizer, place: Workplace, monkeypatch
) -> None:
    answer(monkeypatch, {"memcheck-cluster": (86, MEMCHECK), "racecheck-grid": (86, "a race")})
    result = phases.run_phase("sanitize", place, 80)
    assert result.state == "red"
    found, race = result.text.split("; ")
    at = "memcheck-cluster at cluster:16x4x8: gru torch.float32 3,9,5,33: exit code 86 ("
    assert found.startswith(at)
    assert race.startswith("racecheck-grid: exit code 86 (")
    assert "Invalid __shared__" in result.detail and "a race" in result.detail
    refused = "========= Device not supported. Please refer to the documentation"
    answer(monkeypatch, {f"memcheck-{method}": (1, refused) for method in METHODS})
    assert phases.run_phase("sanitize", place, 80).state == "skipped"


def test_sanitizer_that_is_missing_is_skipped(place: Workplace, monkeypatch) -> None:
    monkeypatch.setattr(phases, "find_tool", lambda *_: None)
    result = phases.run_phase("sanitize", place, 80)
    assert result.state == "skipped" and "not installed" in result.text


def test_tool_is_found_beside_the_compiler(tmp_path: Path) -> None:
    tool = tmp_path / "bin" / "compute-sanitizer"
    environ = {"CUDA_HOME": str(tmp_path)}
    assert find_tool(tool.name, environ) != str(tool)
    tool.parent.mkdir()
    tool.write_text("#!/bin/sh\n")
    tool.chmod(0o755)
    assert find_tool(tool.name, environ) == str(tool)
    assert find_tool(tool.name, {"PATH": str(tool.parent)}) == str(tool)
    assert find_tool(tool.name, {}, tool.parent) == str(tool)


# bench, methods


def test_benchmark_gets_the_time_that_is_left(place: Workplace, monkeypatch) -> None:
    commands = answer(monkeypatch, {"bench": (0, "tables\n\n3 rows measured, 0 red\n")})
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    result = phases.run_phase("bench", place, 100)
    assert result == Result("green", "3 rows measured, 0 red")
    # A command line that bench_cells.py takes.
    args = bench_cells.build_parser().parse_args(commands.asked["bench"].arguments[2:])
    assert (args.device, args.grid, args.tf32, args.budget) == ("cuda", "gpu", "both", 80.0)
    assert (args.csv, args.plot, args.seconds) == (place.csv, place.picture, 0.3)
    assert (args.cells, args.dtype) == (["lstm", "gru"], ["float32", "bfloat16", "float16"])
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    result = phases.run_phase("bench", place, 100)
    assert result.text == "3 rows measured, 0 red (no picture: matplotlib is not installed)"
    assert "--plot" not in commands.asked["bench"].arguments
    answer(monkeypatch, {"bench": (1, "RED  fastlstm: output\n2 rows measured, 1 red\n")})
    result = phases.run_phase("bench", place, 100)
    assert (result.state, result.text[:15]) == ("red", "2 rows measured")
    assert phases.run_phase("bench", place, 15).state == "skipped"


def test_methods_have_rows_of_their_own(place: Workplace, monkeypatch) -> None:
    commands = answer(monkeypatch, {"methods": (0, "auto takes\n9 rows measured, 0 red\n")})
    result = phases.run_phase("methods", place, 100)
    assert result == Result("green", "9 rows measured, 0 red")
    args = bench_methods.build_parser().parse_args(commands.asked["methods"].arguments[2:])
    assert args.budget == 85.0
    assert args.csv == place.csv.with_name("methods_h100.csv")
    assert phases.run_phase("methods", place, 12).state == "skipped"
    answer(monkeypatch, {"methods": (1, "9 rows measured, 1 red\n")})
    assert phases.run_phase("methods", place, 100).state == "red"
