"""lstm, gru and rnn of fastlstm.functional against torch.nn, in the sizes that break kernels."""

from collections.abc import Callable
from dataclasses import replace
from itertools import combinations

import pytest
import torch
from error_rule import assert_parity, assert_same
from helpers import GATES, MODES, OUTPUTS, Case, Values, cases, dtypes, modes, ours, plain, solve

# Around the tile: 6 rows, 16 or 8 or 1 lanes, and sizes that are a multiple of nothing.
SMALL = Case(5, 7, 4, 17)


@pytest.mark.paths
@dtypes
@cases(
    Case(1, 1, 1, 1),
    Case(3, 2, 1, 1),
    Case(1, 5, 2, 3),
    Case(7, 1, 4, 17),
    Case(4, 6, 5, 59),
    Case(3, 7, 65, 64),
    Case(3, 13, 64, 65),
    Case(3, 32, 7, 111),
    Case(3, 50, 33, 128),
    Case(4, 2, 3, 500),
    Case(33, 5, 1, 16),
    Case(5, 3, 4, 17, state=False),
    Case(5, 3, 4, 17, bias=False),
    Case(5, 3, 4, 17, bias=False, state=False),
    Case(6, 5, 3, 33, batch_first=True),
    Case(6, 5, 3, 33, bidirectional=True),
    Case(6, 1, 3, 70, bidirectional=True, batch_first=True),
    Case(5, 3, 4, 18, layers=3),
    Case(5, 7, 4, 18, layers=2, bidirectional=True, bias=False),
    modes=MODES,
)
def test_parity(case: Case, dtype: torch.dtype) -> None:
    assert_parity(case, dtype)


@pytest.mark.paths
@cases(*(Case(3, n, 5, 33) for n in (2, 3, 4, 5, 6, 8, 11, 12, 13, 31)), modes=MODES)
def test_parity_at_every_tile_height(case: Case) -> None:
    assert_parity(case, torch.float32)


@pytest.mark.paths
@cases(*(Case(3, 3, 2, h) for h in (2, 4, 7, 8, 9, 15, 31, 32, 47, 48, 49)), modes=MODES)
def test_parity_at_every_tile_width(case: Case) -> None:
    assert_parity(case, torch.float32)


@pytest.mark.paths
@dtypes
@cases(
    Case(5, 3, 4, 17, proj_size=1),
    Case(5, 7, 4, 17, proj_size=16),
    Case(4, 6, 5, 59, proj_size=23),
    Case(3, 13, 64, 65, proj_size=48),
    Case(4, 2, 3, 500, proj_size=111),
    Case(5, 3, 4, 17, proj_size=5, bias=False),
    Case(5, 3, 4, 17, proj_size=5, state=False),
    Case(6, 1, 3, 70, proj_size=33, bidirectional=True, batch_first=True),
    Case(5, 7, 4, 18, proj_size=7, layers=3, bidirectional=True),
)
def test_projection(case: Case, dtype: torch.dtype) -> None:
    assert_parity(case, dtype)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "dtype"),
    [
        pytest.param(replace(case, mode=mode), dtype, id=f"{name}-{mode}")
        for mode in MODES
        for name, case, dtype in (
            ("T1000-N1-f32", Case(1000, 1, 3, 17), torch.float32),
            ("T1000-N7-f32", Case(1000, 7, 8, 64), torch.float32),
            ("T500-N2-f64", Case(500, 2, 3, 17), torch.float64),
        )
    ]
    + [
        pytest.param(Case(500, 3, 8, 64, proj_size=20), torch.float32, id="projection"),
    ],
)
def test_parity_over_long_sequences(case: Case, dtype: torch.dtype) -> None:
    assert_parity(case, dtype)


def chunked(mode: str, **options) -> Case:
    """The kernels work a sequence off in chunks of 4 MB of gates: here 6 MB of them in float32."""
    T = 90 * 4 // GATES[mode]
    return Case(T, 40, 3, 100, bidirectional=True, batch_first=True, mode=mode, **options)


@pytest.mark.slow
@modes
def test_parity_over_several_chunks(mode: str) -> None:
    assert_parity(chunked(mode), torch.float32)


@pytest.mark.slow
def test_parity_over_several_chunks_in_float64() -> None:
    assert_parity(chunked("LSTM"), torch.float64)


@pytest.mark.slow
def test_projection_over_several_chunks() -> None:
    assert_parity(chunked("LSTM", proj_size=30), torch.float32)


@pytest.mark.paths
@pytest.mark.parametrize(
    ("mode", "outputs"),
    [
        pytest.param(mode, outputs, id=f"{mode}-{'+'.join(outputs)}")
        for mode in MODES
        for n in (1, 2)
        for outputs in combinations(replace(SMALL, mode=mode).outputs, n)
    ],
)
def test_gradient_of_some_outputs_only(mode: str, outputs: tuple[str, ...]) -> None:
    assert_parity(replace(SMALL, mode=mode), torch.float32, outputs=outputs)
    small = Case(4, 3, 2, 9, layers=2, bidirectional=True, mode=mode)
    assert_parity(small, torch.float32, outputs=outputs)


ALONE = [
    *(replace(SMALL, mode=mode, bidirectional=b) for mode in MODES for b in (False, True)),
    replace(SMALL, proj_size=9),
]


