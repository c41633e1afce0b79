"""Every primitive of csrc/cuda/device/device.cuh on the emulator, against a plain expectation.

Where there is a GPU and nvcc, it is asked the same: hardware is the judge of the emulator.
"""

import ctypes
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import simt_extension
import simt_selftest
from numpy.typing import NDArray
from simt_selftest import SCHEDULES, SEEDS, Library

THREADS = 32
STEPS = 5  # kSteps of selftest.cu
HAS_GPU = simt_selftest.has_gpu()


@pytest.fixture(
    params=["emulator", pytest.param("gpu", marks=pytest.mark.cuda)] if HAS_GPU else ["emulator"]
)
def machine(request: pytest.FixtureRequest) -> Library:
    return getattr(simt_selftest, request.param)()


def integers(*shape: int, seed: int = 0) -> NDArray:
    """Small whole numbers, whose sums and products are exact in every type."""
    return np.random.default_rng(seed).integers(-8, 9, shape).astype(np.float32)


def test_indices_are_those_of_cuda(machine: Library) -> None:
    out = machine.run("indices", np.zeros(1), np.zeros((12, 64), np.uint32))
    assert (out == (np.arange(12)[:, None] << 16 | np.arange(64))).all()


def to_bfloat16(x: NDArray) -> NDArray:
    """Nearest even, by numpy's integers; NaN as the hardware writes it."""
    bits = x.view(np.uint32).astype(np.uint64)
    rounded = (bits + 0x7FFF + (bits >> 16 & 1)).astype(np.uint32) & 0xFFFF0000
    return np.where(np.isnan(x), np.float32(np.nan), rounded.astype(np.uint32).view(np.float32))


def test_conversions_round_to_nearest_even(machine: Library) -> None:
    rng = np.random.default_rng(0)
    x = rng.integers(0, 2**32, 8192, dtype=np.uint64).astype(np.uint32).view(np.float32)
    # Ties and their neighbours at every exponent of Half, overflow, denormals, infinity.
    halves = np.arange(0, 0x7C00, 8, dtype=np.uint16).view(np.float16).astype(np.float32)
    ties = (halves + np.roll(halves, -1)) / 2
    special = np.float32([0.0, -0.0, np.inf, -np.inf, 65519.9, 65520.0, 2.0**-25, 2.0**-24, 1e-45])
    x[: 2048 + 9] = np.concatenate([np.resize(ties, 1024), np.resize(halves, 1024), special])
    with np.errstate(over="ignore"):
        halves = x.astype(np.float16).astype(np.float32)
    out = machine.run("conversions", x, np.zeros((2, 8192), np.float32))
    for got, expected in zip(out, (halves, to_bfloat16(x)), strict=True):
        np.testing.assert_array_equal(got, expected)
        assert (np.signbit(got) == np.signbit(expected))[~np.isnan(x)].all()


def test_every_16_bit_number_widens(machine: Library) -> None:
    patterns = np.arange(0x10000, dtype=np.uint32)
    out = machine.run("widen", np.zeros(1), np.zeros((2, 0x10000), np.float32))
    half = patterns.astype(np.uint16).view(np.float16).astype(np.float32)
    np.testing.assert_array_equal(out[0], half)
    np.testing.assert_array_equal(out[1], (patterns << 16).view(np.float32))


def test_tf32_rounds_to_nearest_away(machine: Library) -> None:
    x = np.random.default_rng(0).standard_normal(256).astype(np.float32)
    x[:4] = [1 + 2.0**-11, 1 + 2.0**-11 - 2.0**-23, -1 - 2.0**-11, np.inf]
    out = machine.run("round_tf32", x, np.zeros(256, np.uint32)).view(np.float32)
    mantissa, exponent = np.frexp(x[4:].astype(np.float64))
    scaled = np.abs(mantissa) * 2**11
    expected = np.sign(mantissa) * np.floor(scaled + 0.5) * 2.0 ** (exponent - 11)
    np.testing.assert_array_equal(out[4:], expected)
    np.testing.assert_array_equal(out[:4], np.float32([1 + 2.0**-10, 1, -1 - 2.0**-10, np.inf]))


def test_copies_in_a_pipeline(machine: Library) -> None:
    x = integers(7, 4 * THREADS)
    valid = np.arange(4 * THREADS) // 4 % 2 == 0
    for seed in SEEDS:
        out = machine.run("pipeline", x, np.zeros(4 * THREADS, np.float32), seed)
        np.testing.assert_array_equal(out, x.sum(0) * valid)


def test_copies_of_4_bytes(machine: Library) -> None:
    x = integers(THREADS)
    thread = (np.arange(THREADS) + 1) % THREADS
    expected = x[THREADS - 1 - thread] * (thread % 3 != 0)
    for seed in SEEDS:
        out = machine.run("reversed", x, np.zeros(THREADS, np.float32), seed)
        np.testing.assert_array_equal(out, expected)


