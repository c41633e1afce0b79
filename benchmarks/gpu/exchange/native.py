"""Builds the kernels with nvcc alone, and calls them."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.gpu.exchange.checksums import checksums

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
NO_NVCC = "nvcc was not found: set CUDA_HOME, or put it on PATH"
SOURCES = (HERE / "schemes.cu", HERE / "gpu.cu")
STEPS = 2000
# In which table of the library a scheme is; what is not here is in exchange_run.
OF_GPU = ("grid_sync", "cluster_aligned", "cluster_relaxed", "cluster_unlimited")
ENTRIES = {scheme: "exchange_run_gpu" for scheme in OF_GPU}
# These exchange nothing: their time is taken off.
EMPTY = ("empty", "empty_block")
EVERY_WARP = ("block",)


class WrongNumbersError(RuntimeError):
    """A launch left other checksums than it must."""


class _Problem(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int32) for name in ("groups", "blocks", "threads", "chunks", "steps")),
        *((name, ctypes.c_int32) for name in ("launches", "most_looks", "shared_bytes")),
        ("seed", ctypes.c_uint64),
    ]


@dataclass(frozen=True)
class Problem:
    """What is launched: `launches` times `steps` steps.

    groups: that exchange nothing with each other. blocks: of a group. rows, units: N and H of the
    state of a group. most_looks: after which a loop that waits ends the launch. shared_bytes: of a
    block, at least. seed: of the emulator.
    """

    groups: int
    blocks: int
    rows: int
    units: int
    threads: int = 256
    steps: int = STEPS
    launches: int = 7
    most_looks: int = 1 << 20
    shared_bytes: int = 0
    seed: int = 0

    @property
    def chunks(self) -> int:
        """Of 16 bytes, eight numbers. Raises ValueError where they are not whole."""
        chunks, rest = divmod(self.rows * self.units, 8)
        if rest:
            sizes = f"{self.rows} * {self.units}"
            raise ValueError(f"rows * units must be a multiple of 8, not {sizes}")
        return chunks

    def as_argument(self) -> _Problem:
        values = asdict(self) | {"chunks": self.chunks}
        return _Problem(**{name: values[name] for name, _ in _Problem._fields_})


class Library:
    """The functions of a library that `build` made (or that has a part of them, for tests)."""

    def __init__(self, path: Path) -> None:
        self._library = ctypes.CDLL(str(path))

    def _call(self, entry: str, *arguments: object) -> None:
        error = ctypes.create_string_buffer(4096)
        size = ctypes.c_size_t(len(error))
        if getattr(self._library, entry)(*arguments, error, size):
            raise RuntimeError(error.value.decode())

    def run(self, scheme: str, problem: Problem, entry: str | None = None) -> list[float]:
        """The milliseconds of each launch, whose checksums are those that they must be.

        Raises WrongNumbersError where they are not, RuntimeError where a launch fails.
        """
        blocks = problem.groups * problem.blocks
        hashes = np.zeros((problem.launches, blocks, problem.threads), np.uint32)
        ms = (ctypes.c_float * problem.launches)()
        self._call(
            entry or ENTRIES.get(scheme, "exchange_run"),
            scheme.encode(),
            ctypes.byref(problem.as_argument()),
            ms,
            hashes.ctypes.data_as(ctypes.c_void_p),
        )
        if scheme not in EMPTY:
            every_warp = scheme.startswith(EVERY_WARP)
            check_checksums(hashes, problem, every_warp)
        return list(ms)

    def device(self) -> dict[str, str]:
        """The GPU: name, capability, multiprocessors, shared memory of a block, MHz, CUDA."""
        name = ctypes.create_string_buffer(256)
        facts = (ctypes.c_int32 * 5)()
        self._call("exchange_device", name, ctypes.c_size_t(len(name)), facts)
        capability, sms, shared, mhz, cuda = facts
        return {
            "device": name.value.decode(),
            "capability": f"sm_{capability}",
            "sms": str(sms),
            "shared_bytes": str(shared),
            "sm_mhz": str(mhz),
            "cuda": f"{cuda // 1000}.{cuda % 1000 // 10}",
        }

    def launches(
        self, blocks: int, threads: int, count: int, times: int
    ) -> tuple[list[float], list[float]]:
        """Milliseconds of `count` launches of an empty kernel: in a stream, and in a graph."""
        ms = (ctypes.c_float * (2 * times))()
        self._call("exchange_launches", blocks, threads, count, times, ms)
        return list(ms[:times]), list(ms[times:])

    def max_clusters(self, size: int, threads: int, shared_bytes: int) -> int:
        """How many clusters of `size` blocks can be resident at once."""
        clusters = ctypes.c_int32()
        self._call("exchange_max_clusters", size, threads, shared_bytes, ctypes.byref(clusters))
        return clusters.value


def check_checksums(hashes: NDArray[np.uint32], problem: Problem, every_warp: bool) -> None:
    """Raises WrongNumbersError where a launch of `hashes` [launches, blocks, threads] is wrong."""
    sizes = (problem.steps, problem.chunks, problem.threads, problem.groups, problem.blocks)
    wrong = hashes != checksums(*sizes, every_warp)
    if wrong.any():
        launch, block, thread = np.argwhere(wrong)[0]
        raise WrongNumbersError(
            f"wrong numbers were read by {wrong.sum()} of {wrong.size} threads, first in launch "
            f"{launch} by block {block}, thread {thread}"
        )


def find_nvcc() -> str | None:
    """The path of nvcc: that of CUDA_HOME, on PATH, or where the toolkit lies by default."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    if home:
        return shutil.which("nvcc", path=f"{home}/bin")
    return shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")


def command(nvcc: str, arch: str, target: Path, flags: Sequence[str] = ()) -> list[str]:
    """What builds the library for an architecture such as "90a"."""
    return [
        *(nvcc, "-std=c++17", "-O3", "-shared", "-Xcompiler=-fPIC"),
        *(f"-gencode=arch=compute_{arch},code=sm_{arch}", f"-I{ROOT / 'csrc'}", *flags),
        *("-o", str(target), *map(str, SOURCES)),
    ]


def build(folder: Path, arch: str) -> Path:
    """The library for `arch` in `folder`, which is made. Raises RuntimeError where that fails."""
    nvcc = find_nvcc()
    if nvcc is None:
        raise RuntimeError(NO_NVCC)
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"exchange_{arch}.so"
    wanted = command(nvcc, arch, target)
    done = subprocess.run(wanted, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"nvcc failed:\n{done.stdout}{done.stderr}")
    return target
