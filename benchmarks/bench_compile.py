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
import importlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

sys.path.append(str(Path(__file__).resolve().parents[1]))

from benchmarks.common import cli, rows
from benchmarks.common.equality import Results, check_sides, named_results
from benchmarks.common.processes import Command, run_together
from benchmarks.common.providers import CELLS, PROVIDERS
from benchmarks.common.shapes import Shape
from benchmarks.common.timing import summarise

STEPS = (32, 2048)
N, I, H = 4, 32, 64
LAYERS = 2
CELL = replace(CELLS["lstm"], options={"num_layers": LAYERS})
COMPILERS = {"inductor": "torch._inductor.compile_fx"}
KNOWN = ("torch", "fastlstm")


class FirstCallError(Exception):
    """One line that says why a first call has no time."""


def call(model: nn.Module, forward: Callable, x: Tensor, grad_output: Tensor) -> Results:
    """Outputs and every gradient of `forward`, which is `model` or a compiled form of it."""
    output, (h_n, c_n) = forward(x)
    output.backward(grad_output)
    leaves = {"input": x, **dict(model.named_parameters())}
    return named_results({"output": output, "h_n": h_n, "c_n": c_n}, leaves)


def first_call(provider: str, steps: int, backend: str, seed: int) -> tuple[float, list[str]]:
    """Seconds from torch.compile to the last gradient, and a line for each tensor that is wrong."""
    torch.manual_seed(seed)
    model = PROVIDERS[provider].make(CELL, I, H)
    x, grad_output = torch.randn(steps, N, I), torch.randn(steps, N, H)

    def eager_torch(dtype: torch.dtype) -> Results:
        layer = PROVIDERS["torch"].make(CELL, I, H).to(dtype)
        layer.load_state_dict(model.state_dict())
        leaf = x.to(dtype, copy=True).requires_grad_()
        return call(layer, layer, leaf, grad_output.to(dtype))

    # Off the clock: it takes seconds, and is the same for any model.
    importlib.import_module(COMPILERS.get(backend, "torch._dynamo"))
    leaf = x.clone().requires_grad_()
    # torch.nn's own layers are refused otherwise.
    with torch._dynamo.config.patch(allow_rnn=True):
        start = time.perf_counter()
        compiled = torch.compile(model, fullgraph=True, backend=backend)
        found = call(model, compiled, leaf, grad_output)
        seconds = time.perf_counter() - start
    return seconds, check_sides(eager_torch, {"": lambda: found})


def in_process(provider: str, steps: int, args: argparse.Namespace) -> float:
    """Seconds of one first call in a fresh process. Raises FirstCallError where there is none."""
    command = [sys.executable, str(Path(__file__).resolve()), "--only-call", str(steps)]
    command += ["--providers", provider, "--backend", args.backend]
    command += ["--threads", str(args.threads), "--seed", str(args.seed)]
    with tempfile.TemporaryDirectory(prefix="bench_compile") as folder:
        cache = Path(folder) / "cache"
        cache.mkdir()
        environ = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(cache)}
        log = Path(folder) / "log"
        (done,) = run_together([Command(command, log, environ, Path.cwd())], args.timeout)
        lines, last = done.lines(), done.last_line()
    answer = next((line for line in reversed(lines) if line.startswith('{"seconds"')), None)
    if done.code is None:
        raise FirstCallError(f"more than {args.timeout:g} s")
    if done.code != 0 or answer is None:
        why = last or f"exit code {done.code}"
        raise FirstCallError(next((line for line in lines if "Error" in line), why))
    found = json.loads(answer)
    if found["failures"]:
        raise FirstCallError("; ".join(found["failures"]))
    return found["seconds"]


