"""The kernels of one block a batch tile (csrc/cuda/persistent_block.h), on the emulator.

They are held to the rule of every test. TF32 has no torch.nn on a CPU: there the kernels of a
single step under TF32 set the error allowed.
"""

import ctypes
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import simt_extension
import simt_selftest
import torch
from cuda_devices import Device, device
from helpers import (
    MODES,
    Case,
    Solver,
    Values,
    assert_parity,
    assert_same,
    cases,
    modes,
    ours,
    solve,
    theirs,
    with_tokens,
)

# Two tiles, the second of one row; units of three warps, the last of them one.
PADDED = Case(4, 9, 3, 17)
RAGGED = replace(PADDED, lengths=(2, 4, 0, 3, 1, 4, 4, 2, 3))
PACKED = replace(PADDED, lengths=(4, 4, 4, 3, 3, 2, 2, 1, 1), packed=True)
DTYPES = {"bf16": torch.bfloat16, "f16": torch.float16, "tf32": torch.float32}
dtypes = pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)


@dataclass(frozen=True)
class Kernels:
    """Solvers that take the kernels of a name, which also run the backward that follows."""

    device: Device
    through: Callable[[str], Solver]


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> Iterator[Kernels]:
    def through(name: str) -> Solver:
        def solver(case: Case, values: Values) -> Values:
            monkeypatch.setenv("FASTLSTM_CUDA_KERNEL", name)
            return ours(case, values)

        return solver

    with device("simt") as dev:
        dev.allow_tf32(True)
        yield Kernels(dev, through)


def away_from_the_kink(values: Values) -> Values:
    """Every other unit of a relu far on, the others far off: rounding decides none of them."""
    positive = {n: v.abs() if v.is_floating_point() else v for n, v in values.items()}
    for name in positive:
        if name.startswith("b_ih"):
            positive[name] = positive[name].clone()
            positive[name][1::2] = -1000
    return positive


def check(
    kernels: Kernels,
    case: Case,
    dtype: torch.dtype,
    *,
    baseline: Solver = theirs,
    change: Callable[[Values], Values] = lambda values: values,
    **options,
) -> None:
    if dtype == torch.float32:
        baseline = kernels.through("stepwise")
    if case.reset and dtype != torch.float32:
        baseline = None
    own = away_from_the_kink if case.mode == "RNN_RELU" else lambda values: values
    assert_parity(
        case,
        dtype,
        solver=kernels.through("block"),
        baseline=baseline,
        change=lambda values: change(own(values)),
        elements=1_000,
        **options,
    )


@dtypes
@cases(
    replace(PADDED, bidirectional=True),
    replace(PADDED, bias=False, state=False),
    replace(RAGGED, bidirectional=True),
    replace(PACKED, bidirectional=True),
    replace(RAGGED, reset=0.4, bidirectional=True),
    modes=[mode for mode in MODES if mode != "RNN_RELU"],
)
def test_parity(kernels: Kernels, case: Case, dtype: torch.dtype) -> None:
    check(kernels, case, dtype)


@dtypes
@cases(
    replace(PADDED, bidirectional=True),
    replace(RAGGED, bidirectional=True),
    replace(PACKED, bidirectional=True),
    replace(RAGGED, reset=0.4, bidirectional=True),
    modes=["RNN_RELU"],
)
def test_relu(kernels: Kernels, case: Case, dtype: torch.dtype) -> None:
    check(kernels, case, dtype)


