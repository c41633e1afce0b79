"""Time one step: fastlstm's LSTMCell, GRUCell and RNNCell against torch.nn's.

    python benchmarks/bench_step.py

train: forward, and backward to every gradient, at N=16, I=H=256.
infer: forward under no_grad at N=1, I=H=8, where nothing but the cost of the call itself is left.

Both take (h, c), or h. They are proved equal first (benchmarks/common/equality.py). Exit code: 0; 1 where
a check is red or a required ratio is missed; 2 for a wrong command line.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

sys.path.append(str(Path(__file__).resolve().parents[1]))

from benchmarks.common import cli, csv_rows, equality, measure
from benchmarks.common.machine import environment
from benchmarks.common.providers import PROVIDERS, STEPS, Cell, Provider, why_missing
from benchmarks.common.shapes import MODES, Shape, flops
from benchmarks.common.timing import Contender

SHAPES = {"train": Shape(1, 16, 256, 256), "infer": Shape(1, 1, 8, 8)}
# A call of the small cell takes a few microseconds, of which reading the clock is a part: it is
# read once for this many.
CALLS = {"train": 1, "infer": 200}
CHECKED_ELEMENTS = 1024
COLUMNS = (("cell", -14), *measure.COLUMNS)


class Step:
    """One call of `provider`'s cell with a given state, everything drawn from one seed."""

    def __init__(
        self,
        cell: Cell,
        provider: Provider,
        shape: Shape,
        mode: str,
        dtype: torch.dtype,
        seed: int,
    ) -> None:
        _, N, I, H = shape  # noqa: E741
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            weights = PROVIDERS["torch"].make(cell, I, H).state_dict()
            self.x = torch.randn(N, I).to(dtype)
            self.states = [torch.randn(N, H).to(dtype) for _ in cell.states]
            self.cotangents = [torch.randn(N, H).to(dtype) for _ in cell.states]
        self.mode = mode
        self.names = cell.states
        self.module = provider.make(cell, I, H)
        self.module.load_state_dict(weights)
        self.module.to(dtype)
        for leaf in (self.x, *self.states):
            leaf.requires_grad_(mode == "train")
        self.hx = tuple(self.states) if len(self.states) > 1 else self.states[0]

    def leaves(self) -> dict[str, Tensor]:
        return {
            "input": self.x,
            **dict(zip(self.names, self.states, strict=True)),
            **dict(self.module.named_parameters()),
        }

    def forget_gradients(self) -> None:
        for leaf in self.leaves().values():
            leaf.grad = None

    def forward_and_backward(self) -> tuple[Tensor, ...]:
        final = self.module(self.x, self.hx)
        final = final if isinstance(final, tuple) else (final,)
        torch.autograd.backward(final, self.cotangents)
        return final

    def results(self) -> dict[str, Tensor]:
        """The states after the step and, in train mode, every gradient, by name."""
        if self.mode == "infer":
            with torch.no_grad():
                final = self.module(self.x, self.hx)
            final = final if isinstance(final, tuple) else (final,)
            return {f"{name}_1": end for name, end in zip(self.names, final, strict=True)}
        self.forget_gradients()
        final = self.forward_and_backward()
        found = {f"{name}_1": end.detach() for name, end in zip(self.names, final, strict=True)}
        gradients = {f"grad {name}": leaf.grad for name, leaf in self.leaves().items()}
        return found | {name: grad for name, grad in gradients.items() if grad is not None}

    def contender(self, name: str) -> Contender:
        calls = CALLS[self.mode]
        if self.mode == "train":
            assert calls == 1, "gradients are forgotten after every call"
            return Contender(name, self.forward_and_backward, self.forget_gradients)
        module, x, hx = self.module, self.x, self.hx

        def forward() -> None:
            for _ in range(calls):
                module(x, hx)

        return Contender(name, forward, context=torch.no_grad, calls=calls)


