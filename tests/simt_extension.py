"""Builds the CUDA kernels and their host code for the emulator, as a module with _C's functions."""

import functools
from pathlib import Path
from types import ModuleType

from torch.utils import cpp_extension

ROOT = Path(__file__).resolve().parent.parent
CSRC, SIMT = ROOT / "csrc", ROOT / "tests" / "simt"
BUILD = ROOT / "build" / "simt"

# The parts of csrc/cuda that need a device, and what stands in for them.
REPLACED = ("context.cpp", "gemm.cpp")


@functools.cache
def load() -> ModuleType:
    """Compile what has changed, and import it."""
    sources = [CSRC / name for name in ("bind_layers.cpp", "cell.cpp", "layer.cpp", "row_plan.cpp")]
    sources += sorted(p for p in (CSRC / "cuda").glob("*.cpp") if p.name not in REPLACED)
    sources += sorted(SIMT.glob("*.cpp"))
    BUILD.mkdir(parents=True, exist_ok=True)
    return cpp_extension.load(
        name="fastlstm_simt",
        sources=[str(p) for p in sources],
        extra_cflags=["-std=c++20", "-O1", "-g0", "-DFASTLSTM_SIMT", "-fno-math-errno"],
        extra_include_paths=[str(p) for p in (SIMT, CSRC, CSRC / "cuda")],
        build_directory=str(BUILD),
    )
