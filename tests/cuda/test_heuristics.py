"""Which kernels CUDA takes (csrc/cuda/choice/heuristics.h): a pure function, asked without a GPU.

What is possible is worked out here once more, from the limits of the devices. Of the kernels' own
numbers only those are asked for that say how much shared memory a block needs.
"""

import math
import random
from collections.abc import Iterator
from dataclasses import replace
from itertools import product

import pytest
import simt_extension
from choosing import (
    A100,
    CELLS,
    DTYPES,
    GATES,
    H100,
    KIB,
    WORDS,
    Choice,
    Device,
    Dtype,
    Problem,
    choose,
    devices,
    native,
    words,
)

from benchmarks.common.shapes import GRIDS

REGISTER_BYTES = 256 * KIB  # of a multiprocessor
UNITS, MOST_UNITS = (16, 32, 48), 8192


def group_shared_bytes(problem: Problem, method: str, units: int, blocks: int, rows: int) -> int:
    return simt_extension.load().group_shared_bytes(
        cell=CELLS[problem.cell],
        backward=problem.backward,
        cluster=method == "cluster",
        element_bytes=problem.dtype.element_bytes,
        tf32=problem.dtype.tf32,
        H=problem.H,
        units=units,
        blocks=blocks,
        rows=rows,
    )


def has_tensor_cores(dtype: Dtype, device: Device) -> bool:
    if dtype.element_bytes == 2:
        return device.capability >= (80 if dtype.is_bfloat16 else 75)
    return dtype.element_bytes == 4 and device.capability >= 80


def is_taken(problem: Problem, device: Device) -> bool:
    """Whether there is anything for a persistent kernel to do that it can do."""
    return (
        min(problem.T, problem.N, problem.H) > 0
        and not problem.projected
        and has_tensor_cores(problem.dtype, device)
    )


def rows_of(problem: Problem) -> range:
    return range(8, min(64, math.ceil(problem.N / 8) * 8) + 1, 8)


