"""How the benchmarks measure: pairs on a fake clock and on a fake GPU, and their statistics."""

from __future__ import annotations

import dataclasses
import gc

import pytest

from benchmarks.common import timing
from benchmarks.common.timing import (
    Contender,
    EventTimer,
    measure_pairs,
    percentiles,
    summarise,
    wall_timer,
)


class FakeClock:
    """Time that passes only where a test says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def test_percentiles_are_linear_between_neighbours() -> None:
    assert percentiles([4.0, 1.0, 3.0, 2.0], 50) == [2.5]
    assert percentiles([10.0, 20.0], 10, 95) == pytest.approx([11.0, 19.5])
    assert percentiles([7.0], 90) == [7.0]


def test_summary_takes_the_median_of_ratios_not_the_ratio_of_medians() -> None:
    stats = summarise([(2.0, 1.0), (30.0, 10.0), (8.0, 2.0)])
    assert dataclasses.astuple(stats) == pytest.approx(
        (3, 8000, 2000, 1200, 8400, 3.0, 2.2, 2.5, 3.5, 3.8)
    )
    halved = timing.scaled(stats, 0.5)
    assert dataclasses.astuple(halved) == pytest.approx(
        (3, 8000, 2000, 1200, 8400, 1.5, 1.1, 1.25, 1.75, 1.9)
    )


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


class FakeGpu:
    """A stream: calls cost host time, and their work takes its own time there. A call waits while
    more than `queue` seconds of work are ahead of it."""

    def __init__(self, queue: float = 1e9) -> None:
        self.queue = queue
        self.host = 0.0
        self.busy_until = 0.0
        self.batches: list[float] = []

    def clock(self) -> float:
        return self.host

    def contender(self, name: str, device_seconds: float, host_seconds: float = 0.0) -> Contender:
        def run() -> None:
            self.host = max(self.host + host_seconds, self.busy_until - self.queue)
            self.busy_until = max(self.busy_until, self.host) + device_seconds

        return Contender(name, run)

    def synchronize(self) -> None:
        self.host = max(self.host, self.busy_until)

    def event(self) -> FakeEvent:
        return FakeEvent(self)


class FakeEvent:
    def __init__(self, gpu: FakeGpu) -> None:
        self.gpu = gpu

    def record(self) -> None:
        self.time = max(self.gpu.host, self.gpu.busy_until)

    def synchronize(self) -> None:
        self.gpu.synchronize()

    def elapsed_time(self, end: FakeEvent) -> float:
        self.gpu.batches.append(end.time - self.time)
        return 1e3 * (end.time - self.time)


def test_batches_are_long_and_their_time_is_that_of_a_call() -> None:
    gpu = FakeGpu()
    timer = EventTimer(gpu.event, min_seconds=0.01)
    fast, slow = gpu.contender("fast", 20e-6, 5e-6), gpu.contender("slow", 30e-3)
    # The 5 us until the first call is on the device are a part of the batch, of 500 calls or more.
    assert timer(fast) == pytest.approx(20e-6, rel=1e-3)
    assert timer(slow) == pytest.approx(30e-3)
    gpu.batches.clear()
    pairs = measure_pairs(fast, slow, 0.5, timer=timer, clock=gpu.clock)
    assert len(pairs) > 10
    assert pairs[0] == pytest.approx((20e-6, 30e-3), rel=1e-3)
    assert min(gpu.batches) >= 0.01
    assert max(gpu.batches) < 0.05


def test_a_slow_host_is_on_the_device_clock() -> None:
    # Calls that the host cannot hand over fast enough take what the host takes.
    gpu = FakeGpu()
    contender = gpu.contender("a", 5e-6, 40e-6)
    assert EventTimer(gpu.event)(contender) == pytest.approx(40e-6, rel=0.01)


def test_a_batch_prepares_every_call_and_counts_the_calls_of_a_run() -> None:
    gpu, log = FakeGpu(), []
    inner = gpu.contender("a", 0.02)
    contender = Contender(
        "a", lambda: log.append("run") or inner.run(), lambda: log.append("prepare"), calls=4
    )
    assert EventTimer(gpu.event)(contender) == pytest.approx(0.005)
    assert log == ["prepare", "run"] * (len(log) // 2)


def test_host_time_is_that_until_the_call_returns() -> None:
    # A queue that the work of earlier calls would fill.
    gpu = FakeGpu(queue=0.5)
    timer = wall_timer(gpu.clock, gpu.synchronize)
    contender = gpu.contender("a", 1.0, 0.25)
    assert [timer(contender) for _ in range(3)] == [0.25] * 3