@dtypes
@cases(Case(1, 1, 1, 1), Case(3, 8, 2, 8), Case(3, 1, 2, 33), Case(2, 3, 2, 64), modes=MODES)
def test_sizes(kernels: Kernels, case: Case, dtype: torch.dtype) -> None:
    check(kernels, case, dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bf16", "tf32"])
@cases(
    Case(2, 2, 2, 121),
    Case(2, 2, 2, 121, mode="GRU"),
    Case(2, 2, 2, 250, mode="RNN_TANH"),
)
def test_larger_blocks(kernels: Kernels, case: Case, dtype: torch.dtype) -> None:
    """With a part of W_hh in shared memory."""
    check(kernels, case, dtype)


@cases(Case(2, 2, 2, 185), modes=["LSTM", "GRU"])
def test_largest_blocks(kernels: Kernels, case: Case) -> None:
    check(kernels, case, torch.bfloat16)


@pytest.mark.parametrize("outputs", [["h_n"], ["output"], ["c_n"], []], ids=str)
def test_gradients_of_some_outputs(kernels: Kernels, outputs: list[str]) -> None:
    check(kernels, replace(RAGGED, bidirectional=True), torch.bfloat16, outputs=outputs)


@dtypes
@cases(replace(RAGGED, I=7, bidirectional=True), replace(PACKED, I=7), modes=MODES)
def test_tokens(kernels: Kernels, case: Case, dtype: torch.dtype) -> None:
    def looked_up(case: Case, values: Values) -> Values:
        vectors = torch.nn.functional.embedding(values["x"], torch.eye(case.I, dtype=dtype))
        return theirs(case, values | {"x": vectors})

    check(
        kernels,
        case,
        dtype,
        baseline=looked_up,
        change=lambda values: with_tokens(case, values, case.I),
    )


@dtypes
@modes
def test_token_out_of_range(kernels: Kernels, mode: str, dtype: torch.dtype) -> None:
    """And by the words of the error, that these are the kernels under test."""
    case = replace(PADDED, mode=mode)
    values = with_tokens(case, case.problem(dtype), case.I)
    values["x"][2, 8] = case.I
    with pytest.raises(RuntimeError, match=r"BlockFwd<(.|\n)*token out of range"):
        kernels.through("block")(case, values)


def solved(kernels: Kernels, name: str, case: Case, dtype: torch.dtype) -> Values:
    values, cotangents = case.problem(dtype), case.cotangents(dtype)
    return solve(kernels.through(name), case, values, cotangents)


@modes
def test_backward_is_of_this_kernel_too(kernels: Kernels, mode: str) -> None:
    """Its sums have another order than a product's: the same gradients would be no accident."""
    case = replace(PADDED, mode=mode, H=64)
    block, stepwise = (solved(kernels, name, case, torch.float32) for name in ("block", "stepwise"))
    assert not torch.equal(block["output"], stepwise["output"])
    assert not torch.equal(block["grad h0"], stepwise["grad h0"])


@pytest.mark.parametrize(
    ("case", "dtype", "tf32"),
    [
        (PADDED, torch.float64, True),
        (PADDED, torch.float32, False),
        (replace(PADDED, proj_size=5), torch.bfloat16, True),
        (Case(1, 1, 1, 193), torch.bfloat16, True),
        (Case(1, 1, 1, 193, mode="GRU"), torch.float16, True),
        (Case(1, 1, 1, 257, mode="RNN_TANH"), torch.bfloat16, True),
        (Case(1, 1, 1, 129), torch.float32, True),
        (Case(1, 1, 1, 129, mode="GRU"), torch.float32, True),
        (Case(1, 1, 1, 257, mode="RNN_TANH"), torch.float32, True),
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
def test_what_is_left_to_the_kernels_of_a_step(
    kernels: Kernels, case: Case, dtype: torch.dtype, tf32: bool
) -> None:
    kernels.device.allow_tf32(tf32)
    assert_same(solved(kernels, "block", case, dtype), solved(kernels, "stepwise", case, dtype))


@modes
def test_no_steps_and_no_rows(kernels: Kernels, mode: str) -> None:
    for case in (Case(0, 2, 3, 5, mode=mode), Case(3, 0, 3, 5, mode=mode)):
        assert_same(
            solved(kernels, "block", case, torch.bfloat16),
            solved(kernels, "stepwise", case, torch.bfloat16),
        )


@modes
def test_random_schedules(kernels: Kernels, mode: str) -> None:
    """Whatever the order in which threads run, the bits are the same."""
    case = Case(3, 2, 1, 9, mode=mode, bidirectional=True)
    values = case.problem(torch.bfloat16)
    block = kernels.through("block")
    first = solve(block, case, values, None)
    for seed in simt_selftest.SCHEDULES:
        simt_extension.load().set_seed(seed)
        assert_same(first, solve(block, case, values, None))


@modes
def test_random_schedules_of_backward(kernels: Kernels, mode: str) -> None:
    case = Case(3, 2, 1, 17, mode=mode, reset=0.3)
    first = solved(kernels, "block", case, torch.bfloat16)
    for seed in simt_selftest.SEEDS:
        simt_extension.load().set_seed(seed)
        assert_same(first, solved(kernels, "block", case, torch.bfloat16))


DRIVER = """
#include <stdint.h>

#include "cuda/persistent_block.cuh"

using namespace fastlstm;
using namespace fastlstm::cuda;

// An LSTM of 40 units over four steps of 3, 3, 2 and 1 rows, the first `split` steps of the
// direction in one launch and the others in another. out: h, the last h, the last c: 720
// numbers. Returns 0 if nothing threw.
extern "C" int run_split(uint64_t seed, bool reverse, int split, float* out) try {
  constexpr int T = 4, N = 3, H = 40, G = 4;
  static float igates[T * N * G * H], c[N * H];
  static BFloat16 w[G * H * H], h_operand[N * H], h[T * N * H];
  const int64_t step_begin[T + 1] = {0, 3, 6, 8, 9};
  const bool reset[T * N] = {false, false, false, true, false, false,
                             false, true, false, false, false, false};
  auto number = [](int i) { return static_cast<float>((i * 37 + 11) % 101) / 101 - 0.5f; };
  for (int i = 0; i < T * N * G * H; ++i) igates[i] = number(i);
  for (int i = 0; i < G * H * H; ++i) w[i] = BFloat16(number(i));
  for (int i = 0; i < N * H; ++i) h_operand[i] = BFloat16(c[i] = number(3 * i));
  SequenceFwd<BFloat16> p{};
  p.rows = {T, N, H, step_begin, nullptr, reset, false};
  p.w_hh_stride = p.h_stride = H;
  p.directions = 1;
  SequenceFwdDirection<BFloat16>& d = p.direction[0];
  d.reverse = reverse;
  d.w_hh = w;
  d.state = c;
  d.h_operand = h_operand;
  d.h = h;
  simt::set_seed(seed);
  const int ends[3] = {0, split, T};
  for (int i = 0; i < 2; ++i) {
    d.t_begin = reverse ? T - ends[i + 1] : ends[i];
    d.t_end = reverse ? T - ends[i] : ends[i + 1];
    d.igates = igates + step_begin[d.t_begin] * G * H;
    launch_block(launch_of<BlockFwd<LstmCell, BFloat16, 0>>(H), p, nullptr);
  }
  for (const BFloat16& x : h) *out++ = static_cast<float>(x);
  for (const BFloat16& x : h_operand) *out++ = static_cast<float>(x);
  for (float x : c) *out++ = x;
  return 0;
} catch (...) {
  return 1;
}
"""


def driver(folder: Path, csrc: Path) -> simt_selftest.Library:
    """Forward alone, from the sources in `csrc`."""
    simt_extension.load()
    (folder / "driver.cpp").write_text(DRIVER)
    command = [os.environ.get("CXX", "g++"), "-std=c++17", "-O1", "-shared", "-fPIC"]
    command += ["-DFASTLSTM_SIMT", f"-I{csrc}", f"-I{simt_selftest.SIMT}"]
    command += [str(folder / "driver.cpp")]
    objects = [simt_extension.BUILD / f"{path.stem}.o" for path in simt_selftest.EMULATOR]
    return simt_selftest.build(command, objects)


def run(library: simt_selftest.Library, seed: int, reverse: bool, split: int) -> bytes:
    out = (ctypes.c_float * 720)()
    failed = library.run_split(ctypes.c_uint64(seed), reverse, split, out)
    return b"failed" if failed else bytes(out)


@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
def test_several_launches(tmp_path: Path, reverse: bool) -> None:
    """States pass from one to the next, as gates come in chunks."""
    library = driver(tmp_path, simt_extension.CSRC)
    whole = run(library, 0, reverse, 4)
    assert whole != b"failed"
    for split in range(4):
        assert run(library, 0, reverse, split) == whole


@pytest.mark.parametrize("planted", [False, True], ids=["as_it_is", "without_its_barrier"])
def test_missing_barrier_is_found(tmp_path: Path, planted: bool) -> None:
    csrc = shutil.copytree(simt_extension.CSRC, tmp_path / "csrc")
    if planted:
        source = csrc / "cuda" / "persistent_block_fwd.cuh"
        before, barrier, after = source.read_text().rpartition("device::sync_block();")
        assert barrier
        source.write_text(before + after)
    library = driver(tmp_path, csrc)
    found = {run(library, seed, False, 4) for seed in simt_selftest.SEEDS}
    assert (len(found) > 1) == planted
