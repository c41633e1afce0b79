"""Launches of the persistent kernels that no layer makes, and planted faults: each has to be found."""

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pytest
import simt_selftest
from persistent_driver import (
    FAMILIES,
    ROWS,
    STEPS,
    UNITS,
    Change,
    Driver,
    Launch,
    Plan,
    instead,
    without,
)

pytestmark = pytest.mark.slow

CLUSTER, GRID = Launch("cluster"), Launch("grid")
CLUSTER_BACKWARD, GRID_BACKWARD = (replace(launch, kind="backward") for launch in (CLUSTER, GRID))
NAN = replace(GRID, with_nan=True)
# Both tiles, one after the other.
ONE_GROUP = replace(GRID_BACKWARD, groups=1)
FWD, BWD, GATHER, SCATTER = (
    f"persistent/group/{part}.cuh" for part in ("fwd", "bwd", "gather", "scatter")
)
IN_VAIN = "a wait took too many looks"
BARRIER = "device::sync_block();"


class Planted(NamedTuple):
    change: Change
    launches: tuple[Launch, ...]
    words: str = ""  # of the error, where there is always one


FAULTS = {
    "block_without_barrier": Planted(
        without("persistent/block/fwd.cuh", "queue_.push(s + 2)", BARRIER),
        (Launch("block"),),
    ),
    "barrier_behind_products": Planted(without(FWD, "void step(", BARRIER), (CLUSTER, GRID)),
    "barrier_behind_cells": Planted(
        without(BWD, "void step(", BARRIER), (CLUSTER_BACKWARD, GRID_BACKWARD)
    ),
    "cells_before_they_are_sent": Planted(
        without(FWD, "void step(", "device::sync_warp();"), (CLUSTER, GRID)
    ),
    "one_tile_of_h": Planted(
        instead(GATHER, "OperandRows<S> rows(int64_t s)", "s % 2", "0"), (CLUSTER,)
    ),
    "one_slot_of_h": Planted(
        instead(GATHER, "Word4* slot(int64_t s)", "(s - 1)", "int64_t{0}"), (GRID,)
    ),
    "barrier_behind_received_h": Planted(
        without(GATHER, "receive_batch(from, first, at);", BARRIER), (GRID,)
    ),
    "one_tile_of_dgates": Planted(
        # On a grid a barrier of the group comes between.
        instead(BWD, "OperandRows<S> dgates(", "s % 2", "0"),
        (replace(CLUSTER_BACKWARD, rows=16),),
    ),
    "one_buffer_of_parts_in_cluster": Planted(
        instead(SCATTER, "char* part(int64_t s, int block)", "s % 2", "0"), (CLUSTER_BACKWARD,)
    ),
    "one_buffer_of_parts_on_grid": Planted(
        instead(SCATTER, "Word4* part(int64_t s", "s % 2", "0"), (GRID_BACKWARD,)
    ),
    "barrier_behind_received_parts": Planted(
        without(SCATTER, "sum_of_blocks(s, piece, part);", BARRIER), (GRID_BACKWARD,)
    ),
    "no_barrier_of_the_group": Planted(
        without(
            SCATTER,
            "void receive(int64_t s) {",
            "device::group_barrier(counter_, static_cast<unsigned>(blocks_), epoch_);",
        ),
        (GRID_BACKWARD,),
    ),
    "poison_is_sent": Planted(
        instead(GATHER, "class GridGather", "words.w[i] == kNotSent", "false"),
        (NAN, replace(NAN, kind="f32")),
        IN_VAIN,
    ),
    "blocks_do_not_wait_to_begin": Planted(
        without(GATHER, "mbarrier_init(barriers_ + 1, 1);", "device::cluster_sync();"),
        (CLUSTER, CLUSTER_BACKWARD),
    ),
    "no_barrier_between_jobs": Planted(
        without(
            SCATTER,
            "void finish() {",
            "device::group_barrier(counter_, static_cast<unsigned>(blocks_), epoch_);",
        ),
        (ONE_GROUP,),
    ),
    "counter_of_two_groups": Planted(
        instead(SCATTER, "counter_(p.counters + ", "job", "0"), (GRID_BACKWARD,)
    ),
    "parity": Planted(
        instead(GATHER, "mbarrier_wait(", "(s - 1)", "s"), (CLUSTER, CLUSTER_BACKWARD)
    ),
    "more_bytes_than_come": Planted(
        instead(GATHER, "mbarrier_expect_tx(barrier, ", "expected_", "expected_ + 16"),
        (CLUSTER, CLUSTER_BACKWARD),
        IN_VAIN,
    ),
    "fewer_bytes_than_come": Planted(
        instead(GATHER, "mbarrier_expect_tx(barrier, ", "expected_", "expected_ - 16"),
        (CLUSTER, CLUSTER_BACKWARD),
    ),
}


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Driver:
    folder = tmp_path_factory.mktemp("planted")
    return Driver(folder, {name: planted.change for name, planted in FAULTS.items()})


