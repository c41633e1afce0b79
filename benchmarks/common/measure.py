"""One row of a table: a pair of contenders timed, and the rate of the second one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from benchmarks.common import cli, rows
from benchmarks.common.devices import Cpu
from benchmarks.common.shapes import Shape
from benchmarks.common.timing import Contender, PairStats, measure_pairs, summarise

HOST_SHARE = 0.1


def columns(device: Cpu) -> tuple[tuple[str, int], ...]:
    """Titles and widths of the columns that Measured.table_cells fills."""
    host = (("base host", 9), ("host ms", 9)) if device.host_timer() else ()
    peak = (device.peak_title, len(device.peak_title))
    return (*cli.RATIO_COLUMNS, *host, ("GFLOP/s", 8), peak, ("pairs", 6))


COLUMNS = columns(Cpu())


@dataclass(frozen=True)
class Measured:
    """Paired times and the contender's rate; peak_percent is None where there is no peak.

    host: times until a call returned, where its work was not done then.
    """

    stats: PairStats
    gflops: float
    peak_percent: float | None
    host: PairStats | None = None

    def table_cells(self) -> list[str]:
        """The cells under `columns`."""
        host_ms = [self.host.baseline_ms, self.host.ms] if self.host else []
        rates = [cli.number(rate, 1) for rate in (self.gflops, self.peak_percent)]
        cells = [*cli.ratio_cells(self.stats), *map(cli.milliseconds, host_ms), *rates]
        return [*cells, str(self.stats.pairs)]

    def as_csv(
        self, conditions: Mapping[str, str], shape: Shape, **about: object
    ) -> dict[str, object]:
        """The row of a run on the CPU in float32."""
        rates = {"gflops": self.gflops, "peak_percent": self.peak_percent}
        return rows.row(conditions, self.stats, shape, **rates, **about)

    def misses(self, required: float | None, title: str) -> bool:
        """Whether the ratio is below `required`, which is said then."""
        missed = required is not None and self.stats.ratio < required
        if missed:
            print(f"MISSED: {title}: {self.stats.ratio:.3f}x is below {required:g}x")
        return missed


def measure(
    baseline: Contender,
    contender: Contender,
    *,
    operations: int,
    seconds: float,
    seed: int,
    dtype: torch.dtype = torch.float32,
    device: Cpu | None = None,
) -> Measured:
    """Time both alternately; `operations` are the floating-point operations of a call.

    device: where they run; the CPU where None.
    """
    device = device or Cpu()
    # Right before the row it belongs to, as far as it is not known yet.
    peak = device.peak(dtype)
    stats = summarise(measure_pairs(baseline, contender, seconds, seed=seed, timer=device.timer()))
    timer, host = device.host_timer(), None
    if timer is not None:
        pairs = measure_pairs(baseline, contender, HOST_SHARE * seconds, seed=seed, timer=timer)
        host = summarise(pairs)
    gflops = operations / (stats.ms * 1e6)
    return Measured(stats, gflops, 100 * gflops / peak if peak else None, host)
