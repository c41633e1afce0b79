"""Every method of the CUDA kernels: on a GPU at the sizes that it is for, on the emulator a little.

The rule is that of every test: at most twice the error of torch.nn on the same device, which is
cuDNN on a GPU, against float64. cuDNN may take float32 where TF32 is allowed, and a CPU has no
TF32: there torch's own loop, with every operand rounded, sets the error allowed if it is larger.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest
import simt_extension
import torch
from cuda_devices import Device, device, on_gpu
from error_rule import assert_error_within, assert_same
from helpers import Case, Values, ours, solve, theirs, wide

import fastlstm
from benchmarks.common.equality import larger_errors
from benchmarks.common.providers import libraries_off
from benchmarks.common.tf32 import rounded_products
from benchmarks.gpu.kernels import METHODS, STEPWISE, forced

HOST = ("lengths", "batch_sizes")
MODES = ("LSTM", "GRU", "RNN_TANH")
# Name to dtype, and whether products may be TF32.
DTYPES = {
    "bf16": (torch.bfloat16, False),
    "f16": (torch.float16, False),
    "tf32": (torch.float32, True),
    "f32": (torch.float32, False),
}


def ragged(T: int, N: int) -> tuple[int, ...]:
    """Lengths of a packed batch: falling, T among them, and 1."""
    return tuple(max(1, T - n * T // max(1, N - 1)) for n in range(N))


def packed(case: Case) -> Case:
    return replace(case, lengths=ragged(case.T, case.N), packed=True)


# What keeps the time short is torch's float64 loop over time.
CASES = {
    "block": (
        Case(100, 20, 64, 64, bidirectional=True),
        packed(Case(50, 64, 32, 128)),
    ),
    "cluster": (
        Case(300, 1, 64, 256),
        Case(100, 16, 64, 256, bidirectional=True),
        packed(Case(50, 33, 64, 512)),
    ),
    "grid": (
        Case(300, 1, 64, 512),
        Case(60, 40, 64, 320, bidirectional=True),
        packed(Case(50, 64, 64, 1024)),
    ),
    "auto": (
        Case(200, 16, 64, 64),
        Case(100, 16, 64, 512, bidirectional=True),
        packed(Case(50, 33, 64, 1024)),
    ),
}
# float32 as three products of TF32 takes twice the room on the chip.
WIDTH = {"f32": 2}
SMALL = (Case(4, 9, 5, 33, bidirectional=True), packed(Case(5, 9, 5, 33)))


@dataclass(frozen=True)
class Problem:
    """A case, and what is asked for on which device."""

    device: str
    method: str
    case: Case
    dtype_name: str

    @property
    def dtype(self) -> torch.dtype:
        return DTYPES[self.dtype_name][0]

    @property
    def tf32(self) -> bool:
        return DTYPES[self.dtype_name][1]

    def __str__(self) -> str:
        return f"{self.device}-{self.method}-{self.case}-{self.dtype_name}"


def problems(*dtypes: str) -> list[Problem]:
    """All of them, in `dtypes`; on the emulator fewer."""
    small = [
        Problem("simt", method, replace(case, mode=mode), dtype)
        for method in CASES
        for case, mode in zip(SMALL, ("LSTM", "GRU"), strict=True)
        for dtype in dtypes
        if dtype in ("bf16", "tf32")
    ]
    large = [
        Problem("cuda", method, replace(case, mode=mode, H=case.H // WIDTH.get(dtype, 1)), dtype)
        for method, cases in CASES.items()
        for case in cases
        for mode in MODES
        for dtype in dtypes
        if dtype != "f32" or method in ("grid", "auto")  # which the others do not take
    ]
    return [*small, *large]


def parametrize(rows: list[Problem]) -> pytest.MarkDecorator:
    marked = [pytest.param(p, marks=on_gpu if p.device == "cuda" else ()) for p in rows]
    return pytest.mark.parametrize("problem", marked, ids=str)


@pytest.fixture
def dev(problem: Problem) -> Iterator[Device]:
    with device(problem.device) as found:
        if problem.method == "cluster" and not has_clusters(found):
            pytest.skip("needs a GPU that has clusters of blocks, of sm_90 and later")
        found.allow_tf32(problem.tf32)
        yield found
        if problem.device == "cuda":
            stop_if_lost(problem)


def has_clusters(dev: Device) -> bool:
    return dev.name == "simt" or torch.cuda.get_device_capability() >= (9, 0)


def stop_if_lost(problem: Problem) -> None:
    """A kernel that fails takes all later calls of its process with it."""
    try:
        torch.cuda.synchronize()
    except RuntimeError as error:
        pytest.exit(f"the GPU is lost at {problem}: {error}", returncode=3)


def there(dev: Device, values: Values) -> Values:
    return {n: v if n in HOST else dev.put(v) for n, v in values.items()}


def drawn(dev: Device, problem: Problem) -> tuple[Values, Values]:
    """Values and cotangents on the device."""
    case, dtype = problem.case, problem.dtype
    return there(dev, case.problem(dtype)), there(dev, case.cotangents(dtype))


def yardstick(dev: Device, problem: Problem, values: Values, cotangents: Values) -> Values:
    """torch.nn in the dtype of the problem."""
    case = problem.case
    base = solve(theirs, case, values, cotangents)
    if not problem.tf32:
        return base
    with rounded_products():
        rounded = solve(theirs, case, values, cotangents)
    return larger_errors(truth(case, values, cotangents), base, rounded)


def truth(case: Case, values: Values, cotangents: Values) -> Values:
    with libraries_off():
        return solve(theirs, case, wide(values), wide(cotangents))


@pytest.mark.slow
@parametrize(problems(*DTYPES))
def test_rule_and_bits(dev: Device, problem: Problem) -> None:
    case = problem.case
    values, cotangents = drawn(dev, problem)
    with forced(problem.method):
        found = solve(ours, case, values, cotangents)
        assert_same(found, solve(ours, case, values, cotangents))
    base = yardstick(dev, problem, values, cotangents)
    true = truth(case, values, cotangents)
    for name in found:
        assert_error_within(name, found[name], base[name], true[name])


# In float32: rounding to 16 bits may hide in which order a sum was taken.
@pytest.mark.slow
@parametrize([p for p in problems("tf32", "f32") if p.method != "auto"])
def test_method_is_not_that_of_single_steps(dev: Device, problem: Problem) -> None:
    """In both directions: what is not possible would be computed step by step without a word."""
    case = problem.case
    values, cotangents = drawn(dev, problem)
    found = {}
    for method in (problem.method, STEPWISE):
        with forced(method):
            found[method] = solve(ours, case, values, cotangents)
    mine, stepwise = (found[method] for method in (problem.method, STEPWISE))
    assert not torch.equal(mine["output"], stepwise["output"])
    assert not torch.equal(mine["grad h0"], stepwise["grad h0"])


@pytest.mark.slow
@parametrize([p for p in problems("bf16", "tf32") if p.case.packed])
def test_lengths_and_packing_agree(dev: Device, problem: Problem) -> None:
    case = problem.case
    padded_case = replace(case, packed=False)
    values = there(dev, padded_case.problem(problem.dtype))
    in_use = torch.nn.utils.rnn.pack_padded_sequence(values["x"], values["lengths"])
    packed_values = {n: v for n, v in values.items() if n != "lengths"}
    packed_values |= {"x": in_use.data, "batch_sizes": in_use.batch_sizes}
    with forced(problem.method):
        padded = solve(ours, padded_case, values, None)
        found = solve(ours, case, packed_values, None)
    again = torch.nn.utils.rnn.pack_padded_sequence(padded["output"], values["lengths"])
    assert torch.equal(again.data, found["output"])
    assert torch.equal(padded["h_n"], found["h_n"])


@pytest.mark.slow
def test_grid_in_several_launches() -> None:
    """In one its blocks exchange up to 16 MiB, and nothing of that is left for the next."""
    T, N, units, blocks = 34, 2048, 32, 2
    assert T * N * units * blocks * 4 > 16 << 20
    plan = f"grid:{units}x{blocks}x64x1"
    module = fastlstm.RNN(1, 8).requires_grad_(False)
    x = torch.randn(T, N, 1)
    with device("simt") as dev, forced(plan):
        dev.allow_tf32(True)
        whole = module(x)[0]
        rest = module(x[-2:], whole[None, -3])[0]
        found = simt_extension.load().cuda_choice(
            mode="RNN_TANH", backward=False, T=T, N=N, H=8, dtype=torch.float32, wanted=plan
        )
    assert found["method"] == "grid"
    assert torch.equal(whole[-2:], rest)


@pytest.mark.parametrize("dtype", ["bf16", "tf32"])
@pytest.mark.parametrize("mode", ["LSTM", "GRU"])
@pytest.mark.parametrize("method", CASES)
@pytest.mark.cuda
@on_gpu[1]
def test_graph_replay(method: str, mode: str, dtype: str) -> None:
    """Forward and backward of a graph give the bits of calls."""
    _, case, *_ = CASES[method]
    case = replace(case, mode=mode, lengths=None, packed=False)
    problem = Problem("cuda", method, case, dtype)
    with device("cuda") as dev, forced(method):
        dev.allow_tf32(problem.tf32)
        module = getattr(fastlstm, mode)(
            case.I, case.H, bidirectional=case.bidirectional, device="cuda", dtype=problem.dtype
        )
        static = torch.randn(case.T, case.N, case.I, device="cuda").to(problem.dtype)
        static.requires_grad_()

        def step() -> list[torch.Tensor]:
            output = module(static)[0]
            leaves = [static, *module.parameters()]
            return [output, *torch.autograd.grad(output.square().sum(), leaves)]

        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            step()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = step()
        for seed in range(2):
            torch.manual_seed(seed)
            with torch.no_grad():
                static.copy_(torch.randn_like(static))
            graph.replay()
            assert all(map(torch.equal, captured, step()))
        stop_if_lost(problem)


def test_every_method_has_its_cases() -> None:
    assert set(CASES) == {*METHODS, "auto"} - {STEPWISE}


@parametrize([replace(p, device="simt") for p in problems(*DTYPES) if p.method != "auto"])
def test_what_is_asked_for_is_possible_on_an_h100(problem: Problem) -> None:
    """It would be computed step by step without a word."""
    for backward in (False, True):
        found = simt_extension.load().cuda_choice(
            mode=problem.case.mode,
            backward=backward,
            T=problem.case.T,
            N=problem.case.N,
            H=problem.case.H,
            directions=problem.case.directions,
            dtype=problem.dtype,
            tf32=problem.tf32,
            wanted=problem.method,
        )
        assert found["method"] == problem.method
