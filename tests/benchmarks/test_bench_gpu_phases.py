"""The phases of gpu_check.py: what they run, and how they read what comes back."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
from bench_stand_ins import Commands, answer, make_place

from benchmarks import bench_cells, bench_methods
from benchmarks.common import processes
from benchmarks.gpu import phases as gpu_phases
from benchmarks.gpu import smoke as gpu_smoke
from benchmarks.gpu.kernels import METHODS
from benchmarks.gpu.workplace import Result, Workplace, merged

ROOT = Path(__file__).resolve().parents[2]
FAMILIES = "test_families.py"


@pytest.fixture
def place(tmp_path: Path) -> Workplace:
    return make_place(tmp_path)


@pytest.mark.parametrize(
    "capability, expected", [((9, 0), "9.0a"), ((8, 6), "8.6"), ((12, 0), "12.0")]
)
def test_built_for_the_gpu_at_hand(capability: tuple[int, int], expected: str) -> None:
    assert gpu_phases.arch(capability) == expected


def test_build_is_out_of_place_and_tried_on_every_layer(place: Workplace, monkeypatch) -> None:
    commands = answer(monkeypatch, {"build": (0, "built"), "smoke-grid": (0, "96 calls")})

    def compile(together, seconds: float) -> list:
        # What an earlier build left is gone, so that it cannot pass for this one.
        assert place.extension is None
        (place.package_folder / "fastlstm" / "_C.so").touch()
        return commands(together, seconds)

    monkeypatch.setattr(gpu_phases, "run_together", compile)
    result = gpu_phases.run_phase("build", place, 240)
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
        smoke = commands.asked[f"smoke-{method}"]
        assert smoke.arguments[-2:] == ["--methods", method]
        # Not the package beside the sources, and not one that is installed.
        assert smoke.environ["PYTHONPATH"] == f"{place.package_folder}{os.pathsep}elsewhere"
        assert smoke.cwd == place.package_folder
    assert commands.seconds["smoke-grid"] == 238


def test_build_that_fails_shows_the_end_of_its_log(place: Workplace, monkeypatch) -> None:
    answer(monkeypatch, {"build": (1, "\n".join(f"line {n}" for n in range(100)))})
    result = gpu_phases.run_phase("build", place, 240)
    assert result.state == "red"
    assert "exit code 1" in result.text
    assert result.detail.splitlines()[-1] == "line 99"
    assert len(result.detail.splitlines()) == processes.TAIL_LINES
    # The earlier extension is not taken for it by what follows.
    for name in ("test", "sanitize", "methods", "bench", "profile"):
        result = gpu_phases.run_phase(name, place, 100)
        assert result.state == "red"
        assert "it needs the phase build" in result.text


def test_build_at_its_limit_is_red(place: Workplace, monkeypatch) -> None:
    answer(monkeypatch, {"build": (None, "compiling")})
    assert "stopped after 2 s" in gpu_phases.run_phase("build", place, 240).text


def test_tiny_layer_that_fails_is_named(place: Workplace, monkeypatch) -> None:
    log = "grid:16x3x16x1: lstm torch.float32 3,9,5,33\ngrid:32x2x8x2: gru torch.float16\nError\n"
    done = Commands({"smoke-grid": (1, log), "smoke-block": (None, "block: rnn torch.float32 1")})
    commands = gpu_phases.smoke_commands("smoke")
    monkeypatch.setattr("benchmarks.gpu.workplace.run_together", done)
    result = gpu_phases.judge_smoke(place.run_all(commands, 10))
    assert result.state == "red"
    block, grid = result.text.split("; ")
    assert block.startswith("smoke-block at block: rnn torch.float32 1: stopped after 2 s (")
    assert grid.startswith("smoke-grid at grid:32x2x8x2: gru torch.float16: exit code 1 (")
    assert "Error" in result.detail


MARKED = """
import pytest
{mark}
def test_a():
    {body}
{mark}
def test_b():
    pytest.skip('why')
def test_c():
    assert False
