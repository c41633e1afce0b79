"""The exchange schemes of benchmarks/exchange: their numbers in the emulator, and what runs them."""

from __future__ import annotations

import csv
import itertools
import os
import re
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import simt_selftest
from bench_stand_ins import answer, make_place
from numpy.typing import NDArray

sys.path.append(str(Path(__file__).resolve().parents[1]))

from benchmarks import bench_exchange, gpu_check, gpu_phases
from benchmarks.exchange import expected, native, process
from benchmarks.exchange.native import Library, Problem, WrongNumbersError
from benchmarks.exchange.plan import CLUSTER_SHARED_BYTES, PLAN
from benchmarks.gpu_workplace import Result

ROOT = Path(__file__).resolve().parents[1]
NVCC = native.find_nvcc()
SCHEDULES = 50
# groups, blocks, N, H, threads, steps, launches
GRID = (
    Problem(1, 5, 2, 64, 32, 6, 2),
    Problem(2, 3, 4, 40, 64, 5, 1),
    Problem(1, 2, 5, 512, 32, 3, 1),
)
CLUSTER = (
    Problem(2, 4, 4, 64, 32, 6, 2),
    Problem(1, 8, 2, 72, 64, 5, 1),
    Problem(1, 2, 9, 64, 32, 4, 1),
)
BLOCK = (Problem(2, 1, 4, 64, 64, 6, 2), Problem(1, 1, 9, 256, 96, 4, 1))
PROBLEMS = {
    "counter": GRID,
    "flag": GRID,
    "cluster_barrier": CLUSTER,
    "cluster_async": CLUSTER,
    "block": BLOCK,
}


