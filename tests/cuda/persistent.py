"""What the tests of the persistent kernels share, on the emulator.

Those kernels (csrc/cuda/persistent/) keep W_hh on the chip for a whole sequence. There are three
families: one block a batch tile, and groups of blocks that exchange their part of a step through a
cluster's shared memory or, on a grid, through global memory.

They are held to the rule of every test. TF32 has no torch.nn on a CPU: there the kernels of a
single step under TF32 set the error allowed.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from types import ModuleType
from typing import NamedTuple

import pytest
import simt_extension
import torch
from cuda_devices import Device, device
from error_rule import assert_parity
from helpers import Case, Solver, Values, ours, solve, theirs

# Two tiles of eight rows, the second of one row. Of two blocks of 16 units the second has one unit.
PADDED = Case(4, 9, 3, 17)
RAGGED = replace(PADDED, lengths=(2, 4, 0, 3, 1, 4, 4, 2, 3))
PACKED = replace(PADDED, lengths=(4, 4, 4, 3, 3, 2, 2, 1, 1), packed=True)


class Numbers(NamedTuple):
    """What a problem is given in, and whether products of float32 are rounded to TF32."""

    dtype: torch.dtype
    tf32: bool = True


BF16, F16 = Numbers(torch.bfloat16), Numbers(torch.float16)
TF32, F32 = Numbers(torch.float32), Numbers(torch.float32, tf32=False)
NUMBERS = {"bf16": BF16, "f16": F16, "tf32": TF32, "f32": F32}


def kinds(words: dict[str, str], *names: str) -> pytest.MarkDecorator:
    """Parametrise ``word`` and ``numbers`` of these names (default: all), as far as they go together.

    Args:
        words: by the method that each asks for.
    """
    return pytest.mark.parametrize(
        ("word", "numbers"),
        [
            pytest.param(word, NUMBERS[name], id=f"{method}-{name}")
            for method, word in words.items()
            for name in names or NUMBERS
            if name != "f32" or method == "grid"
        ],
    )


@dataclass(frozen=True)
class Kernels:
    """Solvers that take the kernels of a word, which also run the backward that follows.

    A word is what FASTLSTM_CUDA_KERNEL may say.
    """

    device: Device
    simt: ModuleType
    through: Callable[[str], Solver]

    def choice(self, word: str, case: Case, numbers: Numbers, *, backward: bool) -> dict:
        """What is taken for ``case``: the method and its plan."""
        return self.simt.cuda_choice(
            mode=case.mode,
            backward=backward,
            T=case.T,
            N=case.N,
            H=case.H,
            directions=case.directions,
            dtype=numbers.dtype,
            tf32=numbers.tf32,
            wanted=word,
            projected=case.proj_size > 0,
        )


@pytest.fixture
def kernels() -> Iterator[Kernels]:
    """On an H100, which later calls of simt.set_device replace.

    A test module takes this fixture by giving it its name.
    """
    with pytest.MonkeyPatch.context() as patch, device("simt") as dev:

        def through(word: str) -> Solver:
            def solver(case: Case, values: Values) -> Values:
                patch.setenv("FASTLSTM_CUDA_KERNEL", word)
                return ours(case, values)

            return solver

        simt = simt_extension.load()
        properties = simt.device_properties()
        dev.allow_tf32(True)
        try:
            yield Kernels(dev, simt, through)
        finally:
            simt.set_device(properties)


def away_from_the_kink(values: Values) -> Values:
    """Every other unit of a relu far on, the others far off: rounding decides none of them."""
    positive = {n: v.abs() if v.is_floating_point() else v for n, v in values.items()}
    for name in positive:
        if name.startswith("b_ih"):
            positive[name] = positive[name].clone()
            positive[name][1::2] = -1000
    return positive


def methods_taken(kernels: Kernels, word: str, case: Case, numbers: Numbers) -> set[str]:
    return {
        kernels.choice(word, case, numbers, backward=backward)["method"]
        for backward in (False, True)
    }


def assert_taken(kernels: Kernels, word: str, case: Case, numbers: Numbers) -> None:
    """Fail if what ``word`` asks for is not possible, forward or backward: nothing would be tested."""
    taken = methods_taken(kernels, word, case, numbers)
    assert taken == {word.partition(":")[0]}, f"{word} for {case}: {taken}"


def check(
    kernels: Kernels,
    word: str,
    case: Case,
    numbers: Numbers,
    *,
    baseline: Solver | None = theirs,
    change: Callable[[Values], Values] = lambda values: values,
    elements: int = 1_000,
    **options,
) -> None:
    """Hold ``case`` to the error rule (assert_parity), through the kernels of ``word``."""
    assert_taken(kernels, word, case, numbers)
    kernels.device.allow_tf32(numbers.tf32)
    if numbers == TF32:
        baseline = kernels.through("stepwise")
    elif case.reset:
        baseline = None
    own = away_from_the_kink if case.mode == "RNN_RELU" else lambda values: values
    assert_parity(
        case,
        numbers.dtype,
        solver=kernels.through(word),
        baseline=baseline,
        change=lambda values: change(own(values)),
        elements=elements,
        **options,
    )


def solved(kernels: Kernels, word: str, case: Case, numbers: Numbers) -> Values:
    """Outputs and gradients of one problem."""
    kernels.device.allow_tf32(numbers.tf32)
    values, cotangents = case.problem(numbers.dtype), case.cotangents(numbers.dtype)
    return solve(kernels.through(word), case, values, cotangents)
