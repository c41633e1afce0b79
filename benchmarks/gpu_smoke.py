"""A tiny layer of each cell and dtype on the GPU, forward and backward: work for a sanitizer.

    compute-sanitizer --tool memcheck python benchmarks/gpu_smoke.py

Says where fastlstm comes from. Exit code: 0; 1 where a number is not finite. Whether the numbers
are right is for the tests to say.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

sys.path.append(str(Path(__file__).resolve().parents[1]))

from benchmarks.providers import CELLS, PROVIDERS, STEPS, Cell
from benchmarks.shapes import Shape

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
# Odd sizes, where reading past an end shows; a row alone; a size that fills whole tiles.
SHAPES = (Shape(3, 5, 3, 7), Shape(4, 1, 8, 33), Shape(2, 16, 64, 64))


def gradients(module: nn.Module, x: Tensor) -> list[Tensor]:
    """Every output of a call on `x`, and every gradient."""
    x.requires_grad_()
    found = module(x)
    outputs = flat(found)
    leaves = [x, *module.parameters()]
    cotangents = [torch.ones_like(output) for output in outputs]
    return [*outputs, *torch.autograd.grad(outputs, leaves, cotangents)]


def flat(found: object) -> list[Tensor]:
    if isinstance(found, Tensor):
        return [found]
    return [tensor for part in found for tensor in flat(part)]


def failures(cell: Cell, shape: Shape, dtype: torch.dtype, device: str) -> list[str]:
    """A line where something is not finite."""
    module = PROVIDERS["fastlstm"].make(cell, shape.I, shape.H).to(device, dtype)
    size = (shape.N, shape.I) if cell in STEPS.values() else (shape.T, shape.N, shape.I)
    found = gradients(module, torch.randn(size).to(device, dtype))
    # Faults of kernels are reported with the call that follows: it had better be this one.
    finite = all(tensor.isfinite().all().item() for tensor in found)
    return [] if finite else [f"{cell.name} {dtype} {shape}: not finite"]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="gpu_smoke.py", description=__doc__.partition("\n")[0])
    parser.add_argument("--device", default="cuda", help="default: %(default)s")
    args = parser.parse_args(argv)
    import fastlstm

    torch.manual_seed(0)
    jobs = list(itertools.product((*CELLS.values(), *STEPS.values()), SHAPES, DTYPES))
    wrong = [line for job in jobs for line in failures(*job, args.device)]
    for line in wrong:
        print(line)
    print(f"{len(jobs)} calls, {len(wrong)} wrong, of {Path(fastlstm.__file__).parent}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
