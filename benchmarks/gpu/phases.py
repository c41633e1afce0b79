"""The phases of check.py: each runs commands within a time limit and says how it went."""

from __future__ import annotations

import importlib.util
import os
import re
import sys
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.common.processes import Command, Finished, run_together
from benchmarks.gpu.kernels import METHODS, PERSISTENT
from benchmarks.gpu.ncu import run_profile
from benchmarks.gpu.workplace import ROOT, Result, Workplace, arch, find_tool, merged, red

BENCHMARKS = ROOT / "benchmarks"
SMOKE = BENCHMARKS / "gpu" / "smoke.py"
GRID = "--device cuda --grid gpu --cells lstm,gru --dtype float32,bfloat16,float16 --tf32 both"
# Of the time of a script, for what is not a row: imports, and what is under way at the end; of the
# benchmark the picture too.
MARGINS = {"exchange": 5.0, "methods": 15.0, "bench": 20.0}
# A failing call of the CUDA API is an error of torch's anyway, and torch makes some that may fail.
SANITIZERS = {"memcheck": ["--report-api-errors", "no"], "racecheck": []}
# Test files that have a process for the tests of each method, by the words in their names: a kernel
# that fails takes all later calls with it.
SPLIT_TESTS = {
    "test_layers.py": ("cuda-stepwise", "cuda-auto"),
    "test_families.py": ("auto", *PERSISTENT),
}


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


def read_report(path: Path) -> Counter[str] | None:
    """How many tests ran, failed and were skipped by a JUnit report; None where there is none."""
    try:
        suites = list(ElementTree.parse(path).getroot().iter("testsuite"))
    except (OSError, ElementTree.ParseError):
        return None
    found: Counter[str] = Counter()
    for suite in suites:
        found.update({name: int(suite.get(name, 0)) for name in ("tests", "skipped")})
        found["ran"] += int(suite.get("tests", 0)) - int(suite.get("skipped", 0))
        found["failed"] += int(suite.get("failures", 0)) + int(suite.get("errors", 0))
    return found


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
    wrong, total = [], Counter()
    for name, done in place.run_all(commands, seconds).items():
        counts = read_report(reports[name])
        total += counts or Counter()
        if done.code != 0 or counts is None:
            failed = f"{counts['failed']} of {counts['ran']} tests failed" if counts else "tests"
            wrong.append(red(done, failed if name == "test" else f"{name}: {failed}"))
    if wrong:
        return merged(wrong)
    text = f"{total['ran']} tests passed, {total['skipped']} skipped"
    # Of one method they may all be skipped: not every GPU has clusters.
    if not total["ran"]:
        return Result("red", f"{text}: nothing was tested")
    return Result("green", text)


def run_sanitizer(place: Workplace, seconds: float) -> Result:
    """Run every kind of layer once under memcheck and under racecheck.

    In kernels of clusters, stores of other blocks and an mbarrier order what a block does with its
    shared memory, without a barrier of its own: racecheck may not follow that.
    """
    sanitizer = find_tool("compute-sanitizer", place.environ)
    if sanitizer is None:
        missing = "compute-sanitizer is not installed (it is part of the CUDA toolkit)"
        return Result("skipped", missing)
    commands = {}
    for tool, options in SANITIZERS.items():
        before = [sanitizer, "--tool", tool, "--target-processes", "application-only"]
        before += ["--kernel-name", "kernel_substring=fastlstm", "--error-exitcode", "86"]
        commands |= smoke_commands(tool, [*before, *options])
    # Every tensor an allocation of its own, whose end memcheck knows.
    finished = place.run_all(commands, seconds, PYTORCH_NO_CUDA_MEMORY_CACHING="1")
    result = judge_smoke(finished)
    if result.state == "green":
        return Result("green", f"{' and '.join(SANITIZERS)}: nothing found in {result.text}")
    if any("Device not supported" in line for done in finished.values() for line in done.lines()):
        return Result("skipped", "compute-sanitizer does not support this device")
    return result


def run_exchange(place: Workplace, seconds: float) -> Result:
    """Measure how blocks may exchange a state in every step, which needs nothing but nvcc."""
    folder = place.build / "exchange"
    options = ["--csv", place.csv_of("exchange"), "--build", folder]
    return measured(place, "exchange", "bench_exchange.py", options, seconds)


def run_methods(place: Workplace, seconds: float) -> Result:
    """Measure every method and its plans on the grid `gpu`, as far as there is time."""
    options = ["--csv", place.csv_of("methods")]
    return measured(place, "methods", "bench_methods.py", options, seconds)


def run_benchmark(place: Workplace, seconds: float) -> Result:
    """Measure the grid `gpu`, as much of it as there is time for."""
    options = [*GRID.split(), "--seconds", f"{place.row_seconds:g}", "--csv", place.csv]
    if importlib.util.find_spec("matplotlib") is not None:
        options += ["--plot", place.picture]
        return measured(place, "bench", "bench_cells.py", options, seconds)
    result = measured(place, "bench", "bench_cells.py", options, seconds)
    return replace(result, text=f"{result.text} (no picture: matplotlib is not installed)")


def measured(
    place: Workplace, name: str, script: str, options: Sequence[object], seconds: float
) -> Result:
    """Run a script with the budget that `seconds` leave, and say what its last line says."""
    budget = seconds - MARGINS[name]
    if budget <= 0:
        return Result("skipped", f"no time is left: {seconds:.0f} s")
    command = [sys.executable, BENCHMARKS / script, *options, "--budget", f"{budget:.1f}"]
    done = place.run(command, name, seconds)
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
        missing = f"there is no extension in {place.package_folder}"
        return Result("red", f"{missing}: it needs the phase build")
    return PHASES[name](place, seconds)
