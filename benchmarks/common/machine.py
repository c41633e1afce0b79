"""What a number depends on besides the code: machine, versions, and the FMA peak."""

from __future__ import annotations

import platform
import subprocess
import time
from pathlib import Path

import torch

from benchmarks.gpu import kernels as kernel_choice

PEAK_SECONDS = 0.1


def environment(device: str) -> dict[str, str]:
    """The conditions of a run, one CSV column each; what does not apply is "none".

    device: "cpu" or "cuda". On CUDA the TF32 flag is a condition of each row, and not in here.
    """
    shared = {
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "commit": commit(),
        "device": cpu_model() if device == "cpu" else torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda or "none",
        "cudnn": str(torch.backends.cudnn.version() or "none"),
        "threads": str(torch.get_num_threads()),
    }
    if device == "cpu":
        return shared | {
            "tf32": "none",
            "capability": torch.backends.cpu.get_cpu_capability(),
            "driver": "none",
            "wanted_kernel": "none",
        }
    major, minor = torch.cuda.get_device_capability()
    return shared | {
        "capability": f"sm_{major}{minor}",
        "driver": gpu_driver(),
        "wanted_kernel": kernel_choice.wanted(),
    }


def commit() -> str:
    """`git describe` of the source tree this file is in, or "unknown" outside git."""
    command = ["git", "describe", "--always", "--dirty", "--tags"]
    here = Path(__file__).resolve().parent
    try:
        done = subprocess.run(
            command, cwd=here, capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return done.stdout.strip() if done.returncode == 0 else "unknown"


def gpu_driver() -> str:
    """The version of the GPU driver, or "unknown"."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    found = done.stdout.partition("\n")[0].strip() if done.returncode == 0 else ""
    return found or "unknown"


def cpu_model() -> str:
    """The processor's own name for itself, as far as the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine() or "unknown"


def fma_peak(dtype: torch.dtype, threads: int) -> float | None:
    """GFLOP/s of a loop that does nothing but multiply-adds in registers, on `threads` threads.

    float64 has its own; anything else is held to float32, in which narrower dtypes are summed too.
    None where the extension is not built, or has no such loop.
    """
    try:
        from fastlstm import _C
    except ImportError:
        return None
    measure = getattr(_C, "fma_peak", None)
    if measure is None:
        return None
    computed = "float64" if dtype == torch.float64 else "float32"
    return measure(computed, threads, PEAK_SECONDS)
