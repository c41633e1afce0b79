"""Time one recurrent layer of several providers against each other, shape by shape.

    python benchmarks/bench_cells.py --grid full --mode train --csv rows.csv --plot ratios.png
    python benchmarks/bench_cells.py --cells gru,rnn --dtype float32,bfloat16
    python benchmarks/bench_cells.py --device cuda --grid gpu --tf32 both --budget 300

Each row is proved equal first (benchmarks/common/equality.py), then timed in alternating pairs
(benchmarks/common/timing.py). Exit code: 0; 1 where a check is red or a required ratio is missed; 2 for a
wrong command line; 130 where interrupted, after what was measured has been written.
benchmarks/README.md tells how to read the table.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

sys.path.append(str(Path(__file__).resolve().parents[1]))

from benchmarks import plot
from benchmarks.common import cli, measure, rows
from benchmarks.common.devices import DEVICES, Cpu
from benchmarks.common.layers import TF32_FLAGS, Row, Setting, all_settings, bench_shape
from benchmarks.common.providers import CELLS, PROVIDERS
from benchmarks.common.shapes import GRIDS, MODES, Shape

DTYPES = ("float32", "float64", "bfloat16", "float16")
SHAPE_COLUMNS = (("T", 4), ("N", 4), ("I", 4), ("H", 4))
SETTING_COLUMNS = (("cell", -8), ("mode", -5), ("dtype", -17))


def build_parser() -> cli.Parser:
    parser = cli.Parser(
        prog="bench_cells.py",
        description="Prove recurrent layers equal, then time them in alternating pairs.",
    )
    parser.add("--grid", choices=GRIDS, help="named shapes (default: quick)")
    parser.add("--shape", action="append", help="this shape in place of a grid; may be repeated")
    parser.add("--mode")
    parser.add_names("--cells", "cell", CELLS, "lstm,gru,rnn")
    parser.add_names("--providers", "provider", PROVIDERS, "torch,fastlstm")
    parser.add_names("--dtype", "dtype", DTYPES, "float32")
    parser.add("--device", choices=DEVICES, default="cpu")
    parser.add(
        "--tf32",
        choices=TF32_FLAGS,
        help="whether float32 products on CUDA may be TF32, which is torch's default for recurrent "
        "layers (default: on)",
    )
    parser.add("--threads", "--seconds", "--seed", "--csv")
    parser.add(
        "--budget",
        help="begin no row after that; all of the first shape is measured first, then all of the "
        "second, and what is left out is said",
    )
    parser.add(
        "--plot",
        type=Path,
        metavar="FILE",
        help="draw the ratios: of every row in --csv, or of this run where there is no --csv",
    )
    parser.add("--min-ratio")
    parser.add("--min-geomean", type=cli.positive_float, help="the same for the mean ratio")
    return parser


def check_arguments(parser: cli.Parser, args: argparse.Namespace, device: Cpu) -> None:
    """End the program with one line for what would otherwise fail after minutes of measuring."""
    if args.shape and args.grid:
        parser.error("argument --grid: not allowed with argument --shape")
    if args.tf32 is not None and args.device == "cpu":
        parser.error("argument --tf32: needs --device cuda")
    if len(args.providers) < 2:
        parser.error("argument --providers: needs a baseline and at least one more")
    reason = device.why_unusable()
    if reason is not None:
        parser.error(f"argument --device: {reason}")
    parser.check_plot(args.plot)


@dataclass
class Findings:
    """Of a setting. failures: how many tensors are wrong."""

    rows: list[Row] = field(default_factory=list)
    failures: int = 0


class Run:
    """The run that a command line asks for, and what it has found so far.

    csv: all rows. left_out: the shape of each that there was no time for. red: how many there are.
    """

    def __init__(
        self, args: argparse.Namespace, device: Cpu, conditions: Mapping[str, str]
    ) -> None:
        self.args = args
        self.device = device
        self.conditions = conditions
        self.deadline = None if args.budget is None else time.monotonic() + args.budget
        self.providers = [PROVIDERS[name] for name in args.providers]
        self.shapes = args.shape or GRIDS[args.grid or "quick"]
        cells = [CELLS[name] for name in args.cells]
        dtypes = [getattr(torch, name) for name in args.dtype]
        flags = TF32_FLAGS[args.tf32 or "on"] if args.device == "cuda" else ()
        settings = all_settings(cells, dtypes, [args.mode] if args.mode else MODES, flags)
        self.found = {setting: Findings() for setting in settings}
        self.csv: list[dict[str, object]] = []
        self.left_out: list[Shape] = []
        self.red = 0

    def measure(self) -> bool:
        """Print every table and summary; False where a tensor is wrong or a ratio missed.

        A table is one setting over all shapes or, with a budget, one shape in all settings: a run
        that must end early has everything about the first shapes then.
        """
        good = True
        if self.deadline is None:
            for setting in self.found:
                self._table(str(setting), [(setting, shape) for shape in self.shapes])
                good &= self._summary(setting)
            return good
        for shape in self.shapes:
            self._table(f"T,N,I,H = {shape}", [(setting, shape) for setting in self.found])
        print()
        for setting in self.found:
            good &= self._summary(setting)
        print(self.outcome())
        return good

    def outcome(self) -> str:
        """One line: how many rows there are, and which there are not."""
        text = f"{len(self.csv)} rows measured, {self.red} red"
        if not self.left_out:
            return text
        all_of_it = len(self.found)
        shapes = (
            str(shape) if count == all_of_it else f"{shape} ({count} of {all_of_it})"
            for shape, count in Counter(self.left_out).items()
        )
        return f"{text}, left out for want of time: {' · '.join(shapes)}"

    def _table(self, title: str, jobs: Sequence[tuple[Setting, Shape]]) -> None:
        table = None
        for setting, shape in jobs:
            if self.deadline is not None and time.monotonic() >= self.deadline:
                self.left_out.append(shape)
                continue
            if table is None:
                print(f"\n{title}: ratio = {self.providers[0].name} ms / provider ms")
                about = SHAPE_COLUMNS if self.deadline is None else SETTING_COLUMNS
                table = cli.Table((*about, ("provider", -12), *measure.columns(self.device)))
            self._row(setting, shape, table)

    def _row(self, setting: Setting, shape: Shape, table: cli.Table) -> None:
        about = [setting.cell.name, setting.mode, setting.precision]
        if self.deadline is None:
            about = [*map(str, shape)]
        args = self.args
        try:
            found, wrong = bench_shape(
                setting, shape, self.providers, self.device, args.seconds, args.seed
            )
        # Out of memory, or a call that a kernel refuses: of this row only.
        except RuntimeError as error:
            found, wrong = [], [f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"]
        for row in found:
            table.row([*about, row.provider, *row.measured.table_cells()])
        for line in wrong:
            table.row([*about, f"RED  {line}"])
        for row in found:
            if row.checked != shape:
                table.row([*about, f"checked at T = {row.checked.T}"])
            for remark in row.remarks:
                table.row([*about, f"torch.nn does not round to TF32: {remark}"])
        baseline = self.providers[0].name
        new = [row.as_csv(setting, baseline, self.device, self.conditions) for row in found]
        rows.append(args.csv, new)
        self.csv += new
        self.red += bool(wrong)
        self.found[setting].rows += found
        self.found[setting].failures += len(wrong)

    def _summary(self, setting: Setting) -> bool:
        """Print geometric mean and minimum of each provider's ratios; False where one is missed."""
        found = self.found[setting]
        if found.failures:
            print(f"{setting}: no summary: {found.failures} tensors are wrong")
            return False
        met = True
        for provider in dict.fromkeys(row.provider for row in found.rows):
            ratios = {
                row.shape: row.measured.stats.ratio
                for row in found.rows
                if row.provider == provider
            }
            mean = statistics.geometric_mean(ratios.values())
            worst = min(ratios, key=ratios.__getitem__)
            print(
                f"{setting}, {provider} against {self.providers[0].name}: geometric mean "
                f"{mean:.2f}x over {len(ratios)} shapes, minimum {ratios[worst]:.2f}x at {worst}"
            )
            for what, ratio, required in (
                ("geometric mean", mean, self.args.min_geomean),
                ("minimum", ratios[worst], self.args.min_ratio),
            ):
                if required is not None and ratio < required:
                    print(f"MISSED: {what} {ratio:.3f}x is below {required:g}x")
                    met = False
        return met


def main(argv: Sequence[str] | None = None) -> int:
    parser = build_parser()
    args = parser.parse_args(argv)
    device = DEVICES[args.device]()
    check_arguments(parser, args, device)
    cells = [CELLS[name] for name in args.cells]
    run = Run(args, device, parser.begin(args, cells, args.providers, device))
    try:
        code = 0 if run.measure() else 1
    except KeyboardInterrupt:
        print(f"interrupted: {run.outcome()}")
        code = cli.INTERRUPTED
    if args.plot is not None:
        drawn = run.csv if args.csv is None else rows.read(args.csv)
        if drawn:
            plot.draw(drawn, args.plot)
    return code


if __name__ == "__main__":
    # The collector runs before every timing and would search all of torch: 0.2 s of each row.
    gc.freeze()
    sys.exit(main())
