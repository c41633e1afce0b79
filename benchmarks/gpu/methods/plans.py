"""The plans of the group kernels that are worth a try (csrc/cuda/persistent/group/layout.h)."""

from __future__ import annotations

from collections.abc import Iterator

UNITS = (16, 32, 48)
# Of the batch in a tile. The largest is taken as well if it is no larger than the batch.
ROWS = (8, 16, 32)
MOST_ROWS = 64
MOST_CLUSTER = 16


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def tile_rows(N: int) -> list[int]:
    """Rows of a tile: few, and as many as a batch of N has, if a tile can have them."""
    whole = min(MOST_ROWS, 8 * ceil_div(N, 8))
    return [*(rows for rows in ROWS if rows < whole), whole]


def clusters(N: int, H: int) -> Iterator[str]:
    """Words for H units by the smallest clusters that hold them."""
    for units in UNITS:
        blocks = 2
        while blocks * units < H:
            blocks *= 2
        if blocks <= MOST_CLUSTER:
            for rows in tile_rows(N):
                yield f"cluster:{units}x{blocks}x{rows}"


def grids(N: int, H: int, multiprocessors: int) -> Iterator[str]:
    """Words for as few groups as need no more turns than the most that can be resident."""
    for units in UNITS:
        blocks = ceil_div(H, units)
        most = multiprocessors // blocks
        if most == 0:
            continue
        for rows in tile_rows(N):
            jobs = ceil_div(N, rows)
            groups = ceil_div(jobs, ceil_div(jobs, most))
            yield f"grid:{units}x{blocks}x{rows}x{groups}"


def words(method: str, N: int, H: int, multiprocessors: int) -> list[str]:
    """What to ask for, to try `method` on a batch of N rows and H units in one direction.

    Not all of it need be possible: what does not fit into shared memory is computed step by step.
    """
    if method == "cluster":
        return list(clusters(N, H))
    if method == "grid":
        return list(grids(N, H, multiprocessors))
    return [method]
