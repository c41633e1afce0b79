"""Everything that only a machine with a GPU can check, in one command of at most nine minutes.

    python -m benchmarks.gpu.check
    python -m benchmarks.gpu.check --phases build,test,sanitize,exchange --out results
    python -m benchmarks.gpu.check --phases methods,bench,profile --out results

build: compiles the extension for the GPU at hand, out of place. test: the tests marked `cuda`.
sanitize: compute-sanitizer over a tiny layer of each kind. exchange: bench_exchange.py. methods:
bench_methods.py, and bench: bench_cells.py, over the grid `gpu`, as far as the time goes. profile:
Nsight Compute on the slowest row. A phase that fails does not keep the others from running. The
build is kept for later calls. Exit code: 0; 1 where a phase is red; 2 for a wrong command line, or
without a GPU; 130 where interrupted.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import torch

sys.path.append(str(Path(__file__).resolve().parents[2]))

from benchmarks.common import cli, rows
from benchmarks.common.devices import DEVICES
from benchmarks.gpu.phases import PHASES, run_phase
from benchmarks.gpu.workplace import ROOT, Result, Workplace

BUDGET = 540.0
# Seconds that a phase has at most, where others follow; the last one gets what is left.
LIMITS = {"build": 210.0, "test": 110.0, "sanitize": 120.0, "exchange": 50.0}
# The others measure for as long as there is time: how they share what is left.
SHARES = {"methods": 45.0, "bench": 45.0, "profile": 10.0}
# Kept back, so that stopping the last command and writing the summary are within the budget.
RESERVE = 10.0


def file_name(device: str) -> str:
    """`device` as a part of a file's name."""
    return re.sub(r"[^a-z0-9]+", "_", device.lower()).strip("_")


def workplace(args: argparse.Namespace, device: str) -> Workplace:
    """The folders of a run, which exist then."""
    build = ROOT / "build" / "gpu-check"
    out = args.out.resolve() if args.out else None
    name = f"cells_{file_name(device)}"
    place = Workplace(
        capability=torch.cuda.get_device_capability(),
        build=build,
        logs=out or build,
        csv=(out or ROOT / "benchmarks" / "results") / f"{name}.csv",
        picture=(out or ROOT / "docs") / f"{name}.png",
        row_seconds=args.seconds,
    )
    for folder in (place.build, place.logs, place.csv.parent, place.picture.parent):
        folder.mkdir(parents=True, exist_ok=True)
    return place


def earlier_phases(path: Path, conditions: Mapping[str, str]) -> dict[str, object]:
    """The phases in the file at `path`, as far as it is of the same machine and commit."""
    try:
        found = json.loads(path.read_text())
        same = found["conditions"] | {"date": ""} == {**conditions, "date": ""}
        return found["phases"] if same else {}
    except (OSError, ValueError, KeyError):
        return {}


def limit(names: Sequence[str], index: int, left: float) -> float:
    """Seconds for phase `index` of `names`, where `left` are left for it and those behind it."""
    name, later = names[index], names[index + 1 :]
    if not later:
        return left
    if name in LIMITS:
        return min(LIMITS[name], left)
    shares = [SHARES[other] for other in later if other in SHARES]
    fixed = sum(LIMITS.get(other, 0.0) for other in later)
    return max(left - fixed, 0.0) * SHARES[name] / (SHARES[name] + sum(shares))


def check(
    names: Sequence[str], place: Workplace, conditions: Mapping[str, str], budget: float
) -> bool:
    """Run the phases `names` within `budget` seconds; False where one is red.

    Prints a line for each, and what it leaves for the reader. What is known so far is in a JSON
    file that is replaced after every phase; phases of an earlier call stay in it where the
    conditions were the same, but for the date.
    """
    end = time.monotonic() + budget - RESERVE
    path = place.logs / "summary.json"
    phases = earlier_phases(path, conditions)
    good = True
    for index, name in enumerate(names):
        start = time.monotonic()
        seconds = limit(names, index, max(end - start, 0.0))
        interrupt = None
        try:
            result = run_phase(name, place, seconds)
        except KeyboardInterrupt as error:
            interrupt, result = error, Result("red", "interrupted")
        taken = time.monotonic() - start
        print(f"{name:9} {result.state:8} {taken:6.1f} s  {result.text}", flush=True)
        if result.detail:
            print(f"--- {name} ---\n{result.detail}\n---", flush=True)
        found = {**asdict(result), "seconds": round(taken, 1)}
        phases[name] = {"date": conditions.get("date", ""), **found}
        summary = {"conditions": conditions, "phases": phases}
        rows.replace_text(path, json.dumps(summary, indent=2) + "\n")
        good &= result.state != "red"
        if interrupt is not None:
            raise interrupt
    return good


def build_parser() -> cli.Parser:
    parser = cli.Parser(
        prog="benchmarks.gpu.check", description="Build, test, sanitize and measure on this GPU."
    )
    parser.add_names("--phases", "phase", PHASES, ",".join(PHASES))
    parser.add("--budget", default=BUDGET, help="for all of it")
    parser.add("--seconds", default=0.3, help="time for the pairs of one row of the benchmark")
    parser.add(
        "--out",
        type=Path,
        metavar="FOLDER",
        help="for rows, picture, summary and logs (default: benchmarks/results, docs and, for the "
        "last two, build/gpu-check)",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    parser = build_parser()
    args = parser.parse_args(argv)
    device = DEVICES["cuda"]()
    reason = device.why_unusable()
    if reason is not None:
        parser.fail(f"needs a GPU: {reason}")
    conditions = device.conditions()
    cli.print_conditions(conditions)
    place = workplace(args, conditions["device"])
    try:
        return 0 if check(args.phases, place, conditions, args.budget) else 1
    except KeyboardInterrupt:
        return cli.INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
