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

from benchmarks.common import cli, csv_files, machine
from benchmarks.common.devices import DEVICES
from benchmarks.gpu.exchange import native, rows
from benchmarks.gpu.exchange.native import STEPS, Problem
from benchmarks.gpu.exchange.plan import CLUSTER_SHARED_BYTES, CLUSTERS, PLAN
from benchmarks.gpu.exchange.process import answers
from benchmarks.gpu.phases import arch

ROOT = Path(__file__).resolve().parents[1]
BUDGET = 60.0
# One scheme that hangs must not take the time of all others.
SCHEME_SECONDS = 20.0
THREADS = 256
LAUNCH_TIMES = 8
LAUNCHES = "launches"
SCHEMES = (*PLAN, LAUNCHES)
COLUMNS = [("scheme", -15), ("groups", 6), ("blocks", 6), ("N", 3), ("H", 5), ("steps", 5)]
COLUMNS += [("us", 8), ("min", 8), ("max", 8), ("with loop", 9), ("loop", 8)]

Ask = Callable[[Sequence[dict], float], list[dict]]
Row = dict[str, object]


def step_times(ms: Sequence[float], empty_ms: Sequence[float], steps: int) -> dict[str, str]:
    """Microseconds of a step: of the launches `ms`, less the median of `empty_ms`."""
    loop = statistics.median(empty_ms)
    median = statistics.median(ms)
    times = {
        "us": median - loop,
        "us_min": min(ms) - loop,
        "us_max": max(ms) - loop,
        "us_with_loop": median,
        "us_loop": loop,
    }
    return {name: f"{1e3 * value / steps:.4f}" for name, value in times.items()}


def sizes(problem: Problem) -> Row:
    """Where the problem stands in a row. N is that of a group."""
    return {
        "groups": problem.groups,
        "blocks": problem.blocks,
        "threads": problem.threads,
        "N": problem.rows,
        "H": problem.units,
        "steps": problem.steps,
        # The first one is not counted.
        "launches": problem.launches - 1,
    }


def measured(problem: Problem, answer: Mapping) -> Row:
    if "error" in answer:
        return {"error": answer["error"]}
    return step_times(answer["ms"], answer["empty_ms"], problem.steps)


def scheme_rows(
    ask: Ask, scheme: str, sms: int, clusters: dict[int, int], seconds: float
) -> list[Row]:
    """The rows of a scheme of PLAN, each with its error where it has no time."""
    problems = list(PLAN[scheme](sms, clusters))
    jobs = [{"job": "measure", "scheme": scheme, "problem": asdict(p)} for p in problems]
    # First the clock, which is not that of an idle GPU then.
    facts, *found = ask([{"job": "device"}, *jobs], seconds)
    mhz = {"sm_mhz": facts.get("sm_mhz", "")}
    return [
        {"scheme": scheme, **mhz, **sizes(problem), **measured(problem, answer)}
        for problem, answer in zip(problems, found, strict=True)
    ]


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
    jobs = [
        {"job": "max_clusters", "size": size, "threads": THREADS}
        | {"shared_bytes": CLUSTER_SHARED_BYTES}
        for size in CLUSTERS
    ]
    found: list[Row] = []
    for size, answer in zip(CLUSTERS, ask(jobs, seconds), strict=True):
        result = {"error": answer["error"]} if "error" in answer else {"groups": answer["clusters"]}
        found.append({"scheme": "max_clusters", "blocks": size, "threads": THREADS, **result})
    return found


def cells(row: Row) -> list[str]:
    names = ("scheme", "groups", "blocks", "N", "H", "steps")
    head = [str(row.get(name, "")) for name in names]
    if "error" in row:
        return [*head, f"RED  {row['error']}"]
    times = ("us", "us_min", "us_max", "us_with_loop", "us_loop")
    return [*head, *(str(row.get(name, "")) for name in times)]


def build_parser() -> argparse.ArgumentParser:
    parser = cli.LineParser(
        prog="bench_exchange.py", description="Measure how blocks may exchange a state each step."
    )
    cli.add_choices(parser, "--schemes", "scheme", SCHEMES, default=",".join(SCHEMES))
    parser.add_argument(
        "--budget",
        type=cli.positive_float,
        default=BUDGET,
        metavar="SECONDS",
        help="no scheme is begun after that (default: %(default)s)",
    )
    parser.add_argument("--csv", type=Path, metavar="FILE", help="append the rows to this file")
    parser.add_argument(
        "--build",
        type=Path,
        default=ROOT / "build" / "exchange",
        metavar="FOLDER",
        help="for the compiled kernels (default: build/exchange)",
    )
    return parser


def prepare(parser: argparse.ArgumentParser, folder: Path) -> Path:
    """The library for the GPU at hand. Ends the program with one line where there cannot be one."""
    reason = DEVICES["cuda"]().why_unusable()
    if reason is None and native.find_nvcc() is None:
        reason = "nvcc was not found: set CUDA_HOME, or put it on PATH"
    if reason is not None:
        parser.exit(2, f"{parser.prog}: error: needs a GPU and nvcc: {reason}\n")
    return native.build(folder, arch(torch.cuda.get_device_capability()).replace(".", ""))


class Report:
    """Prints rows and keeps the good ones in a file; counts both kinds."""

    def __init__(self, csv: Path | None, conditions: Mapping[str, str]) -> None:
        self._csv = csv
        self._conditions = {name: conditions[name] for name in rows.FIELDS if name in conditions}
        self._table = cli.Table(COLUMNS)
        self.good = self.red = 0

    def add(self, found: Sequence[Row]) -> None:
        for row in found:
            self._table.row(cells(row))
        good = [self._conditions | row for row in found if "error" not in row]
        if self._csv is not None:
            csv_files.append(self._csv, rows.FIELDS, good)
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
    facts = machine_facts(facts)
    cli.print_conditions(facts)
    report = Report(args.csv, facts)
    missing = measure(ask, args.schemes, facts, end, report)
    without = f", no time for {', '.join(missing)}" if missing else ""
    print(f"\n{report.good} rows measured, {report.red} red{without}")
    return report.red == 0 and report.good > 0


def machine_facts(facts: Mapping[str, str]) -> dict[str, str]:
    return {
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "commit": machine.commit(),
        **facts,
        "driver": machine.gpu_driver(),
    }


def main(argv: Sequence[str] | None = None) -> int:
    parser = build_parser()
    args = parser.parse_args(argv)
    cli.check_csv(parser, args.csv, rows.FIELDS)
    end = time.monotonic() + args.budget
    try:
        path = prepare(parser, args.build)
        return 0 if run(path, args, end) else 1
    except RuntimeError as error:
        print(error)
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
