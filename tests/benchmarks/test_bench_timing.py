"""How the benchmarks measure: pairs on a fake clock, and their statistics."""

from __future__ import annotations

import gc

import pytest

from benchmarks.common import timing
from benchmarks.common.timing import Contender, measure_pairs, summarise


class FakeClock:
    """Time that passes only where a test says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def test_percentile_is_linear_between_neighbours() -> None:
    assert timing.percentile([4.0, 1.0, 3.0, 2.0], 50) == 2.5
    assert timing.percentile([10.0, 20.0], 10) == pytest.approx(11.0)
    assert timing.percentile([7.0], 90) == 7.0
    assert timing.percentile([1.0, 2.0, 3.0], 100) == 3.0


def test_geometric_mean() -> None:
    assert timing.geometric_mean([0.5, 2.0, 8.0]) == pytest.approx(2.0)


def test_summary_takes_the_median_of_ratios_not_the_ratio_of_medians() -> None:
    stats = summarise([(2.0, 1.0), (30.0, 10.0), (8.0, 2.0)])
    assert stats.pairs == 3
    assert stats.baseline_ms == 8000
    assert stats.ms == 2000
    assert (stats.ms_p10, stats.ms_p90) == (pytest.approx(1200), pytest.approx(8400))
    assert stats.ratio == 3.0
    assert (stats.ratio_p10, stats.ratio_p90) == (pytest.approx(2.2), pytest.approx(3.8))
    assert (stats.ratio_p25, stats.ratio_p75) == (pytest.approx(2.5), pytest.approx(3.5))


def test_paired_ratio_survives_a_drifting_clock() -> None:
    clock = FakeClock()
    calls = []

    def drifting(name: str, seconds: float) -> Contender:
        def run() -> None:
            slowdown = 1 + len(calls) // 2
            calls.append(name)
            clock.sleep(seconds * slowdown)

        return Contender(name, run)

    pairs = measure_pairs(drifting("a", 2.0), drifting("b", 1.0), 500.0, clock=clock)
    assert len(pairs) > 10
    assert {a / b for a, b in pairs} == {2.0}
    assert pairs[-1][0] > 2 * pairs[0][0]
    turns = list(zip(calls[::2], calls[1::2], strict=True))
    assert set(turns) == {("a", "b"), ("b", "a")}


def test_timing_keeps_its_budget_and_its_minimum_of_pairs() -> None:
    clock = FakeClock()
    contender = Contender("a", lambda: clock.sleep(1.0))
    assert len(measure_pairs(contender, contender, 40.0, clock=clock)) == 20
    assert len(measure_pairs(contender, contender, 0.5, clock=clock)) == timing.MIN_PAIRS
    start = clock()
    measure_pairs(contender, contender, 0.5, min_pairs=1, clock=clock)
    assert clock() - start == 2 * (timing.MIN_WARMUPS + 1)


def test_only_the_call_is_on_the_clock() -> None:
    clock = FakeClock()

    class Result:
        def __del__(self) -> None:
            clock.sleep(1000)

    class SlowContext:
        def __enter__(self) -> None:
            clock.sleep(100)

        def __exit__(self, *_: object) -> None:
            clock.sleep(100)

    def run() -> Result:
        assert not gc.isenabled()
        clock.sleep(1)
        return Result()

    assert gc.isenabled()
    contender = Contender("a", run, prepare=lambda: clock.sleep(10), context=SlowContext)
    assert set(measure_pairs(contender, contender, 1.0, clock=clock)) == {(1.0, 1.0)}
    assert gc.isenabled()


def test_time_of_many_calls_is_that_of_one() -> None:
    clock = FakeClock()
    many = Contender("many", lambda: clock.sleep(6.0), calls=4)
    one = Contender("one", lambda: clock.sleep(6.0))
    assert set(measure_pairs(many, one, 1.0, clock=clock)) == {(1.5, 6.0)}


def test_scaled_statistics_differ_in_their_ratios_only() -> None:
    stats = summarise([(2.0, 1.0), (30.0, 10.0), (8.0, 2.0)])
    halved = timing.scaled(stats, 0.5)
    assert (halved.ratio, halved.ratio_p10) == (1.5, pytest.approx(1.1))
    assert (halved.ratio_p25, halved.ratio_p75) == (pytest.approx(1.25), pytest.approx(1.75))
    assert halved.ratio_p90 == pytest.approx(1.9)
    assert timing.scaled(halved, 2.0) == stats
