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
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

sys.path.append(str(Path(__file__).resolve().parents[1]))

from benchmarks import plot
from benchmarks.common import cli, csv_rows, measure, plan
from benchmarks.common.devices import DEVICES, Device
from benchmarks.common.layers import Row, as_csv, bench_job
from benchmarks.common.plan import Job, Setting
from benchmarks.common.providers import CELLS, PROVIDERS, why_missing
from benchmarks.common.shapes import GRIDS, MODES
from benchmarks.common.timing import geometric_mean

DTYPES = {
    "float32": torch.float32,
    "float64": torch.float64,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
TF32_FLAGS = {"on": (True,), "off": (False,), "both": (True, False)}
SHAPE_COLUMNS = (("T", 4), ("N", 4), ("I", 4), ("H", 4))
SETTING_COLUMNS = (("cell", -8), ("mode", -5), ("dtype", -17))
INTERRUPTED = 130


@dataclass
class Findings:
    """What a run has found so far. failures: how many tensors are wrong; red: in how many jobs."""

    rows: dict[Setting, list[Row]] = field(default_factory=dict)
    failures: dict[Setting, int] = field(default_factory=dict)
    csv: list[dict[str, object]] = field(default_factory=list)
    left_out: list[Job] = field(default_factory=list)
    red: int = 0

    def add(self, setting: Setting, rows: Sequence[Row], failures: int) -> None:
        self.rows.setdefault(setting, []).extend(rows)
        self.failures[setting] = self.failures.get(setting, 0) + failures
        self.red += failures > 0


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
        ratios = {
            row.job.shape: row.measured.stats.ratio for row in rows if row.provider == provider
        }
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
    parser.add_argument("--device", choices=DEVICES, default="cpu", help="default: %(default)s")
    parser.add_argument(
        "--tf32",
        choices=TF32_FLAGS,
        help="whether float32 products on CUDA may be TF32, which is torch's default for recurrent "
        "layers (default: on)",
    )
    cli.add_run_options(parser)
    parser.add_argument(
        "--budget",
        type=cli.positive_float,
        metavar="SECONDS",
        help="begin no row after that; all of the first shape is measured first, then all of the "
        "second, and what is left out is said",
    )
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


def check_arguments(
    parser: argparse.ArgumentParser, args: argparse.Namespace, device: Device
) -> None:
    """End the program with one line for what would otherwise fail after minutes of measuring."""
    if args.tf32 is not None and args.device == "cpu":
        parser.error("argument --tf32: needs --device cuda")
    if len(args.providers) < 2:
        parser.error("argument --providers: needs a baseline and at least one more")
    reason = device.why_unusable()
    if reason is not None:
        parser.error(f"argument --device: {reason}")
    for name in args.providers:
        for cell in args.cells:
            reason = why_missing(PROVIDERS[name], CELLS[cell], device.tensors)
            if reason is not None:
                parser.error(f"argument --providers: {reason}")
    cli.check_csv(parser, args.csv)
    cli.check_plot(parser, args.plot)


class Run:
    """The run that a command line asks for. What it has found is in `findings`, row by row."""

    def __init__(self, args: argparse.Namespace, device: Device) -> None:
        self.args = args
        self.device = device
        self.deadline = None if args.budget is None else time.monotonic() + args.budget
        self.providers = [PROVIDERS[name] for name in args.providers]
        self.conditions = device.conditions()
        self.settings = plan.settings(
            [CELLS[name] for name in args.cells],
            [DTYPES[name] for name in args.dtype],
            [args.mode] if args.mode else MODES,
            TF32_FLAGS[args.tf32 or "on"] if args.device == "cuda" else (),
        )
        self.shapes = args.shape or GRIDS[args.grid]
        self.findings = Findings()

    def measure(self) -> bool:
        """Print every table and summary; False where a tensor is wrong or a ratio missed."""
        cli.print_conditions(self.conditions)
        by_shape = self.deadline is not None
        good = True
        for jobs in plan.tables(self.settings, self.shapes, by_shape=by_shape):
            self._table(jobs, by_shape)
            if not by_shape:
                good &= self._summary(jobs[0].setting)
        if by_shape:
            print()
            for setting in self.settings:
                good &= self._summary(setting)
            print(self.outcome())
        return good

    def outcome(self) -> str:
        """One line: how many rows there are, and which there are not."""
        findings = self.findings
        text = f"{len(findings.csv)} rows measured, {findings.red} red"
        if findings.left_out:
            shapes = plan.left_out_text(findings.left_out, len(self.settings))
            text += f", left out for want of time: {shapes}"
        return text

    def _table(self, jobs: Sequence[Job], by_shape: bool) -> None:
        baseline = self.providers[0].name
        title = f"T,N,I,H = {jobs[0].shape}" if by_shape else jobs[0].setting
        table = None
        for job in jobs:
            if self.deadline is not None and time.monotonic() >= self.deadline:
                self.findings.left_out.append(job)
                continue
            if table is None:
                print(f"\n{title}: ratio = {baseline} ms / provider ms")
                about = SETTING_COLUMNS if by_shape else SHAPE_COLUMNS
                table = cli.Table((*about, ("provider", -12), *measure.columns(self.device)))
            self._job(job, table, by_shape)

    def _job(self, job: Job, table: cli.Table, by_shape: bool) -> None:
        setting = job.setting
        if by_shape:
            about = [setting.cell.name, setting.mode, setting.precision]
        else:
            about = [*map(str, job.shape)]
        try:
            rows, wrong = bench_job(
                job, self.providers, self.device, self.args.seconds, self.args.seed
            )
        # Out of memory, or a call that a kernel refuses: of this row only.
        except RuntimeError as error:
            rows, wrong = [], [f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"]
        for row in rows:
            table.row([*about, row.provider, *row.measured.table_cells()])
        for line in wrong:
            table.row([*about, f"RED  {line}"])
        for row in rows:
            if row.checked != job.shape:
                table.row([*about, f"checked at T = {row.checked.T}"])
            for remark in row.remarks:
                table.row([*about, f"torch.nn does not round to TF32: {remark}"])
        new = [as_csv(row, self.providers[0].name, self.device, self.conditions) for row in rows]
        if self.args.csv is not None and new:
            csv_rows.append_rows(self.args.csv, new)
        self.findings.add(setting, rows, len(wrong))
        self.findings.csv += new

    def _summary(self, setting: Setting) -> bool:
        rows = self.findings.rows.get(setting, [])
        failures = self.findings.failures.get(setting, 0)
        if failures:
            print(f"{setting}: no summary: {failures} tensors are wrong")
            return False
        args = self.args
        return report(str(setting), rows, self.providers[0].name, args.min_ratio, args.min_geomean)


def main(argv: Sequence[str] | None = None) -> int:
    parser = build_parser()
    args = parser.parse_args(argv)
    device = DEVICES[args.device]()
    check_arguments(parser, args, device)
    torch.set_num_threads(args.threads)

    run = Run(args, device)
    try:
        code = 0 if run.measure() else 1
    except KeyboardInterrupt:
        print(f"interrupted: {run.outcome()}")
        code = INTERRUPTED
    if args.plot is not None:
        drawn = run.findings.csv if args.csv is None else csv_rows.read_rows(args.csv)
        if drawn:
            plot.draw(drawn, args.plot)
    return code


if __name__ == "__main__":
    # The collector runs before every timing and would search all of torch: 0.2 s of each row.
    gc.freeze()
    sys.exit(main())
