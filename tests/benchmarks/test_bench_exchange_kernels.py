"""The kernels of benchmarks/gpu/exchange: their numbers in the emulator, the checksums, the build."""

from __future__ import annotations

import itertools
import os
import re
import subprocess
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import simt_selftest

from benchmarks.gpu.exchange import checksums, native, worker
from benchmarks.gpu.exchange.native import Library, Problem, WrongNumbersError

ROOT = Path(__file__).resolve().parents[2]
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
PROBLEMS = {"counter": GRID, "flag": GRID, "block": BLOCK}
PROBLEMS |= {"cluster_barrier": CLUSTER, "cluster_async": CLUSTER}


@pytest.fixture(scope="module")
def emulator_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("exchange") / "emulator.so"
    folder = ROOT / "benchmarks" / "gpu" / "exchange"
    command = [os.environ.get("CXX", "g++"), "-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror"]
    command += ["-shared", "-fPIC", "-DFASTLSTM_SIMT", f"-I{ROOT / 'csrc'}"]
    command += [f"-I{simt_selftest.SIMT}", "-x", "c++", "-o", str(target)]
    sources = [*simt_selftest.EMULATOR, folder / "schemes.cu", folder / "faults.cu"]
    result = subprocess.run([*command, *map(str, sources)], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return target


@pytest.fixture
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
    found = checksums.checksums(steps, chunks, threads, groups, blocks, every_warp)
    assert found.shape == (groups * blocks, threads)
    for block, thread in itertools.product(range(groups * blocks), (0, 5, 6, 40, 63)):
        stride = 32 if every_warp else threads
        reader = thread % stride
        assert found[block, thread] == slow_checksum(steps, chunks, stride, block // blocks, reader)


def test_numbers_are_never_the_poison() -> None:
    # The sum that is the largest of any number, in the last group.
    assert 0x3FFFFFFF + 159 * checksums.GROUP_TERM < 0xFFFFFFFF
    sums = checksums.chunk_sums(2000, 64)
    assert len(np.unique(sums)) > 0.99 * sums.size


def test_one_wrong_number_of_one_thread_is_an_error() -> None:
    p = GRID[0]
    sizes = (p.steps, p.chunks, p.threads, p.groups, p.blocks)
    found = np.stack([checksums.checksums(*sizes, every_warp=False)] * p.launches)
    native.check_checksums(found, p, every_warp=False)
    found[1, 2, 3] ^= 1
    with pytest.raises(WrongNumbersError, match="1 of 320 .* launch 1 by block 2, thread 3"):
        native.check_checksums(found, p, every_warp=False)


# The process of a scheme.


def test_worker_answers_jobs(emulator_path: Path) -> None:
    problem = asdict(Problem(1, 2, 2, 64, threads=32, steps=3, launches=3))
    job = {"job": "measure", "problem": problem}
    jobs = [job | {"scheme": scheme} for scheme in ("flag", "telepathy")]
    first, second = worker.answers(emulator_path, jobs, 60)
    # The first launch does not count.
    assert first == {"ms": [0.0, 0.0], "empty_ms": [0.0, 0.0]}
    assert second == {"error": "no scheme telepathy"}


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
