"""What a call keeps for backward, and what backward does with it."""

import gc
import weakref
from dataclasses import replace

import pytest
import torch
from cell_kinds import has_c
from helpers import (
    MODES,
    Case,
    Values,
    call,
    cases,
    dtypes,
    modes,
    named,
    ours,
    solve,
    with_tokens,
)
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

import fastlstm

SMALL = Case(5, 7, 4, 17)

# Numbers kept for each unit of each row beside h, which is the output: the gates, and c of an LSTM;
# r, z, n and the part of n that comes from h of a GRU. An RNN's gradient needs h alone.
KEPT = {"LSTM": 4 + 1, "GRU": 4, "RNN_TANH": 0, "RNN_RELU": 0}


def of_kind(kind: str, case: Case, values: Values) -> Values:
    if kind in ("one_hot", "embedding"):
        values = with_tokens(case, values, 9)
    if kind == "embedding":
        values["embedding"] = torch.randn(9, 9, dtype=values["w_ih_0"].dtype)
    return values


def leaves_of(values: Values) -> Values:
    return {n: v.clone().requires_grad_(v.is_floating_point()) for n, v in values.items()}


@pytest.mark.parametrize("kind", ["float", "one_hot", "embedding"])
@cases(Case(5, 7, 9, 17, layers=2), modes=MODES)
def test_backward_may_run_many_times(case: Case, kind: str) -> None:
    leaves = leaves_of(of_kind(kind, case, case.problem(torch.float32)))
    wanted = [v for v in leaves.values() if v.requires_grad]
    results = list(ours(case, leaves).values())
    cotangents = [torch.randn_like(r) for r in results]
    first = torch.autograd.grad(results, wanted, cotangents, retain_graph=True)
    for _ in range(4):
        again = torch.autograd.grad(results, wanted, cotangents, retain_graph=True)
        assert all(map(torch.equal, first, again))
    last = torch.autograd.grad(results, wanted, cotangents)
    assert all(map(torch.equal, first, last))
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(results, wanted, cotangents)


@cases(SMALL, modes=MODES)
def test_two_graphs_do_not_share_buffers(case: Case) -> None:
    """Two forward passes, then their backward passes in the same order and in the other."""
    problems = [(case.problem(torch.float32, s), case.cotangents(torch.float32, s)) for s in (0, 1)]
    expected = [solve(ours, case, v, g) for v, g in problems]
    for order in ((0, 1), (1, 0)):
        graphs = [(leaves := leaves_of(v), ours(case, leaves)) for v, _ in problems]
        for k in order:
            leaves, results = graphs[k]
            grads = torch.autograd.grad(
                list(results.values()), list(leaves.values()), list(problems[k][1].values())
            )
            for name, grad in zip(leaves, grads, strict=True):
                assert torch.equal(grad, expected[k][f"grad {name}"]), name


def _bits(t: Tensor) -> Tensor:
    """For slots that nobody has written, where a NaN would not equal itself."""
    return t.contiguous().view(torch.uint8)


@pytest.mark.parametrize("kind", ["float", "one_hot", "embedding", "states"])
@cases(
    Case(5, 7, 9, 17),
    Case(5, 7, 9, 17, bidirectional=True),
    Case(5, 4, 9, 17, bidirectional=True, lengths=(2, 0, 5, 1), reset=0.3),
    Case(5, 4, 9, 17, bidirectional=True, lengths=(5, 3, 3, 1), packed=True),
    modes=MODES,
)
def test_backward_changes_nothing_that_was_there_before(case: Case, kind: str) -> None:
    leaves = leaves_of(of_kind(kind, case, case.problem(torch.float32)))
    saved: list[Tensor] = []
    with saved_tensors_hooks(lambda t: saved.append(t.detach()) or t, lambda t: t):
        options = {"return_states": True} if kind == "states" else {}
        results = named(case, call(fastlstm.functional, case, leaves, **options))
    cotangents = [torch.randn_like(r) for r in results.values()]
    watched = [*saved, *(v.detach() for v in (*leaves.values(), *results.values())), *cotangents]
    before = [_bits(t).clone() for t in watched]
    wanted = [v for v in leaves.values() if v.requires_grad]
    torch.autograd.grad(list(results.values()), wanted, cotangents)
    assert saved
    assert all(map(torch.equal, before, map(_bits, watched)))


@cases(Case(5, 7, 9, 17, proj_size=5))
def test_backward_of_a_projection_changes_nothing_that_was_there_before(case: Case) -> None:
    test_backward_changes_nothing_that_was_there_before(case, "states")


def _storages_kept(case: Case, values: Values) -> tuple[dict[int, int], Values]:
    """Address and bytes of each storage autograd keeps, and the results."""
    kept: dict[int, int] = {}

    def pack(t: Tensor) -> Tensor:
        kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with saved_tensors_hooks(pack, lambda t: t):
        results = ours(case, values)
    return kept, results


