"""Input without a batch, where other dimensions have one element too: none but N is left out."""

import pytest
import torch
from cell_kinds import has_c
from helpers import TORCH_MODES, Case, call, cases, named
from module_pairs import assert_same_module, build, kinds, pair, randn, state_for
from torch import nn

import fastlstm
from fastlstm import reference

# T, layers, H and options: ones in every place, and in all of them.
ONES = [
    (1, 1, 1, {}),
    (1, 1, 4, {}),
    (5, 1, 1, {}),
    (1, 2, 4, {"bidirectional": True}),
    (5, 2, 1, {"batch_first": True}),
    (1, 1, 1, {"batch_first": True, "bidirectional": True}),
]


@kinds
@pytest.mark.parametrize(("T", "layers", "H", "options"), ONES, ids=str)
def test_one_step_and_one_unit(kind: str, T: int, layers: int, H: int, options: dict) -> None:
    mine, theirs = pair(kind, 1, H, layers, **options)
    x = randn(T, 1)
    for hx in (None, state_for(theirs)):
        assert_same_module(mine, theirs, x, hx)


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@pytest.mark.parametrize("T", [1, 5])
def test_a_projection_to_one_unit(T: int) -> None:
    mine, theirs = pair("LSTM", 3, 4, 2, proj_size=1, bidirectional=True)
    assert_same_module(mine, theirs, randn(T, 3), state_for(theirs))


@kinds
@pytest.mark.parametrize("H", [1, 4])
def test_a_cell_of_one_unit(kind: str, H: int) -> None:
    theirs = build(nn, kind, 1, H, cell=True, dtype=torch.float64)
    mine = build(fastlstm, kind, 1, H, cell=True, dtype=torch.float64)
    mine.load_state_dict(theirs.state_dict())
    state = (randn(H), randn(H)) if has_c(kind) else randn(H)
    for hx in (None, state):
        assert_same_module(mine, theirs, randn(1), hx)


@cases(Case(1, 1, 1, 1), Case(1, 1, 3, 1, layers=2, bidirectional=True), modes=TORCH_MODES)
def test_states_of_every_step_tokens_lengths_and_resets(case: Case) -> None:
    """What torch.nn does not have: held to the plain loop."""
    values = case.problem(torch.float64)
    single = {n: v[:, 0] if n in ("x", *case.state_names) else v for n, v in values.items()}
    lengths, tokens = torch.tensor(1), torch.zeros(1, dtype=torch.int64)
    for change in ({}, {"lengths": lengths}, {"reset": torch.tensor([True])}, {"x": tokens}):
        found, expected = (
            named(case, call(module, case, single | change, return_states=True))
            for module in (fastlstm.functional, reference)
        )
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
