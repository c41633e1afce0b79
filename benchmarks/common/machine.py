"""What a number depends on besides the code: machine, versions, and the FMA peak."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import torch

PEAK_SECONDS = 0.1
# Asks for kernels of CUDA, and is read at every call.
KERNEL_VARIABLE = "FASTLSTM_CUDA_KERNEL"
AUTO = "auto"


def wanted_kernel() -> str:
    """A method, a plan of one such as "cluster:32x16x8", or "auto"."""
    return os.environ.get(KERNEL_VARIABLE) or AUTO


def now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def environment(device: str) -> dict[str, str]:
    """The conditions of a run, one CSV column each; what does not apply is "none".

    device: "cpu" or "cuda". On CUDA the TF32 flag is a condition of each row, and not in here.
    """
    is_cpu = device == "cpu"
    shared = {
        "date": now(),
        "commit": commit(),
        "device": cpu_model() if is_cpu else torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda or "none",
        "cudnn": str(torch.backends.cudnn.version() or "none"),
        "threads": str(torch.get_num_threads()),
    }
    if is_cpu:
        capability = torch.backends.cpu.get_cpu_capability()
        none = dict.fromkeys(("driver", "wanted_kernel"), "none")
        return {**shared, "tf32": "none", "capability": capability, **none}
    major, minor = torch.cuda.get_device_capability()
    shared |= {"capability": f"sm_{major}{minor}", "driver": gpu_driver()}
    return shared | {"wanted_kernel": wanted_kernel()}


def first_line(command: Sequence[str], cwd: Path | None = None) -> str:
    """What `command` prints first, or "unknown" where it fails."""
    try:
        done = subprocess.run(
            command, cwd=cwd, capture_output=True, text=True, timeout=20, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return done.stdout.partition("\n")[0].strip() or "unknown"


def commit() -> str:
    """`git describe` of the source tree this file is in, or "unknown" outside git."""
    command = ["git", "describe", "--always", "--dirty", "--tags"]
    return first_line(command, Path(__file__).resolve().parent)


def gpu_driver() -> str:
    """The version of the GPU driver, or "unknown"."""
    return first_line(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"])


def cpu_model() -> str:
    """The processor's own name for itself, as far as the system tells."""
    try:
        found = re.search(r"^model name\s*: *(.*)$", Path("/proc/cpuinfo").read_text(), re.M)
    except OSError:
        found = None
    return (found and found[1].strip()) or platform.processor() or platform.machine() or "unknown"


def fma_peak(dtype: torch.dtype, threads: int) -> float | None:
    """GFLOP/s of a loop that does nothing but multiply-adds in registers, on `threads` threads.

    float64 has its own; anything else is held to float32, in which narrower dtypes are summed too.
    None where the extension is not built, or has no such loop.
    """
    try:
        from fastlstm._C import fma_peak as measure
    except ImportError:
        return None
    return measure("float64" if dtype == torch.float64 else "float32", threads, PEAK_SECONDS)
