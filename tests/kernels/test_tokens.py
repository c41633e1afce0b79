"""Integer input: one-hot vectors, or rows of an embedding."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from error_rule import assert_parity, assert_same
from helpers import (
    MODES,
    Case,
    Values,
    cases,
    dtypes,
    modes,
    ours,
    plain,
    solve,
    theirs,
    with_tokens,
)
from test_layouts import layouts
from test_parity import chunked
from torch import Tensor


def theirs_on_one_hot(case: Case, values: Values) -> Values:
    one_hot = F.one_hot(values["x"], case.I).to(values["w_ih_0"].dtype)
    return theirs(case, values | {"x": one_hot})


def theirs_on_embedding(case: Case, values: Values) -> Values:
    return theirs(case, values | {"x": F.embedding(values["x"], values["embedding"])})


token_cases = cases(
    Case(5, 7, 4, 17),
    Case(1, 3, 2, 5),
    Case(9, 6, 65, 33, batch_first=True),
    Case(5, 3, 11, 18, layers=2, bidirectional=True),
    Case(5, 3, 4, 17, bias=False, state=False),
    Case(5, 4, 4, 17, bidirectional=True, lengths=(2, 0, 5, 1)),
    Case(5, 4, 4, 17, bidirectional=True, lengths=(5, 3, 3, 1), packed=True),
    modes=MODES,
)


@pytest.mark.paths
@token_cases
def test_token_ids_are_one_hot_vectors(case: Case) -> None:
    assert_parity(
        case,
        torch.float32,
        change=lambda values: with_tokens(case, values, case.I),
        baseline=theirs_on_one_hot,
    )


@pytest.mark.paths
@token_cases
@pytest.mark.parametrize("vocabulary", [3, 64])
def test_token_ids_with_an_embedding(case: Case, vocabulary: int) -> None:
    def change(values: Values) -> Values:
        values = with_tokens(case, values, vocabulary)
        return values | {"embedding": torch.randn(vocabulary, case.I)}

    assert_parity(case, torch.float32, change=change, baseline=theirs_on_embedding)


@pytest.mark.paths
@token_cases
def test_token_ids_in_float64(case: Case) -> None:
    values = with_tokens(case, case.problem(torch.float64), 3 if case.I > 2 else 2)
    cotangents = case.cotangents(torch.float64)
    for extra, baseline in (
        ({}, theirs_on_one_hot),
        ({"embedding": torch.randn(5, case.I, dtype=torch.float64)}, theirs_on_embedding),
    ):
        found = solve(ours, case, values | extra, cotangents)
        expected = solve(baseline, case, values | extra, cotangents)
        for name in expected:
            torch.testing.assert_close(
                found[name], expected[name], rtol=1e-11, atol=1e-12, msg=name
            )


@pytest.mark.paths
@pytest.mark.parametrize("embed", [False, True], ids=["one_hot", "embedding"])
@cases(
    Case(5, 4, 6, 17, proj_size=5),
    Case(5, 4, 6, 17, proj_size=5, layers=2, bidirectional=True, lengths=(2, 0, 5, 1)),
)
def test_token_ids_with_a_projection(case: Case, embed: bool) -> None:
    def change(values: Values) -> Values:
        values = with_tokens(case, values, 6)
        return values | ({"embedding": torch.randn(6, case.I)} if embed else {})

    baseline = theirs_on_embedding if embed else theirs_on_one_hot
    assert_parity(case, torch.float32, change=change, baseline=baseline)


@pytest.mark.paths
@pytest.mark.parametrize("embed", [False, True], ids=["one_hot", "embedding"])
@cases(Case(6, 5, 6, 17, bidirectional=True, lengths=(2, 6, 0, 1, 5), reset=0.3), modes=MODES)
def test_token_ids_with_resets(case: Case, embed: bool) -> None:
    def change(values: Values) -> Values:
        values = with_tokens(case, values, 6)
        return values | ({"embedding": torch.randn(6, case.I)} if embed else {})

    assert_parity(case, torch.float32, change=change)


@modes
def test_token_ids_over_several_chunks(mode: str) -> None:
    case = chunked(mode)
    assert_parity(
        case,
        torch.float32,
        change=lambda values: with_tokens(case, values, case.I),
        baseline=theirs_on_one_hot,
    )


@modes
def test_unseen_tokens_have_no_gradient(mode: str) -> None:
    case = Case(4, 3, 9, 17, mode=mode)
    values = case.problem(torch.float32) | {"embedding": torch.randn(20, 9)}
    values["x"] = torch.randint(5, 8, (4, 3))
    cotangents = case.cotangents(torch.float32)
    table = solve(ours, case, values, cotangents)["grad embedding"]
    assert (table[:5] == 0).all() and (table[8:] == 0).all()
    del values["embedding"]
    w_ih = solve(ours, case, values, cotangents)["grad w_ih_0"]
    assert (w_ih[:, :5] == 0).all() and (w_ih[:, 8:] == 0).all()
    assert (w_ih[:, 5:8] != 0).any()


@dtypes
@pytest.mark.parametrize("embed", [False, True], ids=["one_hot", "embedding"])
@pytest.mark.parametrize("bad", [-1, -100, 9, 2**40])
@cases(
    Case(5, 5, 9, 17, lengths=(2, 5, 0, 1, 3), bidirectional=True),
    Case(5, 5, 9, 17, lengths=(2, 5, 0, 1, 3), mode="GRU", batch_first=True),
)
def test_whatever_pads_a_row_is_no_token(
    case: Case, bad: int, embed: bool, dtype: torch.dtype
) -> None:
    """-100, for one, is what losses ignore; and padding has no gradient."""
    values, cotangents = case.problem(dtype), case.cotangents(dtype)
    values["x"] = torch.randint(1, 9, case.size).masked_fill(case.padding, 0)
    # Of fewer rows than there are tokens, and of more: two ways through.
    for rows in (9, 50) if embed else (0,):
        values |= {"embedding": torch.randn(rows, 9, dtype=dtype)} if embed else {}
        expected = solve(ours, case, values, cotangents)
        padded = values | {"x": values["x"].masked_fill(case.padding, bad)}
        assert_same(solve(ours, case, padded, cotangents), expected)
        grad = expected["grad embedding"][0] if embed else expected["grad w_ih_0"][:, 0]
        assert (grad == 0).all()
        for name, value in solve(plain, case, padded, cotangents).items():
            torch.testing.assert_close(expected[name], value, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("embed", [False, True], ids=["one_hot", "embedding"])
@pytest.mark.parametrize(
    "dtype", [torch.uint8, torch.int8, torch.int16, torch.int32], ids=lambda d: str(d)[6:]
)
def test_token_ids_of_any_integer_type(dtype: torch.dtype, embed: bool) -> None:
    case = Case(5, 7, 9, 17)
    values = with_tokens(case, case.problem(torch.float32), case.I)
    values |= {"embedding": torch.randn(9, 9)} if embed else {}
    cotangents = case.cotangents(torch.float32)
    expected = solve(ours, case, values, cotangents)
    assert_same(solve(ours, case, values | {"x": values["x"].to(dtype)}, cotangents), expected)


@pytest.mark.parametrize("embed", [False, True], ids=["one_hot", "embedding"])
@pytest.mark.parametrize("layout", ["sliced", "transposed", "expanded"])
@cases(
    Case(5, 7, 9, 17),
    Case(5, 7, 9, 17, mode="GRU"),
    Case(5, 7, 9, 17, lengths=(3, 1, 5, 0, 2, 5, 4)),
)
def test_token_ids_of_any_layout(case: Case, layout: str, embed: bool) -> None:
    values = with_tokens(case, case.problem(torch.float32), case.I)
    values |= {"embedding": torch.randn(9, 9)} if embed else {}
    if layout == "sliced":
        big = torch.full((12, 16), -1)
        odd = big[1:11:2, 1:15:2].copy_(values["x"])
    elif layout == "transposed":
        odd = values["x"].t().contiguous().t()
    else:
        odd = values["x"][:, :1].expand(5, 7)
    assert not odd.is_contiguous()
    cotangents = case.cotangents(torch.float32)
    expected = solve(ours, case, values | {"x": odd.contiguous()}, cotangents)
    assert_same(solve(ours, case, values | {"x": odd}, cotangents), expected)


@layouts
@cases(
    Case(5, 7, 6, 17),
    Case(5, 7, 6, 17, mode="GRU", bidirectional=True),
    Case(5, 7, 6, 17, lengths=(3, 1, 5, 0, 2, 5, 4)),
)
def test_embedding_of_any_layout(case: Case, layout: Callable[[Tensor], Tensor]) -> None:
    # Of fewer rows than there are tokens: it is projected whole.
    values = with_tokens(case, case.problem(torch.float32), 9)
    cotangents = case.cotangents(torch.float32)
    odd = layout(torch.randn(9, 6))
    expected = solve(ours, case, values | {"embedding": odd.contiguous()}, cotangents)
    assert_same(solve(ours, case, values | {"embedding": odd}, cotangents), expected)


@pytest.mark.parametrize("embed", [False, True], ids=["one_hot", "embedding"])
@cases(
    Case(5, 4, 9, 17),
    Case(5, 4, 9, 17, bidirectional=True, lengths=(2, 0, 5, 1)),
    modes=MODES,
)
def test_only_some_inputs_need_a_gradient(case: Case, embed: bool) -> None:
    values = with_tokens(case, case.problem(torch.float32), 9)
    values |= {"embedding": torch.randn(9, 9)} if embed else {}
    cotangents = case.cotangents(torch.float32)
    everything = solve(ours, case, values, cotangents)
    for wanted in (n for n, v in values.items() if v.is_floating_point()):
        some = solve(ours, case, values, cotangents, [wanted])
        assert_same(some, {name: everything[name] for name in some})


@pytest.mark.parametrize(("T", "N"), [(0, 3), (4, 0)], ids=["T0", "N0"])
@modes
def test_no_token_at_all(mode: str, T: int, N: int) -> None:
    case = Case(T, N, 9, 17, mode=mode)
    values = case.problem(torch.float32) | {"x": torch.zeros(T, N, dtype=torch.int64)}
    output = solve(ours, case, values, None)["output"]
    assert output.shape == (T, N, 17)
    values["embedding"] = torch.randn(9, 9)
    assert solve(ours, case, values, None)["output"].shape == (T, N, 17)


@pytest.mark.parametrize("bad", [-1, 9, 2**40, -(2**40)])
@pytest.mark.parametrize("rows", [0, 9], ids=["one_hot", "embedding"])
@cases(
    Case(5, 7, 9, 17),
    Case(5, 7, 9, 17, mode="RNN_TANH"),
    Case(5, 7, 9, 17, lengths=(3, 1, 5, 0, 2, 4, 5)),
    Case(5, 7, 9, 17, lengths=(5, 5, 5, 3, 2, 1, 1), packed=True),
)
def test_token_out_of_range(case: Case, bad: int, rows: int) -> None:
    values = case.problem(torch.float32) | {"x": torch.zeros(case.size, dtype=torch.int64)}
    case = replace(case, I=4) if rows else case
    if rows:
        values |= {"embedding": torch.randn(rows, 4), "w_ih_0": values["w_ih_0"][:, :4]}
    values["x"].view(-1)[-1] = bad
    with pytest.raises(IndexError, match=rf"(?s)input.*{bad}"):
        ours(case, values)
