"""What a step of a persistent kernel costs in which blocks exchange a state, scheme by scheme.

    python benchmarks/bench_exchange.py
    python benchmarks/bench_exchange.py --schemes flag,cluster_async --csv rows.csv

Needs a GPU and nvcc, and takes about a minute. benchmarks/gpu/exchange says what the schemes are and
how the time of a step is taken. A row whose blocks have read wrong numbers has no time. Exit code:
0; 1 where a row is red; 2 for a wrong command line, or without GPU or nvcc; 130 where interrupted.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import torch

sys.path.append(str(Path(__file__).resolve().parents[1]))

from benchmarks.common import cli, machine, rows
from benchmarks.common.devices import DEVICES
from benchmarks.gpu.exchange import native
from benchmarks.gpu.exchange.native import ROOT, STEPS, Problem
from benchmarks.gpu.exchange.plan import CLUSTER_SHARED_BYTES, CLUSTERS, FIELDS, PLAN
from benchmarks.gpu.exchange.worker import answers
from benchmarks.gpu.workplace import arch

# One scheme that hangs must not take the time of all others.
SCHEME_SECONDS = 20.0
THREADS = 256
LAUNCH_TIMES = 8
LAUNCHES = "launches"
SCHEMES = (*PLAN, LAUNCHES)
# Titles in a table, and where they differ the fields.
COLUMNS = [("scheme", -15), ("groups", 6), ("blocks", 6), ("N", 3), ("H", 5), ("steps", 5)]
TIME_COLUMNS = [("us", 8), ("min", 8), ("max", 8), ("with loop", 9), ("loop", 8)]
TIMES = ("us", "us_min", "us_max", "us_with_loop", "us_loop")

Ask = Callable[[Sequence[dict], float], list[dict]]
Row = dict[str, object]


def step_times(ms: Sequence[float], empty_ms: Sequence[float], steps: int) -> dict[str, str]:
    """Microseconds of a step: of the launches `ms`, less the median of `empty_ms`."""
    loop, median = statistics.median(empty_ms), statistics.median(ms)
    values = (median - loop, min(ms) - loop, max(ms) - loop, median, loop)
    return {name: f"{1e3 * v / steps:.4f}" for name, v in zip(TIMES, values, strict=True)}


def scheme_rows(
    ask: Ask, scheme: str, sms: int, clusters: dict[int, int], seconds: float
) -> list[Row]:
    """The rows of a scheme of PLAN, each with its error where it has no time."""

    def row(problem: Problem, answer: Mapping) -> Row:
        # N is that of a group. The first launch is not counted.
        about = asdict(problem) | {"N": problem.rows, "H": problem.units}
        about["launches"] = problem.launches - 1
        row = {name: value for name, value in about.items() if name in FIELDS}
        if "error" in answer:
            return row | {"error": answer["error"]}
        return row | step_times(answer["ms"], answer["empty_ms"], problem.steps)

    problems = list(PLAN[scheme](sms, clusters))
    jobs = [{"job": "measure", "scheme": scheme, "problem": asdict(p)} for p in problems]
    # First the clock, which is not that of an idle GPU then.
    facts, *found = ask([{"job": "device"}, *jobs], seconds)
    shared = {"scheme": scheme, "sm_mhz": facts.get("sm_mhz", "")}
    return [shared | row(*pair) for pair in zip(problems, found, strict=True)]


def launch_rows(ask: Ask, sms: int, seconds: float) -> list[Row]:
    """What launches cost that do nothing: STEPS of them in a stream, and in a graph."""
    job = {"job": "launches", "blocks": sms, "threads": THREADS, "count": STEPS}
    (answer,) = ask([job | {"times": LAUNCH_TIMES}], seconds)
    shared = {"groups": 1, "blocks": sms, "threads": THREADS, "steps": STEPS}
    shared["launches"] = LAUNCH_TIMES - 1
    if "error" in answer:
        return [{"scheme": LAUNCHES, **shared, "error": answer["error"]}]
    return [
        {"scheme": f"launch_{name}", **shared, **step_times(answer[name], [0.0], STEPS)}
        for name in ("stream", "graph")
    ]


def cluster_rows(ask: Ask, seconds: float) -> list[Row]:
    """How many clusters of each size can be resident, under `groups`."""
    job = {"job": "max_clusters", "threads": THREADS, "shared_bytes": CLUSTER_SHARED_BYTES}
    found = ask([job | {"size": size} for size in CLUSTERS], seconds)
    return [
        {"scheme": "max_clusters", "blocks": size, "threads": THREADS}
        | ({"error": answer["error"]} if "error" in answer else {"groups": answer["clusters"]})
        for size, answer in zip(CLUSTERS, found, strict=True)
    ]


def build_parser() -> cli.Parser:
    parser = cli.Parser(
        prog="bench_exchange.py", description="Measure how blocks may exchange a state each step."
    )
    parser.add_names("--schemes", "scheme", SCHEMES, ",".join(SCHEMES))
    parser.add("--budget", default=60.0, help="no scheme is begun after that")
    parser.add("--csv")
    folder = ROOT / "build" / "exchange"
    kernels = "for the compiled kernels (default: build/exchange)"
    parser.add_argument("--build", type=Path, default=folder, metavar="FOLDER", help=kernels)
    return parser


def prepare(parser: cli.Parser, folder: Path) -> Path:
    """The library for the GPU at hand. Ends the program with one line where there cannot be one."""
    reason = DEVICES["cuda"]().why_unusable()
    if reason is None and native.find_nvcc() is None:
        reason = native.NO_NVCC
    if reason is not None:
        parser.fail(f"needs a GPU and nvcc: {reason}")
    return native.build(folder, arch(torch.cuda.get_device_capability()).replace(".", ""))


class Report:
    """Prints rows and keeps the good ones in a file; counts both kinds."""

    def __init__(self, csv: Path | None, conditions: Mapping[str, str]) -> None:
        self._csv = csv
        self._conditions = {name: conditions[name] for name in FIELDS if name in conditions}
        self._table = cli.Table([*COLUMNS, *TIME_COLUMNS])
        self.good = self.red = 0

    def add(self, found: Sequence[Row]) -> None:
        for row in found:
            head = [str(row.get(title, "")) for title, _ in COLUMNS]
            times = [str(row.get(name, "")) for name in TIMES]
            self._table.row([*head, f"RED  {row['error']}"] if "error" in row else [*head, *times])
        good = [self._conditions | row for row in found if "error" not in row]
        rows.append(self._csv, good, FIELDS)
        self.good += len(good)
        self.red += len(found) - len(good)


def measure(
    ask: Ask,
    schemes: Sequence[str],
    facts: Mapping[str, str],
    end: float,
    report: Report,
    clock: Callable[[], float] = time.monotonic,
) -> list[str]:
    """Report one scheme after the other. Those that were not begun by `end` are returned."""
    sms = int(facts["sms"])
    clusters = {}
    if int(facts["capability"].removeprefix("sm_")) >= 90:
        found = cluster_rows(ask, SCHEME_SECONDS)
        report.add(found)
        clusters = {row["blocks"]: row["groups"] for row in found if "error" not in row}
    for index, scheme in enumerate(schemes):
        seconds = min(SCHEME_SECONDS, end - clock())
        if seconds <= 0:
            return list(schemes[index:])
        if scheme == LAUNCHES:
            report.add(launch_rows(ask, sms, seconds))
        else:
            report.add(scheme_rows(ask, scheme, sms, clusters, seconds))
    return []


def run(path: Path, args: argparse.Namespace, end: float) -> bool:
    """Measure, print and keep the rows; False where one is red."""

    def ask(jobs: Sequence[dict], seconds: float) -> list[dict]:
        return answers(path, jobs, seconds)

    (facts,) = ask([{"job": "device"}], SCHEME_SECONDS)
    if "error" in facts:
        print(f"the GPU does not answer: {facts['error']}")
        return False
    facts = {"date": machine.now(), "commit": machine.commit(), **facts}
    facts["driver"] = machine.gpu_driver()
    cli.print_conditions(facts)
    report = Report(args.csv, facts)
    missing = measure(ask, args.schemes, facts, end, report)
    without = f", no time for {', '.join(missing)}" if missing else ""
    print(f"\n{report.good} rows measured, {report.red} red{without}")
    return report.red == 0 and report.good > 0


def main(argv: Sequence[str] | None = None) -> int:
    parser = build_parser()
    args = parser.parse_args(argv)
    parser.check_csv(args.csv, FIELDS)
    end = time.monotonic() + args.budget
    try:
        path = prepare(parser, args.build)
        return 0 if run(path, args, end) else 1
    except RuntimeError as error:
        print(error)
        return 1
    except KeyboardInterrupt:
        return cli.INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
