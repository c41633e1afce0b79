"""Time every method of the CUDA kernels against each other, against torch.nn, and step by step.

    python benchmarks/bench_methods.py
    python benchmarks/bench_methods.py --shape 512,16,256,256 --dtype bfloat16 --methods cluster,grid
    python benchmarks/bench_methods.py --budget 240 --csv rows.csv

Of each method the plans that may be good are tried (FASTLSTM_CUDA_KERNEL, benchmarks/gpu/methods); each
is proved equal first, as in bench_cells.py, and then all are timed by turns in one process. A
kernel that ends its process is named, left out, and the others go on in another one. Needs a GPU.
Exit code: 0; 1 where something is red; 2 for a wrong command line; 130 where interrupted.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

sys.path.append(str(Path(__file__).resolve().parents[1]))

from benchmarks.common import cli, rows
from benchmarks.common.devices import DEVICES
from benchmarks.common.layers import TF32_FLAGS, TF32_NAMES, precision_text
from benchmarks.common.machine import AUTO
from benchmarks.common.providers import CELLS
from benchmarks.common.shapes import GRIDS, MODES
from benchmarks.gpu.kernels import PERSISTENT, method_of
from benchmarks.gpu.methods.jobs import FIELDS, TORCH, Job
from benchmarks.gpu.methods.worker import Worker, WorkerLostError

DTYPES = ("bfloat16", "float32", "float16")
COLUMNS = [("kernels", -42), ("us a step", 9), ("p10", 9), ("p90", 9), ("stepwise", 8)]
COLUMNS += [("torch", 7), ("rounds", 6), ("model us", 8)]

Row = dict[str, object]
Events = Callable[[Job], Iterator[dict]]


def all_jobs(args: argparse.Namespace, multiprocessors: int) -> list[Job]:
    """The most important first: the first dtype and cell for all shapes, then the next."""
    methods = (AUTO, *args.methods)
    measured = (multiprocessors, args.seconds, args.seed)
    return [
        Job(cell, mode, dtype, tf32, shape, AUTO, methods, *measured)
        for dtype in args.dtype
        for tf32 in (TF32_FLAGS[args.tf32] if dtype == "float32" else (None,))
        for cell in args.cells
        for shape in args.shape or GRIDS["gpu"]
        for mode in args.mode
    ]


def words(row: Row) -> str:
    """What `row` asked for."""
    return " + ".join(filter(None, [row["forward"], row["backward"]]))


def us(row: Row) -> float:
    return float(row["us"])


def problem_of(job: Job) -> tuple:
    return job.cell, job.dtype, job.tf32, job.shape


def kind_of(job: Job) -> tuple:
    return job.cell, job.dtype, job.tf32, job.mode


def title(job: Job) -> str:
    precision = precision_text(job.dtype, job.tf32)
    return f"{job.cell}, {job.mode}, {precision}, T,N,I,H = {job.shape}"


@dataclass
class Run:
    """The run of a command line, and what it has found. events: of a job; conditions: of all rows.

    best: the fastest forward that was asked for, by problem. without: methods that have ended a
    process, by what of a job they are not tried again in. auto: how much slower what is taken by
    default is than the best, by job.
    """

    events: Events
    conditions: Mapping[str, str]
    csv: Path | None = None
    measured: int = 0
    red: int = 0
    best: dict[tuple, str] = field(default_factory=dict)
    without: dict[tuple, set[str]] = field(default_factory=dict)
    auto: dict[str, float] = field(default_factory=dict)
    left_out: Sequence[Job] = ()

    def measure(
        self, jobs: Sequence[Job], end: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Measure one after the other; none is begun at `end` or later."""
        for index, job in enumerate(jobs):
            if clock() >= end:
                self.left_out = jobs[index:]
                return
            self._job(job)

    def _job(self, job: Job) -> None:
        print(f"\n{title(job)}: ratios are stepwise us / us and torch.nn us / us", flush=True)
        forward = self.best.get(problem_of(job), job.forward)
        # Each time a process is lost there is a method less to try.
        while True:
            without = self.without.setdefault(kind_of(job), set())
            left = tuple(method for method in job.methods if method not in without)
            try:
                self._attempt(replace(job, forward=forward, methods=left))
                return
            except WorkerLostError as lost:
                self._red(lost.at or "its process", [f"ended its process: {lost}"])
                method = method_of(lost.at.rpartition(" + ")[2])
                if method not in left:
                    return
                without.add(method)

    def _attempt(self, job: Job) -> None:
        for event in self.events(job):
            if "red" in event:
                self._red(event["red"], event["lines"])
            elif "remark" in event:
                for line in event["lines"]:
                    print(f"{event['remark']}: torch.nn does not round to TF32: {line}")
            elif event.get("rows"):
                self._report(job, event["rows"])
                shared = {name: event[name] for name in ("checked_T", "sm_mhz")}
                self._keep(job, [shared | row for row in event["rows"]])

    def _red(self, name: str, lines: Sequence[str]) -> None:
        for line in lines:
            print(f"{name}: RED  {line}", flush=True)
        self.red += 1

    def _report(self, job: Job, found: Sequence[Row]) -> None:
        """The table of a job: all that was timed for long, the fastest first."""
        most = max(int(row["rounds"]) for row in found)
        shown = [row for row in found if int(row["rounds"]) == most]
        table = cli.Table(COLUMNS)
        for row in sorted(shown, key=us):
            table.row(cells(row))
        print(f"and {len(found) - len(shown)} that were slower in the first rounds")
        asked = [row for row in shown if words(row) != TORCH and AUTO not in words(row).split()]
        if not asked:
            return
        fastest = min(asked, key=us)
        if job.mode == "infer":
            self.best[problem_of(job)] = str(fastest["forward"])
        for row in shown:
            if row["forward"] == AUTO and row["backward"] in ("", AUTO):
                self.auto[title(job)] = us(row) / us(fastest)

    def _keep(self, job: Job, found: Sequence[Row]) -> None:
        about: Row = {name: self.conditions[name] for name in FIELDS if name in self.conditions}
        about |= {"cell": job.cell, "mode": job.mode, **job.shape._asdict(), "dtype": job.dtype}
        about["tf32"] = TF32_NAMES[job.tf32]
        rows.append(self.csv, [about | row for row in found], FIELDS)
        self.measured += len(found)

    def summary(self) -> str:
        """How well the choice by default does, and one line with what there is and what not."""
        lines = []
        if self.auto:
            worst = max(self.auto, key=self.auto.__getitem__)
            mean = statistics.geometric_mean(self.auto.values())
            lines.append(
                f"{AUTO} takes {mean:.2f} times as long as the best of {len(self.auto)} jobs "
                f"(geometric mean), at most {self.auto[worst]:.2f} times: {worst}"
            )
        text = f"{self.measured} rows measured, {self.red} red"
        if self.left_out:
            text += f", no time for {len(self.left_out)} jobs from {title(self.left_out[0])} on"
        return "\n".join([*lines, text])


