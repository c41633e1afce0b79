"""One row of a table: a pair of contenders timed, and the rate of the second one."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from benchmarks import cli
from benchmarks.machine import fma_peak
from benchmarks.timing import Contender, PairStats, measure_pairs, summarise

COLUMNS = (
    ("base ms", 9),
    ("ms", 9),
    ("ratio", 6),
    ("p10", 6),
    ("p90", 6),
    ("IQR", 6),
    ("GFLOP/s", 8),
    ("% peak", 6),
    ("pairs", 6),
)


@dataclass(frozen=True)
class Measured:
    """Paired times and the contender's rate; peak_percent is None where there is no peak."""

    stats: PairStats
    gflops: float
    peak_percent: float | None

    def table_cells(self) -> list[str]:
        """The cells under COLUMNS."""
        stats = self.stats
        return [
            *cli.ratio_cells(stats),
            cli.number(self.gflops, 1),
            cli.number(self.peak_percent, 1),
            str(stats.pairs),
        ]


def measure(
    baseline: Contender,
    contender: Contender,
    *,
    operations: int,
    dtype: torch.dtype,
    seconds: float,
    seed: int,
) -> Measured:
    """Time both alternately; `operations` are the floating-point operations of a call."""
    # Right before the row it belongs to: the clock of a shared machine drifts.
    peak = fma_peak(dtype, torch.get_num_threads())
    stats = summarise(measure_pairs(baseline, contender, seconds, seed=seed))
    gflops = operations / (stats.ms * 1e6)
    return Measured(stats, gflops, 100 * gflops / peak if peak else None)
