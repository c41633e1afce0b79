"""What bench_exchange.py measures, and the columns of its rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from benchmarks.gpu.exchange.native import STEPS, Problem

# N and H of the state of a whole grid, of a cluster, and of a block.
GRID_SIZES = ((16, 768), (64, 1024), (8, 256), (16, 512), (8, 2048))
CLUSTER_SIZES = ((8, 256), (16, 512), (8, 768), (16, 768))
BLOCK_SIZES = ((8, 64), (8, 128), (8, 192), (16, 64), (16, 128), (16, 192))
GROUPS = (1, 2, 4, 8)
CLUSTERS = (4, 8, 16)
# So that one block has a multiprocessor for itself, as where it keeps weights there.
CLUSTER_SHARED_BYTES = 200 * 1024
# A buffer [steps, N, H] of this size is in L2 from when it is filled; a longer one is not.
L2_BYTES = 16 << 20
MOST_BLOCKS = 160

FIELDS = (
    *("date", "commit", "device", "driver", "cuda", "capability", "sms", "sm_mhz"),
    *("scheme", "groups", "blocks", "threads", "N", "H", "steps", "launches"),
    *("us", "us_min", "us_max", "us_with_loop", "us_loop"),
)

Clusters = dict[int, int]


def whole_grid(sms: int, clusters: Clusters) -> Iterator[Problem]:
    for rows, units in GRID_SIZES:
        yield Problem(1, sms, rows, units)


def batch_groups(sms: int, clusters: Clusters) -> Iterator[Problem]:
    """Every group has its part of the rows and of the multiprocessors."""
    for rows, units in GRID_SIZES:
        for groups in GROUPS:
            yield Problem(groups, sms // groups, rows // groups, units)


def flags(sms: int, clusters: Clusters) -> Iterator[Problem]:
    """Also with fewer steps where 2000 are too many for L2: looks at what is not there are slow."""
    yield from batch_groups(sms, clusters)
    for rows, units in GRID_SIZES:
        steps = L2_BYTES // (2 * rows * units)
        if steps < STEPS:
            yield Problem(1, sms, rows, units, steps=steps)


def in_clusters(sms: int, clusters: Clusters) -> Iterator[Problem]:
    """One cluster alone, and as many as can be resident."""
    for rows, units in CLUSTER_SIZES:
        for size, most in clusters.items():
            for groups in sorted({1, most}) if most else ():
                yield Problem(groups, size, rows, units, shared_bytes=CLUSTER_SHARED_BYTES)


def alone(sms: int, clusters: Clusters) -> Iterator[Problem]:
    for rows, units in BLOCK_SIZES:
        yield Problem(min(sms, MOST_BLOCKS), 1, rows, units)


# The most important ones first. clusters: size to how many can be resident.
PLAN: dict[str, Callable[[int, Clusters], Iterator[Problem]]] = {
    "counter": batch_groups,
    "flag": flags,
    "cluster_async": in_clusters,
    "cluster_barrier": in_clusters,
    "cluster_relaxed": in_clusters,
    "cluster_unlimited": in_clusters,
    "cluster_aligned": in_clusters,
    "block": alone,
    "grid_sync": whole_grid,
}