def cells(row: Row) -> list[str]:
    """Of COLUMNS."""
    names = ("us", "us_p10", "us_p90", "ratio_stepwise", "ratio_torch", "rounds")
    models = filter(None, (row.get(f"{part}_model_us") for part in ("forward", "backward")))
    return [words(row), *(str(row[name]) for name in names), " + ".join(map(str, models))]


def build_parser() -> cli.Parser:
    parser = cli.Parser(
        prog="bench_methods.py", description="Time every method of the CUDA kernels by turns."
    )
    parser.add("--shape", action="append", help="in place of the grid gpu; may be repeated")
    parser.add_names("--cells", "cell", CELLS, "lstm,gru")
    parser.add_names("--dtype", "dtype", DTYPES, ",".join(DTYPES))
    tf32 = "whether float32 products may be TF32"
    parser.add("--tf32", choices=TF32_FLAGS, default="both", help=tf32)
    parser.add_names("--mode", "mode", MODES, ",".join(MODES))
    parser.add_names("--methods", "method", PERSISTENT, ",".join(PERSISTENT))
    parser.add("--seconds", default=0.3, help="time for the rounds of the best of a job")
    parser.add("--seed", "--csv")
    budget = "begin no job after that; what is named first on the command line is measured first"
    parser.add("--budget", help=budget)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    parser = build_parser()
    args = parser.parse_args(argv)
    parser.check_csv(args.csv, FIELDS)
    device = DEVICES["cuda"]()
    reason = device.why_unusable()
    if reason is not None:
        parser.fail(f"needs a GPU: {reason}")
    end = time.monotonic() + (args.budget or float("inf"))
    conditions = device.conditions()
    cli.print_conditions(conditions)
    multiprocessors = torch.cuda.get_device_properties().multi_processor_count
    with Worker() as worker:
        run = Run(worker.events, conditions, args.csv)
        code = 0
        try:
            run.measure(all_jobs(args, multiprocessors), end)
        except KeyboardInterrupt:
            code = cli.INTERRUPTED
    print(f"\n{run.summary()}")
    return code or (1 if run.red or not run.measured else 0)


if __name__ == "__main__":
    sys.exit(main())
