"""The phases of gpu_check.py: each runs commands within a time limit and says how it went."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.processes import Finished, run_logged

ROOT = Path(__file__).resolve().parents[1]
SMOKE = ROOT / "benchmarks" / "gpu_smoke.py"
BENCH = ROOT / "benchmarks" / "bench_cells.py"
EXCHANGE = ROOT / "benchmarks" / "bench_exchange.py"
GRID = "--device cuda --grid gpu --cells lstm,gru --dtype float32,bfloat16,float16 --tf32 both"
# Of the time of the benchmark, for what is not a row: imports, the row under way at the end, the
# picture.
BENCH_MARGIN = 20.0
# The same of the exchange schemes: what ends the scheme under way.
EXCHANGE_MARGIN = 5.0
SANITIZER_TOOLS = ("memcheck", "racecheck")
# A failing call of the CUDA API is an error of torch's anyway, and torch makes some that may fail.
SANITIZER_OPTIONS = {"memcheck": ["--report-api-errors", "no"], "racecheck": []}


@dataclass(frozen=True)
class Workplace:
    """Where a check works, and on what.

    capability: of the GPU, (9, 0) say. build: folder of the build. logs: folder of the logs. csv,
    picture: of the benchmark. row_seconds: of the pairs of one row of it.
    """

    capability: tuple[int, int]
    build: Path
    logs: Path
    csv: Path
    picture: Path
    row_seconds: float
    environ: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))

    @property
    def package_folder(self) -> Path:
        """What the build makes: the folder of the package fastlstm."""
        return self.build / "lib"

    @property
    def exchange_csv(self) -> Path:
        """The rows of the exchange schemes, beside those of the benchmark."""
        return self.csv.with_name(f"exchange_{self.csv.name.removeprefix('cells_')}")

    @property
    def extension(self) -> Path | None:
        return next((self.package_folder / "fastlstm").glob("_C*.so"), None)

    def run(self, command: Sequence[object], log: str, seconds: float, **environ: str) -> Finished:
        """Run `command` on the package in `package_folder`, not on the one beside the sources."""
        paths = [str(self.package_folder), *filter(None, [self.environ.get("PYTHONPATH")])]
        fixed = {"PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}
        # Working there because `python -m` looks there first.
        self.package_folder.mkdir(parents=True, exist_ok=True)
        return run_logged(
            [str(part) for part in command],
            self.logs / f"{log}.log",
            seconds,
            environ={**self.environ, **fixed, **environ},
            cwd=self.package_folder,
        )


@dataclass(frozen=True)
class Result:
    """How a phase went. state: "green", "red" or "skipped". detail: more lines for the reader."""

    state: str
    text: str
    detail: str = ""


def red(done: Finished, what: str) -> Result:
    """`done` has failed, or was stopped."""
    why = f"stopped after {done.seconds:.0f} s" if done.code is None else f"exit code {done.code}"
    return Result("red", f"{what}: {why} ({done.log})", done.tail())


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
    done = run_logged(
        [
            *(sys.executable, "setup.py", "egg_info", "--egg-base", str(temporary)),
            *("build", "--build-base", str(temporary), "--build-lib", str(place.package_folder)),
        ],
        place.logs / "build.log",
        seconds,
        environ={
            **place.environ,
            "FORCE_CUDA": "1",
            "TORCH_CUDA_ARCH_LIST": arch(place.capability),
            "MAX_JOBS": str(jobs),
        },
        cwd=ROOT,
    )
    if done.code != 0 or place.extension is None:
        return red(done, "the extension was not built")
    smoke = place.run([sys.executable, SMOKE], "smoke", seconds - done.seconds)
    if smoke.code != 0:
        return red(smoke, "a tiny layer of each kind")
    return Result("green", f"for {arch(place.capability)}, {jobs} at a time; {smoke.last_line()}")


def marked_tests(folder: Path) -> list[Path]:
    """The test files that have something for a GPU: the others may need what is not installed."""
    files = sorted(folder.glob("test_*.py"))
    # cuda_devices.py has the mark, as a parameter of tests that run on the emulator too.
    return [p for p in files if re.search(r"mark\.cuda|cuda_devices", p.read_text())]


@dataclass(frozen=True)
class Counts:
    """Of the tests in a report of pytest."""

    ran: int
    failed: int
    skipped: int


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


def run_tests(place: Workplace, seconds: float) -> Result:
    """Run the tests that are marked `cuda`."""
    if importlib.util.find_spec("pytest") is None:
        return Result("red", f"pytest is not installed: {sys.executable} -m pip install pytest")
    files = marked_tests(ROOT / "tests")
    if not files:
        return Result("red", "no test is marked cuda")
    report = place.logs / "test.xml"
    report.unlink(missing_ok=True)
    command = [sys.executable, "-m", "pytest", "-q", "-m", "cuda", f"--junitxml={report}"]
    command += ["-p", "no:cacheprovider", "--durations=10"]
    done = place.run([*command, *files], "test", seconds)
    counts = read_report(report)
    if done.code != 0 or counts is None:
        failed = "tests" if counts is None else f"{counts.failed} of {counts.ran} tests failed"
        return red(done, failed)
    text = f"{counts.ran} tests passed, {counts.skipped} skipped"
    if counts.ran == 0:
        return Result("red", f"{text}: nothing was tested", done.tail())
    return Result("green", text)


def find_sanitizer(environ: Mapping[str, str]) -> str | None:
    """The path of compute-sanitizer: on PATH, or in the CUDA toolkit."""
    toolkits = [environ.get("CUDA_HOME", ""), "/usr/local/cuda"]
    folders = [environ.get("PATH", ""), *(f"{kit}/bin" for kit in toolkits if kit)]
    return shutil.which("compute-sanitizer", path=os.pathsep.join(folders))


def run_sanitizer(place: Workplace, seconds: float) -> Result:
    """Run every kind of layer once under memcheck and under racecheck."""
    sanitizer = find_sanitizer(place.environ)
    if sanitizer is None:
        return Result(
            "skipped", "compute-sanitizer is not installed (it is part of the CUDA toolkit)"
        )
    for tool in SANITIZER_TOOLS:
        done = place.run(
            [
                *(sanitizer, "--tool", tool, "--target-processes", "application-only"),
                *("--kernel-name", "kernel_substring=fastlstm", "--error-exitcode", "86"),
                *SANITIZER_OPTIONS[tool],
                *(sys.executable, SMOKE),
            ],
            tool,
            seconds / len(SANITIZER_TOOLS),
            # Every tensor an allocation of its own, whose end memcheck knows.
            PYTORCH_NO_CUDA_MEMORY_CACHING="1",
        )
        if done.code != 0:
            if any("Device not supported" in line for line in done.lines()):
                return Result("skipped", "compute-sanitizer does not support this device")
            return red(done, tool)
    return Result("green", f"{' and '.join(SANITIZER_TOOLS)}: nothing found")


def run_exchange(place: Workplace, seconds: float) -> Result:
    """Measure how blocks may exchange a state in every step, which needs nothing but nvcc."""
    budget = seconds - EXCHANGE_MARGIN
    if budget <= 0:
        return Result("skipped", f"no time is left: {seconds:.0f} s")
    command = [sys.executable, EXCHANGE, "--budget", f"{budget:.1f}", "--csv", place.exchange_csv]
    done = place.run([*command, "--build", place.build / "exchange"], "exchange", seconds)
    if done.code != 0:
        return red(done, done.last_line() or "nothing was measured")
    return Result("green", done.last_line())


def run_benchmark(place: Workplace, seconds: float) -> Result:
    """Measure the grid `gpu`, as much of it as there is time for."""
    budget = seconds - BENCH_MARGIN
    if budget <= 0:
        return Result("skipped", f"no time is left: {seconds:.0f} s")
    command = [sys.executable, BENCH, *GRID.split(), "--seconds", f"{place.row_seconds:g}"]
    command += ["--budget", f"{budget:.1f}", "--csv", place.csv]
    without = ""
    if importlib.util.find_spec("matplotlib") is None:
        without = " (no picture: matplotlib is not installed)"
    else:
        command += ["--plot", place.picture]
    done = place.run(command, "bench", seconds)
    if done.code != 0:
        return red(done, done.last_line() or "nothing was measured")
    return Result("green", f"{done.last_line()}{without}")


PHASES: dict[str, Callable[[Workplace, float], Result]] = {
    "build": build_extension,
    "test": run_tests,
    "sanitize": run_sanitizer,
    "exchange": run_exchange,
    "bench": run_benchmark,
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
