"""Timing of several ways to do the same, in turns."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping

ROUNDS = 7


def time_in_turns(
    runs: Mapping[str, Callable[[int], float]], seconds_a_turn: float
) -> dict[str, list[float]]:
    """Seconds of one repetition of each of ``runs`` in each round: A B A B, so that whatever else
    the machine does meets all of them. A run takes a count of repetitions and returns the seconds
    they took."""
    for run in runs.values():
        run(1)
    repeat = max(1, round(seconds_a_turn / max(run(1) for run in runs.values())))
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(ROUNDS):
        for name, run in runs.items():
            times[name].append(run(repeat) / repeat)
    return times


def paired_ratios(times: Mapping[str, list[float]], ours: str, theirs: str) -> list[float]:
    """How many times faster ``ours`` was than ``theirs``, round by round."""
    return [slow / fast for fast, slow in zip(times[ours], times[theirs], strict=True)]


def describe_ratios(ratios: list[float]) -> str:
    """Median and range."""
    return (
        f"{statistics.median(ratios):.2f} times "
        f"({min(ratios):.2f} to {max(ratios):.2f} in {len(ratios)} pairs)"
    )
