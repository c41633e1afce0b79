"""One call of a layer between cudaProfilerStart and cudaProfilerStop: work for Nsight Compute.

    ncu --profile-from-start off python benchmarks/gpu/profile_call.py --cell lstm --mode train \\
        --dtype bfloat16 --shape 512,16,256,256

Where the layer is computed step by step, a few steps are enough, and no more are taken.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import torch

sys.path.append(str(Path(__file__).resolve().parents[2]))

from benchmarks.common import cli, layers
from benchmarks.common.devices import DEVICES, Device
from benchmarks.common.equality import Problem
from benchmarks.common.providers import CELLS, PROVIDERS
from benchmarks.common.shapes import MODES, Shape
from benchmarks.gpu import kernels as kernel_choice
from benchmarks.gpu.kernels import STEPWISE
from benchmarks.gpu.methods.choices import choice

STEPS = 3


def is_stepwise(problem: Problem, tf32: bool) -> bool:
    """Whether this is what is taken for forward."""
    found = choice(
        problem.cell.name,
        problem.shape,
        cli.dtype_name(problem.dtype),
        tf32,
        kernel_choice.wanted(),
        backward=False,
    )
    return found.plan == STEPWISE


def build_parser() -> argparse.ArgumentParser:
    parser = cli.LineParser(
        prog="profile_call.py", description="One call of a layer, for Nsight Compute."
    )
    parser.add_argument("--cell", choices=CELLS, required=True)
    parser.add_argument("--mode", choices=MODES, required=True)
    parser.add_argument("--dtype", required=True, help="as torch names it")
    parser.add_argument("--shape", type=cli.shape_argument, required=True, metavar="T,N,I,H")
    parser.add_argument("--tf32", choices=("on", "off", "none"), default="on")
    return parser


def main(
    argv: Sequence[str] | None = None,
    device: Device | None = None,
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
