"""Time one recurrent layer of several providers against each other, shape by shape.

    python benchmarks/bench_cells.py --grid full --mode train --csv rows.csv --plot ratios.png
    python benchmarks/bench_cells.py --cells gru,rnn --dtype float32,bfloat16

Each row is proved equal first (benchmarks/equality.py), then timed in alternating pairs
(benchmarks/timing.py). Exit code: 0; 1 where a check is red or a required ratio is missed; 2 for a
wrong command line. benchmarks/README.md tells how to read the table.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

sys.path.append(str(Path(__file__).resolve().parents[1]))

from benchmarks import cli, csv_rows, equality, measure, plot
from benchmarks.equality import Problem
from benchmarks.machine import environment
from benchmarks.measure import Measured
from benchmarks.providers import CELLS, PROVIDERS, Cell, Provider, why_missing
from benchmarks.shapes import GRIDS, MODES, Shape, flops
from benchmarks.timing import Contender, geometric_mean

DTYPES = {
    "float32": torch.float32,
    "float64": torch.float64,
    "bfloat16": torch.bfloat16,
}
COLUMNS = (
    ("T", 4),
    ("N", 4),
    ("I", 4),
    ("H", 4),
    ("provider", -12),
    *measure.COLUMNS,
)


@dataclass(frozen=True)
class Row:
    """One measured shape of one provider."""

    shape: Shape
    provider: str
    measured: Measured


def contender(problem: Problem, provider: Provider) -> Contender:
    """The call of `provider` that is timed: in train mode forward, and backward to every gradient,
    dx included, from a fixed cotangent of the output; in infer mode forward without autograd."""
    module = problem.model(provider)
    x = problem.tensor(problem.x, leaf=True)
    if problem.mode == "infer":

        def forward() -> object:
            with torch.no_grad():
                return module(x)

        return Contender(provider.name, forward, context=provider.context)

    grad_output = problem.tensor(problem.grad_output)
    leaves = [x, *module.parameters()]

    def forget_gradients() -> None:
        for leaf in leaves:
            leaf.grad = None

    def forward_and_backward() -> object:
        output, final = module(x)
        output.backward(grad_output)
        return output, final

    return Contender(provider.name, forward_and_backward, forget_gradients, provider.context)


def bench_shape(
    problem: Problem, providers: Sequence[Provider], seconds: float
) -> tuple[list[Row], list[str]]:
    """Check and time providers[1:] against providers[0] on one problem.

    Returns the rows of those that are equal, and a line for each tensor that is not. Where the
    baseline itself is wrong there is no row.
    """
    baseline, *others = providers
    failures = {provider.name: equality.check(problem, provider) for provider in providers}
    lines = [f"{name}: {line}" for name, found in failures.items() for line in found]
    rows = []
    for other in others:
        if failures[baseline.name] or failures[other.name]:
            continue
        measured = measure.measure(
            contender(problem, baseline),
            contender(problem, other),
            operations=flops(problem.cell.gates, problem.shape, problem.mode),
            dtype=problem.dtype,
            seconds=seconds,
            seed=problem.seed,
        )
        rows.append(Row(problem.shape, other.name, measured))
    return rows, lines


def report(
    what: str,
    rows: Sequence[Row],
    baseline: str,
    min_ratio: float | None,
    min_geomean: float | None,
) -> bool:
    """Print geometric mean and minimum of each provider's ratios; False where one is missed.

    what: cell, mode and dtype of the rows.
    """
    met = True
    for provider in dict.fromkeys(row.provider for row in rows):
        ratios = {row.shape: row.measured.stats.ratio for row in rows if row.provider == provider}
        mean = geometric_mean(list(ratios.values()))
        worst = min(ratios, key=ratios.__getitem__)
        print(
            f"{what}, {provider} against {baseline}: geometric mean {mean:.2f}x over {len(ratios)} "
            f"shapes, minimum {ratios[worst]:.2f}x at {worst}"
        )
        if min_geomean is not None and mean < min_geomean:
            print(f"MISSED: geometric mean {mean:.3f}x is below {min_geomean:g}x")
            met = False
        if min_ratio is not None and ratios[worst] < min_ratio:
            print(f"MISSED: minimum {ratios[worst]:.3f}x is below {min_ratio:g}x")
            met = False
    return met


def build_parser() -> argparse.ArgumentParser:
    parser = cli.LineParser(
        prog="bench_cells.py",
        description="Prove recurrent layers equal, then time them in alternating pairs.",
    )
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--grid", choices=GRIDS, default="quick", help="named shapes (default: %(default)s)"
    )
    which.add_argument(
        "--shape",
        type=cli.shape_argument,
        action="append",
        metavar="T,N,I,H",
        help="this shape in place of a grid; may be repeated",
    )
    parser.add_argument("--mode", choices=MODES, help="default: infer, then train")
    cli.add_choices(parser, "--cells", "cell", tuple(CELLS), default="lstm,gru,rnn")
    parser.add_argument(
        "--providers",
        type=cli.names_argument("provider", PROVIDERS),
        default="torch,fastlstm",
        help=f"out of {','.join(PROVIDERS)}; the first is the baseline of every ratio "
        "(default: %(default)s)",
    )
    cli.add_choices(parser, "--dtype", "dtype", tuple(DTYPES), default="float32")
    parser.add_argument("--device", choices=("cpu",), default="cpu")
    cli.add_run_options(parser)
    parser.add_argument(
        "--plot",
        type=Path,
        metavar="FILE",
        help="draw the ratios: of every row in --csv, or of this run where there is no --csv",
    )
    parser.add_argument(
        "--min-ratio", type=cli.positive_float, help="exit code 1 where a shape's ratio is below"
    )
    parser.add_argument(
        "--min-geomean", type=cli.positive_float, help="exit code 1 where the mean ratio is below"
    )
    return parser


def check_arguments(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """End the program with one line for what would otherwise fail after minutes of measuring."""
    if len(args.providers) < 2:
        parser.error("argument --providers: needs a baseline and at least one more")
    for name in args.providers:
        for cell in args.cells:
            reason = why_missing(PROVIDERS[name], CELLS[cell])
            if reason is not None:
                parser.error(f"argument --providers: {reason}")
    cli.check_csv(parser, args.csv)
    cli.check_plot(parser, args.plot)


def bench_grid(
    cell: Cell,
    mode: str,
    dtype: torch.dtype,
    args: argparse.Namespace,
    conditions: Mapping[str, str],
) -> tuple[bool, list[dict[str, object]]]:
    """Print the table of one cell, mode and dtype.

    Returns whether every tensor is right and every required ratio met, and the rows as CSV.
    """
    providers = [PROVIDERS[name] for name in args.providers]
    baseline = providers[0].name
    what = f"{cell.name}, {mode}, {cli.dtype_name(dtype)}"
    print(f"\n{what}: ratio = {baseline} ms / provider ms")
    table = cli.Table(COLUMNS)
    rows, failures, kept = [], [], []
    for shape in args.shape or GRIDS[args.grid]:
        problem = Problem(cell, shape, mode, dtype, args.device, args.seed)
        found, wrong = bench_shape(problem, providers, args.seconds)
        for row in found:
            table.row([*map(str, shape), row.provider, *row.measured.table_cells()])
        for line in wrong:
            table.row([*map(str, shape), f"RED  {line}"])
        new = [
            cli.csv_row(
                conditions,
                cell=cell.name,
                mode=mode,
                provider=row.provider,
                baseline=baseline,
                shape=shape,
                dtype=dtype,
                stats=row.measured.stats,
                gflops=row.measured.gflops,
                peak_percent=row.measured.peak_percent,
            )
            for row in found
        ]
        if args.csv is not None and new:
            csv_rows.append_rows(args.csv, new)
        rows, failures, kept = rows + found, failures + wrong, kept + new
    if failures:
        print(f"{what}: no summary: {len(failures)} tensors are wrong")
        return False, kept
    return report(what, rows, baseline, args.min_ratio, args.min_geomean), kept


def main(argv: Sequence[str] | None = None) -> int:
    parser = build_parser()
    args = parser.parse_args(argv)
    check_arguments(parser, args)
    torch.set_num_threads(args.threads)
    conditions = environment(args.device)
    cli.print_conditions(conditions)

    succeeded = True
    kept = []
    modes = [args.mode] if args.mode else MODES
    for cell, dtype, mode in itertools.product(args.cells, args.dtype, modes):
        good, new = bench_grid(CELLS[cell], mode, DTYPES[dtype], args, conditions)
        succeeded, kept = succeeded and good, kept + new

    if args.plot is not None:
        drawn = kept if args.csv is None else csv_rows.read_rows(args.csv)
        if drawn:
            plot.draw(drawn, args.plot)
    return 0 if succeeded else 1


if __name__ == "__main__":
    sys.exit(main())
