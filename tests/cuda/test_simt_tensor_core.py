"""How mma of the emulator rounds (tests/simt/tensor_core.cpp): as real tensor cores or worse.

Where there is a GPU and nvcc, it is asked what all of them have in common.
"""

import math
from collections.abc import Callable, Sequence
from fractions import Fraction

import numpy as np
import pytest
import simt_selftest
from numpy.typing import NDArray
from simt_selftest import Library

Product = Callable[[Library, NDArray, NDArray], NDArray]
INF, NAN = math.inf, math.nan
ULP = 2.0**-23  # of 1 in float
HAS_GPU = simt_selftest.has_gpu()


@pytest.fixture(
    params=["emulator", pytest.param("gpu", marks=pytest.mark.cuda)] if HAS_GPU else ["emulator"]
)
def machine(request: pytest.FixtureRequest) -> Library:
    return getattr(simt_selftest, request.param)()


def pad_rows(x: NDArray, rows: int) -> NDArray:
    return np.pad(x, ((0, rows - len(x)), (0, 0))).astype(np.float32)


def product_f16(machine: Library, a: NDArray, b: NDArray) -> NDArray:
    operands = np.concatenate([pad_rows(a, 32), pad_rows(b, 16)]).astype(np.float16)
    return machine.run("gemm_f16", operands, np.zeros((32, 16), np.float32))


def product_bf16(machine: Library, a: NDArray, b: NDArray) -> NDArray:
    operands = np.concatenate([pad_rows(a, 32), pad_rows(b, 16)]).view(np.uint32) >> 16
    return machine.run("gemm_bf16", operands.astype(np.uint16), np.zeros((32, 16), np.float32))


def product_tf32(machine: Library, a: NDArray, b: NDArray) -> NDArray:
    operands = np.concatenate([pad_rows(a, 16), pad_rows(b, 8)])
    return machine.run("gemm_tf32", operands, np.zeros((16, 8), np.float32))


# a [up to 16, K] times b [up to 8, K] transposed, of numbers that the type has. And how many
# products the emulator adds at once, as an A100 does.
PRODUCTS = {"f16": (product_f16, 8), "bf16": (product_bf16, 8), "tf32": (product_tf32, 4)}
products = pytest.mark.parametrize(("product", "at_once"), PRODUCTS.values(), ids=PRODUCTS)


def sums(product: Product, machine: Library, cases: Sequence[Sequence[float]]) -> list[float]:
    """What mma makes of each of at most eight lists of at most 16 products of few bits."""
    terms = np.zeros((len(cases), 16))
    for row, case in zip(terms, cases, strict=True):
        row[: len(case)] = case
    # Factors of about the same size, for the narrow range of float16.
    b = np.exp2(np.frexp(terms)[1] // 2)
    return product(machine, terms / b, b).diagonal()[: len(cases)].tolist()


@products
def test_sums_are_cut_off(machine: Library, product: Product, at_once: int) -> None:
    """In all tensor cores from sm_80 on; sums of two floats would be rounded to nearest."""
    cases = {
        (1, 0.75 * ULP): 1,
        (-1, -0.75 * ULP): -1,
        (1, ULP, 0.75 * ULP): 1 + ULP,
        # What is far below the largest is lost wherever it stands, even if that goes away.
        (2.0**20, -(2.0**20), 2.0**-10): 0,
        (2.0**-10, 2.0**20, -(2.0**20)): 0,
        # The sum so far counts like a product.
        (1, *[0] * (2 * at_once - 2), 0.75 * ULP): 1,
        (2.0**20, *[0] * (2 * at_once - 3), 2.0**-10, -(2.0**20)): 0,
    }
    assert sums(product, machine, list(cases)) == list(cases.values())


@products
def test_sums_have_one_bit_more_than_float(product: Product, at_once: int) -> None:
    """As those of an A100; later GPUs have two."""
    cases = {
        (1, ULP / 2, ULP / 2): 1 + ULP,
        (1, 0.75 * ULP, 0.75 * ULP): 1 + ULP,
        (1, ULP / 4, ULP / 4, ULP / 2): 1,
        (-1, -ULP / 2, -ULP / 2): -1 - ULP,
        (1, -ULP / 4): 1,
        (1, -ULP / 2): 1 - ULP / 2,
        # Of 2 a unit is twice as large.
        (1, 1, ULP): 2,
        (1, 1, ULP, ULP): 2 + 2 * ULP,
    }
    assert sums(product, simt_selftest.emulator(), list(cases)) == list(cases.values())


@products
def test_products_added_at_once(product: Product, at_once: int) -> None:
    """Two halves of a unit are lost unless they come at once."""
    inside, beyond = np.zeros((2, 16))
    for case, second in ((inside, at_once - 1), (beyond, at_once)):
        case[[0, 1, second]] = 1, ULP / 2, ULP / 2
    assert sums(product, simt_selftest.emulator(), [inside, beyond]) == [1 + ULP, 1]


def exponent_of(x: Fraction) -> int:
    """The largest e with 2**e <= abs(x)."""
    return math.frexp(x)[1] - 1


def cut_off(x: Fraction, bits: int, exponent: int) -> Fraction:
    """So many bits of x, of which the first is worth 2**exponent."""
    unit = Fraction(2) ** (exponent - bits + 1)
    return int(x / unit) * unit


def sum_as_a100(terms: Sequence[float], at_once: int) -> Fraction:
    total = Fraction(0)
    for i in range(0, len(terms), at_once):
        block = [total, *map(Fraction, terms[i : i + at_once])]
        largest = exponent_of(max(block, key=abs))
        total = sum(cut_off(x, 25, largest) for x in block)
        total = cut_off(total, 24, exponent_of(total))
    return total


@products
def test_products_bit_by_bit(product: Product, at_once: int) -> None:
    rng = np.random.default_rng(0)
    # Seven bits, which every type has, of very different size.
    a, b = (
        rng.integers(-127, 128, (n, 48)) * np.exp2(rng.integers(-12, 3, (n, 48))) for n in (16, 8)
    )
    out = product(simt_selftest.emulator(), a, b)[:16, :8]
    expected = [[sum_as_a100((x * y).tolist(), at_once) for y in b] for x in a]
    np.testing.assert_array_equal(out, np.array(expected, np.float32))
    assert (out != (a @ b.T).astype(np.float32)).any(), "nothing was cut off"


@products
def test_what_is_not_finite(machine: Library, product: Product, at_once: int) -> None:
    a = np.zeros((5, 16))
    a[0, 1], a[1, 2:4], a[2, 3], a[3, 4], a[4, 9] = INF, (INF, -INF), NAN, 1, -INF
    out = product(machine, a, np.ones((1, 16)))
    np.testing.assert_array_equal(out[:5, 0], [INF, NAN, NAN, 1, -INF])
