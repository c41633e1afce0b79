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
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

sys.path.append(str(Path(__file__).resolve().parents[1]))

from benchmarks.common import cli, measure, rows
from benchmarks.common.equality import (
    Results,
    as_hx,
    check_sides,
    named_results,
    named_states,
    stacked,
)
from benchmarks.common.providers import PROVIDERS, STEPS, Cell, Provider
from benchmarks.common.shapes import MODES, Shape, flops
from benchmarks.common.timing import Contender, training

SHAPES = {"train": Shape(1, 16, 256, 256), "infer": Shape(1, 1, 8, 8)}
# A call of the small cell takes a few microseconds, of which reading the clock is a part: it is
# read once for this many. Gradients are forgotten after every call.
INFER_CALLS = 200
CHECKED_ELEMENTS = 1024
COLUMNS = (("cell", -14), *measure.COLUMNS)


class Step:
    """One call of `provider`'s cell with a given state, everything drawn from one seed."""

    def __init__(
        self, cell: Cell, provider: Provider, mode: str, dtype: torch.dtype, seed: int
    ) -> None:
        _, N, I, H = SHAPES[mode]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            weights = PROVIDERS["torch"].make(cell, I, H).state_dict()
            self.x = torch.randn(N, I).to(dtype)
            self.states = [torch.randn(N, H).to(dtype) for _ in cell.states]
            self.cotangents = [torch.randn(N, H).to(dtype) for _ in cell.states]
        self.cell = cell
        self.mode = mode
        self.module = provider.make(cell, I, H)
        self.module.load_state_dict(weights)
        self.module.to(dtype)
        for leaf in (self.x, *self.states):
            leaf.requires_grad_(mode == "train")
        self.hx = as_hx(self.states)

    def leaves(self) -> dict[str, Tensor]:
        states = named_states(self.cell, self.hx, "")
        return {"input": self.x, **states, **dict(self.module.named_parameters())}

    def run(self) -> Tensor | tuple[Tensor, ...]:
        """The states after the step; in train mode every gradient is there then."""
        final = self.module(self.x, self.hx)
        if self.mode == "train":
            torch.autograd.backward(final, self.cotangents)
        return final

    def results(self) -> Results:
        """The states after the step and, in train mode, every gradient, by name."""
        with torch.set_grad_enabled(self.mode == "train"):
            return named_results(named_states(self.cell, self.run(), "_1"), self.leaves())

    def contender(self, name: str) -> Contender:
        if self.mode == "train":
            return training(name, self.run, self.leaves().values())
        module, x, hx = self.module, self.x, self.hx

        def forward() -> None:
            for _ in range(INFER_CALLS):
                module(x, hx)

        return Contender(name, forward, context=torch.no_grad, calls=INFER_CALLS)


def check(cell: Cell, provider: Provider, mode: str, seed: int) -> list[str]:
    """What `provider` gets wrong against torch.nn, one line a tensor; empty when equal.

    A single step has so few elements that several problems are judged as one.
    """
    shape = SHAPES[mode]
    seeds = range(seed, seed + max(1, CHECKED_ELEMENTS // (shape.N * shape.H)))

    def results(dtype: torch.dtype, side: Provider = PROVIDERS["torch"]) -> Results:
        return stacked([Step(cell, side, mode, dtype, seed).results() for seed in seeds])

    return check_sides(results, {"": lambda: results(torch.float32, provider)})


def build_parser() -> cli.Parser:
    parser = cli.Parser(
        prog="bench_step.py",
        description="One step of a cell against torch.nn's: forward and backward, and the cost of "
        "a call.",
    )
    parser.add("--mode")
    parser.add_names("--cells", "cell", STEPS, "lstm_cell,gru_cell,rnn_cell")
    parser.add("--threads", "--seconds", "--seed", "--csv", "--min-ratio")
    return parser


def bench(
    cell: Cell, mode: str, args: argparse.Namespace, table: cli.Table, conditions: dict[str, str]
) -> bool:
    """Check and time one cell; False where it is wrong, or a ratio is missed."""
    sides = PROVIDERS["torch"], PROVIDERS["fastlstm"]
    failures = check(cell, sides[1], mode, args.seed)
    for line in failures:
        table.row([cell.name, f"RED  {line}"])
    if failures:
        return False
    measured = measure.measure(
        *(Step(cell, side, mode, torch.float32, args.seed).contender(side.name) for side in sides),
        operations=flops(cell.gates, SHAPES[mode], mode),
        seconds=args.seconds,
        seed=args.seed,
    )
    table.row([cell.name, *measured.table_cells()])
    about = {"cell": cell.name, "mode": mode, "provider": "fastlstm", "baseline": "torch"}
    rows.append(args.csv, [measured.as_csv(conditions, SHAPES[mode], **about)])
    return not measured.misses(args.min_ratio, f"{cell.name}, {mode}")


def main(argv: Sequence[str] | None = None) -> int:
    parser = build_parser()
    args = parser.parse_args(argv)
    cells = [STEPS[name] for name in args.cells]
    conditions = parser.begin(args, cells)
    good = True
    for mode in [args.mode] if args.mode else MODES:
        print(f"\n{mode}, float32, T,N,I,H = {SHAPES[mode]}: ratio = torch ms / fastlstm ms")
        table = cli.Table(COLUMNS)
        for cell in cells:
            good &= bench(cell, mode, args, table, conditions)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