@pytest.mark.parametrize(
    ("case", "wanted"),
    [
        pytest.param(case, wanted, id=f"{case}-{'+'.join(wanted)}")
        for case in ALONE
        for wanted in [
            *([name] for name in ("x", *case.state_names, *case.weight_names) if name[-1] != "1"),
            ["x", "h0"],
        ]
    ],
)
def test_only_some_inputs_need_a_gradient(case: Case, wanted: list[str]) -> None:
    values, cotangents = case.problem(torch.float32), case.cotangents(torch.float32)
    everything = solve(ours, case, values, cotangents)
    some = solve(ours, case, values, cotangents, wanted)
    assert_same(some, {name: everything[name] for name in some})


@pytest.mark.paths
@dtypes
@modes
def test_saturated_gates(mode: str, dtype: torch.dtype) -> None:
    def change(values: Values) -> Values:
        return values | {"b_ih_0": 8.0 * values["b_ih_0"].sign()}

    assert_parity(Case(4, 7, 3, 17, mode=mode), dtype, change=change)
    case = Case(4, 7, 3, 17, scale=1e30, state=mode == "LSTM", mode=mode)
    found = solve(ours, case, case.problem(dtype), case.cotangents(dtype))
    assert all(v.isfinite().all() for v in found.values())
    if mode != "RNN_RELU":
        assert found["output"].abs().max() == 1.0


@pytest.mark.paths
@dtypes
@modes
def test_denormal_values(mode: str, dtype: torch.dtype) -> None:
    # An RNN's gradients of the gates are of the size of the cotangents, those of the others smaller:
    # what is flushed to zero of their sums must stay below the smallest normal number.
    tiny = torch.finfo(dtype).tiny / (64 if mode.startswith("RNN") else 16)

    def change(values: Values) -> Values:
        return values | {n: values[n] * tiny for n in ("x", "h0", "c0") if n in values}

    # What relu leaves of a denormal is flushed to zero, where its gradient is another one.
    outputs = () if mode == "RNN_RELU" else OUTPUTS
    assert_parity(Case(6, 7, 3, 17, bias=False, mode=mode), dtype, outputs=outputs, change=change)


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "nobias"])
def test_gru_keeps_its_biases_apart(bias: bool) -> None:
    """b_hh of the gate n is under the reset gate, b_ih is not: their gradients differ."""
    case = Case(5, 7, 4, 17, mode="GRU", bias=bias)

    def change(values: Values) -> Values:
        return values | {n: 4 * v for n, v in values.items() if n.startswith("b_")}

    assert_parity(case, torch.float32, change=change)
    if bias:
        found = solve(ours, case, case.problem(torch.float32), case.cotangents(torch.float32))
        b_ih, b_hh = found["grad b_ih_0"], found["grad b_hh_0"]
        torch.testing.assert_close(b_ih[: 2 * case.H], b_hh[: 2 * case.H])
        assert (b_ih[2 * case.H :] != b_hh[2 * case.H :]).any()


@pytest.mark.paths
@pytest.mark.parametrize("solver", [ours, plain], ids=["ours", "plain"])
@pytest.mark.parametrize("absent", ["b_ih", "b_hh"])
@cases(
    *(replace(SMALL, mode=mode, layers=2, bidirectional=True) for mode in MODES),
    replace(SMALL, proj_size=9),
)
def test_one_bias_without_the_other(
    case: Case, absent: str, solver: Callable[[Case, Values], Values]
) -> None:
    """The one that is None is like zeros."""
    values = case.problem(torch.float32)
    missing = [n for n in values if n.startswith(absent)]
    values |= {n: torch.zeros_like(values[n]) for n in missing}
    wanted = [n for n in values if n not in missing]

    def with_one(case: Case, values: Values) -> Values:
        return solver(case, values | dict.fromkeys(missing))

    for cotangents in (case.cotangents(torch.float32), None):
        expected = solve(solver, case, values, cotangents, wanted)
        assert_same(solve(with_one, case, values, cotangents, wanted), expected)


@modes
def test_gradients_of_both_biases_do_not_share_memory(mode: str) -> None:
    case = replace(SMALL, mode=mode)
    found = solve(ours, case, case.problem(torch.float32), case.cotangents(torch.float32))
    before = found["grad b_hh_0"].clone()
    found["grad b_ih_0"].zero_()
    assert torch.equal(found["grad b_hh_0"], before)


@pytest.mark.paths
@dtypes
def test_relu_has_no_gradient_at_zero(dtype: torch.dtype) -> None:
    """As in torch: units whose input is exactly 0, or below, pass nothing back."""
    case = Case(3, 7, 4, 18, mode="RNN_RELU", bias=False, state=False)
    values, cotangents = case.problem(dtype), case.cotangents(dtype)
    dead = slice(2, 9)
    values["w_ih_0"][dead] = 0
    values["w_hh_0"][dead] = 0
    found = solve(ours, case, values, cotangents)
    assert (found["output"][..., dead] == 0).all()
    assert (found["output"] > 0).any()
    for name in ("grad w_ih_0", "grad w_hh_0"):
        assert (found[name][dead] == 0).all(), name

    def change(values: Values) -> Values:
        return values | {"w_ih_0": values["w_ih_0"].index_fill(0, torch.arange(2, 9), 0)}

    assert_parity(replace(case, T=1), dtype, change=change)