def possible_plans(
    problem: Problem, device: Device, method: str
) -> Iterator[tuple[int, int, int, int]]:
    """units, blocks, rows, groups of every plan of the method: the most groups there can be."""
    if not is_taken(problem, device):
        return
    if method == "block" and 0 < problem.block_shared_bytes <= device.shared_bytes:
        yield problem.H, 1, 8, problem.jobs(8)
    if method not in ("cluster", "grid") or problem.H > MOST_UNITS:
        return
    for units, rows in product(UNITS, rows_of(problem)):
        jobs = problem.jobs(rows)
        if method == "cluster":
            sizes = [n for n in (2, 4, 8, 16) if n * units >= problem.H and device.clusters(n) > 0]
            exact = problem.dtype == DTYPES["f32"]
            plans = [(n, jobs) for n in sizes if device.capability >= 90 and not exact]
        else:
            blocks = math.ceil(problem.H / units)
            plans = [(blocks, min(jobs, device.multiprocessors // blocks))]
        for blocks, groups in plans:
            needed = group_shared_bytes(problem, method, units, blocks, rows)
            if groups > 0 and needed <= device.shared_bytes:
                yield units, blocks, rows, groups


def assert_possible(choice: Choice, problem: Problem, device: Device) -> None:
    assert 0 < choice.step_us < math.inf
    assert choice.shared_bytes <= device.shared_bytes
    plan = (choice.units, choice.blocks, choice.rows)
    if choice.method == "stepwise":
        assert (*plan, choice.groups, choice.shared_bytes) == (0, 0, 0, 0, 0)
        return
    assert is_taken(problem, device)
    jobs = problem.jobs(choice.rows)
    if choice.method == "block":
        assert (*plan, choice.groups) == (problem.H, 1, 8, jobs)
        assert 0 < choice.shared_bytes == problem.block_shared_bytes
        return
    assert choice.units in UNITS
    assert choice.units * choice.blocks >= problem.H
    assert choice.rows in rows_of(problem)
    assert choice.shared_bytes == group_shared_bytes(problem, choice.method, *plan)
    gates_bytes = GATES[problem.cell] * problem.dtype.element_bytes
    weights = gates_bytes * problem.H * choice.units
    assert weights + choice.rows * gates_bytes <= choice.shared_bytes + REGISTER_BYTES
    if choice.method == "cluster":
        assert device.capability >= 90
        assert choice.blocks in (2, 4, 8, 16)
        assert device.clusters(choice.blocks) > 0
        assert choice.groups == jobs
    else:
        assert choice.method == "grid"
        assert choice.blocks == math.ceil(problem.H / choice.units)
        assert 1 <= choice.groups <= jobs
        assert choice.groups * choice.blocks <= device.multiprocessors


def assert_right(problem: Problem, device: Device, wanted: str) -> None:
    """A possible choice, of what was wanted wherever that is possible."""
    choice = choose(problem, device, wanted)
    assert_possible(choice, problem, device)
    if wanted != "auto":
        some = next(possible_plans(problem, device, wanted), None)
        assert choice.method == (wanted if some else "stepwise")


@devices
@words
def test_the_shapes_of_the_benchmark(device: Device, wanted: str) -> None:
    """With every cell and dtype, forward and backward, in one direction and in two."""
    for shape, cell, dtype, backward, directions in product(
        GRIDS["gpu"], GATES, DTYPES.values(), (False, True), (1, 2)
    ):
        problem = Problem(shape.H, shape.N, shape.T, cell, dtype, backward, directions)
        assert_right(problem, device, wanted)


def log_uniform(rng: random.Random, most: int) -> int:
    return round(math.exp(rng.uniform(0, math.log(most))))


@pytest.mark.parametrize("seed", range(4))
def test_random_problems_on_random_devices(seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(1000):
        device = Device(
            rng.choice((70, 75, 80, 86, 89, 90, 100, 120)),
            rng.randint(1, 200),
            rng.choice((48, 64, 99, 163, 227, rng.randint(1, 227))) * KIB,
        )
        if device.capability >= 90:
            device = replace(
                device, clusters_of_8=rng.randint(1, 20), clusters_of_16=rng.randint(0, 9)
            )
        problem = Problem(
            log_uniform(rng, 20_000),
            log_uniform(rng, 100_000),
            log_uniform(rng, 10_000),
            rng.choice(list(GATES)),
            rng.choice(list(DTYPES.values())),
            rng.random() < 0.5,
            rng.randint(1, 2),
            rng.random() < 0.1,
        )
        assert_right(problem, device, rng.choice(WORDS))


@words
@pytest.mark.parametrize(
    "change",
    [
        {"T": 0},
        {"N": 0},
        {"H": 0},
        {"projected": True},
        {"dtype": DTYPES["f64"]},
        {"H": 10_000},
    ],
    ids=str,
)
def test_what_goes_step_by_step(change: dict, wanted: str) -> None:
    problem = Problem(64)
    assert choose(problem, H100, wanted).method == wanted or wanted == "auto"
    assert choose(replace(problem, **change), H100, wanted).method == "stepwise"


@pytest.mark.parametrize(
    ("dtype", "capability", "taken"),
    [("f16", 75, True), ("f16", 70, False), ("bf16", 80, True), ("bf16", 75, False)]
    + [("tf32", 80, True), ("tf32", 75, False)],
)
@pytest.mark.parametrize("wanted", ["block", "grid"])
def test_tensor_cores_of_each_generation(
    dtype: str, capability: int, taken: bool, wanted: str
) -> None:
    problem = Problem(64, dtype=DTYPES[dtype])
    choice = choose(problem, replace(A100, capability=capability), wanted)
    assert (choice.method == wanted) == taken


def test_exact_float32() -> None:
    """Grids make it of TF32; others do not."""
    problem = Problem(64, dtype=DTYPES["f32"])
    assert choose(problem, H100, "grid").method == "grid"
    assert choose(problem, H100, "cluster").method == "stepwise"
    assert choose(problem, A100, "block").method == "stepwise"
    assert choose(problem, replace(A100, capability=75), "grid").method == "stepwise"


def test_the_most_units() -> None:
    """Of which no GPU so far has enough multiprocessors."""
    device = Device(90, 1000, 2048 * KIB)
    assert choose(Problem(MOST_UNITS), device, "grid").method == "grid"
    assert choose(Problem(MOST_UNITS + 1), device, "grid").method == "stepwise"


def test_code_of_an_older_architecture() -> None:
    """Has not all instructions of the device: with TORCH_CUDA_ARCH_LIST="8.0+PTX" no clusters."""
    of_80, of_75 = replace(H100, compiled_for=80), replace(H100, compiled_for=75)
    assert choose(Problem(256), of_80, "cluster").method == "stepwise"
    assert choose(Problem(256), of_80, "grid").method == "grid"
    assert choose(Problem(256), of_75, "grid").method == "stepwise"
    assert choose(Problem(256, dtype=DTYPES["f16"]), of_75, "grid").method == "grid"


def test_clusters_that_a_device_does_not_have() -> None:
    of_16, of_8 = Problem(256 + 1), Problem(256, backward=True)
    assert choose(of_16, H100, "cluster").blocks == 16
    assert choose(of_8, replace(H100, clusters_of_16=0), "cluster").blocks == 8
    large = Problem(400)
    assert choose(large, replace(H100, clusters_of_16=0), "cluster").method == "stepwise"
    assert choose(large, replace(H100, capability=89), "cluster").method == "stepwise"


def test_one_plan_can_be_asked_for() -> None:
    cluster = choose(Problem(64, N=20), H100, "cluster:32x4x16")
    assert cluster[:5] == ("cluster", 32, 4, 16, 2)
    grid = choose(Problem(64, N=20), H100, "grid:16x5x8x2")
    assert grid[:5] == ("grid", 16, 5, 8, 2)


@pytest.mark.parametrize(
    "wanted",
    [
        "cluster:24x4x8",  # units without a kernel
        "cluster:16x2x8",  # too few units
        "cluster:32x3x8",  # no such cluster
        "cluster:32x2x12",
        "cluster:32x2x0",
        "cluster:32x2x512",
        "grid:16x4x8x0",
        "grid:16x4x8x34",  # of 132 multiprocessors
        "grid:16x-4x8x1",
    ],
)
def test_a_plan_that_is_not_possible_goes_step_by_step(wanted: str) -> None:
    assert choose(Problem(64, N=20), H100, wanted).method == "stepwise"


@pytest.mark.parametrize(
    "wanted", ["fast", "Auto", "", "block ", "cluster:", "cluster:16x4", "grid:16x4x8x1x1"]
)
def test_another_word_is_an_error(wanted: str) -> None:
    message = (
        "FASTLSTM_CUDA_KERNEL must be auto, stepwise, block, cluster, grid, "
        "cluster:UNITSxBLOCKSxROWS or grid:UNITSxBLOCKSxROWSxGROUPS, got "
    )
    for problem in (Problem(64), Problem(0), Problem(64, dtype=DTYPES["f64"])):
        with pytest.raises(ValueError, match=f"^{message}{wanted}$"):
            choose(problem, H100, wanted)


def test_the_environment_is_read_at_every_call(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = simt_extension.load().wanted_kernel
    for value, word in {"grid": "grid", "": "auto", "fast": "fast"}.items():
        monkeypatch.setenv("FASTLSTM_CUDA_KERNEL", value)
        assert wanted() == word
    monkeypatch.delenv("FASTLSTM_CUDA_KERNEL")
    assert wanted() == "auto"


def test_the_emulated_device_can_be_replaced() -> None:
    simt = simt_extension.load()

    def emulated() -> Device:
        found = simt.device_properties()
        return Device(**{name: getattr(found, name) for name in vars(H100)})

    assert emulated() == replace(H100, compiled_for=90)
    simt.set_device(native(A100))
    try:
        assert emulated() == replace(A100, compiled_for=80)
    finally:
        simt.set_device(native(H100))
