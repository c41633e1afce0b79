"""The phases of check.py: each runs commands within a time limit and says how it went."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.common.processes import Command, Finished, run_together
from benchmarks.gpu.kernels import METHODS, PERSISTENT
from benchmarks.gpu.ncu import run_profile
from benchmarks.gpu.workplace import ROOT, Result, Workplace, merged, red

BENCHMARKS = ROOT / "benchmarks"
SMOKE = BENCHMARKS / "gpu" / "smoke.py"
BENCH = BENCHMARKS / "bench_cells.py"
EXCHANGE = BENCHMARKS / "bench_exchange.py"
METHODS_BENCH = BENCHMARKS / "bench_methods.py"
GRID = "--device cuda --grid gpu --cells lstm,gru --dtype float32,bfloat16,float16 --tf32 both"
# Of the time of the benchmark, for what is not a row: imports, the row under way at the end, the
# picture.
BENCH_MARGIN = 20.0
# The same of the methods: the job under way.
METHODS_MARGIN = 15.0
# The same of the exchange schemes: what ends the scheme under way.
EXCHANGE_MARGIN = 5.0
SANITIZER_TOOLS = ("memcheck", "racecheck")
# A failing call of the CUDA API is an error of torch's anyway, and torch makes some that may fail.
SANITIZER_OPTIONS = {"memcheck": ["--report-api-errors", "no"], "racecheck": []}
# Test files that have a process for the tests of each method, by the words in their names: a kernel
# that fails takes all later calls with it.
SPLIT_TESTS = {
    "test_layers.py": ("cuda-stepwise", "cuda-auto"),
    "test_families.py": ("auto", *PERSISTENT),
}


def arch(capability: tuple[int, int]) -> str:
    """The architecture to compile for: with what only this one has where kernels use it."""
    major, minor = capability
    return f"{major}.{minor}a" if (major, minor) == (9, 0) else f"{major}.{minor}"


def build_extension(place: Workplace, seconds: float) -> Result:
    """Compile the extension out of place, then run every kind of layer once."""
    temporary = place.build / "temp"
    temporary.mkdir(parents=True, exist_ok=True)
    # What an earlier build left must not pass for this one.
    if place.extension is not None:
        place.extension.unlink()
    jobs = len(os.sched_getaffinity(0))
    command = [sys.executable, "setup.py", "egg_info", "--egg-base", str(temporary), "build"]
    command += ["--build-base", str(temporary), "--build-lib", str(place.package_folder)]
    environ = {
        **place.environ,
        "FORCE_CUDA": "1",
        "TORCH_CUDA_ARCH_LIST": arch(place.capability),
        "MAX_JOBS": str(jobs),
    }
    (done,) = run_together([Command(command, place.logs / "build.log", environ, ROOT)], seconds)
    if done.code != 0 or place.extension is None:
        return red(done, "the extension was not built")
    smoke = judge_smoke(place.run_all(smoke_commands("smoke"), seconds - done.seconds))
    if smoke.state != "green":
        return smoke
    built = f"for {arch(place.capability)}, {jobs} at a time, {done.seconds:.0f} s"
    return Result("green", f"{built}; {smoke.text}")


def smoke_commands(name: str, before: Sequence[str] = ()) -> dict[str, list[object]]:
    """A process for the tiny layers of each method, by the name of its log."""
    return {
        f"{name}-{method}": [*before, sys.executable, SMOKE, "--methods", method]
        for method in METHODS
    }


def judge_smoke(finished: Mapping[str, Finished]) -> Result:
    failed = [
        red(done, f"{name}{at_work(done)}") for name, done in finished.items() if done.code != 0
    ]
    return merged(failed) if failed else Result("green", f"tiny layers by {', '.join(METHODS)}")


def at_work(done: Finished) -> str:
    """What smoke.py had begun when it ended, or when a sanitizer found something."""
    begun = ""
    for line in done.lines():
        if re.match(rf"({'|'.join(METHODS)})\S*: ", line):
            begun = f" at {line}"
        elif re.match(r"=+ .*(Invalid|Error:|hazard|Program hit|Uninitialized)", line):
            break
    return begun


def marked_tests(folder: Path) -> list[Path]:
    """The test files that have something for a GPU: the others may need what is not installed."""
    files = sorted(folder.rglob("test_*.py"))
    # cuda_devices.py has the mark, as a parameter of tests that run on the emulator too.
    return [p for p in files if re.search(r"mark\.cuda|cuda_devices", p.read_text())]


@dataclass(frozen=True)
class Counts:
    """Of the tests in a report of pytest."""

    ran: int = 0
    failed: int = 0
    skipped: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            self.ran + other.ran, self.failed + other.failed, self.skipped + other.skipped
        )


def read_report(path: Path) -> Counts | None:
    """The counts in a JUnit report; None where there is none."""
    try:
        suites = list(ElementTree.parse(path).getroot().iter("testsuite"))
    except (OSError, ElementTree.ParseError):
        return None
    tests, failures, errors, skipped = (
        sum(int(suite.get(name, 0)) for suite in suites)
        for name in ("tests", "failures", "errors", "skipped")
    )
    return Counts(tests - skipped, failures + errors, skipped)


def test_groups(files: Sequence[Path]) -> dict[str, list[object]]:
    """What each process of pytest is told to run, by name."""
    others = [path for path in files if path.name not in SPLIT_TESTS]
    groups: dict[str, list[object]] = {"test": [*others]} if others else {}
    for path in files:
        for word in SPLIT_TESTS.get(path.name, ()):
            groups[f"{path.stem}-{word}"] = [path, "-k", word]
    return groups


def run_tests(place: Workplace, seconds: float) -> Result:
    """Run the tests that are marked `cuda`, in several processes."""
    if importlib.util.find_spec("pytest") is None:
        return Result("red", f"pytest is not installed: {sys.executable} -m pip install pytest")
    groups = test_groups(marked_tests(ROOT / "tests"))
    if not groups:
        return Result("red", "no test is marked cuda")
    reports = {name: place.logs / f"{name}.xml" for name in groups}
    commands = {}
    for name, which in groups.items():
        reports[name].unlink(missing_ok=True)
        command = [sys.executable, "-m", "pytest", "-q", "-m", "cuda", "--durations=10"]
        command += [f"--junitxml={reports[name]}", "-p", "no:cacheprovider"]
        commands[name] = [*command, *which]
    all_done = place.run_all(commands, seconds)
    wrong, total = [], Counts()
    for name, done in all_done.items():
        counts = read_report(reports[name])
        total += counts or Counts()
        if done.code != 0 or counts is None:
            failed = "tests" if counts is None else f"{counts.failed} of {counts.ran} tests failed"
            wrong.append(red(done, failed if name == "test" else f"{name}: {failed}"))
    if wrong:
        return merged(wrong)
    text = f"{total.ran} tests passed, {total.skipped} skipped"
    # Of one method they may all be skipped: not every GPU has clusters.
    return Result("green", text) if total.ran else Result("red", f"{text}: nothing was tested")


def find_sanitizer(environ: Mapping[str, str]) -> str | None:
    """The path of compute-sanitizer: on PATH, or in the CUDA toolkit."""
    toolkits = [environ.get("CUDA_HOME", ""), "/usr/local/cuda"]
    folders = [environ.get("PATH", ""), *(f"{kit}/bin" for kit in toolkits if kit)]
    return shutil.which("compute-sanitizer", path=os.pathsep.join(folders))


def run_sanitizer(place: Workplace, seconds: float) -> Result:
    """Run every kind of layer once under memcheck and under racecheck.

    In kernels of clusters, stores of other blocks and an mbarrier order what a block does with its
    shared memory, without a barrier of its own: racecheck may not follow that.
    """
    sanitizer = find_sanitizer(place.environ)
    if sanitizer is None:
        return Result(
            "skipped", "compute-sanitizer is not installed (it is part of the CUDA toolkit)"
        )
    commands = {}
    for tool in SANITIZER_TOOLS:
        before = [sanitizer, "--tool", tool, "--target-processes", "application-only"]
        before += ["--kernel-name", "kernel_substring=fastlstm", "--error-exitcode", "86"]
        commands |= smoke_commands(tool, [*before, *SANITIZER_OPTIONS[tool]])
    # Every tensor an allocation of its own, whose end memcheck knows.
    finished = place.run_all(commands, seconds, PYTORCH_NO_CUDA_MEMORY_CACHING="1")
    result = judge_smoke(finished)
    if result.state != "green":
        lines = (line for done in finished.values() for line in done.lines())
        if any("Device not supported" in line for line in lines):
            return Result("skipped", "compute-sanitizer does not support this device")
        return result
    return Result("green", f"{' and '.join(SANITIZER_TOOLS)}: nothing found in {result.text}")


def run_exchange(place: Workplace, seconds: float) -> Result:
    """Measure how blocks may exchange a state in every step, which needs nothing but nvcc."""
    command = [EXCHANGE, "--csv", place.csv_of("exchange"), "--build", place.build / "exchange"]
    return measured(place, "exchange", command, seconds, EXCHANGE_MARGIN)


def run_methods(place: Workplace, seconds: float) -> Result:
    """Measure every method and its plans on the grid `gpu`, as far as there is time."""
    command = [METHODS_BENCH, "--csv", place.csv_of("methods")]
    return measured(place, "methods", command, seconds, METHODS_MARGIN)


def run_benchmark(place: Workplace, seconds: float) -> Result:
    """Measure the grid `gpu`, as much of it as there is time for."""
    command = [BENCH, *GRID.split(), "--seconds", f"{place.row_seconds:g}", "--csv", place.csv]
    without = ""
    if importlib.util.find_spec("matplotlib") is None:
        without = " (no picture: matplotlib is not installed)"
    else:
        command += ["--plot", place.picture]
    result = measured(place, "bench", command, seconds, BENCH_MARGIN)
    return Result(result.state, f"{result.text}{without}", result.detail)


def measured(
    place: Workplace, name: str, command: list[object], seconds: float, margin: float
) -> Result:
    """Run a script with the budget that `seconds` leave, and say what its last line says."""
    budget = seconds - margin
    if budget <= 0:
        return Result("skipped", f"no time is left: {seconds:.0f} s")
    done = place.run([sys.executable, *command, "--budget", f"{budget:.1f}"], name, seconds)
    if done.code != 0:
        return red(done, done.last_line() or "nothing was measured")
    return Result("green", done.last_line())


PHASES: dict[str, Callable[[Workplace, float], Result]] = {
    "build": build_extension,
    "test": run_tests,
    "sanitize": run_sanitizer,
    "exchange": run_exchange,
    "methods": run_methods,
    "bench": run_benchmark,
    "profile": run_profile,
}
WITHOUT_EXTENSION = ("build", "exchange")


def run_phase(name: str, place: Workplace, seconds: float) -> Result:
    """Run the phase `name` of PHASES for at most `seconds`."""
    if name not in WITHOUT_EXTENSION and place.extension is None:
        # Not to be judged by another build of fastlstm, which may be installed.
        return Result(
            "red", f"there is no extension in {place.package_folder}: it needs the phase build"
        )
    return PHASES[name](place, seconds)
