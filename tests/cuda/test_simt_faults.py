"""Planted mistakes (tests/simt/faults.cu), which the emulator has to find."""

import ctypes
import re

import numpy as np
import pytest
import simt_selftest
from numpy.typing import NDArray
from simt_selftest import SCHEDULES, SEEDS, Library

X = np.arange(1, 129, dtype=np.float32)
MESSAGE = np.concatenate([X, X])


@pytest.fixture(scope="module")
def emulator() -> Library:
    return simt_selftest.emulator()


def error_of(emulator: Library, name: str, out_size: int = 64, values: NDArray = X) -> str:
    """The words of the error, which every schedule must give."""
    for seed in SEEDS:
        with pytest.raises(RuntimeError) as error:
            emulator.fault(name, values, np.zeros(out_size, np.float32), seed)
        assert f"seed {seed}, launch 0" in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("missing_sync_block", np.roll(X[:64], -1)),
        ("missing_second_sync_block", np.roll(X[:64], -2)),
        ("missing_sync_warp", X[np.arange(32) ^ 1]),
        ("missing_cluster_wait", np.roll(X, 32)),
        ("missing_cp_async_wait", np.roll(X, -4)),
        ("missing_release", MESSAGE),
        ("uninitialised_shared", np.ones(64)),
    ],
)
def test_result_is_wrong_for_some_schedule(emulator: Library, name: str, expected: NDArray) -> None:
    out = np.zeros(expected.size, np.float32)
    results = [emulator.fault(name, X, out, seed) for seed in SEEDS]
    wrong = sum(not np.array_equal(result, expected) for result in results)
    assert wrong > 0, f"{name} was not found in {len(SEEDS)} schedules"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("exchange", np.roll(X, 32)),
        ("copies", np.roll(X, -4)),
        ("message", MESSAGE),
    ],
)
def test_right_twin_of_a_mistake(emulator: Library, name: str, expected: NDArray) -> None:
    for seed in SEEDS:
        out = emulator.fault(name, X, np.zeros(expected.size, np.float32), seed)
        np.testing.assert_array_equal(out, expected)


def test_global_read_out_of_range(emulator: Library) -> None:
    message = error_of(emulator, "global_read", values=X[:100])
    assert "global_read" in message and "block (1, 0, 0), thread (" in message
    assert "read at 0x" in message and "past the end of a buffer of 400 bytes" in message


def test_global_write_out_of_range(emulator: Library) -> None:
    assert "past the end of a buffer of 64 bytes" in error_of(emulator, "global_write", 16)


def test_write_less_than_16_bytes_out_of_range(emulator: Library) -> None:
    assert "write next to a buffer of 124 bytes" in error_of(emulator, "global_write", 31)
    assert "write next to its shared memory of 124 bytes" in error_of(
        emulator, "shared_write_by_one"
    )


def test_shared_write_out_of_range(emulator: Library) -> None:
    message = error_of(emulator, "shared_write")
    assert "write at 0x" in message and "past the end of a shared memory of 112 bytes" in message
    message = error_of(emulator, "shared_write_before")
    assert "4 bytes before the start of a shared memory of 4096 bytes" in message


def test_use_after_free(emulator: Library) -> None:
    error = ctypes.create_string_buffer(1024)
    assert emulator.run_use_after_free(error, ctypes.c_size_t(len(error))) == 1
    assert b"of a freed buffer of 256 bytes" in error.value


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("mbarrier_without_init", "mbarrier_expect_tx: the mbarrier was not initialised"),
        ("stack_overflow", "stack overflow"),
        ("misaligned", "load_relaxed_16: address 0x"),
        ("misaligned_copy", "cp_async_4: address 0x"),
        ("copy_out_of_range", "0 bytes past the end of a buffer of 512 bytes"),
        ("load_of_shared", "load_relaxed_16: 0x"),
        ("store_to_shared", "store_relaxed_16: 0x"),
        ("mbarrier_wait_in_vain", "a wait took too many looks"),
        ("group_barrier_in_vain", "a wait took too many looks"),
        ("too_large", "cudaErrorCooperativeLaunchTooLarge: 133 blocks, but only 132 can be"),
        ("too_many_threads", "cudaErrorInvalidConfiguration: a block has 1 to 1024 threads"),
        ("too_much_shared", "at most 232448 bytes of shared memory"),
        ("cluster_does_not_divide", "cudaErrorInvalidClusterSize"),
    ],
)
def test_error_says(emulator: Library, name: str, words: str) -> None:
    with pytest.raises(RuntimeError) as error:
        emulator.fault(name, X, np.zeros(64, np.float32))
    assert words in str(error.value)


def test_lane_that_left_early(emulator: Library) -> None:
    """Before the others call, or while they wait."""
    kinds = ("sync_warp: lane 5 has left or never was", "lane 5 has left, but lane ")
    found = set()
    for seed in SCHEDULES:
        with pytest.raises(RuntimeError) as error:
            emulator.fault("lane_left", X, np.zeros(64, np.float32), seed)
        found |= {kind for kind in kinds if kind in str(error.value)}
    assert found == set(kinds)


def test_lanes_that_do_not_agree(emulator: Library) -> None:
    message = error_of(emulator, "different_calls")
    first, second = (
        r"sync_warp: lane \d+ is in mma_m16n8k16",
        r"mma_m16n8k16: lane \d+ is in sync_warp",
    )
    assert re.search(f"{first}|{second}", message)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("missing_first_cluster_sync", "its block has not started"),
        ("missing_last_cluster_sync", "its block has left"),
        ("unwaited_store_async", "has left before a store_async into its shared memory was done"),
    ],
)
def test_shared_memory_of_another_block_is_not_there(
    emulator: Library, name: str, words: str
) -> None:
    """Found whenever the schedule lets one block run ahead."""
    messages = []
    for seed in SEEDS:
        try:
            emulator.fault(name, X, np.zeros(128, np.float32), seed)
        except RuntimeError as error:
            messages.append(str(error))
    assert messages
    assert all(words in message for message in messages)


def test_dead_lock_says_where_each_kind_waits(emulator: Library) -> None:
    message = error_of(emulator, "barrier_not_for_all")
    assert "dead lock:\n  in sync_block waits block (0, 0, 0), thread (" in message
    assert "(24 of its block have left) and 38 more" in message
    assert "\n  in sync_warp waits block (0, 0, 0), thread (8, 0, 0)" in message


def test_spin_that_never_ends(emulator: Library) -> None:
    emulator.set_spin_limit(ctypes.c_int64(2000))
    try:
        assert "no progress in 2000 looks" in error_of(emulator, "spin")
    finally:
        emulator.set_spin_limit(ctypes.c_int64(10_000_000))


def test_goes_on_after_an_error(emulator: Library) -> None:
    for _ in range(3):
        error_of(emulator, "global_read", values=X[:100])
        out = emulator.run("block_mbarrier", X[:64], np.zeros(64, np.float32))
        np.testing.assert_array_equal(out, 2 * np.roll(X[:64], -1) + 4)


def test_empty_grid_launches_nothing(emulator: Library) -> None:
    emulator.fault("empty", X, X)


def test_same_seed_same_schedule(emulator: Library) -> None:
    out = np.zeros(64, np.float32)
    for seed in SEEDS:
        first, second = (emulator.fault("missing_sync_block", X, out, seed) for _ in range(2))
        np.testing.assert_array_equal(first, second)
