"""Gradients of every sample, as ``call_for_per_sample_grads`` leaves them in ``grad_sample``."""

from collections.abc import Callable

import pytest
import torch
from cell_kinds import has_c
from module_pairs import CLOSE, build, flat, ids, kinds, pair, randn, state_for
from torch import Tensor, nn
from torch.nn.utils._per_sample_grad import call_for_per_sample_grads
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import fastlstm

N, T, I, H = 3, 6, 5, 4

SHAPES = [
    {},
    {"num_layers": 2, "bidirectional": True},
    {"num_layers": 2, "batch_first": True},
    {"bias": False},
]
shapes = pytest.mark.parametrize("options", SHAPES, ids=ids)


def loss(results: object) -> Tensor:
    """One that weighs every number differently, and is a sum over the rows of the batch."""
    return sum((r.square() * torch.arange(1, r.size(-1) + 1)).sum() for r in flat(results))


def samples(module: nn.Module, *args, reduction: str = "sum", **kwargs) -> dict[str, Tensor]:
    """Run backward; the ``grad_sample`` of each parameter."""
    batch_first = module.batch_first if isinstance(module, nn.RNNBase) else True
    torch.manual_seed(5)
    run = call_for_per_sample_grads(
        module, batch_size=N, batch_first=batch_first, loss_reduction=reduction
    )
    value = loss(run(*args, **kwargs))
    (value / N if reduction == "mean" else value).backward()
    assert all(p.grad is None for p in module.parameters() if p.requires_grad)
    return {n: p.grad_sample for n, p in module.named_parameters() if p.requires_grad}


def one_by_one(module: nn.Module, call: Callable[[int], object]) -> dict[str, Tensor]:
    """What autograd finds for each row alone. ``call(n)``: the results of row n."""
    named = {n: p for n, p in module.named_parameters() if p.requires_grad}
    rows = [torch.autograd.grad(loss(call(n)), list(named.values())) for n in range(N)]
    return {n: torch.stack(grads) for n, grads in zip(named, zip(*rows, strict=True), strict=True)}


def row_of(module: nn.RNNBase, x: Tensor, n: int) -> Tensor:
    return x[n : n + 1] if module.batch_first else x[:, n : n + 1]


@kinds
@shapes
@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_samples_are_those_of_torch_nn(kind: str, options: dict, reduction: str) -> None:
    mine, theirs = pair(kind, I, H, **options)
    x = randn(N, T, I) if mine.batch_first else randn(T, N, I)
    hx = state_for(mine, N)
    found = [samples(module, x, hx, reduction=reduction) for module in (mine, theirs)]
    torch.testing.assert_close(*found, **CLOSE)
    if reduction == "sum":
        hx_of = (lambda n: hx[:, n : n + 1]) if isinstance(hx, Tensor) else None
        hx_of = hx_of or (lambda n: tuple(s[:, n : n + 1] for s in hx))
        expected = one_by_one(mine, lambda n: mine(row_of(mine, x, n), hx_of(n)))
        torch.testing.assert_close(found[0], expected, **CLOSE)


def test_samples_of_a_projection() -> None:
    mine = fastlstm.LSTM(I, H, 2, bidirectional=True, proj_size=2, dtype=torch.float64)
    x = randn(T, N, I)
    expected = one_by_one(mine, lambda n: mine(row_of(mine, x, n)))
    assert "weight_hr_l1_reverse" in expected
    torch.testing.assert_close(samples(mine, x), expected, **CLOSE)


@kinds
@pytest.mark.parametrize("lengths", [(6, 4, 1), (2, 6, 6)], ids=["sorted", "unsorted"])
def test_samples_of_a_packed_sequence_are_those_of_torch_nn(kind: str, lengths) -> None:
    mine, theirs = pair(kind, I, H, 2, bidirectional=True)
    packed = pack_padded_sequence(randn(T, N, I), lengths, enforce_sorted=False)
    found = [samples(module, packed) for module in (mine, theirs)]
    torch.testing.assert_close(*found, **CLOSE)
    fewer = pack_padded_sequence(randn(T, N - 1, I), lengths[:2], enforce_sorted=False)
    for module in (mine, theirs):
        for p in module.parameters():
            p.grad_sample = None
    torch.testing.assert_close(*(samples(module, fewer) for module in (mine, theirs)), **CLOSE)


@kinds
def test_input_and_states_have_their_usual_gradients(kind: str) -> None:
    mine, _ = pair(kind, I, H, 2)
    x, hx = randn(T, N, I), state_for(mine, N)
    found = []
    for is_per_sample in (True, False):
        leaves = [t.clone().requires_grad_() for t in (x, *flat(hx))]
        states = leaves[1] if not has_c(kind) else tuple(leaves[1:])
        run = call_for_per_sample_grads(mine, batch_size=N) if is_per_sample else mine
        results = run(leaves[0], states)
        loss(results).backward()
        found.append([*flat(results), *(leaf.grad for leaf in leaves)])
    assert all(map(torch.equal, *found))


@kinds
def test_samples_of_what_torch_nn_does_not_have(kind: str) -> None:
    mine, _ = pair(kind, I, H, 2, bidirectional=True)
    x, tokens, lengths = randn(T, N, I), torch.randint(I, (T, N)), [4, 0, 6]
    reset = torch.rand(T, N) < 0.3
    for input in (x, tokens):

        def row(n: int, input=input) -> object:
            options = {"lengths": lengths[n : n + 1], "reset": reset[:, n : n + 1]}
            return mine(input[:, n : n + 1], **options, return_states=True)

        expected = one_by_one(mine, row)
        found = samples(mine, input, lengths=lengths, reset=reset, return_states=True)
        torch.testing.assert_close(found, expected, **CLOSE)
        for p in mine.parameters():
            p.grad_sample = None