@pytest.fixture(scope="module")
def emulator_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("exchange") / "emulator.so"
    folder = ROOT / "benchmarks" / "exchange"
    command = [os.environ.get("CXX", "g++"), "-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror"]
    command += ["-shared", "-fPIC", "-DFASTLSTM_SIMT", f"-I{ROOT / 'csrc'}"]
    command += [f"-I{simt_selftest.SIMT}", "-x", "c++", "-o", str(target)]
    sources = [*simt_selftest.EMULATOR, folder / "schemes.cu", folder / "faults.cu"]
    result = subprocess.run([*command, *map(str, sources)], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return target


@pytest.fixture(scope="module")
def emulator(emulator_path: Path) -> Library:
    return Library(emulator_path)


# The kernels.


@pytest.mark.parametrize(
    "scheme, problem", [(name, p) for name, problems in PROBLEMS.items() for p in problems]
)
def test_every_block_reads_every_step(emulator: Library, scheme: str, problem: Problem) -> None:
    for seed in range(SCHEDULES):
        assert len(emulator.run(scheme, replace(problem, seed=seed))) == problem.launches


@pytest.mark.parametrize(
    "scheme, fault, message",
    [
        ("counter", "no_wait", "wrong numbers"),
        ("counter", "one_buffer", "wrong numbers"),
        ("flag", "no_wait", "wrong numbers"),
        ("flag", "nothing_sent", "a wait took too many looks"),
        ("cluster_barrier", "no_wait", "wrong numbers"),
        ("cluster_barrier", "one_buffer", "wrong numbers"),
        # In some schedules the mbarrier is used wrongly before a wrong number is.
        ("cluster_async", "no_wait", "wrong numbers|more arrivals|has left before a store_async"),
        ("cluster_async", "one_buffer", "wrong numbers"),
        ("block", "no_wait", "wrong numbers"),
        ("block", "one_buffer", "wrong numbers"),
    ],
)
def test_planted_mistake_is_an_error(
    emulator: Library, scheme: str, fault: str, message: str
) -> None:
    found = 0
    for seed in range(SCHEDULES):
        problem = replace(PROBLEMS[scheme][0], seed=seed, most_looks=5000)
        try:
            emulator.run(f"{scheme}_{fault}", problem, "exchange_fault")
        except RuntimeError as error:
            found += 1
            assert re.search(message, str(error))
    assert found > SCHEDULES // 2


def test_loops_alone_run(emulator: Library) -> None:
    for scheme in native.EMPTY:
        assert emulator.run(scheme, GRID[0]) == [0.0, 0.0]


@pytest.mark.parametrize(
    "problem, message",
    [
        (replace(GRID[0], groups=161), "expected 1 to 160 groups"),
        (replace(GRID[0], threads=48), "expected 32, 64, ... 256 threads"),
        (replace(GRID[0], blocks=17), "expected a chunk for each block"),
        (replace(GRID[0], steps=0), "expected at least one step"),
    ],
)
def test_what_cannot_be_launched_is_refused(
    emulator: Library, problem: Problem, message: str
) -> None:
    with pytest.raises(RuntimeError, match=message):
        emulator.run("counter", problem)


def test_what_is_not_there_is_said(emulator: Library) -> None:
    with pytest.raises(RuntimeError, match="no scheme telepathy"):
        emulator.run("telepathy", GRID[0])
    with pytest.raises(ValueError, match="multiple of 8, not 3 \\* 5"):
        emulator.run("counter", replace(GRID[0], rows=3, units=5))


# The checksums.


def number(group: int, step: int, word: int) -> int:
    x = ((step + 1) * 0x9E3779B1 ^ word * 0x85EBCA77) & 0xFFFFFFFF
    x ^= x >> 15
    x = x * 0x2C1B3C6D & 0xFFFFFFFF
    x ^= x >> 13
    return ((x & 0x3FFFFFFF) + group * 0x01000001) & 0xFFFFFFFF


def slow_checksum(steps: int, chunks: int, stride: int, group: int, reader: int) -> int:
    result = 0
    for step in range(steps):
        words = (4 * chunk + i for chunk in range(reader, chunks, stride) for i in range(4))
        result = result * 0x01000193 + sum(number(group, step, word) for word in words)
    return result & 0xFFFFFFFF


@pytest.mark.parametrize("every_warp", [False, True])
def test_checksums_are_those_of_a_plain_loop(every_warp: bool) -> None:
    steps, chunks, threads, groups, blocks = 19, 70, 64, 3, 2
    found = expected.checksums(steps, chunks, threads, groups, blocks, every_warp)
    assert found.shape == (groups * blocks, threads)
    for block, thread in itertools.product(range(groups * blocks), (0, 5, 6, 40, 63)):
        stride = 32 if every_warp else threads
        reader = thread % stride
        assert found[block, thread] == slow_checksum(steps, chunks, stride, block // blocks, reader)


def test_numbers_are_never_the_poison() -> None:
    # The sum that is the largest of any number, in the last group.
    assert 0x3FFFFFFF + 159 * expected.GROUP_TERM < 0xFFFFFFFF
    sums = expected.chunk_sums(2000, 64)
    assert len(np.unique(sums)) > 0.99 * sums.size


def hashes(problem: Problem) -> NDArray[np.uint32]:
    wanted = expected.checksums(
        problem.steps, problem.chunks, problem.threads, problem.groups, problem.blocks, False
    )
    return np.stack([wanted] * problem.launches)


def test_one_wrong_number_of_one_thread_is_an_error() -> None:
    found = hashes(GRID[0])
    native.check_checksums(found, GRID[0], every_warp=False)
    found[1, 2, 3] ^= 1
    with pytest.raises(WrongNumbersError, match="1 of 320 .* launch 1 by block 2, thread 3"):
        native.check_checksums(found, GRID[0], every_warp=False)


# What is measured.


@pytest.mark.parametrize("sms", [132, 108, 78])
@pytest.mark.parametrize("scheme", PLAN)
def test_plan_fits_the_gpu(scheme: str, sms: int) -> None:
    problems = list(PLAN[scheme](sms, {4: 30, 8: 16, 16: 0}))
    assert problems and len(set(problems)) == len(problems)
    for p in problems:
        assert p.chunks >= p.blocks and p.groups <= 160 and p.rows >= 1
        if scheme.startswith("cluster"):
            assert p.groups in (1, 30, 16) and 2 * 16 * p.chunks + 4096 < CLUSTER_SHARED_BYTES
        else:
            assert p.groups * p.blocks <= sms
        if scheme == "flag":
            # Its buffer has a place for every step.
            assert p.groups * p.chunks * 16 * p.steps < 1 << 30


def test_plan_has_the_shapes_that_decide() -> None:
    def sizes(scheme: str) -> set[tuple[int, int, int]]:
        return {(p.groups, p.rows * p.groups, p.units) for p in PLAN[scheme](132, {8: 16})}

    for scheme in ("counter", "flag"):
        wanted = {(g, 16, 768) for g in (1, 2, 4, 8)} | {(g, 64, 1024) for g in (1, 2, 4, 8)}
        assert wanted <= sizes(scheme)
    assert {p.blocks for p in PLAN["counter"](132, {})} == {132, 66, 33, 16}
    assert min(p.steps for p in PLAN["flag"](132, {})) < 2000
    assert not list(PLAN["cluster_async"](108, {}))


def test_time_of_a_step_is_that_of_the_launch_less_the_loop() -> None:
    times = bench_exchange.step_times([4.0, 3.0, 8.0], [1.0, 1.0, 9.0], 2000)
    assert times == {
        "us": "1.5000",
        "us_min": "1.0000",
        "us_max": "3.5000",
        "us_with_loop": "2.0000",
        "us_loop": "0.5000",
    }


# The process of a scheme.


def test_worker_answers_jobs(emulator_path: Path) -> None:
    problem = asdict(Problem(1, 2, 2, 64, threads=32, steps=3, launches=3))
    jobs = [
        {"job": "measure", "scheme": scheme, "problem": problem} for scheme in ("flag", "telepathy")
    ]
    first, second = process.answers(emulator_path, jobs, 60)
    # The first launch does not count.
    assert first == {"ms": [0.0, 0.0], "empty_ms": [0.0, 0.0]}
    assert second == {"error": "no scheme telepathy"}


def test_worker_that_dies_or_hangs_leaves_what_it_had(tmp_path: Path, monkeypatch) -> None:
    def python_is(script: str) -> None:
        path = tmp_path / "python"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        monkeypatch.setattr(process.sys, "executable", str(path))

    python_is("echo '{\"ms\": [1]}'; printf '{\"ms'; echo why >&2; exit 3")
    first, second = process.answers(tmp_path, [{}, {}], 60)
    assert first == {"ms": [1]}
    assert second == {"error": "its process ended with code 3: why"}
    python_is("echo '{\"ms\": [1]}'; exec sleep 60")
    start = time.monotonic()
    found = process.answers(tmp_path, [{}, {}, {}], 1)
    assert found == [{"ms": [1]}, *[{"error": "stopped after 1 s"}] * 2]
    assert time.monotonic() - start < 20


# The program.

DEVICE = {"device": "GPU", "capability": "sm_90", "sms": "132", "sm_mhz": "1755", "cuda": "13.0"}


class Gpu:
    """Stands in for the worker: keeps what was asked; `failing` jobs fail."""

    def __init__(self, failing: str = "", capability: str = "sm_90") -> None:
        self.failing = failing
        self.facts = DEVICE | {"capability": capability}
        self.asked: list[dict] = []

    def __call__(self, path: Path, jobs: list[dict], seconds: float) -> list[dict]:
        self.asked += jobs
        return [self.answer(job) for job in jobs]

    def answer(self, job: dict) -> dict:
        if self.failing and self.failing in (job["job"], job.get("scheme")):
            return {"error": "wrong numbers were read"}
        return {
            "device": self.facts,
            "max_clusters": {"clusters": 8},
            "launches": {"stream": [3.0], "graph": [2.0]},
            "measure": {"ms": [5.0, 4.0, 6.0], "empty_ms": [1.0]},
        }[job["job"]]


@pytest.fixture
def answered(monkeypatch):
    """Lets a Gpu answer main()."""
    monkeypatch.setattr(bench_exchange, "prepare", lambda parser, folder: Path("library"))
    monkeypatch.setattr(bench_exchange.machine, "gpu_driver", lambda: "580")

    def use(gpu: Gpu) -> Gpu:
        monkeypatch.setattr(bench_exchange, "answers", gpu)
        return gpu

    return use


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_every_scheme_is_a_row_of_table_and_file(answered, tmp_path: Path, capsys) -> None:
    gpu, path = answered(Gpu()), tmp_path / "rows.csv"
    assert bench_exchange.main(["--csv", str(path)]) == 0
    found = read(path)
    assert {row["scheme"] for row in found} == {
        *PLAN,
        "max_clusters",
        "launch_stream",
        "launch_graph",
    }
    assert len(found) == sum(job["job"] == "measure" for job in gpu.asked) + 3 + 2
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == f"{len(found)} rows measured, 0 red"
    (row,) = (r for r in found if (r["scheme"], r["groups"], r["H"]) == ("counter", "4", "768"))
    wanted = {"device": "GPU", "driver": "580", "cuda": "13.0", "sm_mhz": "1755", "sms": "132"}
    wanted |= {"blocks": "33", "threads": "256", "N": "4", "steps": "2000", "launches": "6"}
    wanted |= {"us": "2.0000", "us_min": "1.5000", "us_max": "2.5000", "us_loop": "0.5000"}
    assert wanted.items() <= row.items()
    assert row["date"] and row["commit"]
    line = next(line for line in lines if line.startswith("launch_graph"))
    assert line.split()[-5:] == ["1.0000", "1.0000", "1.0000", "1.0000", "0.0000"]
    # Rows are added to those that are there.
    assert bench_exchange.main(["--csv", str(path), "--schemes", "launches"]) == 0
    assert len(read(path)) == len(found) + 3 + 2


def test_wrong_numbers_are_red_and_not_kept(answered, tmp_path: Path, capsys) -> None:
    answered(Gpu(failing="flag"))
    path = tmp_path / "rows.csv"
    assert bench_exchange.main(["--csv", str(path), "--schemes", "flag,block"]) == 1
    assert {row["scheme"] for row in read(path)} == {"block", "max_clusters"}
    out = capsys.readouterr().out
    assert "RED  wrong numbers were read" in out
    assert f"{len(list(PLAN['flag'](132, {})))} red" in out.splitlines()[-1]
    # Without an answer the schemes of clusters have no rows, which must not pass unnoticed.
    answered(Gpu(failing="max_clusters"))
    assert bench_exchange.main(["--schemes", "cluster_async,block"]) == 1
    assert capsys.readouterr().out.splitlines()[-1] == "6 rows measured, 3 red"
    answered(Gpu(failing="device"))
    assert bench_exchange.main([]) == 1
    assert "the GPU does not answer" in capsys.readouterr().out


def test_gpu_without_clusters_is_not_asked_for_them(answered) -> None:
    gpu = answered(Gpu(capability="sm_80"))
    assert bench_exchange.main([]) == 0
    schemes = {job["scheme"] for job in gpu.asked if job["job"] == "measure"}
    assert schemes == {"counter", "flag", "block", "grid_sync"}
    assert "max_clusters" not in {job["job"] for job in gpu.asked}


def test_no_scheme_is_begun_after_the_budget() -> None:
    gpu, now = Gpu(), iter([0.0, 30.0, 61.0])
    report = bench_exchange.Report(None, {})
    left = bench_exchange.measure(
        lambda jobs, seconds: gpu(Path(), jobs, seconds),
        ["block", "grid_sync", "counter", "flag"],
        DEVICE,
        60.0,
        report,
        lambda: next(now),
    )
    assert left == ["counter", "flag"]
    assert {job["scheme"] for job in gpu.asked if "scheme" in job} == {"block", "grid_sync"}


@pytest.mark.parametrize(
    "argv, message",
    [
        ("--schemes telepathy", "argument --schemes: unknown scheme 'telepathy'; known: counter, "),
        ("--csv /nowhere/rows.csv", "argument --csv: no such directory: /nowhere"),
        (f"--csv {__file__}", f"argument --csv: {__file__} has other columns than "),
    ],
)
def test_wrong_command_line_is_one_line_and_code_2(argv: str, message: str, capsys) -> None:
    with pytest.raises(SystemExit) as exit:
        bench_exchange.main(argv.split())
    assert exit.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith(f"bench_exchange.py: error: {message}")
    assert error.count("\n") == 1


def test_no_gpu_is_one_line_and_code_2(monkeypatch, capsys) -> None:
    monkeypatch.setattr(bench_exchange.torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as exit:
        bench_exchange.main([])
    assert exit.value.code == 2
    assert "needs a GPU and nvcc: torch " in capsys.readouterr().err


# The phase of gpu_check.py.


def test_phase_needs_no_extension_and_keeps_its_rows(tmp_path: Path, monkeypatch) -> None:
    place = make_place(tmp_path)
    place.extension.unlink()
    commands = answer(monkeypatch, {"exchange": (0, "table\n\n9 rows measured, 0 red\n")})
    result = gpu_phases.run_phase("exchange", place, 60)
    assert result == Result("green", "9 rows measured, 0 red")
    args = bench_exchange.build_parser().parse_args(commands.asked["exchange"].arguments[2:])
    assert (args.budget, commands.seconds["exchange"]) == (55.0, 60)
    assert args.csv == place.csv.with_name("exchange_h100.csv")
    assert args.build == place.build / "exchange"
    answer(monkeypatch, {"exchange": (1, "9 rows measured, 1 red\n")})
    assert gpu_phases.run_phase("exchange", place, 60).state == "red"
    assert gpu_phases.run_phase("exchange", place, 4).state == "skipped"


def test_phase_is_one_of_the_default_ones_before_the_benchmark() -> None:
    phases = gpu_check.build_parser().parse_args([]).phases
    assert phases.index("exchange") < phases.index("methods") < phases.index("bench")


# For GPUs.


@pytest.mark.skipif(NVCC is None, reason="needs nvcc (set CUDA_HOME, or put it on PATH)")
def test_compiles_for_gpus_without_warnings(tmp_path: Path) -> None:
    strict = ["--Werror", "all-warnings", "-Xcompiler=-Wall,-Werror"]
    strict += ["-Xptxas=-Werror,--warn-on-spills", "-gencode=arch=compute_80,code=sm_80"]
    target = tmp_path / "exchange.so"
    command = native.command(NVCC, "90a", target, strict)
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    built = Library(target)
    for entry in ("run", "run_gpu", "device", "launches", "max_clusters"):
        assert getattr(built._library, f"exchange_{entry}")
