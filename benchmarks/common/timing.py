"""Two contenders timed alternately in one process, and the statistics of their pairs.

A shared machine drifts by more than the differences of interest, so times taken minutes apart do
not compare. Neighbours in time do: each pair yields one ratio, and the median of those ratios is
the result.
"""

from __future__ import annotations

import contextlib
import gc
import math
import random
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor

MIN_PAIRS = 5
MIN_BATCH_SECONDS = 0.01
MIN_WARMUPS = 2
WARMUP_SHARE = 0.1


@dataclass(frozen=True)
class Contender:
    """What is timed: `run`, inside `context`, after `prepare`; only `run` is on the clock.

    calls: how many calls `run` makes; its time is divided by that.
    """

    name: str
    run: Callable[[], object]
    prepare: Callable[[], None] = lambda: None
    context: Callable[[], AbstractContextManager] = nullcontext
    calls: int = 1


def training(
    name: str,
    run: Callable[[], object],
    leaves: Iterable[Tensor],
    context: Callable[[], AbstractContextManager] = nullcontext,
) -> Contender:
    """`run` computes the gradients of `leaves`, which are set to None between its calls."""
    leaves = list(leaves)

    def forget_gradients() -> None:
        for leaf in leaves:
            leaf.grad = None

    return Contender(name, run, forget_gradients, context)


# How one sample of a contender is taken: the seconds of a call.
Timer = Callable[[Contender], float]


def wall_timer(
    clock: Callable[[], float] = time.perf_counter,
    synchronize: Callable[[], object] = lambda: None,
) -> Timer:
    """One run of a contender on the wall clock, after `synchronize`, which is off the clock."""

    def seconds(contender: Contender) -> float:
        contender.prepare()
        synchronize()
        with contender.context():
            start = clock()
            # Held until the clock has stopped: freeing the result is not part of the call.
            result = contender.run()
            elapsed = clock() - start
        del result
        return elapsed / contender.calls

    return seconds


class EventTimer:
    """The device's own time of a batch of calls, between two events on the current stream.

    Calls follow each other without waiting, as in a training loop. A batch has so many of them that
    it lasts `min_seconds`: beside that, the resolution of an event (0.5 us) and the way of the first
    call to an idle device are nothing. make_event: a torch.cuda.Event with a time.
    """

    def __init__(
        self,
        make_event: Callable[[], torch.cuda.Event],
        min_seconds: float = MIN_BATCH_SECONDS,
    ) -> None:
        self._make_event = make_event
        self._min_seconds = min_seconds
        self._runs: dict[Contender, int] = {}

    def __call__(self, contender: Contender) -> float:
        if contender not in self._runs:
            self._runs[contender] = self._runs_of_a_batch(contender)
        runs = self._runs[contender]
        return self._batch(contender, runs) / (runs * contender.calls)

    def _runs_of_a_batch(self, contender: Contender) -> int:
        # The first run loads kernels and asks for memory.
        self._batch(contender, 1)
        runs = 1
        while (elapsed := self._batch(contender, runs)) < self._min_seconds:
            wanted = math.ceil(runs * self._min_seconds / max(elapsed, 1e-6))
            # Not all at once: one fast run by luck must not make batches of minutes.
            runs = min(max(wanted, runs + 1), 10 * runs)
        return runs

    def _batch(self, contender: Contender, runs: int) -> float:
        start, end = self._make_event(), self._make_event()
        start.record()
        for _ in range(runs):
            contender.prepare()
            with contender.context():
                contender.run()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3


def measure_rounds(
    contenders: Sequence[Contender],
    seconds: float,
    *,
    min_rounds: int,
    rng: random.Random,
    timer: Timer,
    clock: Callable[[], float] = time.perf_counter,
) -> list[tuple[float, ...]]:
    """Time all of them once a round for about `seconds`, at least `min_rounds` rounds.

    The order is drawn anew for each round, so that none always finds the caches as the same other
    one left them. Returns the rounds in the order they were taken, each in the order of
    `contenders`, in seconds of a call.
    """
    end = clock() + seconds
    rounds: list[tuple[float, ...]] = []
    places = range(len(contenders))
    while len(rounds) < min_rounds or clock() < end:
        taken = {place: timer(contenders[place]) for place in rng.sample(places, len(places))}
        rounds.append(tuple(taken[place] for place in places))
    return rounds


def measure_pairs(
    baseline: Contender,
    contender: Contender,
    seconds: float,
    *,
    min_pairs: int = MIN_PAIRS,
    seed: int = 0,
    timer: Timer | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> list[tuple[float, float]]:
    """Time both alternately for about `seconds`, at least `min_pairs` pairs, after a warm-up.

    Which of the two goes first is drawn anew for each pair (`seed`). The garbage collector is off
    meanwhile. timer: wall_timer(clock) where None. Returns the pairs (baseline, contender) in the
    order they were taken, in seconds of a call.
    """
    timer = timer or wall_timer(clock)
    rng, both = random.Random(seed), (baseline, contender)
    with garbage_collector_off():
        for share, least in ((WARMUP_SHARE, MIN_WARMUPS), (1.0, min_pairs)):
            pairs = measure_rounds(
                both, share * seconds, min_rounds=least, rng=rng, timer=timer, clock=clock
            )
    return pairs


@dataclass(frozen=True)
class PairStats:
    """Times in milliseconds; ratios are baseline / contender, so above 1 the contender is faster.

    p10, p25, p75, p90 are percentiles of the pairs, medians where nothing is said.
    """

    pairs: int
    baseline_ms: float
    ms: float
    ms_p10: float
    ms_p90: float
    ratio: float
    ratio_p10: float
    ratio_p25: float
    ratio_p75: float
    ratio_p90: float


def percentiles(values: Sequence[float], *percents: int) -> list[float]:
    """Percentiles, multiples of 5 from 5 to 95, linear between neighbours. values: one or more."""
    several = [*values] if len(values) > 1 else [*values] * 2
    cuts = statistics.quantiles(several, n=20, method="inclusive")
    return [cuts[percent // 5 - 1] for percent in percents]


def summarise(pairs: Sequence[tuple[float, float]]) -> PairStats:
    """Statistics of `pairs` (baseline, contender) in seconds. `pairs` is not empty."""
    ratios = [baseline / contender for baseline, contender in pairs]
    return PairStats(
        len(pairs),
        *percentiles([1e3 * baseline for baseline, _ in pairs], 50),
        *percentiles([1e3 * contender for _, contender in pairs], 50, 10, 90),
        *percentiles(ratios, 50, 10, 25, 75, 90),
    )


def scaled(stats: PairStats, factor: float) -> PairStats:
    """`stats` with its ratios multiplied by `factor`: of times per unit of work, say."""
    names = ("ratio", "ratio_p10", "ratio_p25", "ratio_p75", "ratio_p90")
    return replace(stats, **{name: factor * getattr(stats, name) for name in names})


@contextlib.contextmanager
def garbage_collector_off() -> Iterator[None]:
    """Collect once, then leave the collector off inside; afterwards it is as it was."""
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
