"""exp, sigmoid and tanh of the kernels, on every compiled path.

They flush: a true value up to twice the smallest normal number may come out as anything up to that.
exp is only used, and only right, up to ``LARGEST``; beyond, it stays at the value there.
"""

import math
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import Tensor

from fastlstm import _C

NAMES = ("sigmoid", "tanh", "exp")
MAX_ULP = 4.0
LARGEST = {torch.float32: 87.0, torch.float64: 708.0}

names = pytest.mark.parametrize("name", NAMES)
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["f32", "f64"])


def true_value(name: str, x: Tensor) -> np.ndarray:
    """In long double, from the numbers in ``x``."""
    v = x.numpy().astype(np.longdouble)
    with np.errstate(over="ignore"):
        if name == "sigmoid":
            return 1 / (1 + np.exp(-v))
        return np.exp(v) if name == "exp" else np.tanh(v)


def errors_in_ulp(name: str, x: Tensor, capability: str) -> np.ndarray:
    """The error of each element in units of the last place of the true value."""
    found = _C.activation(name, x, capability)
    assert found.dtype == x.dtype and found.shape == x.shape
    info = np.finfo(found.numpy().dtype)
    expected = true_value(name, x)
    error = np.abs(found.numpy().astype(np.longdouble) - expected)
    _, exponent = np.frexp(expected)
    ulp = np.ldexp(np.longdouble(1), np.maximum(exponent, info.minexp + 1) - 1 - info.nmant)
    small = 2 * info.tiny
    flushed = (np.abs(expected) <= small) & (np.abs(found.numpy()) <= small)
    return np.where(flushed, 0, error / ulp).astype(np.float64)


def usable(name: str, x: Tensor) -> Tensor:
    return x[x.abs() <= LARGEST[x.dtype]] if name == "exp" else x[~x.isnan()]


CHUNK = 2**18


def worst_of_chunk(name: str, first_bits: int) -> dict[str, float]:
    """The largest error in ULP, on each path, over ``CHUNK`` float32 numbers in a row of bits.

    All of one sign. Where the true value needs no computing, none is done: most of the numbers
    are too small or too large for that.
    """
    bits = torch.arange(first_bits, first_bits + CHUNK, dtype=torch.int64).to(torch.int32)
    x = bits.view(torch.float32)
    smallest, largest = x[0].abs().item(), x[-1].abs().item()
    if math.isnan(largest):
        x, smallest = x[1:] if math.isinf(smallest) else x, math.nan
    capabilities = _C.capabilities()
    if math.isnan(smallest) or smallest >= 256:
        if name == "exp" and not math.isnan(smallest):
            return {}
        edge = torch.tensor([smallest]).copysign(x[:1])
        expected = _C.activation(name, edge, capabilities[0])
        found = {c: _C.activation(name, x, c) for c in capabilities}
        same = {
            c: torch.equal(y.nan_to_num(9), expected.nan_to_num(9).expand_as(y))
            for c, y in found.items()
        }
        return {c: 0.0 if same[c] else math.inf for c in capabilities}
    if largest < 2**-26:
        true = {"sigmoid": 0.5, "exp": 1.0}.get(name)
        true = x.double() if true is None else torch.full_like(x, true, dtype=torch.float64)
    else:
        true = getattr(torch, name)(x.double())
    rounded = true.float().abs_().clamp_(min=torch.finfo(torch.float32).tiny)
    ulp = (rounded.view(torch.int32) & 0x7F800000).view(torch.float32).double().mul_(2.0**-23)
    flushed = None
    small = 2 * torch.finfo(torch.float32).tiny
    if rounded.min() <= small:
        flushed = true.abs() <= small
    worst = {}
    for capability in capabilities:
        found = _C.activation(name, x, capability)
        error = found.double().sub_(true).abs_().div_(ulp)
        if flushed is not None:
            error[flushed & (found.abs() <= small)] = 0
        if name == "exp" and largest > LARGEST[torch.float32]:
            error[x.abs() > LARGEST[torch.float32]] = 0
        worst[capability] = error.nan_to_num(math.inf).max().item()
    return worst