class OnTable(nn.Module):
    def __init__(self, kind: str, rows: int) -> None:
        super().__init__()
        self.rnn = build(fastlstm, kind, I, H, batch_first=True, dtype=torch.float64)
        self.table = nn.Parameter(randn(rows, I))

    def forward(self, tokens: Tensor) -> Tensor:
        return self.rnn(tokens, embedding=self.table)[0]


@kinds
@pytest.mark.parametrize("rows", [7, 70], ids=["small", "large"])
def test_samples_of_a_table(kind: str, rows: int) -> None:
    model, tokens = OnTable(kind, rows), torch.randint(rows, (N, T))
    expected = one_by_one(model, lambda n: model(tokens[n : n + 1]))
    torch.testing.assert_close(samples(model, tokens), expected, **CLOSE)
    packed = pack_padded_sequence(tokens.T, [T] * N)
    for p in model.parameters():
        p.grad_sample = None
    with pytest.raises(RuntimeError, match="embedding cannot have gradients of every sample"):
        call_for_per_sample_grads(model, batch_size=N)(packed)


class Functional(nn.Module):
    """Somebody's own module on the functions of weights, with a weight that two layers share."""

    def __init__(self) -> None:
        super().__init__()
        self.w_ih, self.w_hh = nn.Parameter(randn(3 * H, H)), nn.Parameter(randn(3 * H, H))
        self.bias = nn.Parameter(randn(3 * H))
        self.head = nn.Linear(H, 2, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        layers = [(self.w_ih, self.w_hh, self.bias, None), (self.w_ih, self.w_hh)]
        return self.head(fastlstm.functional.gru(x, None, layers, batch_first=True)[0])


def test_samples_of_the_functional_api() -> None:
    model, x = Functional(), randn(N, T, H)
    expected = one_by_one(model, lambda n: model(x[n : n + 1]))
    torch.testing.assert_close(samples(model, x), expected, **CLOSE)


@kinds
def test_frozen_weights_have_no_samples(kind: str) -> None:
    mine, _ = pair(kind, I, H)
    mine.weight_ih_l0.requires_grad_(False)
    x = randn(T, N, I)
    expected = one_by_one(mine, lambda n: mine(row_of(mine, x, n)))
    assert "weight_ih_l0" not in expected
    torch.testing.assert_close(samples(mine, x), expected, **CLOSE)
    assert mine.weight_ih_l0.grad is None and not hasattr(mine.weight_ih_l0, "grad_sample")


@kinds
@pytest.mark.parametrize("how", ["bfloat16", "half", "autocast"])
def test_samples_of_narrow_types(kind: str, how: str) -> None:
    mine = build(fastlstm, kind, I, H)
    x = torch.randn(T, N, I)
    if how != "autocast":
        mine, x = getattr(mine, how)(), getattr(x, how)()
    with torch.autocast("cpu", torch.bfloat16, enabled=how == "autocast"):
        expected = one_by_one(mine, lambda n: mine(row_of(mine, x, n)))
        found = samples(mine, x)
    assert {n: g.dtype for n, g in found.items()} == {n: g.dtype for n, g in expected.items()}
    torch.testing.assert_close(found, expected)


@kinds
def test_calls_that_cannot_have_samples(kind: str) -> None:
    mine, theirs = pair(kind, I, H)
    for module in (mine, theirs):
        with pytest.raises(
            RuntimeError, match="batch size of 2 with ExpandedWeight of batch size 3"
        ):
            call_for_per_sample_grads(module, batch_size=N, batch_first=False)(randn(T, 2, I))
        with pytest.raises(
            RuntimeError, match="batch size of 1 with ExpandedWeight of batch size 3"
        ):
            call_for_per_sample_grads(module, batch_size=N)(randn(T, I))
    with pytest.raises(RuntimeError, match="0 is not a valid batch size"):
        call_for_per_sample_grads(mine, batch_first=False)(randn(T, 0, I))
    with pytest.raises(RuntimeError, match="input.size"):
        call_for_per_sample_grads(mine, batch_size=N)(randn(T, N, I + 1))


@kinds
def test_dropout_draws_the_masks_of_a_usual_call(kind: str) -> None:
    """torch.nn's own differ between the two."""
    mine, _ = pair(kind, I, H, 3, dropout=0.5)
    x = randn(T, N, I)
    torch.manual_seed(5)
    loss(mine(x)).backward()
    expected = {n: p.grad for n, p in mine.named_parameters()}
    mine.zero_grad()
    found = {n: g.sum(0) for n, g in samples(mine, x).items()}
    torch.testing.assert_close(found, expected, **CLOSE)


@pytest.mark.parametrize("name", ["LSTMCell", "GRUCell", "RNNCell"])
def test_cells_have_no_samples_as_in_torch_nn(name: str) -> None:
    for package in (nn, fastlstm):
        with pytest.raises(RuntimeError, match="Expanded Weights encountered but cannot handle"):
            call_for_per_sample_grads(getattr(package, name)(I, H))(torch.randn(N, I))


def test_bits_of_the_outputs_are_the_usual_ones() -> None:
    mine = fastlstm.LSTM(I, H, 2)
    x = torch.randn(T, N, I)
    packed = PackedSequence(torch.randn(5, I), torch.tensor([2, 2, 1]))
    for input, batch in ((x, N), (packed, 2)):
        found = call_for_per_sample_grads(mine, batch_size=batch)(input)
        assert all(map(torch.equal, flat(found), flat(mine(input))))
