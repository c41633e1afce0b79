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


def kernel_sources(folder: Path) -> list[Path]:
    """Write a file for each .cu file of csrc/cuda, which includes it, for a C++ compiler.

    One that has its text already is left alone, so that ninja does not compile it again.
    """
    folder.mkdir(parents=True, exist_ok=True)
    sources = []
    for kernels in sorted((CSRC / "cuda").glob("*.cu")):
        # Objects have the names of their sources without a folder.
        source = folder / f"{kernels.stem}_cu.cpp"
        text = f'#include "cuda/{kernels.name}"\n'
        if not source.exists() or source.read_text() != text:
            source.write_text(text)
        sources.append(source)
    return sources


@functools.cache
def load() -> ModuleType:
    """Compile what has changed, and import it."""
    sources = [
        CSRC / name
        for name in ("bind_layers.cpp", "cell.cpp", "layer.cpp", "outputs.cpp", "row_plan.cpp")
    ]
    sources += sorted(p for p in (CSRC / "cuda").glob("*.cpp") if p.name not in REPLACED)
    sources += sorted(SIMT.glob("*.cpp"))
    sources += kernel_sources(BUILD)
    return cpp_extension.load(
        name="fastlstm_simt",
        sources=[str(p) for p in sources],
        extra_cflags=["-std=c++20", "-O1", "-g0", "-DFASTLSTM_SIMT", "-fno-math-errno"],
        extra_include_paths=[str(p) for p in (SIMT, CSRC, CSRC / "cuda")],
        build_directory=str(BUILD),
    )
