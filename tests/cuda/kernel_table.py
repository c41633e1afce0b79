"""The table of the persistent kernels, docs/cuda_kernels.md, from what the compiler made of them.

    python tests/cuda/cuda_build.py build/cuda --table docs/cuda_kernels.md
    python tests/cuda/kernel_table.py docs/cuda_kernels.md [LIBRARY_OR_OBJECT...]

Registers and stack come from cuobjdump, shared memory and the largest H from the kernels' own
headers (kernel_layouts.cpp). Without a library, registers and stack stay as the document has them:
for when only the layouts have changed.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from cuda_build import Kernel, demangle, dump_of, parse_kernels

ROOT = Path(__file__).resolve().parents[2]
LAYOUTS = ROOT / "tests" / "cuda" / "kernel_layouts.cpp"
ARCHS = ("sm_80", "sm_90a")
KIB = 1024


@dataclass(frozen=True)
class Gpu:
    """What of a GPU decides how many blocks it has room for.

    arch: whose kernels are counted. block_kib, kib: shared memory of a block, and of a
    multiprocessor. cluster: the most blocks of one, 0 without.
    """

    name: str
    arch: str
    multiprocessors: int
    block_kib: int
    kib: int
    threads: int
    cluster: int = 0


# Data sheets, and the technical specifications per compute capability in CUDA's programming guide.
GPUS = (
    Gpu("H100", "sm_90a", 132, 227, 228, 2048, cluster=16),
    Gpu("A100", "sm_80", 108, 163, 164, 2048),
    Gpu("RTX 4090", "sm_80", 128, 99, 100, 1536),
)
REGISTERS, REGISTER_UNIT, WARP_UNIT = 65536, 256, 4
RESERVED_KIB = 1  # of every block, for the system

FAMILIES = ("block", "cluster", "grid")
DIRECTIONS = ("forward", "backward")
CELLS = {"Lstm": "LSTM", "Gru": "GRU", "RnnTanh": "RNN_TANH", "RnnRelu": "RNN_RELU"}
DTYPES = {"BFloat16": "bfloat16", "Half": "float16", "float": "TF32", "Float3x": "float32"}
OPERANDS = {"bfloat16": "16-bit", "float16": "16-bit", "TF32": "TF32", "float32": "float32"}

_KERNEL = re.compile(
    r"(Block|Group)(Fwd|Bwd)(?:Job)?<(?:\w+::)*(\w+)Cell, (?:\w+::)*(\w+), (\d+)"
    r"(?:, (?:\w+::)*(Cluster|Grid)\w+)?>"
)


class Instance(NamedTuple):
    """A persistent kernel. size: units of a block of a group; of one block the index of its class,
    and in a Layout the largest H of that."""

    family: str
    direction: str
    cell: str
    dtype: str
    size: int


class Layout(NamedTuple):
    """The largest H that a kernel has room for (0: none), and what its blocks take there."""

    H: int
    threads: int
    bytes: int


# Kernels by architecture, and layouts by the name of a GPU.
Found = dict[Instance, dict[str, Kernel]]
Known = dict[str, dict[Instance, Layout]]


def instance(name: str) -> Instance | None:
    """What the name of a kernel, as in the source, says; None of another kernel."""
    match = _KERNEL.search(name)
    if match is None:
        return None
    kind, direction, cell, dtype, size, exchange = match.groups()
    family = "block" if kind == "Block" else exchange.lower()
    return Instance(
        family,
        "forward" if direction == "Fwd" else "backward",
        CELLS[cell],
        DTYPES[dtype],
        int(size),
    )


def instances(kernels: Iterable[Kernel]) -> Found:
    """The persistent ones of `kernels`, by architecture."""
    kernels = list(kernels)
    found: Found = {}
    names = demangle("\n".join(kernel.name for kernel in kernels)).splitlines()
    for kernel, name in zip(kernels, names, strict=True):
        if (key := instance(name)) is not None:
            found.setdefault(key, {})[kernel.arch] = kernel
    return found


def layout_program(folder: Path) -> Path:
    """Compile the program that prints layouts."""
    program = folder / "kernel_layouts"
    command = [os.environ.get("CXX", "g++"), "-std=c++17", "-O1", "-DFASTLSTM_SIMT"]
    command += [f"-I{ROOT / 'csrc'}", f"-I{ROOT / 'tests' / 'simt'}", str(LAYOUTS)]
    subprocess.run([*command, "-o", str(program)], check=True, capture_output=True, text=True)
    return program


def layouts(program: Path, gpu: Gpu) -> dict[Instance, Layout]:
    """What each kernel needs on `gpu`, with operands in place of the dtype."""
    arguments = [str(n) for n in (gpu.multiprocessors, gpu.block_kib, gpu.cluster)]
    output = subprocess.run([str(program), *arguments], check=True, capture_output=True, text=True)
    found = {}
    for line in output.stdout.splitlines():
        *names, size, H, threads, bytes_ = line.split()
        found[Instance(*names, int(size))] = Layout(int(H), int(threads), int(bytes_))
    return found


def all_layouts() -> Known:
    """Of every GPU, by its name."""
    with tempfile.TemporaryDirectory() as folder:
        program = layout_program(Path(folder))
        return {gpu.name: layouts(program, gpu) for gpu in GPUS}


def with_class(key: Instance, known: Iterable[Instance]) -> Instance:
    """`key` as layouts have it: with operands and, of one block, the H of its class."""
    key = key._replace(dtype=OPERANDS[key.dtype])
    if key.family != "block":
        return key
    sizes = sorted(other.size for other in known if other[:4] == key[:4])
    return key._replace(size=sizes[key.size])


def blocks_that_fit(gpu: Gpu, registers: int, layout: Layout) -> int:
    """On a multiprocessor."""
    warps = layout.threads // 32
    of_warp = -(-registers * 32 // REGISTER_UNIT) * REGISTER_UNIT
    warps_that_fit = REGISTERS // of_warp // WARP_UNIT * WARP_UNIT
    by_memory = gpu.kib * KIB // (layout.bytes + RESERVED_KIB * KIB)
    return min(warps_that_fit // warps, by_memory, gpu.threads // layout.threads)


def cells_of(gpu: Gpu, kernels: dict[str, Kernel], layout: Layout) -> list[str]:
    """H, KiB and blocks."""
    if layout.H == 0:
        return ["-", "-", "-"]
    blocks = blocks_that_fit(gpu, kernels[gpu.arch].registers, layout)
    return [str(layout.H), f"{layout.bytes / KIB:.1f}", str(blocks)]


def gpus_of(family: str) -> list[Gpu]:
    return [gpu for gpu in GPUS if family != "cluster" or gpu.cluster]


def archs_of(family: str) -> list[str]:
    """Below sm_90 the kernels of clusters are empty."""
    return [arch for arch in ARCHS if family != "cluster" or arch == "sm_90a"]


def header(family: str) -> list[str]:
    size = "class of H" if family == "block" else "units"
    columns = ["cell", "dtype", size, *archs_of(family), "stack"]
    for gpu in gpus_of(family):
        columns += [f"{gpu.name}: H", "KiB", "blocks"]
    return [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]


def rows(family: str, direction: str, found: Found, known: Known) -> Iterator[str]:
    """The rows of a table, cell by cell."""
    order = {name: i for names in (CELLS, DTYPES) for i, name in enumerate(names.values())}
    own = [key for key in found if key[:2] == (family, direction)]
    for key in sorted(own, key=lambda k: (order[k.cell], order[k.dtype], k.size)):
        kernels = found[key]
        archs = archs_of(family)
        stack = max(kernels[arch].stack + kernels[arch].local for arch in archs)
        place = with_class(key, known[GPUS[0].name])
        cells = [key.cell, key.dtype, str(place.size)]
        cells += [*(str(kernels[arch].registers) for arch in archs), str(stack)]
        for gpu in gpus_of(family):
            cells += cells_of(gpu, kernels, known[gpu.name][place])
        yield f"| {' | '.join(cells)} |"


INTRODUCTION = """\
# The persistent kernels, one by one

