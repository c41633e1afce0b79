"""Builds the CUDA kernels and their host code for the emulator, as a module with _C's functions."""

import fcntl
import functools
from pathlib import Path
from types import ModuleType

from cell_kinds import MODES, TORCH_MODES
from torch.utils import cpp_extension

ROOT = Path(__file__).resolve().parents[2]
CSRC, SIMT = ROOT / "csrc", ROOT / "tests" / "simt"
BUILD = ROOT / "build" / "simt"

# The parts that need a device or the CPU's kernels, in place of which the emulator has its own.
REPLACED = ("context.cpp", "gemm.cpp", "backend.cpp", "bindings.cpp")


def kernel_sources(folder: Path) -> list[Path]:
    """Write a file for each .cu file below csrc/cuda, which includes it, for a C++ compiler.

    One that has its text already is left alone, so that ninja does not compile it again.
    """
    folder.mkdir(parents=True, exist_ok=True)
    sources = []
    for path in sorted((CSRC / "cuda").rglob("*.cu")):
        kernels = path.relative_to(CSRC)
        # Objects have the names of their sources without a folder.
        source = folder / f"{'_'.join(kernels.with_suffix('').parts[1:])}_cu.cpp"
        text = f'#include "{kernels}"\n'
        if not source.exists() or source.read_text() != text:
            source.write_text(text)
        sources.append(source)
    return sources


@functools.cache
def load() -> ModuleType:
    """Compile what has changed, and import it. One process does, others wait for it."""
    sources = [
        path
        for folder in ("bindings", "layer", "cuda")
        for path in sorted((CSRC / folder).rglob("*.cpp"))
        if path.name not in REPLACED
    ]
    sources += sorted(SIMT.glob("*.cpp"))
    BUILD.mkdir(parents=True, exist_ok=True)
    with (BUILD / "turn").open("w") as turn:
        # The system gives it back when its holder ends. A killed process leaves torch's lock behind,
        # for which others would wait forever.
        fcntl.flock(turn, fcntl.LOCK_EX)
        (BUILD / "lock").unlink(missing_ok=True)
        sources += kernel_sources(BUILD)
        flags = ["-std=c++20", "-O1", "-g0", "-DFASTLSTM_SIMT", "-fno-math-errno"]
        if set(MODES) > set(TORCH_MODES):
            flags.append("-DFASTLSTM_TEST_CELLS")
        return cpp_extension.load(
            name="fastlstm_simt",
            sources=[str(p) for p in sources],
            extra_cflags=flags,
            extra_include_paths=[str(p) for p in (SIMT, CSRC)],
            build_directory=str(BUILD),
        )
