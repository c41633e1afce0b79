"""What is asked of every family of persistent kernels (persistent.py)."""

from dataclasses import replace

import persistent
import pytest
import simt_selftest
import torch
from error_rule import assert_same
from helpers import MODES, Case, Values, cases, modes, solve, theirs, with_tokens
from persistent import (
    BF16,
    F16,
    F32,
    PACKED,
    PADDED,
    RAGGED,
    TF32,
    Kernels,
    Numbers,
    assert_taken,
    check,
    kinds,
    solved,
)

# For PADDED, in both directions four tiles: a group of the grid takes two of them.
WORDS = {"block": "block", "cluster": "cluster:16x2x8", "grid": "grid:16x2x8x3"}
words = pytest.mark.parametrize("word", WORDS.values(), ids=WORDS)
# By the best plan.
METHODS = {method: method for method in WORDS}
methods = pytest.mark.parametrize("word", METHODS)
# float16 differs from bfloat16 by its conversions alone.
APART = ("bf16", "tf32", "f32")

kernels = persistent.kernels


@kinds(WORDS, *APART)
@cases(
    replace(PADDED, bidirectional=True),
    replace(PADDED, bias=False, state=False),
    replace(RAGGED, bidirectional=True),
    replace(PACKED, bidirectional=True),
    replace(RAGGED, reset=0.4, bidirectional=True),
    modes=[mode for mode in MODES if mode != "RNN_RELU"],
)
def test_parity(kernels: Kernels, word: str, case: Case, numbers: Numbers) -> None:
    check(kernels, word, case, numbers)


@pytest.mark.slow
@kinds(WORDS)
@cases(
    replace(PADDED, bidirectional=True),
    replace(RAGGED, bidirectional=True),
    replace(PACKED, bidirectional=True),
    replace(RAGGED, reset=0.4, bidirectional=True),
    modes=["RNN_RELU"],
)
def test_relu(kernels: Kernels, word: str, case: Case, numbers: Numbers) -> None:
    check(kernels, word, case, numbers)


@pytest.mark.slow
@kinds(METHODS, *APART)
@cases(Case(1, 1, 1, 1), Case(3, 8, 2, 8), Case(3, 1, 2, 33), Case(2, 3, 2, 64), modes=MODES)
def test_sizes(kernels: Kernels, word: str, case: Case, numbers: Numbers) -> None:
    check(kernels, word, case, numbers, elements=1_000 if word == "block" else 12)


@words
@pytest.mark.parametrize("outputs", [["h_n"], ["output"], ["c_n"], []], ids=str)
def test_gradients_of_some_outputs(kernels: Kernels, word: str, outputs: list[str]) -> None:
    check(kernels, word, replace(RAGGED, bidirectional=True), BF16, outputs=outputs)


@pytest.mark.slow
@kinds(WORDS)
@cases(replace(RAGGED, I=7, bidirectional=True), replace(PACKED, I=7), modes=MODES)
def test_tokens(kernels: Kernels, word: str, case: Case, numbers: Numbers) -> None:
    def looked_up(case: Case, values: Values) -> Values:
        vectors = torch.nn.functional.embedding(values["x"], torch.eye(case.I, dtype=numbers.dtype))
        return theirs(case, values | {"x": vectors})

    check(
        kernels,
        word,
        case,
        numbers,
        baseline=looked_up,
        change=lambda values: with_tokens(case, values, case.I),
    )


JOBS = {
    "block": "BlockFwd<{cell}, {type}",
    "cluster": "GroupFwdJob<{cell}, {type}(.*)ClusterGather",
    "grid": "GroupFwdJob<{cell}, {type}(.*)GridGather",
}
TYPES = {BF16: "BFloat16", F16: "Half", TF32: "float", F32: "Float3x"}


@kinds(WORDS)
@modes
def test_token_out_of_range(kernels: Kernels, mode: str, word: str, numbers: Numbers) -> None:
    """And by the words of the error, that these are the kernels under test."""
    case = replace(PADDED, mode=mode)
    kernels.device.allow_tf32(numbers.tf32)
    values = with_tokens(case, case.problem(numbers.dtype), case.I)
    values["x"][2, 8] = case.I
    job = JOBS[word.partition(":")[0]].format(
        cell=f"fastlstm::(cuda::)?{mode.title().replace('_', '')}Cell",
        type=f"(fastlstm::.*::)?{TYPES[numbers]}",
    )
    with pytest.raises(RuntimeError, match=rf"{job}(.|\n)*token out of range"):
        kernels.through(word)(case, values)


