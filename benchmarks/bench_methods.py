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
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

sys.path.append(str(Path(__file__).resolve().parents[1]))

from benchmarks.common import cli, csv_files
from benchmarks.common.devices import DEVICES
from benchmarks.common.providers import CELLS
from benchmarks.common.shapes import GRIDS, MODES
from benchmarks.common.timing import geometric_mean
from benchmarks.gpu.kernels import AUTO, PERSISTENT, method_of
from benchmarks.gpu.methods import rows
from benchmarks.gpu.methods.jobs import TORCH, Job
from benchmarks.gpu.methods.process import Worker, WorkerLostError

DTYPES = ("bfloat16", "float32", "float16")
TF32_FLAGS = {"on": (True,), "off": (False,), "both": (True, False)}
TF32_NAMES = {True: "on", False: "off", None: "none"}
COLUMNS = [("kernels", -42), ("us a step", 9), ("p10", 9), ("p90", 9), ("stepwise", 8)]
COLUMNS += [("torch", 7), ("rounds", 6), ("model us", 8)]
INTERRUPTED = 130

Row = dict[str, object]
Events = Callable[[Job], Iterator[dict]]


def all_jobs(args: argparse.Namespace, multiprocessors: int) -> list[Job]:
    """The most important first: the first dtype and cell for all shapes, then the next."""
    shapes = args.shape or GRIDS["gpu"]
    return [
        Job(
            cell=cell,
            mode=mode,
            dtype=dtype,
            tf32=tf32,
            shape=shape,
            forward=AUTO,
            methods=(AUTO, *args.methods),
            multiprocessors=multiprocessors,
            seconds=args.seconds,
            seed=args.seed,
        )
        for dtype in args.dtype
        for tf32 in (TF32_FLAGS[args.tf32] if dtype == "float32" else (None,))
        for cell in args.cells
        for shape in shapes
        for mode in args.mode
    ]


def words(row: Row) -> str:
    """What `row` asked for."""
    return " + ".join(filter(None, [row["forward"], row["backward"]]))


def us(row: Row) -> float:
    return float(row["us"])


@dataclass
class Findings:
    """best: the fastest forward that was asked for, by problem. without: methods that have ended a
    process, by what of a job they are not tried again in. auto: how much slower what is taken by
    default is than the best, by job."""

    measured: int = 0
    red: int = 0
    best: dict[tuple, str] = field(default_factory=dict)
    without: dict[tuple, set[str]] = field(default_factory=dict)
    auto: dict[str, float] = field(default_factory=dict)
    left_out: list[Job] = field(default_factory=list)


def problem_of(job: Job) -> tuple:
    return job.cell, job.dtype, job.tf32, job.shape


def kind_of(job: Job) -> tuple:
    return job.cell, job.dtype, job.tf32, job.mode


def title(job: Job) -> str:
    precision = job.dtype if job.tf32 is None else f"{job.dtype}, TF32 {TF32_NAMES[job.tf32]}"
    return f"{job.cell}, {job.mode}, {precision}, T,N,I,H = {job.shape}"