def saved_bytes(case: Case, values: Values) -> int:
    """Bytes autograd keeps beyond ``values`` and the results, each storage counted once."""
    kept, results = _storages_kept(case, values)
    for t in (*values.values(), *results.values()):
        kept.pop(t.untyped_storage().data_ptr(), None)
    return sum(kept.values())


@dtypes
@pytest.mark.parametrize("kind", ["float", "one_hot", "embedding"])
@cases(
    Case(60, 8, 9, 32),
    Case(60, 8, 9, 32, bidirectional=True),
    Case(60, 8, 9, 32, lengths=(60, 20, 15, 9, 5, 5, 3, 1), packed=True),
    modes=MODES,
)
def test_memory_kept_for_backward(case: Case, dtype: torch.dtype, kind: str) -> None:
    """At most 5H numbers for each row of the input, with the output 6H; packed rows are not padded."""
    leaves = leaves_of(of_kind(kind, case, case.problem(dtype)))
    rows = sum(case.lengths) if case.packed else case.T * case.N
    # Initial states, and a row of zeros, may lie beside those of the steps.
    rows_of_state = rows + case.directions * case.N + 1
    unit = case.directions * case.H * dtype.itemsize
    allowed = (KEPT[case.mode] - (has_c(case.mode))) * unit * rows
    allowed += (has_c(case.mode)) * unit * rows_of_state
    assert saved_bytes(case, leaves) <= allowed
    kept, results = _storages_kept(case, leaves)
    output = results["output"].untyped_storage()
    assert output.nbytes() <= unit * rows_of_state
    # Where autograd's hooks (offloading, checkpointing) cannot see it, nothing would be kept at all.
    assert output.data_ptr() in kept
    assert (saved_bytes(case, leaves) > 0) == (KEPT[case.mode] > 0)


@dtypes
def test_memory_kept_for_backward_of_a_projection(dtype: torch.dtype) -> None:
    """o * tanh(c) on top of the gates and c; h is as wide as the projection."""
    case = Case(60, 8, 9, 32, proj_size=10)
    leaves = leaves_of(case.problem(dtype))
    rows = case.T * case.N
    assert saved_bytes(case, leaves) <= (6 * rows + case.N + 1) * case.H * dtype.itemsize
    output = ours(case, leaves)["output"].untyped_storage()
    assert output.nbytes() <= (rows + case.N + 1) * case.proj_size * dtype.itemsize


@modes
def test_memory_kept_for_backward_by_two_layers(mode: str) -> None:
    """The output between the layers comes on top."""
    case = Case(60, 8, 9, 32, layers=2, mode=mode)
    rows = case.T * case.N + case.N + 1
    allowed = (2 * KEPT[mode] + 1) * case.H * rows * 4
    assert saved_bytes(case, leaves_of(case.problem(torch.float32))) <= allowed


@pytest.mark.parametrize("why", ["no leaf needs it", "no_grad", "inference_mode"])
@cases(SMALL, replace(SMALL, lengths=(5, 2, 0, 1, 4, 3, 5), reset=0.3), modes=MODES)
def test_nothing_is_kept_without_need(case: Case, why: str) -> None:
    values = case.problem(torch.float32)
    values = values if why == "no leaf needs it" else leaves_of(values)
    context = {"no_grad": torch.no_grad, "inference_mode": torch.inference_mode}
    with context.get(why, torch.enable_grad)():
        assert saved_bytes(case, values) == 0
        results = ours(case, values)
    assert all(r.grad_fn is None and not r.requires_grad for r in results.values())


@cases(SMALL, modes=MODES)
def test_no_memory_is_lost(case: Case) -> None:
    """The graph of a call is freed with its results, without the cycle collector's help."""
    leaves = leaves_of(case.problem(torch.float32))
    gc.disable()
    try:
        saved: list[weakref.ref] = []
        with saved_tensors_hooks(lambda t: saved.append(weakref.ref(t)) or t, lambda t: t):
            results = ours(case, leaves)
        output = weakref.ref(results["output"])
        results["output"].sum().backward()
        del results
        assert output() is None
        alive = [r() for r in saved if r() is not None]
        known = {v.data_ptr() for v in leaves.values()}
        assert all(t.data_ptr() in known for t in alive)
    finally:
        gc.enable()


@cases(SMALL, modes=MODES)
def test_changing_a_saved_input_in_place_is_an_error(case: Case) -> None:
    leaves = leaves_of(case.problem(torch.float32))
    leaves["x"] = leaves["x"].detach().clone()
    output = ours(case, leaves)["output"]
    leaves["x"].add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()