@methods
@modes
def test_backward_is_of_this_kernel_too(kernels: Kernels, word: str, mode: str) -> None:
    """Its sums have another order than a product's: the same gradients would be no accident."""
    case = replace(PADDED, mode=mode, H=64)
    own, stepwise = (solved(kernels, name, case, TF32) for name in (word, "stepwise"))
    assert not torch.equal(own["output"], stepwise["output"])
    assert not torch.equal(own["grad h0"], stepwise["grad h0"])


@methods
@modes
def test_no_steps_and_no_rows(kernels: Kernels, word: str, mode: str) -> None:
    for case in (Case(0, 2, 3, 5, mode=mode), Case(3, 0, 3, 5, mode=mode)):
        assert_same(
            solved(kernels, word, case, BF16),
            solved(kernels, "stepwise", case, BF16),
        )


# In both directions two jobs: the group of the grid takes them one after the other.
# Clusters know nothing of each other, and take long here.
scheduled = pytest.mark.parametrize(
    ("word", "bidirectional"),
    [("block", True), ("cluster:16x2x8", False), ("grid:16x2x8x1", True)],
    ids=WORDS,
)


@pytest.mark.slow
@scheduled
@modes
def test_random_schedules(kernels: Kernels, word: str, bidirectional: bool, mode: str) -> None:
    """Whatever the order in which threads run, the bits are the same."""
    case = Case(3, 2, 1, 17, mode=mode, bidirectional=bidirectional)
    assert_taken(kernels, word, case, BF16)
    values = case.problem(BF16.dtype)
    solver = kernels.through(word)
    first = solve(solver, case, values, None)
    for seed in simt_selftest.SCHEDULES:
        kernels.simt.set_seed(seed)
        assert_same(first, solve(solver, case, values, None))


@pytest.mark.slow
@scheduled
@modes
def test_random_schedules_of_backward(
    kernels: Kernels, word: str, bidirectional: bool, mode: str
) -> None:
    case = Case(3, 2, 1, 17, mode=mode, bidirectional=bidirectional, reset=0.3)
    values, cotangents = case.problem(BF16.dtype), case.cotangents(BF16.dtype)
    leaves = {n: v.requires_grad_() for n, v in values.items() if v.is_floating_point()}
    results = kernels.through(word)(case, values)

    def gradients() -> Values:
        grads = torch.autograd.grad(
            [results[name] for name in cotangents],
            list(leaves.values()),
            list(cotangents.values()),
            retain_graph=True,
        )
        return dict(zip(leaves, grads, strict=True))

    first = gradients()
    for seed in simt_selftest.SCHEDULES:
        kernels.simt.set_seed(seed)
        assert_same(first, gradients())


def not_finite(case: Case, numbers: Numbers) -> Values:
    """With NaN and infinities in rows of their own, others without any.

    Row 2 of RAGGED has no steps: what it begins with passes by the kernels, every bit of a NaN set,
    which is the word that blocks of a grid wait to see go.
    """
    dtype = numbers.dtype
    values = case.problem(dtype)
    every_bit = torch.tensor(-1, dtype={2: torch.int16, 4: torch.int32}[dtype.itemsize]).view(dtype)
    for name in case.state_names:
        values[name][:, 2] = every_bit
        values[name][:, 1, 3] = every_bit
    values["x"][1, 3, 0] = torch.nan
    if numbers == F32:  # an infinite h makes NaN (Operand<Float3x>)
        return values
    values["x"][2, 6, 1] = -torch.inf
    for name in case.state_names:
        values[name][:, 5, 16] = torch.inf
    return values


@pytest.mark.slow
@kinds(WORDS)
@cases(
    replace(RAGGED, bidirectional=True), replace(RAGGED, bidirectional=True, reset=0.2), modes=MODES
)
def test_nan_and_infinity_reach_what_they_reach_stepwise(
    kernels: Kernels, word: str, case: Case, numbers: Numbers
) -> None:
    kernels.device.allow_tf32(numbers.tf32)
    values, cotangents = not_finite(case, numbers), case.cotangents(numbers.dtype)
    own, stepwise = (
        solve(kernels.through(name), case, values, cotangents) for name in (word, "stepwise")
    )
    assert stepwise["output"].isnan().any() and not stepwise["output"].isnan().all()
    for name in stepwise:
        for kind in (torch.isnan, torch.isposinf, torch.isneginf):
            assert torch.equal(kind(own[name]), kind(stepwise[name])), (name, kind)
