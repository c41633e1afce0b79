"""Time the first call of torch.compile(model, fullgraph=True) for a short and a long sequence.

    python benchmarks/bench_compile.py
    python benchmarks/bench_compile.py --providers torch,fastlstm --steps 8,64

The model is a 2-layer LSTM; the call is forward and backward to every gradient. Each call has a
process and a cache folder of its own, short and long alternating, and its results are held to
torch.nn (benchmarks/common/equality.py). Exit code: 0; 1 where a process fails, takes too long or computes
something else, or the growth is above what is allowed; 2 for a wrong command line.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

sys.path.append(str(Path(__file__).resolve().parents[1]))

from benchmarks.common import cli, compile_once, csv_rows
from benchmarks.common.machine import environment
from benchmarks.common.providers import CELLS, PROVIDERS, why_missing
from benchmarks.common.shapes import Shape
from benchmarks.common.timing import summarise

STEPS = (32, 2048)
WORKER = Path(compile_once.__file__).resolve()
KNOWN = ("torch", "fastlstm")


class FirstCallError(Exception):
    """One line that says why a first call has no time."""


def run_process(command: Sequence[str], environ: dict[str, str], seconds: float) -> str:
    """What `command` prints. Raises FirstCallError where it fails or takes longer."""
    # A session of its own: the compiler's helper processes must end with it.
    process = subprocess.Popen(
        command,
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        out, err = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        raise FirstCallError(f"more than {seconds:g} s") from None
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    if process.returncode != 0:
        lines = err.strip().splitlines() or [f"exit code {process.returncode}"]
        raise FirstCallError(next((line for line in lines if "Error" in line), lines[-1]))
    return out


def first_call(provider: str, steps: int, args: argparse.Namespace) -> float:
    """Seconds of one first call in a fresh process. Raises FirstCallError where there is none."""
    command = [sys.executable, str(WORKER), provider, str(steps), args.backend]
    command += [str(args.threads), str(args.seed)]
    with tempfile.TemporaryDirectory(prefix="bench_compile") as cache:
        environ = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": cache}
        out = run_process(command, environ, args.timeout)
    found = json.loads(out.splitlines()[-1])
    if found["failures"]:
        raise FirstCallError("; ".join(found["failures"]))
    return found["seconds"]


def measure_pairs(provider: str, args: argparse.Namespace) -> list[tuple[float, float]]:
    """Seconds of `args.pairs` pairs (short, long), which of them goes first alternating."""
    short, long = args.steps
    pairs = []
    for index in range(args.pairs):
        seconds = {}
        for steps in (short, long) if index % 2 == 0 else (long, short):
            try:
                seconds[steps] = first_call(provider, steps, args)
            except FirstCallError as error:
                raise FirstCallError(f"T={steps}: {error}") from None
            print(f"{provider}: T={steps}: {seconds[steps]:.2f} s", flush=True)
        pairs.append((seconds[short], seconds[long]))
    return pairs


def steps_argument(text: str) -> tuple[int, int]:
    parts = [cli.positive_int(part) for part in text.split(",")]
    if len(parts) != 2 or parts[0] >= parts[1]:
        raise argparse.ArgumentTypeError(f"expected two integers, the smaller first, got {text!r}")
    return parts[0], parts[1]


def build_parser() -> argparse.ArgumentParser:
    parser = cli.LineParser(
        prog="bench_compile.py",
        description="The first call of a compiled 2-layer LSTM, forward and backward, for a short "
        "and a long sequence.",
    )
    parser.add_argument(
        "--steps",
        type=steps_argument,
        default=STEPS,
        metavar="SHORT,LONG",
        help="T of either sequence (default: 32,2048)",
    )
    parser.add_argument("--backend", default="inductor", help="default: %(default)s")
    cli.add_choices(parser, "--providers", "provider", KNOWN, default="fastlstm")
    parser.add_argument(
        "--pairs",
        type=cli.positive_int,
        default=3,
        help="of first calls, short and long (default: %(default)s)",
    )
    parser.add_argument(
        "--timeout",
        type=cli.positive_float,
        default=600.0,
        help="seconds after which a first call is given up (default: %(default)s)",
    )
    parser.add_argument(
        "--max-growth",
        type=cli.positive_float,
        help="exit code 1 where long takes more than this many times as long as short",
    )
    cli.add_run_options(parser, seconds=None)
    return parser


def bench(provider: str, args: argparse.Namespace, conditions: dict[str, str]) -> bool:
    """Measure and print one provider; False where it fails or grows too much."""
    short, long = args.steps
    try:
        pairs = measure_pairs(provider, args)
    except FirstCallError as error:
        print(f"RED  {provider}: {error}")
        return False
    stats = summarise(pairs)
    growth = 1 / stats.ratio
    print(
        f"{provider}: {stats.baseline_ms / 1e3:.2f} s at T={short}, {stats.ms / 1e3:.2f} s at "
        f"T={long}: {growth:.2f} times as long (p10 {1 / stats.ratio_p90:.2f}, "
        f"p90 {1 / stats.ratio_p10:.2f}, {stats.pairs} pairs)"
    )
    if args.csv is not None:
        name = f"{provider} {args.backend}"
        row = cli.csv_row(
            conditions,
            cell="lstm",
            mode="first call of torch.compile",
            provider=name,
            baseline=f"{name} T={short}",
            shape=Shape(long, compile_once.N, compile_once.I, compile_once.H),
            dtype=torch.float32,
            stats=stats,
            gflops=None,
            peak_percent=None,
        )
        csv_rows.append_rows(args.csv, [row])
    if args.max_growth is not None and growth > args.max_growth:
        print(f"MISSED: {provider}: {growth:.3f} times is above {args.max_growth:g}")
        return False
    return True


def main(argv: Sequence[str] | None = None) -> int:
    parser = build_parser()
    args = parser.parse_args(argv)
    known = torch.compiler.list_backends(exclude_tags=())
    if args.backend not in known:
        parser.error(f"argument --backend: unknown {args.backend!r}; known: {', '.join(known)}")
    for name in args.providers:
        reason = why_missing(PROVIDERS[name], CELLS["lstm"])
        if reason is not None:
            parser.error(f"argument --providers: {reason}")
    cli.check_csv(parser, args.csv)
    torch.set_num_threads(args.threads)
    conditions = environment("cpu")
    cli.print_conditions(conditions)
    print(
        f"first call of torch.compile(fullgraph=True, backend={args.backend!r}), "
        f"{compile_once.LAYERS} layers, train, float32, "
        f"N={compile_once.N} I={compile_once.I} H={compile_once.H}"
    )
    # A list, not a generator: a provider that fails does not keep the others from being measured.
    good = [bench(name, args, conditions) for name in args.providers]
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main())