def measure_pairs(provider: str, args: argparse.Namespace) -> list[tuple[float, float]]:
    """Seconds of `args.pairs` pairs (short, long), which of them goes first alternating."""
    pairs = []
    for index in range(args.pairs):
        seconds = {}
        for steps in args.steps if index % 2 == 0 else reversed(args.steps):
            try:
                seconds[steps] = in_process(provider, steps, args)
            except FirstCallError as error:
                raise FirstCallError(f"T={steps}: {error}") from None
            print(f"{provider}: T={steps}: {seconds[steps]:.2f} s", flush=True)
        pairs.append(tuple(seconds[steps] for steps in args.steps))
    return pairs


def steps_argument(text: str) -> tuple[int, int]:
    parts = [cli.positive_int(part) for part in text.split(",")]
    if len(parts) != 2 or parts[0] >= parts[1]:
        raise argparse.ArgumentTypeError(f"expected two integers, the smaller first, got {text!r}")
    return parts[0], parts[1]


def build_parser() -> cli.Parser:
    parser = cli.Parser(
        prog="bench_compile.py",
        description="The first call of a compiled 2-layer LSTM, forward and backward, for a short "
        "and a long sequence.",
    )
    both = "T of either sequence (default: 32,2048)"
    parser.add_argument(
        "--steps", type=steps_argument, default=STEPS, metavar="SHORT,LONG", help=both
    )
    parser.add("--backend", default="inductor")
    parser.add_names("--providers", "provider", KNOWN, "fastlstm")
    pairs = "of first calls, short and long"
    parser.add("--pairs", type=cli.positive_int, default=3, help=pairs)
    limit = "seconds after which a first call is given up"
    parser.add("--timeout", type=cli.positive_float, default=600.0, help=limit)
    growth = "exit code 1 where long takes more than this many times as long as short"
    parser.add("--max-growth", type=cli.positive_float, help=growth)
    parser.add("--threads", "--seed", "--csv")
    # The process of one call: a line of JSON with its seconds, and what is wrong with its results.
    parser.add("--only-call", type=cli.positive_int, help=argparse.SUPPRESS)
    return parser


def bench(provider: str, args: argparse.Namespace, conditions: dict[str, str]) -> bool:
    """Measure and print one provider; False where it fails or grows too much."""
    short, long = args.steps
    try:
        stats = summarise(measure_pairs(provider, args))
    except FirstCallError as error:
        print(f"RED  {provider}: {error}")
        return False
    growth = 1 / stats.ratio
    print(
        f"{provider}: {stats.baseline_ms / 1e3:.2f} s at T={short}, {stats.ms / 1e3:.2f} s at "
        f"T={long}: {growth:.2f} times as long (p10 {1 / stats.ratio_p90:.2f}, "
        f"p90 {1 / stats.ratio_p10:.2f}, {stats.pairs} pairs)"
    )
    name = f"{provider} {args.backend}"
    about = {"cell": "lstm", "mode": "first call of torch.compile"}
    about |= {"provider": name, "baseline": f"{name} T={short}"}
    rows.append(args.csv, [rows.row(conditions, stats, Shape(long, N, I, H), **about)])
    if args.max_growth is not None and growth > args.max_growth:
        print(f"MISSED: {provider}: {growth:.3f} times is above {args.max_growth:g}")
        return False
    return True


def main(argv: Sequence[str] | None = None) -> int:
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.only_call is not None:
        torch.set_num_threads(args.threads)
        found = first_call(args.providers[0], args.only_call, args.backend, args.seed)
        print(json.dumps(dict(zip(("seconds", "failures"), found, strict=True))))
        return 0
    known = torch.compiler.list_backends(exclude_tags=())
    if args.backend not in known:
        parser.error(f"argument --backend: unknown {args.backend!r}; known: {', '.join(known)}")
    conditions = parser.begin(args, [CELL], args.providers)
    print(
        f"first call of torch.compile(fullgraph=True, backend={args.backend!r}), {LAYERS} layers, "
        f"train, float32, N={N} I={I} H={H}"
    )
    # A list, not a generator: a provider that fails does not keep the others from being measured.
    good = [bench(name, args, conditions) for name in args.providers]
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main())
