"""Time sequences of different lengths: packed and `lengths=`, against torch.nn and against padding.

    python benchmarks/bench_packed.py

packed:           fastlstm on a PackedSequence  against  torch.nn on the same PackedSequence
packed, lengths:  fastlstm without the padding  against  fastlstm on the whole padded batch, as
                  the ratio of the times per computed row: 1 means that a row which is left out
                  saves as much as a row costs

Everything is proved equal first (benchmarks/common/equality.py). Exit code: 0; 1 where a check is red or
a required ratio is missed; 2 for a wrong command line.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

sys.path.append(str(Path(__file__).resolve().parents[1]))

from benchmarks.common import cli, equality, measure, rows
from benchmarks.common.equality import Problem, Results, named_results, named_states
from benchmarks.common.providers import CELLS, PROVIDERS, Cell
from benchmarks.common.shapes import MODES, Shape, flops
from benchmarks.common.timing import Contender, scaled, training

SHAPE = Shape(200, 32, 256, 256)
MIN_LENGTH = 20
COLUMNS = (("comparison", -34), *measure.COLUMNS)


class Side(NamedTuple):
    """A provider and the form in which it gets the batch: "padded", "lengths" or "packed"."""

    provider: str
    form: str

    def __str__(self) -> str:
        return f"{self.provider} {self.form}"


TORCH = Side("torch", "packed")
PADDED = Side("fastlstm", "padded")
PACKED = Side("fastlstm", "packed")
LENGTHS = Side("fastlstm", "lengths")


class Comparison(NamedTuple):
    """`per_row`: the ratio is one of times per computed row, not of times."""

    baseline: Side
    contender: Side
    per_row: bool


COMPARISONS = (
    Comparison(TORCH, PACKED, per_row=False),
    Comparison(PADDED, PACKED, per_row=True),
    Comparison(PADDED, LENGTHS, per_row=True),
)


@dataclass
class Batch:
    """A problem whose rows end at `lengths` [N], drawn uniformly from [shortest, T]."""

    problem: Problem
    shortest: int

    def __post_init__(self) -> None:
        steps, batch = self.problem.shape[:2]
        generator = torch.Generator().manual_seed(self.problem.seed)
        self.lengths = torch.randint(self.shortest, steps + 1, (batch,), generator=generator)

    @property
    def rows(self) -> int:
        """How many of the T*N rows are no padding."""
        return int(self.lengths.sum())

    def rows_computed(self, side: Side) -> int:
        shape = self.problem.shape
        return shape.T * shape.N if side.form == "padded" else self.rows

    def pack(self, padded: Tensor) -> PackedSequence:
        """padded: [T, N, ...]."""
        return pack_padded_sequence(padded, self.lengths, enforce_sorted=False)

    def results(self, side: Side, dtype: torch.dtype) -> Results:
        """Outputs of one call and, in train mode, every gradient; all padded, with zeros."""
        problem = self.problem
        module = problem.model(PROVIDERS[side.provider], dtype)
        x = problem.tensor(problem.x, dtype, leaf=True)
        with torch.set_grad_enabled(problem.mode == "train"):
            if side.form == "packed":
                packed, final = module(self.pack(x))
                output, _ = pad_packed_sequence(packed, total_length=problem.shape.T)
            else:
                output, final = module(x, lengths=self.lengths)
            if problem.mode == "train":
                output.backward(problem.tensor(problem.grad_output, dtype))
        outputs = {"output": output, **named_states(problem.cell, final, "_n")}
        return named_results(outputs, {"input": x, **dict(module.named_parameters())})

    def contender(self, side: Side) -> Contender:
        """The call that is timed: forward and, in train mode, backward to every gradient, dx
        included, from a fixed cotangent of the output. Packing is not part of it."""
        problem = self.problem
        module = problem.model(PROVIDERS[side.provider])
        x, grad_output = problem.tensor(problem.x), problem.tensor(problem.grad_output)
        packed = self.pack(x)
        if side.form == "packed":
            x, grad_output = packed.data, self.pack(grad_output).data
        x.requires_grad_(problem.mode == "train")
        packed = packed._replace(data=x)
        forward = {
            "padded": lambda: module(x)[0],
            "lengths": lambda: module(x, lengths=self.lengths)[0],
            "packed": lambda: module(packed)[0].data,
        }[side.form]
        if problem.mode == "infer":
            return Contender(str(side), forward, context=torch.no_grad)

        def forward_and_backward() -> Tensor:
            output = forward()
            output.backward(grad_output)
            return output

        return training(str(side), forward_and_backward, [x, *module.parameters()])


def check(batch: Batch) -> list[str]:
    """What any side gets wrong against torch.nn on packed rows, one line a tensor."""
    lines = equality.check_sides(
        lambda dtype: batch.results(TORCH, dtype),
        {
            f"{side}: ": lambda side=side: batch.results(side, torch.float32)
            for side in (PACKED, LENGTHS)
        },
    )
    padded = equality.check(batch.problem, PROVIDERS[PADDED.provider]).failures
    return [*lines, *(f"{PADDED}: {line}" for line in padded)]


def compare(batch: Batch, comparison: Comparison, seconds: float) -> measure.Measured:
    """Time a comparison; the ratios are those it asks for, the times those of a call."""
    problem, side = batch.problem, comparison.contender
    rows = batch.rows_computed(side)
    measured = measure.measure(
        batch.contender(comparison.baseline),
        batch.contender(side),
        operations=flops(problem.cell.gates, problem.shape, problem.mode, rows),
        seconds=seconds,
        seed=problem.seed,
    )
    if not comparison.per_row:
        return measured
    share = rows / batch.rows_computed(comparison.baseline)
    return replace(measured, stats=scaled(measured.stats, share))


def build_parser() -> cli.Parser:
    parser = cli.Parser(
        prog="bench_packed.py",
        description="Sequences of different lengths: packed and lengths=, against torch.nn and, "
        "per computed row, against the padded batch.",
    )
    parser.add("--shape", default=SHAPE, help="T is the greatest length")
    least = "lengths are uniform from here to T"
    parser.add("--min-length", type=cli.positive_int, default=MIN_LENGTH, help=least)
    parser.add("--mode")
    parser.add_names("--cells", "cell", CELLS, "lstm,gru")
    parser.add("--threads", "--seconds", "--seed", "--csv")
    below = "exit code 1 where a ratio {} is below"
    parser.add("--min-ratio", help=below.format("against torch.nn"))
    parser.add("--min-per-row", type=cli.positive_float, help=below.format("per computed row"))
    return parser


def bench(cell: Cell, mode: str, args: argparse.Namespace, conditions: Mapping[str, str]) -> bool:
    """Print the table of one cell and mode; False where a check is red or a ratio is missed."""
    batch = Batch(Problem(cell, args.shape, mode, torch.float32, seed=args.seed), args.min_length)
    lengths = f"lengths {args.min_length}..{args.shape.T}"
    everything = args.shape.T * args.shape.N
    print(
        f"\n{cell.name}, {mode}, float32, T,N,I,H = {args.shape}, {lengths}: {batch.rows} of"
        f" {everything} rows ({100 * batch.rows / everything:.1f} %)"
    )
    table = cli.Table(COLUMNS)
    failures = check(batch)
    for line in failures:
        table.row([f"RED  {line}"])
    if failures:
        return False
    met = True
    for comparison in COMPARISONS:
        measured = compare(batch, comparison, args.seconds)
        per_row = ", per row" if comparison.per_row else ""
        title = f"{comparison.contender.form} / {comparison.baseline}{per_row}"
        table.row([title, *measured.table_cells()])
        required = args.min_per_row if comparison.per_row else args.min_ratio
        met &= not measured.misses(required, title)
        about = {"cell": cell.name, "mode": f"{mode}{per_row}, {lengths}"}
        about |= {"provider": comparison.contender, "baseline": comparison.baseline}
        rows.append(args.csv, [measured.as_csv(conditions, args.shape, **about)])
    return met


def main(argv: Sequence[str] | None = None) -> int:
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.min_length > args.shape.T:
        parser.error(
            f"argument --min-length: expected at most T = {args.shape.T}, got {args.min_length}"
        )
    cells = [CELLS[name] for name in args.cells]
    conditions = parser.begin(args, cells)
    print("ratio = base ms / ms; per row: of the times per computed row")
    # A list, not a generator: a table that fails does not keep the others from being measured.
    met = [
        bench(cell, mode, args, conditions)
        for cell, mode in itertools.product(cells, [args.mode] if args.mode else MODES)
    ]
    return 0 if all(met) else 1


if __name__ == "__main__":
    sys.exit(main())
