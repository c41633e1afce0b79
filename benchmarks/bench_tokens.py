"""Time fastlstm's token input against what it replaces, on a training step of a character model.

    python benchmarks/bench_tokens.py

one-hot:   lstm(tokens)                   against  lstm(one_hot(tokens, V).float())
embedding: lstm(tokens, embedding=table)  against  lstm(F.embedding(tokens, table))

Both sides are fastlstm.LSTM with the same weights. A step is forward, loss and backward to every
weight, the table included. Loss and gradients are proved equal first (benchmarks/common/equality.py). Exit
code: 0; 1 where a check is red or, with --enforce-targets, a target is missed; 2 for a wrong
command line.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

sys.path.append(str(Path(__file__).resolve().parents[1]))

from benchmarks.common import cli, csv_rows
from benchmarks.common.equality import compare
from benchmarks.common.machine import environment
from benchmarks.common.shapes import Shape
from benchmarks.common.timing import Contender, measure_pairs, summarise

T, N, H, V = 50, 50, 512, 65
COLUMNS = (
    ("comparison", -10),
    ("base ms", 9),
    ("ms", 9),
    ("ratio", 6),
    ("p10", 6),
    ("p90", 6),
    ("IQR", 6),
    ("target", 6),
    ("pairs", 6),
    ("", -6),
)


@dataclass(frozen=True)
class Comparison:
    """Two ways to the same output: each maps (lstm, tokens, table) to output [T, N, H].

    embedding_size: columns of the table [V, embedding_size]; None where tokens stand for one-hot
    vectors of size V and the table is None. target: the ratio that is promised.
    """

    name: str
    target: float
    embedding_size: int | None
    baseline: Callable[[nn.Module, Tensor, Tensor | None], Tensor]
    contender: Callable[[nn.Module, Tensor, Tensor | None], Tensor]


def one_hot_input(lstm: nn.Module, tokens: Tensor, table: Tensor | None) -> Tensor:
    return lstm(F.one_hot(tokens, V).to(lstm.weight_ih_l0.dtype))[0]


def token_input(lstm: nn.Module, tokens: Tensor, table: Tensor | None) -> Tensor:
    return lstm(tokens)[0]


def embedded_input(lstm: nn.Module, tokens: Tensor, table: Tensor | None) -> Tensor:
    return lstm(F.embedding(tokens, table))[0]


def token_and_table_input(lstm: nn.Module, tokens: Tensor, table: Tensor | None) -> Tensor:
    return lstm(tokens, embedding=table)[0]


COMPARISONS = (
    Comparison("one-hot", 1.1, None, one_hot_input, token_input),
    Comparison("embedding", 1.5, H, embedded_input, token_and_table_input),
)


class Step:
    """One training step of `lstm_class` on tokens [T, N], everything drawn from one seed."""

    def __init__(
        self,
        comparison: Comparison,
        lstm_class: type[nn.Module],
        forward: Callable[[nn.Module, Tensor, Tensor | None], Tensor],
        dtype: torch.dtype,
        seed: int,
    ) -> None:
        input_size = comparison.embedding_size or V
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            weights = nn.LSTM(input_size, H).state_dict()
            table = torch.randn(V, input_size)
            self.tokens = torch.randint(V, (T, N))
            self.target = torch.randn(T, N, H).to(dtype)
        self.lstm = lstm_class(input_size, H)
        self.lstm.load_state_dict(weights)
        self.lstm.to(dtype)
        self.table = nn.Parameter(table.to(dtype)) if comparison.embedding_size else None
        self.forward = forward

    def leaves(self) -> dict[str, nn.Parameter]:
        table = {} if self.table is None else {"table": self.table}
        return {**dict(self.lstm.named_parameters()), **table}

    def forget_gradients(self) -> None:
        for leaf in self.leaves().values():
            leaf.grad = None

    def run(self) -> tuple[Tensor, Tensor]:
        """Forward, loss and backward. Returns the loss, a scalar, and output [T, N, H]."""
        output = self.forward(self.lstm, self.tokens, self.table)
        # A mean of squares, not a random projection: terms of both signs would cancel, and leave a
        # loss that is mostly rounding.
        loss = F.mse_loss(output, self.target)
        loss.backward()
        return loss.detach(), output.detach()

    def results(self) -> dict[str, Tensor]:
        """Loss, output and every gradient of one step, by name."""
        self.forget_gradients()
        loss, output = self.run()
        gradients = {
            f"grad {name}": leaf.grad
            for name, leaf in self.leaves().items()
            if leaf.grad is not None
        }
        return {"loss": loss, "output": output, **gradients}


def check(comparison: Comparison, lstm_class: type[nn.Module], seed: int) -> list[str]:
    """What either side gets wrong against torch.nn.LSTM, one line a tensor; empty when equal."""
    truth, yardstick = (
        Step(comparison, nn.LSTM, comparison.baseline, dtype, seed).results()
        for dtype in (torch.float64, torch.float32)
    )
    failures = []
    for side in (comparison.baseline, comparison.contender):
        ours = Step(comparison, lstm_class, side, torch.float32, seed).results()
        lines = compare(truth, yardstick, ours, torch.float32)
        failures += [f"{side.__name__}: {line}" for line in lines]
    return failures


def build_parser() -> argparse.ArgumentParser:
    parser = cli.LineParser(
        prog="bench_tokens.py",
        description=f"Training step on tokens, T={T} N={N} H={H} V={V}: token input against "
        "one-hot vectors, and against an embedding in front.",
    )
    cli.add_run_options(parser)
    parser.add_argument(
        "--enforce-targets", action="store_true", help="exit code 1 where a target is missed"
    )
    return parser


def main(argv: Sequence[str] | None = None, lstm_class: type[nn.Module] | None = None) -> int:
    """lstm_class: fastlstm.LSTM where None."""
    parser = build_parser()
    args = parser.parse_args(argv)
    if lstm_class is None:
        try:
            from fastlstm import LSTM as lstm_class
        except ImportError as error:
            parser.error(str(error).partition("\n")[0])
    cli.check_csv(parser, args.csv)
    torch.set_num_threads(args.threads)
    conditions = environment("cpu")
    cli.print_conditions(conditions)
    print(f"\nlstm, train, float32, T={T} N={N} H={H} V={V}: ratio = base ms / ms")

    table = cli.Table(COLUMNS)
    succeeded = True
    for comparison in COMPARISONS:
        failures = check(comparison, lstm_class, args.seed)
        if failures:
            succeeded = False
            for line in failures:
                table.row([comparison.name, f"RED  {line}"])
            continue
        stats = summarise(
            measure_pairs(
                *(
                    contender(comparison, lstm_class, side, args.seed)
                    for side in (comparison.baseline, comparison.contender)
                ),
                args.seconds,
                seed=args.seed,
            )
        )
        missed = stats.ratio < comparison.target
        table.row(
            [
                comparison.name,
                *cli.ratio_cells(stats),
                cli.number(comparison.target, 1),
                str(stats.pairs),
                "MISSED" if missed else "",
            ]
        )
        succeeded &= not (missed and args.enforce_targets)
        if args.csv is not None:
            row = cli.csv_row(
                conditions,
                cell="lstm",
                mode="train",
                provider="fastlstm tokens",
                baseline=f"fastlstm {comparison.name}",
                shape=Shape(T, N, comparison.embedding_size or V, H),
                dtype=torch.float32,
                stats=stats,
                gflops=None,
                peak_percent=None,
            )
            csv_rows.append_rows(args.csv, [row])
    return 0 if succeeded else 1


def contender(
    comparison: Comparison,
    lstm_class: type[nn.Module],
    side: Callable[[nn.Module, Tensor, Tensor | None], Tensor],
    seed: int,
) -> Contender:
    step = Step(comparison, lstm_class, side, torch.float32, seed)
    return Contender(side.__name__, step.run, step.forget_gradients)


if __name__ == "__main__":
    sys.exit(main())
