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
TINY = torch.finfo(torch.float32).tiny
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

    They are all of one sign, and all NaN but for an infinity in front if the first one is not
    finite. Most float32 numbers are so large or so small that the true value is a constant.
    """
    bits = torch.arange(first_bits, first_bits + CHUNK, dtype=torch.int64).to(torch.int32)
    x = bits.view(torch.float32)
    first, last = x[0].item(), x[-1].item()
    found = {c: _C.activation(name, x, c) for c in _C.capabilities()}
    if math.isnan(last):
        nans = slice(1 if math.isinf(first) else 0, None)
        return {c: 0.0 if y[nans].isnan().all() else math.inf for c, y in found.items()}
    constant = None
    if abs(first) >= 256:
        constant = {"tanh": math.copysign(1, first), "sigmoid": float(first > 0)}.get(name)
        if name == "exp":
            return {}
    elif abs(last) < 2**-26:
        constant = {"sigmoid": 0.5, "exp": 1.0}.get(name)
    if constant is not None:
        unit = constant * 2.0**-23 if constant else 2 * TINY
        bounds = {c: torch.stack(y.aminmax()).double() for c, y in found.items()}
        allowed = 0 if constant else 2 * TINY
        errors = {c: (b - constant).abs().max().item() for c, b in bounds.items()}
        return {c: 0.0 if e <= allowed else e / abs(unit) for c, e in errors.items()}

    if name == "tanh" and abs(first) > 2 * TINY and abs(last) < 2**-26:
        # tanh(x) is x to twice the precision, and |x| 2^-24 at most the unit of its last place.
        return {c: ((y - x) / x).abs().max().item() * 2.0**24 for c, y in found.items()}

    true = getattr(torch, name)(x.double())
    rounded = true.float().abs_().clamp_(min=TINY)
    ulp = (rounded.view(torch.int32) & 0x7F800000).view(torch.float32).double().mul_(2.0**-23)
    ignored = x.abs() > (LARGEST[torch.float32] if name == "exp" else math.inf)
    flushed = true.abs() <= 2 * TINY
    worst = {}
    for capability, y in found.items():
        error = y.double().sub_(true).abs_().div_(ulp)
        error[ignored | (flushed & (y.abs() <= 2 * TINY))] = 0
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