@pytest.mark.slow
@names
def test_every_float32(name: str) -> None:
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        chunks = range(0, 2**32, CHUNK)
        for first, worst in zip(
            chunks, pool.map(lambda b: worst_of_chunk(name, b), chunks), strict=True
        ):
            bad = {c: ulp for c, ulp in worst.items() if not ulp <= MAX_ULP}
            assert not bad, f"{bad} ULP in the {CHUNK} numbers from bits {first:#010x}"


@names
def test_float32_judged_from_python(name: str, capability: str) -> None:
    """A million bit patterns against long double, to check the test above."""
    bits = torch.randint(-(2**31), 2**31, (1_000_000,), dtype=torch.int64).to(torch.int32)
    near = torch.linspace(-110, 110, 200_001)
    x = usable(name, torch.cat([bits.view(torch.float32), near]))
    ulp = errors_in_ulp(name, x, capability)
    worst = ulp.argmax()
    assert ulp[worst] <= MAX_ULP, f"{ulp[worst]:.2f} ULP at {x[worst].item()!r}"


@names
def test_float64(name: str, capability: str) -> None:
    wide = 745 * (2 * torch.rand(500_000, dtype=torch.float64) - 1)
    near = 5 * torch.randn(500_000, dtype=torch.float64)
    small = torch.logspace(-320, 1, 100_000, dtype=torch.float64)
    edges = torch.tensor([708.0, 709.79, 708.4, 745.2, 36.7, 19.1, 0.5, 0.625, 0.3465735903])
    edges = torch.cat([edges.double(), -edges.double(), torch.zeros(1, dtype=torch.float64)])
    x = usable(name, torch.cat([wide, near, small, -small, edges]))
    ulp = errors_in_ulp(name, x, capability)
    worst = ulp.argmax()
    assert ulp[worst] <= MAX_ULP, f"{ulp[worst]:.2f} ULP at {x[worst].item()!r}"


@names
@dtypes
def test_special_values(name: str, dtype: torch.dtype, capability: str) -> None:
    def f(*numbers: float) -> Tensor:
        return _C.activation(name, torch.tensor(numbers, dtype=dtype), capability)

    tiny = torch.finfo(dtype).tiny
    low = f(-math.inf, -torch.finfo(dtype).max, -1e4)
    high = f(math.inf, torch.finfo(dtype).max, 1e4)
    if name == "tanh":
        assert (low == -1).all() and (high == 1).all()
    else:
        assert (low >= 0).all() and (low <= 2 * tiny).all()
        bound = 1.0 if name == "sigmoid" else f(LARGEST[dtype])
        assert (high == bound).all()
    assert f(math.nan, -math.nan).isnan().all()
    at_zero = {"sigmoid": 0.5, "tanh": 0.0, "exp": 1.0}[name]
    assert (f(0.0, -0.0) == at_zero).all()
    assert (f(tiny / 8, -tiny / 8) - at_zero).abs().max() <= tiny


@names
@dtypes
def test_never_leaves_its_range(name: str, dtype: torch.dtype, capability: str) -> None:
    x = torch.linspace(-120, 120, 1_000_003, dtype=dtype)
    found = _C.activation(name, x, capability)
    assert (found >= (-1 if name == "tanh" else 0)).all()
    assert name == "exp" or (found <= 1).all()


@names
def test_any_number_of_elements(name: str, capability: str) -> None:
    """The tail of a loop of 16 lanes gives what its body does."""
    x = torch.randn(67)
    whole = _C.activation(name, x, capability)
    for size in range(34):
        part = _C.activation(name, x[size : 2 * size], capability)
        assert torch.equal(part, whole[size : 2 * size])


def test_unknown_capability() -> None:
    with pytest.raises(ValueError, match="VSX"):
        _C.activation("exp", torch.zeros(1), "VSX")