def as_type(x: NDArray, dtype: str) -> NDArray:
    """The bits of whole numbers, which both types hold exactly."""
    return x.astype(np.float16) if dtype == "f16" else (x.view(np.uint32) >> 16).astype(np.uint16)


@pytest.mark.parametrize("dtype", ["f16", "bf16"])
@pytest.mark.parametrize("depth", [16, 80])
def test_16_bit_product_is_exact(machine: Library, dtype: str, depth: int) -> None:
    a, b = integers(32, depth), integers(16, depth, seed=1)
    operands = np.concatenate([as_type(x.ravel(), dtype) for x in (a, b)])
    for seed in SEEDS:
        out = machine.run(f"gemm_{dtype}", operands, np.zeros((32, 16), np.float32), seed)
        np.testing.assert_array_equal(out, a.astype(np.float64) @ b.T)


def test_tf32_product_against_float64(machine: Library) -> None:
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal((n, 64)).astype(np.float32) for n in (16, 8))
    operands = np.concatenate([a.ravel(), b.ravel()])
    out = machine.run("gemm_tf32", operands, np.zeros((16, 8), np.float32))
    exact = a.astype(np.float64) @ b.T.astype(np.float64)
    # Half a unit of 11 bits for each factor, on the sum of the magnitudes.
    bound = 2 * 2.0**-11 * (np.abs(a).astype(np.float64) @ np.abs(b.T))
    assert (np.abs(out - exact) < bound).all()
    assert (out != exact.astype(np.float32)).any(), "operands were not rounded"
    small = integers(24, 64)
    out = machine.run("gemm_tf32", small, np.zeros((16, 8), np.float32))
    np.testing.assert_array_equal(out, small[:16] @ small[16:].T)


def test_block_all_reduce(machine: Library) -> None:
    x = integers(3, 96)
    expected = x
    for _ in range(3):
        expected = expected.sum(1, keepdims=True) + np.arange(96)
    for seed in SCHEDULES:
        out = machine.run("all_reduce", x, np.zeros((3, 96), np.float32), seed)
        np.testing.assert_array_equal(out, expected)


def test_cluster_exchange(machine: Library) -> None:
    x = integers(2, 4, THREADS)
    # Four hops visit every rank, and each moves the threads on by one.
    expected = np.roll(x, -4, 2) + 10
    for seed in SCHEDULES:
        out = machine.run("cluster_exchange", x, np.zeros((2, 4, THREADS), np.float32), seed)
        np.testing.assert_array_equal(out, expected)


def test_cluster_async_stores(machine: Library) -> None:
    x = np.arange(2 * 4 * THREADS * 4, dtype=np.uint32).reshape(2, 4, THREADS, 4)
    factors = np.arange(1, 5, dtype=np.uint32)[:, None, None]
    expected = x
    for _ in range(STEPS):
        sent = np.roll(expected + factors, -1, 2)
        expected = (factors * sent).sum(1, np.uint32, keepdims=True)
    expected = np.broadcast_to(expected, x.shape)
    for seed in SCHEDULES:
        out = machine.run("cluster_async", x, np.zeros_like(x), seed)
        np.testing.assert_array_equal(out, expected)


def test_mbarrier_of_a_block(machine: Library) -> None:
    x = integers(64)
    for seed in SEEDS:
        out = machine.run("block_mbarrier", x, np.zeros(64, np.float32), seed)
        np.testing.assert_array_equal(out, 2 * np.roll(x, -1) + 4)


def test_grid_barrier(machine: Library) -> None:
    x = integers(6 * THREADS)
    for seed in SCHEDULES:
        out = machine.run("grid_ping_pong", x, np.zeros((2, x.size), np.float32), seed)
        np.testing.assert_array_equal(out[STEPS % 2], np.roll(x, -STEPS) + STEPS)


def test_barriers_of_groups(machine: Library) -> None:
    x = integers(2, 3 * THREADS)
    for seed in SCHEDULES:
        out = machine.run("group_ping_pong", x, np.zeros((2, *x.shape), np.float32), seed)
        np.testing.assert_array_equal(out[STEPS % 2], np.roll(x, -STEPS, 1) + STEPS)


def test_as_many_threads_as_fit_on_an_h100(machine: Library) -> None:
    x = integers(4, 33 * 256)
    out = machine.run("full_ping_pong", x, np.zeros((2, *x.shape), np.float32))
    np.testing.assert_array_equal(out[STEPS % 2], np.roll(x, -STEPS, 1) + STEPS)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux's /proc/self/maps")
