"""What the tests share: problems to solve, three ways to solve them, and the rule that judges.

A problem is solved by fastlstm, by torch.nn in the same dtype, and by an oracle in higher
precision. The error of fastlstm may be at most twice that of torch.nn, plus one rounding.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor

import fastlstm
from fastlstm import reference

OUTPUTS = ("output", "h_n", "c_n")
Values = dict[str, Tensor]

# Where long double is no wider than double there is nothing to judge float64 results by.
HAS_LONG_DOUBLE = np.finfo(np.longdouble).eps < np.finfo(np.float64).eps


@dataclass(frozen=True)
class Case:
    """The sizes and options of one problem."""

    T: int
    N: int
    I: int  # noqa: E741
    H: int
    layers: int = 1
    bidirectional: bool = False
    bias: bool = True
    state: bool = True
    batch_first: bool = False
    scale: float = 1.0

    def __str__(self) -> str:
        words = [f"T{self.T}-N{self.N}-I{self.I}-H{self.H}"]
        words += [f"layers{self.layers}"] if self.layers > 1 else []
        words += ["bidirectional"] if self.bidirectional else []
        words += [] if self.bias else ["nobias"]
        words += [] if self.state else ["nostate"]
        words += ["batch_first"] if self.batch_first else []
        words += [f"scale{self.scale:g}"] if self.scale != 1.0 else []
        return "-".join(words)

    @property
    def directions(self) -> int:
        return 2 if self.bidirectional else 1

    @property
    def weight_names(self) -> list[str]:
        kinds = ["w_ih", "w_hh"] + (["b_ih", "b_hh"] if self.bias else [])
        return [f"{kind}_{k}" for k in range(self.layers * self.directions) for kind in kinds]

    def problem(self, dtype: torch.dtype, seed: int = 0) -> Values:
        """Random values for every input, of the size that torch.nn starts with."""
        g = torch.Generator().manual_seed(seed)
        bound = self.H**-0.5

        def weight(*shape: int) -> Tensor:
            return torch.empty(shape, dtype=torch.float64).uniform_(-bound, bound, generator=g)

        def normal(*shape: int) -> Tensor:
            return self.scale * torch.randn(shape, dtype=torch.float64, generator=g)

        size = (self.N, self.T) if self.batch_first else (self.T, self.N)
        values = {"x": normal(*size, self.I)}
        if self.state:
            for name in ("h0", "c0"):
                values[name] = normal(self.layers * self.directions, self.N, self.H)
        for name in self.weight_names:
            kind, k = name[:4], int(name[5:])
            below = self.I if k < self.directions else self.directions * self.H
            columns = {"w_ih": (below,), "w_hh": (self.H,)}.get(kind, ())
            values[name] = weight(4 * self.H, *columns)
        return {name: v.to(dtype) for name, v in values.items()}

    def cotangents(self, dtype: torch.dtype, seed: int = 0) -> Values:
        g = torch.Generator().manual_seed(seed + 12345)
        size = (self.N, self.T) if self.batch_first else (self.T, self.N)
        state = (self.layers * self.directions, self.N, self.H)
        shapes = {"output": (*size, self.directions * self.H), "h_n": state, "c_n": state}
        return {name: torch.randn(s, generator=g).to(dtype) for name, s in shapes.items()}

    def weights(self, values: Values) -> list[tuple[Tensor, ...]]:
        """The weights grouped by layer and direction, as fastlstm.functional.lstm takes them."""
        names = self.weight_names
        step = len(names) // (self.layers * self.directions)
        return [
            tuple(values[name] for name in names[k : k + step]) for k in range(0, len(names), step)
        ]


def cases(*rows: Case) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", rows, ids=str)


dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["f32", "f64"])

Solver = Callable[[Case, Values], Values]


def ours(case: Case, values: Values) -> Values:
    return _named(fastlstm.functional.lstm, case, values)


def plain(case: Case, values: Values) -> Values:
    """The reference loop in the dtype of ``values``."""
    return _named(reference.lstm, case, values)


def _named(lstm: Callable, case: Case, values: Values) -> Values:
    hx = (values["h0"], values["c0"]) if "h0" in values else None
    output, (h_n, c_n) = lstm(
        values["x"],
        hx,
        case.weights(values),
        batch_first=case.batch_first,
        bidirectional=case.bidirectional,
        embedding=values.get("embedding"),
    )
    return {"output": output, "h_n": h_n, "c_n": c_n}


def theirs(case: Case, values: Values) -> Values:
    """What torch.nn.LSTM calls."""
    x = values["x"]
    if "h0" in values:
        hx = [values["h0"], values["c0"]]
    else:
        n = x.size(0 if case.batch_first else 1)
        hx = [x.new_zeros(case.layers * case.directions, n, case.H)] * 2
    flat = [values[name] for name in case.weight_names]
    results = torch.lstm(
        x, hx, flat, case.bias, case.layers, 0.0, True, case.bidirectional, case.batch_first
    )
    return dict(zip(OUTPUTS, results, strict=True))


def solve(
    solver: Solver,
    case: Case,
    values: Values,
    cotangents: Values | None,
    wanted: Iterable[str] | None = None,
) -> Values:
    """Return the outputs and, as ``"grad x"`` ..., the gradients of ``wanted`` (default: all)."""
    wanted = [n for n, v in values.items() if v.is_floating_point()] if wanted is None else wanted
    if cotangents is None:
        with torch.no_grad():
            return solver(case, values)
    leaves = {n: v.detach().requires_grad_(n in wanted) for n, v in values.items()}
    results = solver(case, leaves)
    grads = torch.autograd.grad(
        [results[name] for name in cotangents],
        [leaves[name] for name in wanted],
        list(cotangents.values()),
        materialize_grads=True,
    )
    results = {name: r.detach() for name, r in results.items()}
    return results | {f"grad {name}": g for name, g in zip(wanted, grads, strict=True)}


def oracle(case: Case, values: Values, cotangents: Values | None) -> Values:
    """The same problem solved in float64, or in long double where it is given in float64."""
    if values["w_ih_0"].dtype == torch.float64:
        return _long_double_oracle(case, values, cotangents)

    def wide(named: Values) -> Values:
        return {n: v.double() if v.is_floating_point() else v for n, v in named.items()}

    return solve(plain, case, wide(values), cotangents and wide(cotangents))


def _long_double_oracle(case: Case, values: Values, cotangents: Values | None) -> Values:
    """Forward and hand-written backward in long double; also independent of autograd.

    The results are rounded to float64 as the sum of two, ``high + 1j * low``, so that an error
    below one float64 rounding can still be seen.
    """
    if not HAS_LONG_DOUBLE:
        pytest.skip("long double is no wider than double here")

    def wide(v: Tensor) -> np.ndarray:
        return v.detach().numpy().astype(np.longdouble)

    def time_first(v: np.ndarray) -> np.ndarray:
        return v.swapaxes(0, 1) if case.batch_first else v

    def sigmoid(v: np.ndarray) -> np.ndarray:
        return 1 / (1 + np.exp(-v))

    v = {name: wide(t) for name, t in values.items()}
    T, N, H, D = case.T, case.N, case.H, case.directions
    zeros = np.zeros((case.layers * D, N, H), np.longdouble)
    h0, c0 = v.get("h0", zeros), v.get("c0", zeros)
    x = time_first(v["x"])
    tape, h_n, c_n = [], zeros.copy(), zeros.copy()
    for layer in range(case.layers):
        y = np.zeros((T, N, D * H), np.longdouble)
        for d in range(D):
            k = layer * D + d
            h, c = h0[k], c0[k]
            bias = v[f"b_ih_{k}"] + v[f"b_hh_{k}"] if case.bias else 0
            for t in range(T)[:: -1 if d else 1]:
                pre = x[t] @ v[f"w_ih_{k}"].T + h @ v[f"w_hh_{k}"].T + bias
                i, f, o = (sigmoid(pre[:, j * H : (j + 1) * H]) for j in (0, 1, 3))
                g = np.tanh(pre[:, 2 * H : 3 * H])
                h_prev, c_prev = h, c
                c = f * c_prev + i * g
                h = o * np.tanh(c)
                y[t, :, d * H : (d + 1) * H] = h
                tape.append((layer, d, t, x[t], h_prev, c_prev, i, f, g, o, c))
            h_n[k], c_n[k] = h, c
        x = y
    results = {"output": time_first(x), "h_n": h_n, "c_n": c_n}

    if cotangents is not None:
        seed = {name: wide(cotangents[name]) for name in cotangents}
        grads = {name: np.zeros_like(a) for name, a in v.items()}
        dh, dc = (seed.get(name, zeros).copy() for name in ("h_n", "c_n"))
        dy = time_first(seed["output"]).copy() if "output" in seed else np.zeros_like(x)
        layer_seen = case.layers - 1
        dx = None
        for layer, d, t, x_t, h_prev, c_prev, i, f, g, o, c in reversed(tape):
            if layer != layer_seen:
                layer_seen, dy, dx = layer, dx, None
            if dx is None:
                dx = np.zeros((T, N, x_t.shape[1]), np.longdouble)
            k = layer * D + d
            dh_t = dh[k] + dy[t, :, d * H : (d + 1) * H]
            tanh_c = np.tanh(c)
            dc_t = dc[k] + dh_t * o * (1 - tanh_c**2)
            gates = (
                dc_t * g * i * (1 - i),
                dc_t * c_prev * f * (1 - f),
                dc_t * i * (1 - g**2),
                dh_t * tanh_c * o * (1 - o),
            )
            dgates = np.concatenate(gates, axis=1)
            dh[k], dc[k] = dgates @ v[f"w_hh_{k}"], dc_t * f
            dx[t] += dgates @ v[f"w_ih_{k}"]
            grads[f"w_ih_{k}"] += dgates.T @ x_t
            grads[f"w_hh_{k}"] += dgates.T @ h_prev
            if case.bias:
                grads[f"b_ih_{k}"] += dgates.sum(0)
                grads[f"b_hh_{k}"] += dgates.sum(0)
        grads["x"] = time_first(dx)
        grads |= {"h0": dh, "c0": dc} if case.state else {}
        results |= {f"grad {name}": grads[name] for name in v}

    def pair(a: np.ndarray) -> Tensor:
        high = a.astype(np.float64)
        return torch.complex(*map(torch.tensor, (high, (a - high).astype(np.float64))))

    return {name: pair(a) for name, a in results.items()}


def max_error(value: Tensor, ref: Tensor) -> float:
    if ref.is_complex():
        return ((value - ref.real) - ref.imag).abs().max().item()
    return (value.double() - ref.double()).abs().max().item()


def assert_error_within(name: str, ours: Tensor, theirs: Tensor, ref: Tensor) -> None:
    """Fail unless the largest error of ``ours`` is at most twice that of ``theirs``, plus a floor.

    The floor is one rounding of the largest value, and the smallest normal number.

    Args:
        name: what is compared, for the message.
        ours, theirs: results in the dtype under test, of equal shape.
        ref: the true values in higher precision: float64, or ``high + 1j * low`` in complex128.
    """
    assert ours.shape == theirs.shape == ref.shape, f"{name}: {ours.shape}, expected {ref.shape}"
    assert ours.dtype == theirs.dtype, f"{name}: {ours.dtype}, expected {theirs.dtype}"
    if not ref.numel():
        return
    assert ours.isfinite().all(), f"{name}: not finite"
    info = torch.finfo(ours.dtype)
    floor = info.eps * ref.abs().max().item() + info.tiny
    error, allowed = max_error(ours, ref), 2 * max_error(theirs, ref) + floor
    assert error <= allowed, f"{name}: error {error:.3g}, allowed {allowed:.3g}"


def assert_parity(
    case: Case,
    dtype: torch.dtype,
    *,
    outputs: Iterable[str] = OUTPUTS,
    change: Callable[[Values], Values] | None = None,
    baseline: Solver = theirs,
) -> None:
    """Hold every output and every gradient of ``case`` to the error rule.

    Small problems are solved many times over with other numbers: the largest error of torch.nn
    over a handful of elements may be small by luck, over a thousand it is not.

    Args:
        outputs: which results get a cotangent.
        change: applied to the values before all solvers (to make them special).
        baseline: who sets the error allowed.
    """
    repeats = max(2, min(48, 10_000 // max(1, case.T * case.N * case.H)))
    rows: dict[str, list[tuple[Tensor, Tensor, Tensor]]] = {}
    for seed in range(repeats):
        values = case.problem(dtype, seed)
        values = change(values) if change else values
        cotangents = {n: g for n, g in case.cotangents(dtype, seed).items() if n in outputs}
        wanted = [n for n, v in values.items() if v.is_floating_point()]
        # Alone on two threads; that the number of threads changes nothing has a test of its own.
        torch.set_num_threads(2)
        mine = solve(ours, case, values, cotangents, wanted)
        torch.set_num_threads(1)
        contiguous = {n: v.clone(memory_format=torch.contiguous_format) for n, v in values.items()}
        base = solve(baseline, case, contiguous, cotangents)
        true = oracle(case, contiguous, cotangents)
        for name in mine:
            rows.setdefault(name, []).append((mine[name], base[name], true[name]))
    for name, triples in rows.items():
        assert_error_within(name, *(torch.stack(part) for part in zip(*triples, strict=True)))


def assert_same(a: Values, b: Values) -> None:
    """Fail unless both hold the same names and bitwise the same values."""
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].dtype == b[name].dtype, name
        assert torch.equal(a[name], b[name]), (
            f"{name}: differs by {(a[name] - b[name]).abs().max().item():.3g}"
        )
