"""Forward and backward equations of every mode written out in numpy, in long double.

Independent of autograd and of the masks of ``fastlstm.reference``: rows that wait are left out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest
import torch
from cell_kinds import has_c
from torch import Tensor

Array = np.ndarray
Arrays = dict[str, Array]

# Where long double is no wider than double there is nothing to judge float64 results by.
HAS_LONG_DOUBLE = np.finfo(np.longdouble).eps < np.finfo(np.float64).eps


class Step(NamedTuple):
    """What forward remembers of one step of the rows that take it, for backward."""

    layer: int
    direction: int
    t: int
    rows: Array
    keep: Array  # [rows, 1]: 0 where the state was reset before the step
    x: Array
    h_prev: Array
    c_prev: Array | None
    saved: tuple[Array, ...]


def sigmoid(v: Array) -> Array:
    return 1 / (1 + np.exp(-v))


def lstm_fwd(xg: Array, hg: Array, h: Array, c: Array, w_hr: Array | None):
    i, f, g, o = np.split(xg + hg, 4, axis=1)
    i, f, g, o = sigmoid(i), sigmoid(f), np.tanh(g), sigmoid(o)
    c_new = f * c + i * g
    hidden = o * np.tanh(c_new)
    h_new = hidden if w_hr is None else hidden @ w_hr.T
    return h_new, c_new, (i, f, g, o, c, c_new, hidden)


def lstm_bwd(dh: Array, dc: Array, saved: tuple[Array, ...], h: Array, w_hr: Array | None):
    i, f, g, o, c, c_new, _ = saved
    dhidden = dh if w_hr is None else dh @ w_hr
    tanh_c = np.tanh(c_new)
    dc = dc + dhidden * o * (1 - tanh_c**2)
    gates = (
        dc * g * i * (1 - i),
        dc * c * f * (1 - f),
        dc * i * (1 - g**2),
        dhidden * tanh_c * o * (1 - o),
    )
    dgates = np.concatenate(gates, axis=1)
    return dgates, dgates, np.zeros_like(h), dc * f


def gru_fwd(xg: Array, hg: Array, h: Array, c: None, w_hr: None):
    (xr, xz, xn), (hr, hz, hn) = np.split(xg, 3, axis=1), np.split(hg, 3, axis=1)
    r, z = sigmoid(xr + hr), sigmoid(xz + hz)
    n = np.tanh(xn + r * hn)
    return (1 - z) * n + z * h, None, (r, z, n, hn)


def gru_bwd(dh: Array, dc: None, saved: tuple[Array, ...], h: Array, w_hr: None):
    r, z, n, hn = saved
    dn = dh * (1 - z) * (1 - n**2)
    dr = dn * hn * r * (1 - r)
    dz = dh * (h - n) * z * (1 - z)
    dxg = np.concatenate((dr, dz, dn), axis=1)
    dhg = np.concatenate((dr, dz, dn * r), axis=1)
    return dxg, dhg, dh * z, None


def tanh_fwd(xg: Array, hg: Array, h: Array, c: None, w_hr: None):
    y = np.tanh(xg + hg)
    return y, None, (1 - y**2,)


def relu_fwd(xg: Array, hg: Array, h: Array, c: None, w_hr: None):
    y = np.maximum(xg + hg, 0)
    return y, None, ((y > 0).astype(y.dtype),)


def rnn_bwd(dh: Array, dc: None, saved: tuple[Array, ...], h: Array, w_hr: None):
    dgates = dh * saved[0]
    return dgates, dgates, np.zeros_like(h), None


CELLS: dict[str, tuple[Callable, Callable]] = {
    "LSTM": (lstm_fwd, lstm_bwd),
    "GRU": (gru_fwd, gru_bwd),
    "RNN_TANH": (tanh_fwd, rnn_bwd),
    "RNN_RELU": (relu_fwd, rnn_bwd),
}


def long_double_oracle(case, values: dict[str, Tensor], cotangents: dict[str, Tensor] | None):
    """Solve a ``helpers.Case`` whose values are float64.

    The results are rounded to float64 as the sum of two, ``high + 1j * low``, so that an error
    below one float64 rounding can still be seen.
    """
    if not HAS_LONG_DOUBLE:
        pytest.skip("long double is no wider than double here")
    v = {n: _wide(t) for n, t in values.items() if t.is_floating_point()}
    seed = {n: _wide(t) for n, t in (cotangents or {}).items()}
    rows = _Rows(case, values)
    x = rows.padded(v["x"])
    y, tape, h_n, c_n = _forward(case, v, x, rows)
    results = {"output": rows.as_input(y), "h_n": h_n} | ({} if c_n is None else {"c_n": c_n})
    if cotangents is not None:
        grads = _backward(case, v, x, rows, tape, seed)
        results |= {f"grad {n}": grads[n] for n in v}
    return {name: _pair(a) for name, a in results.items()}


class _Rows:
    """Which rows take a step when, and the way from ``[T, N, ...]`` to the layout of the input."""

    def __init__(self, case, values: dict[str, Tensor]) -> None:
        self.T, self.N = case.T, case.N
        self.batch_first = case.batch_first
        self.lengths = np.full(case.N, case.T)
        self.packed = "batch_sizes" in values
        if self.packed:
            sizes = values["batch_sizes"].numpy()
            self.lengths = (sizes > np.arange(case.N)[:, None]).sum(1)
        elif "lengths" in values:
            self.lengths = values["lengths"].numpy()
        self.valid = np.arange(case.T)[:, None] < self.lengths
        self.reset = np.zeros((case.T, case.N), bool)
        if "reset" in values:
            reset = values["reset"].numpy()
            self.reset = reset.T if case.batch_first else reset

    def padded(self, a: Array) -> Array:
        """Anything laid out as the input, as ``[T, N, ...]``."""
        if not self.packed:
            return a.swapaxes(0, 1) if self.batch_first else a
        padded = np.zeros((self.T, self.N, *a.shape[1:]), a.dtype)
        padded[self.valid] = a
        return padded

    def as_input(self, a: Array) -> Array:
        if self.packed:
            return a[self.valid]
        return a.swapaxes(0, 1) if self.batch_first else a

    def steps(self, direction: int):
        """Yield t, the rows that take step t, and 1 for those whose state is not reset before it."""
        for t in range(self.T)[:: -1 if direction else 1]:
            rows = np.flatnonzero(self.valid[t])
            cut = self.reset[t, rows]
            if direction:
                starts_here = t + 1 == self.lengths[rows]
                cut = ~starts_here & self.reset[min(t + 1, self.T - 1), rows]
            yield t, rows, (~cut[:, None]).astype(np.longdouble)


def _forward(case, v: Arrays, x: Array, rows: _Rows):
    step_fwd, _ = CELLS[case.mode]
    D, H = case.directions, case.H
    k_states = case.layers * D
    with_c = has_c(case.mode)
    h_n = v.get("h0", np.zeros((k_states, case.N, case.P), np.longdouble)).copy()
    c_n = v.get("c0", np.zeros((k_states, case.N, H), np.longdouble)).copy() if with_c else None
    tape = []
    for layer in range(case.layers):
        y = np.zeros((case.T, case.N, D * case.P), np.longdouble)
        for d in range(D):
            k = layer * D + d
            w_ih, w_hh, w_hr = v[f"w_ih_{k}"], v[f"w_hh_{k}"], v.get(f"w_hr_{k}")
            for t, at, keep in rows.steps(d):
                h_prev = np.where(keep, h_n[k][at], 0)
                c_prev = np.where(keep, c_n[k][at], 0) if with_c else None
                xg = x[t, at] @ w_ih.T + v.get(f"b_ih_{k}", 0)
                hg = h_prev @ w_hh.T + v.get(f"b_hh_{k}", 0)
                h, c, saved = step_fwd(xg, hg, h_prev, c_prev, w_hr)
                tape.append(Step(layer, d, t, at, keep, x[t, at], h_prev, c_prev, saved))
                y[t, at, d * case.P : (d + 1) * case.P] = h
                h_n[k][at] = h
                if with_c:
                    c_n[k][at] = c
        x = y
    return x, tape, h_n, c_n


def _backward(case, v: Arrays, x: Array, rows: _Rows, tape: list[Step], seed: Arrays) -> Arrays:
    _, step_bwd = CELLS[case.mode]
    D, P = case.directions, case.P
    states = (case.layers * D, case.N)
    with_c = has_c(case.mode)
    grads = {name: np.zeros_like(a) for name, a in v.items()}
    dh = seed.get("h_n", np.zeros((*states, P), np.longdouble)).copy()
    dc = seed.get("c_n", np.zeros((*states, case.H), np.longdouble)).copy()
    dx = np.zeros((case.T, case.N, D * P), np.longdouble)
    if "output" in seed:
        dx = rows.padded(seed["output"])
    by_layer = [[s for s in tape if s.layer == layer] for layer in range(case.layers)]
    for layer in reversed(range(case.layers)):
        dy, dx = dx, np.zeros((case.T, case.N, D * P if layer else x.shape[2]), np.longdouble)
        for s in reversed(by_layer[layer]):
            k = layer * D + s.direction
            at, w_hr = s.rows, v.get(f"w_hr_{k}")
            dh_t = dh[k][at] + dy[s.t, at, s.direction * P : (s.direction + 1) * P]
            dc_t = dc[k][at] if with_c else None
            dxg, dhg, dh_prev, dc_prev = step_bwd(dh_t, dc_t, s.saved, s.h_prev, w_hr)
            dh[k][at] = s.keep * (dh_prev + dhg @ v[f"w_hh_{k}"])
            if with_c:
                dc[k][at] = s.keep * dc_prev
            dx[s.t, at] += dxg @ v[f"w_ih_{k}"]
            grads[f"w_ih_{k}"] += dxg.T @ s.x
            grads[f"w_hh_{k}"] += dhg.T @ s.h_prev
            if case.bias:
                grads[f"b_ih_{k}"] += dxg.sum(0)
                grads[f"b_hh_{k}"] += dhg.sum(0)
            if w_hr is not None:
                grads[f"w_hr_{k}"] += dh_t.T @ s.saved[-1]
    grads["x"] = rows.as_input(dx)
    if case.state:
        grads |= {"h0": dh} | ({"c0": dc} if with_c else {})
    return grads


def _wide(t: Tensor) -> Array:
    return t.detach().numpy().astype(np.longdouble)


def _pair(a: Array) -> Tensor:
    high = a.astype(np.float64)
    return torch.complex(*map(torch.tensor, (high, (a - high).astype(np.float64))))