def check(cell: Cell, provider: Provider, shape: Shape, mode: str, seed: int) -> list[str]:
    """What `provider` gets wrong against torch.nn, one line a tensor; empty when equal.

    A single step has so few elements that several problems are judged as one.
    """
    seeds = range(seed, seed + max(1, CHECKED_ELEMENTS // (shape.N * shape.H)))

    def results(side: Provider, dtype: torch.dtype) -> dict[str, Tensor]:
        return equality.stacked(
            [Step(cell, side, shape, mode, dtype, seed).results() for seed in seeds]
        )

    truth = results(PROVIDERS["torch"], torch.float64)
    yardstick = results(PROVIDERS["torch"], torch.float32)
    return equality.compare(truth, yardstick, results(provider, torch.float32), torch.float32)


def build_parser() -> argparse.ArgumentParser:
    parser = cli.LineParser(
        prog="bench_step.py",
        description="One step of a cell against torch.nn's: forward and backward, and the cost of "
        "a call.",
    )
    parser.add_argument("--mode", choices=MODES, help="default: infer, then train")
    cli.add_choices(parser, "--cells", "cell", tuple(STEPS), default="lstm_cell,gru_cell,rnn_cell")
    cli.add_run_options(parser)
    parser.add_argument(
        "--min-ratio", type=cli.positive_float, help="exit code 1 where a ratio is below"
    )
    return parser


def bench(
    cell: Cell, mode: str, args: argparse.Namespace, table: cli.Table
) -> measure.Measured | None:
    """Check and time one cell; None where it is wrong, after a line for each tensor."""
    shape, ours = SHAPES[mode], PROVIDERS["fastlstm"]
    failures = check(cell, ours, shape, mode, args.seed)
    for line in failures:
        table.row([cell.name, f"RED  {line}"])
    if failures:
        return None
    measured = measure.measure(
        *(
            Step(cell, provider, shape, mode, torch.float32, args.seed).contender(provider.name)
            for provider in (PROVIDERS["torch"], ours)
        ),
        operations=flops(cell.gates, shape, mode),
        dtype=torch.float32,
        seconds=args.seconds,
        seed=args.seed,
    )
    table.row([cell.name, *measured.table_cells()])
    return measured


def csv_row(
    cell: Cell, mode: str, measured: measure.Measured, conditions: Mapping[str, str]
) -> dict[str, object]:
    return cli.csv_row(
        conditions,
        cell=cell.name,
        mode=mode,
        provider="fastlstm",
        baseline="torch",
        shape=SHAPES[mode],
        dtype=torch.float32,
        stats=measured.stats,
        gflops=measured.gflops,
        peak_percent=measured.peak_percent,
    )


def main(argv: Sequence[str] | None = None) -> int:
    parser = build_parser()
    args = parser.parse_args(argv)
    cells = [STEPS[name] for name in args.cells]
    for cell in cells:
        reason = why_missing(PROVIDERS["fastlstm"], cell)
        if reason is not None:
            parser.error(reason)
    cli.check_csv(parser, args.csv)
    torch.set_num_threads(args.threads)
    conditions = environment("cpu")
    cli.print_conditions(conditions)

    succeeded = True
    for mode in [args.mode] if args.mode else MODES:
        print(f"\n{mode}, float32, T,N,I,H = {SHAPES[mode]}: ratio = torch ms / fastlstm ms")
        table = cli.Table(COLUMNS)
        for cell in cells:
            measured = bench(cell, mode, args, table)
            if measured is None:
                succeeded = False
                continue
            ratio = measured.stats.ratio
            if args.min_ratio is not None and ratio < args.min_ratio:
                print(f"MISSED: {cell.name}, {mode}: {ratio:.3f}x is below {args.min_ratio:g}x")
                succeeded = False
            if args.csv is not None:
                csv_rows.append_rows(args.csv, [csv_row(cell, mode, measured, conditions)])
    return 0 if succeeded else 1


if __name__ == "__main__":
    sys.exit(main())
