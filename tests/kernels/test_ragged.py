"""Sequences of different lengths, packed or padded, and sequences that begin in mid-batch."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch
from cell_kinds import TORCH_MODES
from error_rule import assert_parity, assert_same
from helpers import MODES, OUTPUTS, Case, cases, dtypes, modes, ours, plain, solve, theirs
from module_pairs import assert_same_module, directions, kinds, pair, randn, state_for
from test_parity import chunked
from torch import Tensor
from torch.nn.utils.rnn import pack_sequence

MIXED = (3, 9, 0, 1, 9, 4, 4)
SORTED = (9, 9, 6, 4, 4, 3, 1)


@pytest.mark.paths
@dtypes
@cases(
    Case(9, 7, 4, 17, lengths=SORTED, packed=True),
    Case(9, 7, 4, 17, lengths=SORTED, packed=True, bias=False, state=False),
    Case(5, 5, 3, 18, lengths=(5, 4, 4, 2, 1), packed=True, layers=2, bidirectional=True),
    Case(4, 3, 2, 33, lengths=(4, 4, 4), packed=True, bidirectional=True),
    Case(4, 1, 2, 33, lengths=(4,), packed=True, bidirectional=True),
    Case(1, 5, 2, 33, lengths=(1, 1, 1, 1, 1), packed=True),
    Case(6, 40, 5, 65, lengths=tuple(6 - n // 7 for n in range(40)), packed=True),
    modes=MODES,
)
def test_packed(case: Case, dtype: torch.dtype) -> None:
    assert_parity(case, dtype)


@pytest.mark.paths
@dtypes
@cases(
    Case(9, 7, 4, 17, lengths=MIXED),
    Case(9, 7, 4, 17, lengths=MIXED, bias=False, state=False, batch_first=True),
    Case(5, 5, 3, 18, lengths=(2, 5, 0, 1, 4), layers=2, bidirectional=True, batch_first=True),
    Case(4, 3, 2, 33, lengths=(4, 4, 4), bidirectional=True),
    Case(6, 3, 2, 33, lengths=(4, 4, 4), bidirectional=True),
    Case(4, 1, 2, 33, lengths=(3,), bidirectional=True),
    Case(6, 40, 5, 65, lengths=tuple(n % 7 for n in range(40)), bidirectional=True),
    modes=MODES,
)
def test_lengths(case: Case, dtype: torch.dtype) -> None:
    assert_parity(case, dtype)


@pytest.mark.paths
@dtypes
@cases(
    Case(6, 7, 4, 17, reset=0.3),
    Case(6, 7, 4, 17, reset=0.3, bidirectional=True, batch_first=True),
    Case(6, 5, 3, 18, reset=0.3, layers=2, bidirectional=True, bias=False, state=False),
    Case(4, 5, 3, 18, reset=1.0, bidirectional=True),
    Case(9, 7, 4, 17, reset=0.3, lengths=MIXED, bidirectional=True),
    Case(5, 40, 5, 65, reset=0.1, lengths=tuple(n % 6 for n in range(40)), bidirectional=True),
    modes=MODES,
)
def test_reset(case: Case, dtype: torch.dtype) -> None:
    assert_parity(case, dtype)


@pytest.mark.paths
@dtypes
@cases(
    Case(5, 5, 3, 18, lengths=(5, 4, 4, 2, 1), packed=True, bidirectional=True),
    Case(5, 5, 3, 18, lengths=(2, 5, 0, 1, 4), layers=2, bidirectional=True, batch_first=True),
    Case(9, 7, 4, 17, lengths=MIXED, reset=0.3, bidirectional=True),
    Case(5, 5, 3, 18, reset=0.4),
)
def test_with_a_projection(case: Case, dtype: torch.dtype) -> None:
    assert_parity(replace(case, proj_size=7), dtype)


def _long(mode: str, **options) -> Case:
    """Several chunks, of which the last one has few rows, and one row is over in the first."""
    case = chunked(mode)
    lengths = tuple(max(1, case.T - case.T * n // 30) for n in range(case.N))
    if not options.get("packed"):
        lengths = (*lengths[20:], *lengths[:18], 0, case.T)
    return replace(
        case, lengths=lengths, batch_first=False, I=2, H=100, bidirectional=True, **options
    )


@pytest.mark.slow
@modes
@pytest.mark.parametrize("packed", [False, True], ids=["lengths", "packed"])
def test_several_chunks(mode: str, packed: bool) -> None:
    assert_parity(_long(mode, packed=packed), torch.float32)


@pytest.mark.slow
@modes
def test_resets_over_several_chunks(mode: str) -> None:
    assert_parity(_long(mode, reset=0.02), torch.float32)


@pytest.mark.slow
@cases(Case(90, 12, 3, 400, lengths=(90, 1, *range(35, 80, 5), 5)), modes=MODES)
def test_lengths_that_end_within_and_between_chunks(case: Case) -> None:
    """Steps long before the last row is over, of one row alone."""
    for options in ({}, {"batch_first": True, "bidirectional": True}):
        assert_parity(replace(case, **options), torch.float32)


@pytest.mark.parametrize("longest", [5, 20])
@cases(Case(40, 300, 3, 100, bidirectional=True), modes=TORCH_MODES)
def test_chunks_behind_the_longest_row_do_not_matter(case: Case, longest: int) -> None:
    """Chunks of 8 steps, of an RNN 20: there are several, and the last ones have nothing to do.

    The short sequence has the same boundaries, for these cells.
    """
    case = replace(case, lengths=tuple(5 * n % (longest + 1) for n in range(case.N)))
    values, cotangents = case.problem(torch.float32), case.cotangents(torch.float32)
    short = replace(case, T=8 if longest == 5 else 24)
    short_values = values | {"x": values["x"][: short.T]}
    short_cotangents = cotangents | {"output": cotangents["output"][: short.T]}
    expected = solve(ours, short, short_values, short_cotangents)
    # What nobody writes is NaN.
    torch.use_deterministic_algorithms(True)
    found = solve(ours, case, values, cotangents)
    for name in ("output", "grad x"):
        assert not found[name][short.T :].any(), name
        found[name] = found[name][: short.T]
    assert_same(found, expected)


@pytest.mark.paths
@cases(
    Case(9, 7, 4, 17, lengths=SORTED),
    Case(5, 5, 3, 18, lengths=(5, 4, 4, 2, 1), layers=2, bidirectional=True),
    Case(7, 40, 5, 65, lengths=tuple(7 - n // 6 for n in range(40)), bidirectional=True),
    modes=MODES,
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
def test_packed_and_padded_rows_are_bitwise_the_same(case: Case, dtype: torch.dtype) -> None:
    values, cotangents = case.problem(dtype), case.cotangents(dtype)
    padded = solve(ours, case, values, cotangents)
    real = ~case.padding
    packed = replace(case, packed=True)
    sizes = packed.problem(dtype)["batch_sizes"]
    packed_values = {n: v for n, v in values.items() if n != "lengths"}
    packed_values |= {"x": values["x"][real], "batch_sizes": sizes}
    packed_cotangents = cotangents | {"output": cotangents["output"][real]}
    found = solve(ours, packed, packed_values, packed_cotangents)
    for name in ("output", "grad x"):
        assert (padded[name][case.padding] == 0).all(), name
        padded[name] = padded[name][real]
    # Of the weights, the sums may be grouped otherwise.
    weights = {f"grad {name}" for name in case.weight_names}
    assert_same(*({n: v for n, v in r.items() if n not in weights} for r in (found, padded)))
    rtol, atol = (1e-4, 1e-5) if dtype == torch.float32 else (0.02, 0.02)
    for name in weights:
        torch.testing.assert_close(found[name], padded[name], rtol=rtol, atol=atol, msg=name)


@pytest.mark.paths
@dtypes
@pytest.mark.parametrize("filler", [float("nan"), float("inf"), 1e30], ids=str)
@cases(
    Case(9, 7, 4, 17, lengths=MIXED, bidirectional=True),
    Case(5, 5, 3, 18, lengths=(2, 5, 0, 1, 4), layers=2, bidirectional=True, batch_first=True),
    Case(9, 7, 4, 17, lengths=MIXED, reset=0.3, bidirectional=True),
    modes=MODES,
)
def test_what_pads_a_row_does_not_matter(case: Case, filler: float, dtype: torch.dtype) -> None:
    """Neither in the input nor in the gradient of the output."""
    values, cotangents = case.problem(dtype), case.cotangents(dtype)
    expected = solve(ours, case, values, cotangents)
    for name, result in solve(plain, case, values, cotangents).items():
        torch.testing.assert_close(expected[name], result, rtol=1e-4, atol=1e-5, msg=name)
    padded = values | {"x": values["x"].clone()}
    padded["x"][case.padding] = filler
    odd = cotangents | {"output": cotangents["output"].clone()}
    odd["output"][case.padding] = filler
    found = solve(ours, case, padded, odd)
    assert_same(found, expected)
    assert (found["output"][case.padding] == 0).all()
    assert (found["grad x"][case.padding] == 0).all()
    assert_same(solve(ours, case, padded, None), {n: found[n] for n in case.outputs})


@pytest.mark.paths
@cases(Case(6, 5, 4, 17, lengths=(4, 0, 6, 0, 1), bidirectional=True, layers=2), modes=MODES)
def test_a_row_of_length_zero_keeps_its_state(case: Case) -> None:
    values, cotangents = case.problem(torch.float32), case.cotangents(torch.float32)
    found = solve(ours, case, values, cotangents)
    for name in case.state_names:
        last = f"{name[0]}_n"
        for row in (1, 3):
            assert torch.equal(found[last][:, row], values[name][:, row])
            assert torch.equal(found[f"grad {name}"][:, row], cotangents[last][:, row])
    assert (found["output"][:, 1] == 0).all()


@cases(
    Case(6, 5, 4, 17, lengths=(0, 0, 0, 0, 0), bidirectional=True),
    Case(0, 5, 4, 17, lengths=(0, 0, 0, 0, 0), bidirectional=True),
    modes=MODES,
)
def test_no_step_at_all(case: Case) -> None:
    values, cotangents = case.problem(torch.float32), case.cotangents(torch.float32)
    assert_same(solve(ours, case, values, cotangents), solve(plain, case, values, cotangents))


@cases(Case(6, 5, 4, 17, bidirectional=True, batch_first=True), modes=MODES)
def test_full_lengths_and_no_reset_change_nothing(case: Case) -> None:
    values, cotangents = case.problem(torch.float32), case.cotangents(torch.float32)
    expected = solve(ours, case, values, cotangents)
    full = {"lengths": torch.full((5,), 6)}
    never = {"reset": torch.zeros(5, 6, dtype=torch.bool)}
    for extra in (full, never, full | never):
        assert_same(solve(ours, case, values | extra, cotangents), expected)


given_as: list[Callable[[Sequence[int]], Tensor | Sequence[int]]] = [
    *(
        lambda lengths, dtype=dtype: torch.tensor(lengths, dtype=dtype)
        for dtype in (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
    ),
    lambda lengths: torch.tensor([(n, -1) for n in lengths])[:, 0],
    list,
    tuple,
]


@pytest.mark.parametrize(
    "given",
    given_as,
    ids=["uint8", "int8", "int16", "int32", "int64", "strided", "list", "tuple"],
)
@modes
def test_lengths_given_as(
    mode: str, given: Callable[[Sequence[int]], Tensor | Sequence[int]]
) -> None:
    case = Case(9, 7, 4, 17, lengths=MIXED, bidirectional=True, mode=mode)
    values, cotangents = case.problem(torch.float32), case.cotangents(torch.float32)
    expected = solve(ours, case, values, cotangents)
    leaves = {n: v.requires_grad_() for n, v in values.items() if n != "lengths"}
    results = ours(case, leaves | {"lengths": given(MIXED)})
    grads = torch.autograd.grad(
        list(results.values()), list(leaves.values()), list(cotangents.values())
    )
    found = {n: r.detach() for n, r in results.items()}
    found |= {f"grad {n}": g for n, g in zip(leaves, grads, strict=True)}
    assert_same(found, expected)
    assert torch.equal((found["output"] == 0).all(-1), case.padding)


@pytest.mark.paths
@cases(Case(6, 5, 4, 17), Case(6, 5, 4, 17, lengths=(4, 1, 6, 0, 2)), modes=MODES)
def test_reset_at_the_first_step_discards_the_initial_state(case: Case) -> None:
    """In the forward direction; of rows that have a first step."""
    values = case.problem(torch.float32) | {"reset": torch.zeros(case.size, dtype=torch.bool)}
    values["reset"][0, 1:4] = True
    cotangents = case.cotangents(torch.float32)
    found = solve(ours, case, values, cotangents)
    zeroed = {n: values[n].clone() for n in case.state_names}
    rows = [1, 2] if case.lengths else [1, 2, 3]
    for state in zeroed.values():
        state[:, rows] = 0
    unreset = {n: v for n, v in values.items() if n != "reset"}
    expected = solve(ours, case, unreset | zeroed, cotangents)
    for name in case.state_names:
        assert (found[f"grad {name}"][:, rows] == 0).all()
        expected[f"grad {name}"][:, rows] = 0
    assert_same(found, expected)

    both = replace(case, bidirectional=True)
    values |= both.problem(torch.float32)
    found, expected = (
        solve(ours, both, v, None)
        for v in (values, {n: v for n, v in values.items() if n != "reset"})
    )
    assert torch.equal(found["output"][..., case.H :], expected["output"][..., case.H :])
    assert not torch.equal(found["output"][..., : case.H], expected["output"][..., : case.H])


@cases(
    Case(4, 7, 4, 17, reset=0.4, bidirectional=True),
    Case(4, 7, 4, 17, reset=0.4, lengths=(2, 4, 0, 1, 4, 3, 1)),
    Case(4, 7, 4, 17, lengths=(2, 4, 0, 1, 4, 3, 1), bidirectional=True),
    Case(4, 7, 4, 17, lengths=(4, 4, 3, 2, 2, 1, 1), packed=True, bidirectional=True),
    modes=MODES,
)
def test_only_some_inputs_need_a_gradient(case: Case) -> None:
    values, cotangents = case.problem(torch.float32), case.cotangents(torch.float32)
    if "reset" in values:
        # The state before it has no gradient, whoever else needs one.
        values["reset"][0, 1:4] = True
    everything = solve(ours, case, values, cotangents)
    for wanted in (n for n, v in values.items() if v.is_floating_point()):
        some = solve(ours, case, values, cotangents, [wanted])
        assert_same(some, {name: everything[name] for name in some})


@cases(Case(6, 5, 4, 17, bidirectional=True), modes=MODES)
def test_reset_at_every_step_makes_every_step_the_first(case: Case) -> None:
    values = case.problem(torch.float32)
    values["reset"] = torch.ones(case.size, dtype=torch.bool)
    found = solve(ours, case, values, None)
    single = replace(case, T=1, N=case.T * case.N, state=False)
    alone = {n: v for n, v in values.items() if n not in ("reset", *case.state_names)}
    alone["x"] = values["x"].view(1, -1, case.I)
    forward, backward = found["output"].split(case.H, dim=-1)
    expected = solve(ours, single, alone, None)["output"].view(case.T, case.N, -1)
    assert torch.equal(forward, expected[..., : case.H])
    # Before the step it takes first, the reverse direction still has its h0.
    assert torch.equal(backward[:-1], expected[:-1, :, case.H :])


@cases(Case(5, 3, 2, 17, bidirectional=True, lengths=(3, 0, 5)), modes=MODES)
def test_reset_past_the_end_of_a_row_has_no_effect(case: Case) -> None:
    values, cotangents = case.problem(torch.float32), case.cotangents(torch.float32)
    expected = solve(ours, case, values, cotangents)
    assert_same(solve(ours, case, values | {"reset": case.padding}, cotangents), expected)


@cases(Case(6, 5, 4, 17, bidirectional=True, reset=0.3), modes=MODES)
def test_reset_of_any_layout(case: Case) -> None:
    values, cotangents = case.problem(torch.float32), case.cotangents(torch.float32)
    expected = solve(ours, case, values, cotangents)
    reset = values["reset"]
    sliced = torch.ones(12, 10, dtype=torch.bool)[::2, ::2].copy_(reset)
    for odd in (reset.t().contiguous().t(), sliced):
        assert not odd.is_contiguous()
        assert_same(solve(ours, case, values | {"reset": odd}, cotangents), expected)
    one_row = reset[:, :1].expand(6, 5)
    expected = solve(ours, case, values | {"reset": one_row.contiguous()}, cotangents)
    assert_same(solve(ours, case, values | {"reset": one_row}, cotangents), expected)


@pytest.mark.paths
@dtypes
@cases(
    Case(9, 13, 4, 33, lengths=(9, 3, 0, 7, 1, 9, 2, 5, 8, 4, 6, 1, 9), bidirectional=True),
    Case(9, 13, 4, 33, lengths=(9, 3, 0, 7, 1, 9, 2, 5, 8, 4, 6, 1, 9), reset=0.3),
    modes=MODES,
)
def test_rows_do_not_feel_their_neighbours(case: Case, dtype: torch.dtype) -> None:
    """Neither what they hold, nor how long they are, nor where they are reset."""
    values, cotangents = case.problem(dtype), case.cotangents(dtype)
    # The same rows, in reverse order, among others of other lengths.
    wider = replace(case, N=20, lengths=tuple(range(10)) * 2)
    other, other_cotangents = wider.problem(dtype, seed=1), wider.cotangents(dtype, seed=1)
    places = torch.arange(12, -1, -1) + 3
    other |= {name: values[name] for name in case.weight_names}
    other["lengths"][places] = values["lengths"]
    for name in ("x", "reset", *case.state_names):
        if name in values:
            other[name][:, places] = values[name]
    for name in case.outputs:
        other_cotangents[name][:, places] = cotangents[name]
    a = solve(ours, case, values, cotangents)
    b = solve(ours, wider, other, other_cotangents)
    for name in (*case.outputs, "grad x", *(f"grad {n}" for n in case.state_names)):
        assert torch.equal(a[name], b[name][:, places]), name


@modes
def test_first_rows_of_a_packed_batch_equal_torch_nn(mode: str) -> None:
    """That hx and h_n are in the order of the packed rows."""
    case = Case(4, 3, 2, 5, lengths=(4, 2, 1), packed=True, bidirectional=True, mode=mode)
    values = case.problem(torch.float64)
    found, expected = (solve(solver, case, values, None) for solver in (ours, theirs))
    for name in case.outputs:
        torch.testing.assert_close(found[name], expected[name], rtol=0, atol=1e-12)


@kinds
@directions
def test_states_of_unsorted_sequences_keep_their_order(kind: str, bidirectional: bool) -> None:
    """Three in a ring: the order that sorts them is not the one that brings them back."""
    mine, theirs = pair(kind, 5, 4, 2, bidirectional=bidirectional)
    packed = pack_sequence([randn(n, 5) for n in (3, 1, 4)], enforce_sorted=False)
    assert not torch.equal(packed.sorted_indices, packed.unsorted_indices)
    assert_same_module(mine, theirs, packed, state_for(mine, 3))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "f16"])
@cases(
    Case(6, 7, 4, 17, lengths=(3, 6, 0, 1, 6, 4, 4), bidirectional=True),
    Case(6, 7, 4, 17, lengths=(6, 6, 4, 4, 3, 1, 1), packed=True),
    modes=MODES,
)
def test_half_precision(case: Case, dtype: torch.dtype) -> None:
    # Rounded this coarsely, what relu sees changes its sign now and then, and its gradient is another.
    outputs = () if case.mode == "RNN_RELU" else OUTPUTS
    assert_parity(case, dtype, outputs=outputs)
