"""A tiny layer of each cell, dtype and method on the GPU, forward and backward: work for a sanitizer.

    compute-sanitizer --tool memcheck python benchmarks/gpu/smoke.py
    python benchmarks/gpu/smoke.py --methods grid

Says what is at work before each part, since a kernel that fails takes all later calls with it, and
at last where fastlstm comes from. Exit code: 0; 1 where a number is not finite, or a method was not
possible. Whether the numbers are right is for the tests to say.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

sys.path.append(str(Path(__file__).resolve().parents[2]))

from benchmarks.common import cli
from benchmarks.common.devices import tf32_switches
from benchmarks.common.providers import CELLS, PROVIDERS, STEPS, Cell
from benchmarks.common.shapes import Shape, dtype_name
from benchmarks.gpu.kernels import METHODS, STEPWISE, choice, forced

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
# Odd sizes, where reading past an end shows; a row alone; a size that fills whole tiles.
SHAPES = (Shape(3, 5, 3, 7), Shape(4, 1, 8, 33), Shape(2, 16, 64, 64))
# Two tiles of 8 rows, or one of 16. Groups of several blocks, the last of them partly filled, with
# every number of units that a block can have; and every class of one block alone.
PLANS = {
    "block": {"block": (Shape(3, 9, 5, 33), Shape(3, 9, 8, 120))},
    "cluster": {
        "cluster:16x4x8": (Shape(3, 9, 5, 33),),
        "cluster:32x2x16": (Shape(3, 9, 8, 64),),
        "cluster:48x4x8": (Shape(3, 9, 8, 130),),
    },
    "grid": {
        "grid:16x3x16x1": (Shape(3, 9, 5, 33),),
        "grid:32x2x8x2": (Shape(3, 9, 8, 64),),
        "grid:48x3x8x1": (Shape(3, 9, 8, 130),),
    },
}
RAGGED = Shape(3, 9, 5, 33)
# Only 16-bit layers with several gates have this class.
LARGEST_BLOCK = Shape(3, 9, 8, 170)
LENGTHS = (3, 1, 0, 2, 3, 3, 1, 2, 2)


@dataclass(frozen=True)
class Call:
    """A layer, or a cell, and what it is called with.

    word: for FASTLSTM_CUDA_KERNEL. ragged: rows of several lengths with resets, both directions.
    tf32: whether float32 products may be that.
    """

    word: str
    cell: Cell
    shape: Shape
    dtype: torch.dtype
    ragged: bool = False
    tf32: bool = False

    def __str__(self) -> str:
        tf32 = " TF32" if self.tf32 else ""
        rows = ", lengths and resets" if self.ragged else ""
        return f"{self.word}: {self.cell.name} {self.dtype}{tf32} {self.shape}{rows}"

    def module(self) -> nn.Module:
        if not self.ragged:
            return PROVIDERS["fastlstm"].make(self.cell, self.shape.I, self.shape.H)
        import fastlstm

        kind = getattr(fastlstm, self.cell.module)
        return kind(self.shape.I, self.shape.H, bidirectional=True, **self.cell.options)

    def run(self, device: str) -> list[Tensor]:
        """Every output, and every gradient."""
        T, N, I, _ = self.shape  # noqa: E741
        module = self.module().to(device, self.dtype)
        size = (N, I) if self.cell in STEPS.values() else (T, N, I)
        x = torch.randn(size).to(device, self.dtype).requires_grad_()
        options = {}
        if self.ragged:
            reset = torch.rand(T, N, device=device) < 0.3
            options = {"lengths": list(LENGTHS), "reset": reset}
        with forced(self.word), tf32_switches(self.tf32):
            return gradients(module, x, options)


def gradients(module: nn.Module, x: Tensor, options: dict) -> list[Tensor]:
    outputs = flat(module(x, **options))
    cotangents = [torch.ones_like(output) for output in outputs]
    return [*outputs, *torch.autograd.grad(outputs, [x, *module.parameters()], cotangents)]


def flat(found: object) -> list[Tensor]:
    if isinstance(found, Tensor):
        return [found]
    return [tensor for part in found for tensor in flat(part)]


def calls(method: str) -> Iterator[Call]:
    """What shows every kernel of `method`."""
    if method == STEPWISE:
        cells = (*CELLS.values(), *STEPS.values())
        for cell, shape, dtype in itertools.product(cells, SHAPES, DTYPES):
            yield Call(method, cell, shape, dtype)
        for cell, dtype in itertools.product(CELLS.values(), DTYPES):
            yield Call(method, cell, RAGGED, dtype, ragged=True)
        return
    problems = [
        (word, cell, shape, dtype)
        for word, shapes in PLANS[method].items()
        for shape, dtype, cell in itertools.product(shapes, DTYPES, CELLS.values())
        if dtype != torch.float64
    ]
    if method == "block":
        dtypes, cells = (torch.bfloat16, torch.float16), (CELLS["lstm"], CELLS["gru"])
        problems += [(method, c, LARGEST_BLOCK, d) for c, d in itertools.product(cells, dtypes)]
    for problem, ragged in itertools.product(problems, (False, True)):
        is_float32 = problem[-1] == torch.float32
        # float32 without TF32 is computed by grids alone.
        for tf32 in (True, False) if is_float32 and method == "grid" else (is_float32,):
            yield Call(*problem, ragged, tf32)


def failures(call: Call, device: str) -> list[str]:
    """A line for what is wrong."""
    found = call.run(device)
    # Faults of kernels are reported with the call that follows: it had better be this one.
    if not all(tensor.isfinite().all().item() for tensor in found):
        return [f"{call}: not finite"]
    return [] if device == "cpu" or is_taken(call) else [f"{call}: computed step by step"]


def is_taken(call: Call) -> bool:
    """Whether the word was possible."""
    if call.cell in STEPS.values():
        return True
    asked = (call.cell.name, call.shape, dtype_name(call.dtype), call.tf32, call.word)
    return all(choice(*asked, backward=b).is_that_of(call.word) for b in (False, True))


def main(argv: Sequence[str] | None = None) -> int:
    parser = cli.Parser(prog="smoke.py", description=__doc__.partition("\n")[0])
    parser.add("--device", default="cuda")
    parser.add_names("--methods", "method", METHODS, ",".join(METHODS))
    args = parser.parse_args(argv)
    import fastlstm

    torch.manual_seed(0)
    count, wrong = 0, []
    for method in args.methods:
        for call in calls(method):
            print(call, flush=True)
            wrong += failures(call, args.device)
            count += 1
    for line in wrong:
        print(line)
    print(f"{count} calls, {len(wrong)} wrong, of {Path(fastlstm.__file__).parent}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