def bits(driver: Driver, launch: Launch, **options) -> bytes:
    return driver.run(launch, **options).tobytes()


EVERY_LAUNCH = {launch for planted in FAULTS.values() for launch in planted.launches}


@pytest.mark.parametrize("launch", sorted(EVERY_LAUNCH, key=str), ids=str)
def test_no_fault(driver: Driver, launch: Launch) -> None:
    """What the faults are found by: without them every schedule gives the same."""
    assert len({bits(driver, launch, seed=seed) for seed in simt_selftest.SEEDS}) == 1


@pytest.mark.parametrize(
    ("name", "launch"),
    [(name, launch) for name, planted in FAULTS.items() for launch in planted.launches],
    ids=str,
)
def test_fault_is_found(driver: Driver, name: str, launch: Launch) -> None:
    """In some schedule; half of them show in every one."""
    right = bits(driver, launch)
    for seed in simt_selftest.SCHEDULES:
        try:
            if bits(driver, launch, seed=seed, fault=name) != right:
                return
        except RuntimeError as error:
            assert FAULTS[name].words in str(error)
            return
    pytest.fail(f"not found in {len(simt_selftest.SCHEDULES)} schedules")


@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@pytest.mark.parametrize("family", FAMILIES)
def test_several_launches(driver: Driver, family: str, reverse: bool) -> None:
    """States pass from one to the next, as gates come in chunks."""
    whole = Launch(family, reverse=reverse)
    for split in range(1, STEPS + 1):
        assert bits(driver, replace(whole, split=split)) == bits(driver, whole)


@pytest.mark.parametrize(
    ("family", "kind"),
    [(family, "forward") for family in FAMILIES] + [("grid", "f32")],
)
def test_nan_of_all_bits(driver: Driver, family: str, kind: str) -> None:
    """It is the word that a grid waits to see go, and reaches what a NaN has to reach."""
    states = {}
    for with_nan in (False, True):
        results = driver.run(Launch(family, kind, with_nan=with_nan))
        states[with_nan] = results[: STEPS * ROWS * UNITS].reshape(STEPS, ROWS, UNITS)
    assert not np.isnan(states[False]).any()
    assert np.isnan(states[True][:, 1]).all()
    others = np.arange(ROWS) != 1
    np.testing.assert_array_equal(states[True][:, others], states[False][:, others])


@pytest.mark.parametrize(
    "launch",
    [
        replace(GRID, absent=1),
        replace(GRID, groups=1, absent=2),
        replace(GRID_BACKWARD, absent=1),
        # Of the counters all bits are set.
        replace(GRID_BACKWARD, garbage=True),
    ],
    ids=str,
)
def test_wait_in_vain_is_an_error(driver: Driver, launch: Launch) -> None:
    with pytest.raises(RuntimeError, match=rf"kernel (.*)group_kernel<(.|\n)*{IN_VAIN}"):
        driver.run(launch)


def test_exchange_that_was_not_filled(driver: Driver) -> None:
    """Is taken for what was sent: the wrong results, and no waiting."""
    garbage = bits(driver, replace(GRID, garbage=True))
    assert garbage != bits(driver, GRID)


@pytest.mark.parametrize("launch", [GRID, GRID_BACKWARD], ids=str)
def test_more_blocks_than_can_be_resident(driver: Driver, launch: Launch) -> None:
    driver.set_max_resident_blocks(5)
    try:
        with pytest.raises(RuntimeError) as error:
            driver.run(launch)
        assert "group_kernel<" in str(error.value)
        assert "CooperativeLaunchTooLarge: 6 blocks, but only 5 can be" in str(error.value)
    finally:
        driver.set_max_resident_blocks(132)


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("cluster", [False, True], ids=["grid", "cluster"])
@pytest.mark.parametrize(
    ("plan", "units", "words"),
    [
        (Plan(24, 2, 8, 1), 40, "no kernel has 24 units a block"),
        (Plan(16, 0, 8, 1), 40, "blocks and groups must be positive"),
        (Plan(16, 3, 8, 0), 40, "blocks and groups must be positive"),
        (Plan(16, 3, 12, 1), 40, "rows must be a multiple of 8 up to 256, got 12"),
        (Plan(16, 3, 0, 1), 40, "rows must be a multiple of 8 up to 256, got 0"),
        (Plan(16, 3, 264, 1), 40, "rows must be a multiple of 8 up to 256, got 264"),
        (Plan(16, 2, 8, 1), 40, "32 units of 40"),
        (Plan(48, 16, 128, 1), 768, "group_kernel<(.*)at most 232448 bytes of shared memory"),
    ],
    ids=str,
)
def test_plans_that_are_refused(
    driver: Driver, plan: Plan, units: int, words: str, cluster: bool, backward: bool
) -> None:
    with pytest.raises(RuntimeError, match=words):
        driver.run_plan(plan, backward=backward, cluster=cluster, units=units)