def test_quotients_are_those_of_a_division(machine: Library) -> None:
    """But for the last bit of a few: 1 / b is an ulp off at first. b as sigmoid and tanh have it."""
    rng = np.random.default_rng(0)
    n = 256 * 256
    a = rng.uniform(-8, 8, n).astype(np.float32)
    b = (1 + np.exp(rng.uniform(-20, 80, n))).astype(np.float32)
    found = machine.run("quotients", np.stack([a, b]), np.zeros(n, np.float32))
    wrong = found != a / b
    assert np.mean(wrong) < 1e-4
    np.testing.assert_array_max_ulp(found, a / b, 1)


def test_a_large_launch_leaves_room_for_other_libraries() -> None:
    x = integers(4, 33 * 256)
    simt_selftest.emulator().run("full_ping_pong", x, np.zeros((2, *x.shape), np.float32))
    maps = Path("/proc/self/maps").read_text().splitlines()
    assert len(maps) < 32768, "half of vm.max_map_count"


def max_active(machine: Library, cluster_size: int, threads: int = 32, shared: int = 256) -> int:
    return machine.max_active(cluster_size, threads, ctypes.c_size_t(shared))


def test_what_a_device_has_room_for(machine: Library) -> None:
    clusters = [max_active(machine, size, shared=200_000) for size in (1, 2, 4, 8)]
    assert all(a >= 2 * b > 0 for a, b in zip(clusters, clusters[1:], strict=False))


def test_there_is_no_room_for_what_a_launch_refuses(machine: Library) -> None:
    assert max_active(machine, 4, threads=1056) == 0
    assert max_active(machine, 4, shared=1 << 20) == 0
    assert max_active(machine, 32) == 0
    # Nor does it leave an error behind.
    machine.run("indices", np.zeros(1), np.zeros((12, 64), np.uint32))


def test_room_in_the_emulator() -> None:
    emulator = simt_selftest.emulator()
    assert [max_active(emulator, size) for size in (1, 4, 8, 16)] == [132, 33, 16, 8]
    emulator.set_max_resident_blocks(20)
    try:
        assert [max_active(emulator, size) for size in (1, 8, 16)] == [20, 2, 1]
    finally:
        emulator.set_max_resident_blocks(132)


def test_data_that_is_its_own_flag(machine: Library) -> None:
    x = integers(256)
    expected = [np.roll(x, -4 * step) + step for step in range(STEPS + 1)]
    for seed in SCHEDULES:
        out = machine.run("flag_in_data", x, np.zeros((STEPS + 1, 256), np.float32), seed)
        np.testing.assert_array_equal(out, expected)


def test_release_and_acquire(machine: Library) -> None:
    x = integers(4 * THREADS)
    for seed in SCHEDULES:
        out = machine.run("messages", x, np.zeros((3, x.size), np.float32), seed)
        np.testing.assert_array_equal(out, [x, 2 * x, 2 * x])


def test_trap_names_its_reason() -> None:
    with pytest.raises(RuntimeError, match=r"thread \(3, 0, 0\): the third thread gives up"):
        simt_selftest.emulator().run("trap", np.zeros(1), np.zeros(1))


@pytest.mark.skipif(not HAS_GPU, reason="needs nvcc and a GPU with sm_90, which is then asked too")
def test_gpu_traps() -> None:
    # In a process of its own, which cannot use the GPU after that.
    code = """if True:
        import numpy, simt_selftest
        simt_selftest.gpu().run("trap", numpy.zeros(1), numpy.zeros(1))"""
    folder = Path(simt_selftest.__file__).parent
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True
    )
    assert result.stderr.splitlines()[-1].startswith("RuntimeError: ")


def test_every_file_of_kernels_is_compiled_for_the_emulator(tmp_path: Path) -> None:
    sources = simt_extension.kernel_sources(tmp_path)
    kernels = sorted((simt_extension.CSRC / "cuda").rglob("*.cu"))
    assert [path.read_text() for path in sources] == [
        f'#include "{p.relative_to(simt_extension.CSRC)}"\n' for p in kernels
    ]
    # Objects lie in one folder.
    names = [path.stem for path in sources]
    assert len(set(names)) == len(names)
    assert not set(names) & {path.stem for path in simt_extension.CSRC.rglob("*.cpp")}
    assert not set(names) & {path.stem for path in simt_extension.SIMT.glob("*.cpp")}


def test_only_what_is_new_is_written_for_the_emulator(tmp_path: Path) -> None:
    first, second, *_ = simt_extension.kernel_sources(tmp_path)
    second.write_text("of another version")
    before = first.stat().st_mtime_ns
    simt_extension.kernel_sources(tmp_path)
    assert first.stat().st_mtime_ns == before
    assert "cuda/" in second.read_text()