class Run:
    """The run of a command line. events: of a job; conditions: of all rows."""

    def __init__(
        self, events: Events, conditions: Mapping[str, str], csv: Path | None = None
    ) -> None:
        self._events = events
        self._conditions = {name: conditions[name] for name in rows.FIELDS if name in conditions}
        self._csv = csv
        self.findings = Findings()

    def measure(
        self, jobs: Sequence[Job], end: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Measure one after the other; none is begun at `end` or later."""
        for index, job in enumerate(jobs):
            if clock() >= end:
                self.findings.left_out += jobs[index:]
                return
            self._job(job)

    def _job(self, job: Job) -> None:
        print(f"\n{title(job)}: ratios are stepwise us / us and torch.nn us / us", flush=True)
        forward = self.findings.best.get(problem_of(job), job.forward)
        # Each time a process is lost there is a method less to try.
        while True:
            without = self.findings.without.get(kind_of(job), set())
            left = tuple(method for method in job.methods if method not in without)
            try:
                self._attempt(replace(job, forward=forward, methods=left))
                return
            except WorkerLostError as lost:
                self._red(lost.at or "its process", [f"ended its process: {lost}"])
                method = method_of(lost.at.rpartition(" + ")[2])
                if method not in left:
                    return
                self.findings.without.setdefault(kind_of(job), set()).add(method)

    def _attempt(self, job: Job) -> None:
        for event in self._events(job):
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
        self.findings.red += 1

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
            self.findings.best[problem_of(job)] = str(fastest["forward"])
        for row in shown:
            if row["forward"] == AUTO and row["backward"] in ("", AUTO):
                self.findings.auto[title(job)] = us(row) / us(fastest)

    def _keep(self, job: Job, found: Sequence[Row]) -> None:
        about: Row = self._conditions | {
            "cell": job.cell,
            "mode": job.mode,
            **job.shape._asdict(),
            "dtype": job.dtype,
            "tf32": TF32_NAMES[job.tf32],
        }
        if self._csv is not None:
            csv_files.append(self._csv, rows.FIELDS, [about | row for row in found])
        self.findings.measured += len(found)

    def summary(self) -> str:
        """How well the choice by default does, and one line with what there is and what not."""
        found = self.findings
        lines = []
        if found.auto:
            worst = max(found.auto, key=found.auto.__getitem__)
            mean = geometric_mean(list(found.auto.values()))
            lines.append(
                f"{AUTO} takes {mean:.2f} times as long as the best of {len(found.auto)} jobs "
                f"(geometric mean), at most {found.auto[worst]:.2f} times: {worst}"
            )
        text = f"{found.measured} rows measured, {found.red} red"
        if found.left_out:
            text += f", no time for {len(found.left_out)} jobs from {title(found.left_out[0])} on"
        return "\n".join([*lines, text])


def cells(row: Row) -> list[str]:
    """Of COLUMNS."""
    times = [str(row[name]) for name in ("us", "us_p10", "us_p90")]
    models = [row.get(f"{part}_model_us") for part in ("forward", "backward")]
    return [
        words(row),
        *times,
        str(row["ratio_stepwise"]),
        str(row["ratio_torch"]),
        str(row["rounds"]),
        " + ".join(str(model) for model in models if model),
    ]


def build_parser() -> argparse.ArgumentParser:
    parser = cli.LineParser(
        prog="bench_methods.py", description="Time every method of the CUDA kernels by turns."
    )
    parser.add_argument(
        "--shape",
        type=cli.shape_argument,
        action="append",
        metavar="T,N,I,H",
        help="this shape in place of the grid gpu; may be repeated",
    )
    add = cli.add_choices
    add(parser, "--cells", "cell", tuple(CELLS), default="lstm,gru")
    add(parser, "--dtype", "dtype", DTYPES, default=",".join(DTYPES))
    parser.add_argument(
        "--tf32",
        choices=TF32_FLAGS,
        default="both",
        help="whether float32 products may be TF32 (default: %(default)s)",
    )
    add(parser, "--mode", "mode", MODES, default=",".join(MODES))
    add(parser, "--methods", "method", PERSISTENT, default=",".join(PERSISTENT))
    parser.add_argument(
        "--seconds",
        type=cli.positive_float,
        default=0.3,
        help="time for the rounds of the best of a job (default: %(default)s)",
    )
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument(
        "--budget",
        type=cli.positive_float,
        default=float("inf"),
        metavar="SECONDS",
        help="begin no job after that; what is named first on the command line is measured first",
    )
    parser.add_argument("--csv", type=Path, metavar="FILE", help="append the rows to this file")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    parser = build_parser()
    args = parser.parse_args(argv)
    cli.check_csv(parser, args.csv, rows.FIELDS)
    device = DEVICES["cuda"]()
    reason = device.why_unusable()
    if reason is not None:
        parser.exit(2, f"{parser.prog}: error: needs a GPU: {reason}\n")
    end = time.monotonic() + args.budget
    conditions = device.conditions()
    cli.print_conditions(conditions)
    multiprocessors = torch.cuda.get_device_properties().multi_processor_count
    with Worker() as worker:
        run = Run(worker.events, conditions, args.csv)
        code = 0
        try:
            run.measure(all_jobs(args, multiprocessors), end)
        except KeyboardInterrupt:
            code = INTERRUPTED
    print(f"\n{run.summary()}")
    return code or (1 if run.findings.red or not run.findings.measured else 0)


if __name__ == "__main__":
    sys.exit(main())
