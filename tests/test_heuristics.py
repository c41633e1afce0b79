"""Which kernels CUDA takes (csrc/cuda/heuristics.h): a pure function, asked without a GPU.

What is possible is worked out here once more, from the limits of the devices. Of the kernels' own
numbers only those are asked for that say how much shared memory a block needs.
"""

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import NamedTuple

import pytest
import simt_extension

from benchmarks.shapes import GRIDS

KIB = 1024
REGISTER_BYTES = 256 * KIB  # of a multiprocessor
UNITS, MOST_UNITS = (16, 32, 48), 8192
WORDS = ("auto", "stepwise", "block", "cluster", "grid")
GATES = {"LSTM": 4, "GRU": 3, "RNN_TANH": 1, "RNN_RELU": 1}
CELLS = {name: index for index, name in enumerate(GATES)}


@dataclass(frozen=True)
class Device:
    capability: int
    multiprocessors: int
    shared_bytes: int
    clusters_of_8: int = 0
    clusters_of_16: int = 0

    def clusters(self, blocks: int) -> int:
        return self.clusters_of_8 if blocks <= 8 else self.clusters_of_16


H100 = Device(90, 132, 227 * KIB, 16, 7)
A100 = Device(80, 108, 163 * KIB)
RTX_4090 = Device(89, 128, 99 * KIB)
T4 = Device(75, 40, 64 * KIB)
DEVICES = {"h100": H100, "a100": A100, "rtx_4090": RTX_4090, "t4": T4}
devices = pytest.mark.parametrize("device", DEVICES.values(), ids=DEVICES)
words = pytest.mark.parametrize("wanted", WORDS)


class Dtype(NamedTuple):
    element_bytes: int
    is_bfloat16: bool = False
    tf32: bool = False


DTYPES = {
    "bf16": Dtype(2, is_bfloat16=True),
    "f16": Dtype(2),
    "tf32": Dtype(4, tf32=True),
    "f32": Dtype(4),
    "f64": Dtype(8),
}


@dataclass(frozen=True)
class Problem:
    H: int
    N: int = 16
    T: int = 1000
    cell: str = "LSTM"
    dtype: Dtype = DTYPES["bf16"]
    backward: bool = False
    directions: int = 1
    projected: bool = False

    @property
    def block_shared_bytes(self) -> int:
        return simt_extension.load().block_shared_bytes(
            cell=CELLS[self.cell],
            backward=self.backward,
            H=self.H,
            element_bytes=self.dtype.element_bytes,
            tf32=self.dtype.tf32,
        )

    def jobs(self, rows: int) -> int:
        return self.directions * math.ceil(self.N / rows)


class Choice(NamedTuple):
    method: str
    units: int
    blocks: int
    rows: int
    groups: int
    shared_bytes: int
    step_us: float


def choose(problem: Problem, device: Device, wanted: str = "auto") -> Choice:
    simt = simt_extension.load()
    found = simt.choose(
        cell=CELLS[problem.cell],
        backward=problem.backward,
        T=problem.T,
        N=problem.N,
        H=problem.H,
        directions=problem.directions,
        **problem.dtype._asdict(),
        projected=problem.projected,
        block_shared_bytes=problem.block_shared_bytes,
        device=native(device),
        wanted=wanted,
    )
    return Choice(**found)


def native(device: Device) -> object:
    return simt_extension.load().DeviceProperties(**vars(device))


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


@devices
def test_auto_is_the_least_estimate(device: Device) -> None:
    for shape, cell, backward in product(GRIDS["gpu"], GATES, (False, True)):
        dtype = DTYPES["f16" if device == T4 else "bf16"]
        problem = Problem(shape.H, shape.N, shape.T, cell, dtype, backward)
        estimates = [choose(problem, device, wanted).step_us for wanted in WORDS[1:]]
        assert choose(problem, device).step_us == min(estimates)


def test_of_equal_estimates_that_of_fewer_blocks() -> None:
    """Where memory bounds them all, and there are too many steps for what a launch costs."""
    problem = Problem(64, N=100_000, T=2**60, dtype=DTYPES["tf32"])
    choices = [choose(problem, H100, wanted) for wanted in ("block", "cluster", "grid")]
    assert len({choice.step_us for choice in choices}) == 1
    blocks = [choice.groups * choice.blocks for choice in choices]
    assert len(set(blocks)) > 1
    assert choose(problem, H100) == choices[blocks.index(min(blocks))]


def test_each_method_where_it_belongs() -> None:
    small, middle, large = Problem(64, cell="GRU"), Problem(256), Problem(1024, N=8)
    huge = Problem(4096, N=256)
    assert [choose(p, H100).method for p in (small, middle, large, huge)] == [
        "block",
        "cluster",
        "grid",
        "stepwise",
    ]
    assert choose(middle, A100).method == "grid"
    assert choose(middle, T4).method == "stepwise"
    assert choose(replace(middle, dtype=DTYPES["f16"]), T4).method == "grid"


def test_few_steps_are_not_worth_the_loading_of_weights() -> None:
    assert choose(Problem(768, T=1), H100).method == "stepwise"
    assert choose(Problem(768, T=100), H100).method != "stepwise"


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


def test_clusters_that_a_device_does_not_have() -> None:
    of_16, of_8 = Problem(256 + 1), Problem(256, backward=True)
    assert choose(of_16, H100, "cluster").blocks == 16
    assert choose(of_8, replace(H100, clusters_of_16=0), "cluster").blocks == 8
    large = Problem(400)
    assert choose(large, replace(H100, clusters_of_16=0), "cluster").method == "stepwise"
    assert choose(large, replace(H100, capability=89), "cluster").method == "stepwise"


SIZES = list(product((100, 256, 768, 1500), ("LSTM", "RNN_TANH"), (False, True)))


@devices
def test_more_shared_memory_makes_no_step_slower(device: Device) -> None:
    sizes = [replace(device, shared_bytes=kib * KIB) for kib in range(8, 228, 4)]
    faster = 0
    for H, cell, backward in SIZES:
        problem = Problem(H, 100, 1000, cell, DTYPES["f16"], backward)
        estimates = [choose(problem, size).step_us for size in sizes]
        assert estimates == sorted(estimates, reverse=True)
        faster += estimates[-1] < estimates[0]
    assert faster > len(SIZES) / 2


@devices
@words
def test_more_rows_or_fewer_steps_make_no_step_faster(device: Device, wanted: str) -> None:
    for H, cell, backward in SIZES:
        problem = Problem(H, 100, 1000, cell, DTYPES["f16"], backward)
        rows = [replace(problem, N=n) for n in range(1, 600, 13)]
        steps = [replace(problem, T=2**n) for n in range(15, -1, -1)]
        for problems in (rows, steps):
            estimates = [choose(problem, device, wanted).step_us for problem in problems]
            assert estimates == sorted(estimates)


def test_the_model_agrees_with_what_is_published() -> None:
    """cuDNN's persistent float16 LSTM on an H100: 1.96 us a step, 0.58 to 0.66 us where H is small.

    Other kernels, so that only the order of magnitude can be right.
    """
    assert 0.5 < choose(Problem(768), H100).step_us < 4
    assert 0.2 < choose(Problem(64), H100, "block").step_us < 1.3


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

    assert emulated() == H100
    simt.set_device(native(A100))
    try:
        assert emulated() == A100
    finally:
        simt.set_device(native(H100))
