"""Builds the kernels of tests/simt/selftest.cu and faults.cu, and runs them on arrays.

For the emulator in seconds, by the C++ compiler; where there is a GPU and nvcc, for that as well.
"""

import ctypes
import functools
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parents[2]
SIMT = ROOT / "tests" / "simt"
# The layers on the emulator, which need torch, have a build of their own (simt_extension.py).
LAYERS = ("module.cpp", "context.cpp", "gemm.cpp")
EMULATOR = sorted(path for path in SIMT.glob("*.cpp") if path.name not in LAYERS)
NVCC = shutil.which("nvcc")
SEEDS = range(20)
SCHEDULES = range(200)


class Library:
    """The functions of a built library, with numpy arrays for bytes."""

    def __init__(self, path: Path) -> None:
        self._library = ctypes.CDLL(str(path))

    def run(
        self, name: str, values: NDArray, out: NDArray, seed: int = 0, entry: str = "run_selftest"
    ) -> NDArray:
        """Run a test of the table on the bytes of values; out gives shape and dtype.

        Raises RuntimeError with the words of the machine.
        """
        values = np.ascontiguousarray(values)
        out = np.zeros_like(out)
        error = ctypes.create_string_buffer(4096)
        failed = getattr(self._library, entry)(
            name.encode(),
            ctypes.c_uint64(seed),
            values.ctypes.data_as(ctypes.c_void_p),
            ctypes.c_size_t(values.nbytes),
            out.ctypes.data_as(ctypes.c_void_p),
            ctypes.c_size_t(out.nbytes),
            error,
            ctypes.c_size_t(len(error)),
        )
        if failed:
            raise RuntimeError(error.value.decode())
        return out

    def fault(self, name: str, values: NDArray, out: NDArray, seed: int = 0) -> NDArray:
        """The same for the table of faults.cu."""
        return self.run(name, values, out, seed, "run_fault")

    def __getattr__(self, name: str) -> Callable:
        return getattr(self._library, name)


def build(command: list[str], sources: list[Path]) -> Library:
    # Once loaded, the library does not need its file.
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "selftest.so"
        command = [*command, "-o", str(target), *map(str, sources)]
        result = subprocess.run(command, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        return Library(target)


@functools.cache
def emulator() -> Library:
    flags = ["-std=c++17", "-O1", "-g1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
    flags += ["-DFASTLSTM_SIMT", f"-I{ROOT / 'csrc'}", f"-I{SIMT}", "-x", "c++"]
    sources = [*EMULATOR, SIMT / "selftest.cu", SIMT / "faults.cu"]
    return build([os.environ.get("CXX", "g++"), *flags], sources)


@functools.cache
def gpu() -> Library:
    flags = ["-std=c++17", "-arch=native", "-shared", "-Xcompiler=-fPIC", "-x", "cu"]
    return build([str(NVCC), *flags, f"-I{ROOT / 'csrc'}"], [SIMT / "selftest.cu"])


def has_gpu() -> bool:
    """Whether there is an nvcc, and a GPU that has every instruction of selftest.cu: sm_90."""
    if NVCC is None:
        return False
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    major, attribute = ctypes.c_int(0), 75  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR
    if cuda.cuInit(0) != 0 or cuda.cuDeviceGetAttribute(ctypes.byref(major), attribute, 0) != 0:
        return False
    return major.value >= 9
