"""Problems whose tensors lie anywhere in memory, with NaN around them, or are lazy."""

import random
from collections.abc import Callable
from dataclasses import replace

import torch
from error_rule import assert_same
from helpers import TORCH_MODES, Case, Values
from torch import Tensor


def laid_out(draw: random.Random, t: Tensor, is_lazy: bool = True) -> Tensor:
    """The numbers of ``t`` at a random place, in a random order, with gaps; maybe a lazy tensor."""
    if t.is_floating_point() and is_lazy:
        if not t.any() and draw.random() < 0.5:
            return torch._efficientzerotensor(t.shape, dtype=t.dtype)
        if draw.random() < 0.25:
            return torch._neg_view(laid_out(draw, -t, is_lazy=False))
    strides, extent = [0] * t.dim(), 1
    for dim in draw.sample(range(t.dim()), t.dim()):
        strides[dim] = extent * draw.choice([1, 1, 1, 2, 3])
        # One past the last element, with a gap at times.
        extent = strides[dim] * max(1, t.size(dim)) + draw.choice([0, 0, 0, 1])
    if draw.random() < 0.4:  # the usual order, so that only the odd strides below are odd
        strides, extent = list(torch.empty(t.shape).stride()), max(1, t.numel())
    offset = draw.choice([0, 0, 1, 5])
    memory = torch.full((offset + extent + 8,), _wrong(t.dtype), dtype=t.dtype)
    memory.as_strided(t.shape, strides, offset).copy_(t)
    for dim, size in enumerate(t.shape):
        if size == 1 or t.numel() == 0:
            strides[dim] = draw.choice([0, 1, 2, 7, strides[dim], 1000])
    return memory.as_strided(t.shape, strides, offset)


def _wrong(dtype: torch.dtype) -> float | int | bool:
    if dtype == torch.bool:
        return True
    return float("nan") if dtype.is_floating_point else 100


def drawn_case(draw: random.Random) -> tuple[Case, Values]:
    mode = draw.choice(TORCH_MODES)
    form = draw.choice(["plain", "plain", "packed", "lengths", "reset", "tokens", "embedding"])
    # Sizes of 0, 1, and a few: nothing else makes strides odd.
    T, N = draw.choice([1, 1, 2, 5]), draw.choice([1, 1, 2, 3])
    if form != "packed":
        T, N = draw.choice([0, T, T, T, T]), draw.choice([0, N, N, N, N])
    lengths = None
    if form == "packed":
        lengths = (T, *sorted(draw.choices(range(1, T + 1), k=N - 1), reverse=True))
    elif form == "lengths":
        lengths = tuple(draw.choices(range(T + 1), k=N))
    case = Case(
        T, N, draw.choice([1, 1, 2, 5]), draw.choice([1, 1, 3, 17]),
        mode=mode, layers=draw.choice([1, 1, 2]), bidirectional=draw.random() < 0.3,
        bias=draw.random() < 0.8, state=draw.random() < 0.7,
        batch_first=form != "packed" and draw.random() < 0.5,
        proj_size=0, lengths=lengths, packed=form == "packed",
        reset=0.3 if form == "reset" or (form == "lengths" and draw.random() < 0.3) else 0.0,
    )  # fmt: skip
    if mode == "LSTM" and case.H > 1 and draw.random() < 0.3:
        case = replace(case, proj_size=draw.choice([1, case.H - 1]))
    values = case.problem(draw.choice([torch.float32, torch.float64]), draw.randrange(1 << 30))
    if form in ("tokens", "embedding"):
        V = case.I if form == "tokens" else draw.choice([1, 4])
        values["x"] = torch.randint(V, case.size)
        if form == "embedding":
            values["embedding"] = torch.randn(V, case.I, dtype=values["w_ih_0"].dtype)
    for name in ("x", "h0", "c0"):
        if name in values and values[name].is_floating_point() and draw.random() < 0.1:
            values[name] = torch.zeros_like(values[name])
    return case, values


def solved(solver: Callable, case: Case, values: Values, cotangents: Values | None) -> Values:
    leaves = {
        n: v.detach().requires_grad_(cotangents is not None) if v.is_floating_point() else v
        for n, v in values.items()
    }
    results = solver(case, leaves)
    if cotangents is None:
        return {n: r.clone() for n, r in results.items()}
    wanted = [n for n, v in leaves.items() if v.requires_grad]
    some = [n for n in cotangents if results[n].requires_grad]
    grads = torch.autograd.grad(
        [results[n] for n in some], [leaves[n] for n in wanted],
        [cotangents[n] for n in some], materialize_grads=True,
    )  # fmt: skip
    found = {n: r.detach() for n, r in results.items()}
    found |= {f"grad {n}": g for n, g in zip(wanted, grads, strict=True)}
    return {n: torch.nan_to_num(v.clone(), nan=1e9) for n, v in found.items()}


def check(draw: random.Random, case: Case, values: Values, solver: Callable) -> None:
    plain = {n: v.clone(memory_format=torch.contiguous_format) for n, v in values.items()}
    odd = {n: laid_out(draw, v) for n, v in values.items()}
    cotangents = odd_cotangents = None
    if draw.random() < 0.6:
        results = solver(case, plain)
        cotangents = {n: torch.randn_like(r, dtype=r.dtype) for n, r in results.items()}
        cotangents = {n: g.contiguous() for n, g in cotangents.items() if draw.random() < 0.8}
        odd_cotangents = {n: laid_out(draw, g) for n, g in cotangents.items()}
    expected = solved(solver, case, plain, cotangents or None)
    assert_same(solved(solver, case, odd, odd_cotangents or None), expected)