Made by `python tests/cuda/cuda_build.py build/cuda --table docs/cuda_kernels.md` with TORCH_CUDA_ARCH_LIST="8.0 9.0a": what the compiler
made of each kernel, and what has room for it. Nothing here was measured. `python tests/cuda/kernel_table.py docs/cuda_kernels.md` brings all but registers
and stack up to date, in a second. `docs/cuda.md` says what the kernels do.

- **sm_80, sm_90a**: registers a thread. **stack**: bytes of a thread's stack, spilled registers among them, on either of the two.
- **H**: the largest hidden size that the kernel has room for, in tiles of 8 rows of the batch. Of a group the multiprocessors set a limit as
  well, of a cluster its 16 blocks; a group of the grid kernels is then the whole GPU. What is larger goes to other kernels.
- **KiB**: shared memory of a block at that H. **blocks**: how many such blocks a multiprocessor has room for, by registers, shared memory and
  threads. The grid kernels are launched with one.
- **float32** is that without TF32: each product is made of three of TF32, by grids alone.
- The RTX 4090's numbers are those of the kernels for sm_80.
"""


def table(found: Found, known: Known) -> str:
    """The whole document.

    Raises:
        ValueError: there is no persistent kernel, or one lacks an architecture.
    """
    if not found:
        raise ValueError("there are no persistent kernels")
    for key, by_arch in found.items():
        if missing := set(archs_of(key.family)) - set(by_arch):
            raise ValueError(f"{' '.join(map(str, key))} is not compiled for {missing.pop()}")
    parts = [INTRODUCTION]
    for family in FAMILIES:
        for direction in DIRECTIONS:
            lines = [*header(family), *rows(family, direction, found, known)]
            parts.append(f"## {family}, {direction}\n\n" + "\n".join(lines) + "\n")
    return "\n".join(parts)


def recorded(document: str) -> Found:
    """The kernels that `document`, made by `table`, is about."""
    found: Found = {}
    for part in document.split("\n## ")[1:]:
        family, direction = part.partition("\n")[0].split(", ")
        archs = archs_of(family)
        for line in part.splitlines():
            cells = [text.strip() for text in line.strip("|").split("|")]
            if len(cells) < 3 or not cells[2].isdigit():
                continue
            cell, dtype, size, *numbers = cells
            key = Instance(family, direction, cell, dtype, int(size))
            if family == "block":
                # The classes come in the order of their index.
                key = key._replace(size=sum(other[:4] == key[:4] for other in found))
            stack = int(numbers[len(archs)])
            found[key] = {
                arch: Kernel(arch, "", int(registers), stack, 0)
                for arch, registers in zip(archs, numbers, strict=False)
            }
    return found


def write_table(path: Path, binaries: Sequence[Path]) -> None:
    """Write the document about the kernels in `binaries` to `path`.

    Raises:
        ValueError: as `table`; or cuobjdump was not found.
    """
    kernels = [kernel for binary in binaries for kernel in parse_kernels(dump_of(binary))]
    path.write_text(table(instances(kernels), all_layouts()))


def renew_layouts(path: Path) -> None:
    """Write the document at `path` anew, with its registers and with the layouts of today."""
    path.write_text(table(recorded(path.read_text()), all_layouts()))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("out", type=Path, help="the document")
    parser.add_argument("binaries", type=Path, nargs="*", help="libraries or objects with kernels")
    args = parser.parse_args(arguments)
    try:
        if args.binaries:
            write_table(args.out, args.binaries)
        else:
            renew_layouts(args.out)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
