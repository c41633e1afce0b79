"""One row of a table: a pair of contenders timed, and the rate of the second one."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from benchmarks.common import cli
from benchmarks.common.devices import Cpu, Device
from benchmarks.common.timing import Contender, PairStats, measure_pairs, summarise

HOST_SHARE = 0.1


def columns(device: Device) -> tuple[tuple[str, int], ...]:
    """Titles and widths of the columns that Measured.table_cells fills."""
    host = (("base host", 9), ("host ms", 9)) if device.host_timer() else ()
    return (
        ("base ms", 9),
        ("ms", 9),
        ("ratio", 6),
        ("p10", 6),
        ("p90", 6),
        ("IQR", 6),
        *host,
        ("GFLOP/s", 8),
        (device.peak_title, len(device.peak_title)),
        ("pairs", 6),
    )


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
        stats, host = self.stats, self.host
        host_ms = [host.baseline_ms, host.ms] if host else []
        return [
            *cli.ratio_cells(stats),
            *map(cli.milliseconds, host_ms),
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
    device: Device | None = None,
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