"""


def write_tests(folder: Path, name: str, body: str) -> None:
    folder.mkdir(exist_ok=True)
    # In two parts, so that this file is not taken for one with such tests.
    text = MARKED.format(mark="@pytest.mark." + "cuda", body=body)
    (folder / name).write_text(text)


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
    write_tests(tmp_path / "tests", "test_gpu.py", body)
    (tmp_path / "tests" / "test_cpu.py").write_text("import not_installed\n")
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = cuda\n")
    monkeypatch.setattr(gpu_phases, "ROOT", tmp_path)
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    result = gpu_phases.run_phase("test", place, 60)
    assert (result.state, result.text[: len(text)]) == (state, text), result
    assert ("test_gpu.py" in result.detail) == ("failed" in text)


def test_methods_are_tested_in_processes_of_their_own(
    place: Workplace, tmp_path: Path, monkeypatch
) -> None:
    """One that loses the GPU is red, and the others are tested all the same."""
    test = "@pytest.mark.{mark}\n@pytest.mark.parametrize('method', {methods})\n"
    test += "def test_a(method):\n    method != 'cluster' or pytest.exit('lost', returncode=3)\n"
    methods = ["auto", "block", "cluster", "grid"]
    folder = tmp_path / "tests"
    folder.mkdir()
    text = "import pytest\n" + test.format(mark="cuda", methods=methods)
    (folder / FAMILIES).write_text(text)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = cuda\n")
    monkeypatch.setattr(gpu_phases, "ROOT", tmp_path)
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    result = gpu_phases.run_phase("test", place, 60)
    assert result.state == "red"
    assert "lost" in result.detail
    assert result.text.startswith("test_families-cluster: ")
    assert result.text.count("exit code") == 1
    (folder / FAMILIES).write_text(text.replace("cluster' or", "none' or"))
    assert gpu_phases.run_phase("test", place, 60) == Result("green", "4 tests passed, 0 skipped")


def test_every_file_with_something_for_a_gpu_is_found() -> None:
    files = gpu_phases.marked_tests(ROOT / "tests")
    names = {path.name for path in files}
    assert {"test_gpu.py", "test_simt.py", *gpu_phases.SPLIT_TESTS} <= names
    assert "test_parity.py" not in names
    groups = gpu_phases.test_groups(files)
    assert groups["test"] == [p for p in files if p.name not in gpu_phases.SPLIT_TESTS]
    assert groups["test_families-grid"][1:] == ["-k", "grid"]


def test_each_test_of_a_split_file_is_in_one_process() -> None:
    files = [p for p in gpu_phases.marked_tests(ROOT / "tests") if p.name in gpu_phases.SPLIT_TESTS]
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-m", "cuda"]
    done = subprocess.run([*command, *files], capture_output=True, text=True, cwd=ROOT, check=True)
    tests = [line for line in done.stdout.splitlines() if "::" in line]
    assert len(tests) > 500
    for test in tests:
        file, _, name = test.partition("::")
        words = gpu_phases.SPLIT_TESTS[Path(file).name]
        assert sum(word in name for word in words) == 1, test


def test_tests_stopped_at_their_limit_are_red(place: Workplace, monkeypatch) -> None:
    monkeypatch.setattr(gpu_phases, "marked_tests", lambda _: [Path("test_gpu.py")])
    # An older report is not taken for that of this run.
    (place.logs / "test.xml").write_text('<testsuite tests="1"/>')
    answer(monkeypatch, {"test": (None, "...")})
    result = gpu_phases.run_phase("test", place, 60)
    assert (result.state, result.text[:25]) == ("red", "tests: stopped after 2 s ")


def test_no_tests_and_no_pytest_are_red(place: Workplace, monkeypatch) -> None:
    monkeypatch.setattr(gpu_phases, "marked_tests", lambda _: [])
    assert gpu_phases.run_phase("test", place, 60) == Result("red", "no test is marked cuda")
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    result = gpu_phases.run_phase("test", place, 60)
    assert result.state == "red"
    assert result.text.startswith("pytest is not installed")


def test_sanitizer_runs_both_tools_over_every_method(place: Workplace, monkeypatch) -> None:
    monkeypatch.setattr(gpu_phases, "find_sanitizer", lambda _: "/bin/compute-sanitizer")
    commands = answer(monkeypatch)
    result = gpu_phases.run_phase("sanitize", place, 80)
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
    place: Workplace, monkeypatch
) -> None:
    monkeypatch.setattr(gpu_phases, "find_sanitizer", lambda _: "/bin/compute-sanitizer")
    answer(monkeypatch, {"memcheck-cluster": (86, MEMCHECK), "racecheck-grid": (86, "a race")})
    result = gpu_phases.run_phase("sanitize", place, 80)
    assert result.state == "red"
    found, race = result.text.split("; ")
    assert found.startswith(
        "memcheck-cluster at cluster:16x4x8: gru torch.float32 3,9,5,33: exit code 86 ("
    )
    assert race.startswith("racecheck-grid: exit code 86 (")
    assert "Invalid __shared__" in result.detail and "a race" in result.detail
    refused = "========= Device not supported. Please refer to the documentation"
    answer(monkeypatch, {f"memcheck-{method}": (1, refused) for method in METHODS})
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
    commands = answer(monkeypatch, {"bench": (0, "tables\n\n3 rows measured, 0 red\n")})
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    result = gpu_phases.run_phase("bench", place, 100)
    assert result == Result("green", "3 rows measured, 0 red")
    # A command line that bench_cells.py takes.
    args = bench_cells.build_parser().parse_args(commands.asked["bench"].arguments[2:])
    assert (args.device, args.grid, args.tf32, args.budget) == ("cuda", "gpu", "both", 80.0)
    assert (args.csv, args.plot, args.seconds) == (place.csv, place.picture, 0.3)
    assert (args.cells, args.dtype) == (["lstm", "gru"], ["float32", "bfloat16", "float16"])
    answer(monkeypatch, {"bench": (1, "RED  fastlstm: output\n2 rows measured, 1 red\n")})
    result = gpu_phases.run_phase("bench", place, 100)
    assert (result.state, result.text[:15]) == ("red", "2 rows measured")
    assert gpu_phases.run_phase("bench", place, 15).state == "skipped"


def test_benchmark_without_matplotlib_has_no_picture(place: Workplace, monkeypatch) -> None:
    commands = answer(monkeypatch, {"bench": (0, "3 rows measured")})
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    result = gpu_phases.run_phase("bench", place, 100)
    assert result.text == "3 rows measured (no picture: matplotlib is not installed)"
    assert "--plot" not in commands.asked["bench"].arguments


def test_methods_have_rows_of_their_own(place: Workplace, monkeypatch) -> None:
    commands = answer(monkeypatch, {"methods": (0, "auto takes\n9 rows measured, 0 red\n")})
    result = gpu_phases.run_phase("methods", place, 100)
    assert result == Result("green", "9 rows measured, 0 red")
    args = bench_methods.build_parser().parse_args(commands.asked["methods"].arguments[2:])
    assert args.budget == 85.0
    assert args.csv == place.csv.with_name("methods_h100.csv")
    assert gpu_phases.run_phase("methods", place, 12).state == "skipped"
    answer(monkeypatch, {"methods": (1, "9 rows measured, 1 red\n")})
    assert gpu_phases.run_phase("methods", place, 100).state == "red"


def test_several_red_results_are_not_longer_than_one() -> None:
    long = [Result("red", f"part {i}", "\n".join(f"{i}.{n}" for n in range(30))) for i in range(4)]
    found = merged(long)
    assert found.text == "part 0; part 1; part 2; part 3"
    lines = found.detail.splitlines()
    assert len(lines) == 4 * (1 + 7)
    assert lines[:3] == ["part 0", "0.23", "0.24"] and lines[-1] == "3.29"
    assert merged(long[:1]).detail.count("\n") == 30


def test_smoke_takes_the_methods_of_its_processes() -> None:
    for command in gpu_phases.smoke_commands("smoke").values():
        assert list(gpu_smoke.calls(command[-1]))
