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

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

sys.path.append(str(Path(__file__).resolve().parents[1]))

from benchmarks.common import cli, rows
from benchmarks.common.equality import Results, check_sides, named_results
from benchmarks.common.providers import CELLS, PROVIDERS, Provider
from benchmarks.common.shapes import Shape
from benchmarks.common.timing import Contender, measure_pairs, summarise, training

T, N, H, V = 50, 50, 512, 65
COLUMNS = (("comparison", -10), *cli.RATIO_COLUMNS, ("target", 6), ("pairs", 6), ("", -6))

# Maps (lstm, tokens, table) to output [T, N, H].
Forward = Callable[[nn.Module, Tensor, Tensor | None], Tensor]


@dataclass(frozen=True)
class Comparison:
    """Two ways to the same output.

    embedding_size: columns of the table [V, embedding_size]; None where tokens stand for one-hot
    vectors of size V and the table is None. target: the ratio that is promised.
    """

    name: str
    target: float
    embedding_size: int | None
    baseline: Forward
    contender: Forward


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
    """One training step of `provider`'s LSTM on tokens [T, N], everything drawn from one seed."""

    def __init__(
        self,
        comparison: Comparison,
        forward: Forward,
        provider: Provider,
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
        self.lstm = provider.make(CELLS["lstm"], input_size, H)
        self.lstm.load_state_dict(weights)
        self.lstm.to(dtype)
        self.table = nn.Parameter(table.to(dtype)) if comparison.embedding_size else None
        self.forward = forward

    def leaves(self) -> dict[str, Tensor]:
        table = {} if self.table is None else {"table": self.table}
        return {**dict(self.lstm.named_parameters()), **table}

    def run(self) -> tuple[Tensor, Tensor]:
        """Forward, loss and backward. Returns the loss, a scalar, and output [T, N, H]."""
        output = self.forward(self.lstm, self.tokens, self.table)
        # A mean of squares, not a random projection: terms of both signs would cancel, and leave a
        # loss that is mostly rounding.
        loss = F.mse_loss(output, self.target)
        loss.backward()
        return loss.detach(), output.detach()

    def results(self) -> Results:
        """Loss, output and every gradient of one step, by name."""
        loss, output = self.run()
        return named_results({"loss": loss, "output": output}, self.leaves())

    def contender(self) -> Contender:
        return training(self.forward.__name__, self.run, self.leaves().values())


def steps(comparison: Comparison, seed: int) -> dict[str, Step]:
    """fastlstm's of either side, by name."""
    return {
        f"{side.__name__}: ": Step(comparison, side, PROVIDERS["fastlstm"], torch.float32, seed)
        for side in (comparison.baseline, comparison.contender)
    }


def check(comparison: Comparison, seed: int) -> list[str]:
    """What either side gets wrong against torch.nn.LSTM, one line a tensor; empty when equal."""

    def truth(dtype: torch.dtype) -> Results:
        return Step(comparison, comparison.baseline, PROVIDERS["torch"], dtype, seed).results()

    sides = steps(comparison, seed)
    return check_sides(truth, {name: step.results for name, step in sides.items()})


def main(argv: Sequence[str] | None = None) -> int:
    parser = cli.Parser(
        prog="bench_tokens.py",
        description=f"Training step on tokens, T={T} N={N} H={H} V={V}: token input against "
        "one-hot vectors, and against an embedding in front.",
    )
    parser.add("--threads", "--seconds", "--seed", "--csv")
    parser.add("--enforce-targets", action="store_true", help="exit code 1 where one is missed")
    args = parser.parse_args(argv)
    conditions = parser.begin(args, [CELLS["lstm"]])
    print(f"\nlstm, train, float32, T={T} N={N} H={H} V={V}: ratio = base ms / ms")

    table = cli.Table(COLUMNS)
    good = True
    for comparison in COMPARISONS:
        failures = check(comparison, args.seed)
        for line in failures:
            table.row([comparison.name, f"RED  {line}"])
        if failures:
            good = False
            continue
        pair = (step.contender() for step in steps(comparison, args.seed).values())
        stats = summarise(measure_pairs(*pair, args.seconds, seed=args.seed))
        missed = stats.ratio < comparison.target
        target = [cli.number(comparison.target, 1), str(stats.pairs), "MISSED" if missed else ""]
        table.row([comparison.name, *cli.ratio_cells(stats), *target])
        good &= not (missed and args.enforce_targets)
        about = {"cell": "lstm", "mode": "train", "provider": "fastlstm tokens"}
        about["baseline"] = f"fastlstm {comparison.name}"
        shape = Shape(T, N, comparison.embedding_size or V, H)
        rows.append(args.csv, [rows.row(conditions, stats, shape, **about)])
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
