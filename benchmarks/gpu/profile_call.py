"""One call of a layer between cudaProfilerStart and cudaProfilerStop: work for Nsight Compute.

    ncu --profile-from-start off python benchmarks/gpu/profile_call.py --cell lstm --mode train \\
        --dtype bfloat16 --shape 512,16,256,256

Where the layer is computed step by step, a few steps are enough, and no more are taken.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import torch

sys.path.append(str(Path(__file__).resolve().parents[2]))

from benchmarks.common import cli, layers
from benchmarks.common.devices import DEVICES, Cpu
from benchmarks.common.equality import Problem
from benchmarks.common.layers import TF32_NAMES
from benchmarks.common.machine import wanted_kernel
from benchmarks.common.providers import CELLS, PROVIDERS
from benchmarks.common.shapes import Shape, dtype_name
from benchmarks.gpu.kernels import STEPWISE, choice

STEPS = 3


def is_stepwise(problem: Problem, tf32: bool) -> bool:
    """Whether this is what is taken for forward."""
    asked = (problem.cell.name, problem.shape, dtype_name(problem.dtype), tf32, wanted_kernel())
    return choice(*asked, backward=False).plan == STEPWISE


def build_parser() -> cli.Parser:
    parser = cli.Parser(
        prog="profile_call.py", description="One call of a layer, for Nsight Compute."
    )
    parser.add("--cell", choices=CELLS, required=True)
    parser.add("--mode", "--shape", required=True)
    parser.add("--dtype", required=True, help="as torch names it")
    parser.add("--tf32", choices=TF32_NAMES.values(), default="on")
    return parser


def main(
    argv: Sequence[str] | None = None,
    device: Cpu | None = None,
    profiler: ModuleType = torch.cuda.profiler,
) -> int:
    args = build_parser().parse_args(argv)
    device = device or DEVICES["cuda"]()
    dtype = getattr(torch, args.dtype)

    def problem(shape: Shape) -> Problem:
        return Problem(CELLS[args.cell], shape, args.mode, dtype, device.tensors)

    with device.precision(args.tf32 == "on"):
        shape = args.shape
        stepwise = is_stepwise(problem(shape), args.tf32 == "on")
        if stepwise:
            shape = shape._replace(T=min(shape.T, STEPS))
        call = layers.contender(problem(shape), PROVIDERS["fastlstm"])
        # What is set up once, such as cuBLAS, is not to be profiled.
        call.run()
        call.prepare()
        device.synchronize()
        profiler.start()
        call.run()
        device.synchronize()
        profiler.stop()
    how = "step by step" if stepwise else "many steps a launch"
    print(f"profiled {args.cell}, {args.mode}, {args.dtype}, T,N,I,H = {shape}, {how}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
