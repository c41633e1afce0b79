"""LSTM, GRU and RNN of fastlstm compute what those of torch.nn do, and what is new in them."""

import pytest
import torch
import torch.nn.functional as F
from cell_kinds import has_c
from module_pairs import (
    CLOSE,
    KINDS,
    assert_same_module,
    build,
    directions,
    flat,
    ids,
    kinds,
    pair,
    randn,
    results_and_grads,
    state_for,
)
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pack_sequence

import fastlstm

LAYOUTS = ["time_first", "batch_first", "unbatched"]
layouts = pytest.mark.parametrize("layout", LAYOUTS)
# T = 6, N = 3, and where they are; the batch of hx.
SIZES = {
    "time_first": ((6, 3), (3,)),
    "batch_first": ((3, 6), (3,)),
    "unbatched": ((6,), ()),
}
# Sorted by a permutation that is not its own inverse.
LENGTHS = [4, 1, 6]


@kinds
@layouts
@directions
@pytest.mark.parametrize(
    "options",
    [{}, {"num_layers": 2, "bias": False}, {"num_layers": 3, "dropout": 0.4}],
    ids=ids,
)
def test_results_and_gradients(kind: str, layout: str, bidirectional: bool, options: dict) -> None:
    mine, theirs = pair(
        kind, 5, 4, batch_first=layout == "batch_first", bidirectional=bidirectional, **options
    )
    size, batch = SIZES[layout]
    x, hx = randn(*size, 5), state_for(mine, *batch)
    for training in (True, False):
        mine.train(training)
        theirs.train(training)
        assert_same_module(mine, theirs, x, hx)
        assert_same_module(mine, theirs, x)


@layouts
@pytest.mark.parametrize(
    "options",
    [{}, {"num_layers": 3, "bidirectional": True, "dropout": 0.3}, {"bias": False}],
    ids=ids,
)
def test_projection(layout: str, options: dict) -> None:
    mine, theirs = pair("LSTM", 5, 4, proj_size=2, batch_first=layout == "batch_first", **options)
    size, batch = SIZES[layout]
    x, hx = randn(*size, 5), state_for(mine, *batch)
    assert mine(x)[0].shape == (*size, 2 * (1 + mine.bidirectional))
    assert_same_module(mine, theirs, x, hx)
    assert_same_module(mine, theirs, x)


@kinds
@directions
@pytest.mark.parametrize("is_sorted", [True, False], ids=["sorted", "unsorted"])
@pytest.mark.parametrize(
    "options", [{}, {"num_layers": 3, "dropout": 0.4}, {"batch_first": True}], ids=ids
)
def test_packed(kind: str, bidirectional: bool, is_sorted: bool, options: dict) -> None:
    """batch_first says nothing of packed rows; dropout is drawn for them alone, as in torch.nn."""
    mine, theirs = pair(kind, 5, 4, bidirectional=bidirectional, **options)
    lengths = sorted(LENGTHS, reverse=True) if is_sorted else LENGTHS
    packed = pack_sequence([randn(n, 5) for n in lengths], enforce_sorted=is_sorted)
    hx = state_for(mine, 3)
    assert_same_module(mine, theirs, packed, hx)
    assert_same_module(mine, theirs, packed)
    found, expected = mine(packed, hx)[0], theirs(packed, hx)[0]
    assert type(found) is PackedSequence
    assert torch.equal(found.batch_sizes, expected.batch_sizes)
    for name in ("sorted_indices", "unsorted_indices"):
        index = getattr(expected, name)
        assert index is None or torch.equal(getattr(found, name), index)


@kinds
@directions
def test_states_of_packed_rows_are_in_the_order_of_the_caller(
    kind: str, bidirectional: bool
) -> None:
    """hx goes in, and comes out, as if each row was alone."""
    module, _ = pair(kind, 5, 4, 2, bidirectional=bidirectional)
    rows, hx = [randn(n, 5) for n in LENGTHS], state_for(module, 3)
    _, last = module(pack_sequence(rows, enforce_sorted=False), hx)
    for n, row in enumerate(rows):
        own = tuple(t[:, n] for t in hx) if has_c(kind) else hx[:, n]
        _, alone = module(row, own)
        torch.testing.assert_close([t[:, n] for t in flat(last)], flat(alone), **CLOSE)


def test_packed_projection() -> None:
    mine, theirs = pair("LSTM", 5, 4, 2, proj_size=3, bidirectional=True)
    packed = pack_sequence([randn(n, 5) for n in LENGTHS], enforce_sorted=False)
    assert_same_module(mine, theirs, packed, state_for(mine, 3))


@kinds
@directions
def test_packed_tokens_and_states(kind: str, bidirectional: bool) -> None:
    mine, theirs = pair(kind, 5, 4, 2, bidirectional=bidirectional)
    ids_ = [torch.randint(5, (n,)) for n in LENGTHS]
    packed, table = pack_sequence(ids_, enforce_sorted=False), randn(5, 5)
    one_hot = packed._replace(data=F.one_hot(packed.data, 5).double())
    assert torch.equal(mine(packed)[0].batch_sizes, packed.batch_sizes)
    found, expected = results_and_grads(mine, packed), results_and_grads(theirs, one_hot)
    del expected[3 if has_c(kind) else 2]  # the gradient of the one-hot vectors
    torch.testing.assert_close(found, expected, **CLOSE)
    embedded = packed._replace(data=table[packed.data])
    expected = flat(theirs(embedded))
    output, hidden, states = mine(packed, embedding=table, return_states=True)
    torch.testing.assert_close(flat((output, hidden)), expected, **CLOSE)
    assert type(states).__name__ == ("LSTMStates" if has_c(kind) else "RNNStates")
    for layers in states:
        assert len(layers) == 2
        for layer in layers:
            assert torch.equal(layer.unsorted_indices, packed.unsorted_indices)
            assert layer.data.shape == output.data.shape
    assert torch.equal(states.h[1].data, output.data)


@kinds
@directions
@pytest.mark.parametrize("batch_first", [False, True], ids=["time_first", "batch_first"])
def test_lengths(kind: str, bidirectional: bool, batch_first: bool) -> None:
    """Padded rows with lengths give what torch.nn gives for them packed, and zeros after the end."""
    mine, theirs = pair(kind, 5, 4, 2, batch_first=batch_first, bidirectional=bidirectional)
    x = randn(*SIZES["batch_first" if batch_first else "time_first"][0], 5)
    hx = state_for(mine, 3)
    packed = pack_padded_sequence(x, LENGTHS, batch_first, enforce_sorted=False)
    data, hidden = theirs(packed, hx)
    expected, _ = nn.utils.rnn.pad_packed_sequence(data, batch_first)
    for lengths in (LENGTHS, torch.tensor(LENGTHS), torch.tensor(LENGTHS, dtype=torch.int32)):
        found = flat(mine(x, hx, lengths=lengths))
        torch.testing.assert_close(found, flat((expected, hidden)), **CLOSE)


@kinds
def test_reset(kind: str) -> None:
    """A reset in mid-sequence is a new sequence from there, in both directions."""
    lstm, _ = pair(kind, 5, 4, bidirectional=True, batch_first=True)
    x, reset = randn(2, 7, 5), torch.zeros(2, 7, dtype=torch.bool)
    reset[0, 3] = True
    output, hidden = lstm(x, reset=reset)
    first, second, whole = lstm(x[:1, :3])[0], lstm(x[:1, 3:])[0], lstm(x[1:])[0]
    torch.testing.assert_close(output, torch.cat([torch.cat([first, second], 1), whole]), **CLOSE)
    output, _ = lstm(x[0], reset=reset[0])
    torch.testing.assert_close(output, torch.cat([first, second], 1)[0], **CLOSE)


@kinds
def test_dropout_leaves_the_generator_where_torch_nn_does(kind: str) -> None:
    x = randn(6, 3, 5)
    for input in (x, pack_padded_sequence(x, LENGTHS, enforce_sorted=False)):
        after = []
        for module in pair(kind, 5, 4, 3, dropout=0.5):
            torch.manual_seed(5)
            module(input)
            after.append(torch.rand(3))
        assert torch.equal(*after)


@kinds
def test_dropout_changes_from_call_to_call_and_stops_in_eval(kind: str) -> None:
    module = build(fastlstm, kind, 5, 40, 2, dropout=0.5)
    x = torch.randn(6, 3, 5)
    assert not torch.equal(module(x)[0], module(x)[0])
    module.dropout = 0.0
    assert torch.equal(module(x)[0], module(x)[0])
    module.dropout = 0.5
    module.eval()
    assert torch.equal(module(x)[0], module(x)[0])


@kinds
def test_states_are_those_before_dropout(kind: str) -> None:
    module = build(fastlstm, kind, 5, 40, 2, dropout=0.5)
    x = torch.randn(6, 3, 5)
    _, _, states = module(x, return_states=True)
    module.eval()
    assert torch.equal(states.h[0], module(x, return_states=True)[2].h[0])


@kinds
def test_backward_in_eval_mode(kind: str) -> None:
    module = build(fastlstm, kind, 5, 4, 2, bidirectional=True)
    x = torch.randn(6, 3, 5)
    train = results_and_grads(module, x)
    evaluated = results_and_grads(module.eval(), x)
    assert all(map(torch.equal, train, evaluated))


@kinds
@layouts
@directions
def test_tokens_embedding_and_states(kind: str, layout: str, bidirectional: bool) -> None:
    """The module hands its extra arguments on, in every layout."""
    D = 1 + bidirectional
    options = {"batch_first": layout == "batch_first", "bidirectional": bidirectional}
    mine, theirs = pair(kind, 5, 4, 2, **options)
    size, batch = SIZES[layout]
    hx, tokens, table = state_for(mine, *batch), torch.randint(5, size), randn(5, 5)
    one_hot = F.one_hot(tokens, 5).double()
    torch.testing.assert_close(mine(tokens), theirs(one_hot), **CLOSE)
    found, expected = results_and_grads(mine, tokens, hx), results_and_grads(theirs, one_hot, hx)
    del expected[len(flat(hx)) + 1]  # the gradient of the one-hot vectors
    torch.testing.assert_close(found, expected, **CLOSE)
    torch.testing.assert_close(mine(tokens.to(torch.uint8)), theirs(one_hot), **CLOSE)
    embedded = theirs(table[tokens], hx)
    torch.testing.assert_close(mine(tokens, hx, embedding=table), embedded, **CLOSE)
    output, hidden, states = mine(tokens, hx, embedding=table, return_states=True)
    torch.testing.assert_close((output, hidden), embedded, **CLOSE)
    hidden = hidden if has_c(kind) else (hidden,)
    assert type(states) is (fastlstm.LSTMStates if has_c(kind) else fastlstm.RNNStates)
    assert torch.equal(states.h[1], output)
    time = 1 if layout == "batch_first" else 0
    for values, last in zip(states, hidden, strict=True):
        assert len(values) == 2
        for layer in range(2):
            assert values[layer].shape == (*size, 4 * D)
            forward = values[layer].select(time, -1)[..., :4]
            assert torch.equal(forward, last[layer * D])
            if bidirectional:
                reverse = values[layer].select(time, 0)[..., 4:]
                assert torch.equal(reverse, last[layer * D + 1])


@kinds
@pytest.mark.parametrize("rows", [4, 100], ids=["small_table", "large_table"])
def test_padding_of_tokens_is_not_looked_up(kind: str, rows: int) -> None:
    module, _ = pair(kind, 5, 4, 2)
    tokens = torch.randint(4, (6, 3))
    padded = torch.where(torch.arange(6)[:, None] < torch.tensor(LENGTHS), tokens, -100)
    table = randn(rows, 5).requires_grad_()
    expected, found = (module(t, lengths=LENGTHS, embedding=table) for t in (tokens, padded))
    assert all(map(torch.equal, flat(expected), flat(found)))
    grads = [torch.autograd.grad(r[0].sum(), table)[0] for r in (expected, found)]
    assert torch.equal(*grads)


@kinds
def test_nothing_to_do(kind: str) -> None:
    """No steps: the state is unchanged. No rows: nothing is."""
    module = build(fastlstm, kind, 5, 4, 2, bidirectional=True)
    hx = state_for(module, 3)
    output, hidden = module(torch.randn(0, 3, 5), hx)
    assert output.shape == (0, 3, 8)
    assert all(map(torch.equal, flat(hidden), flat(hx)))
    output, hidden = module(torch.randn(6, 0, 5), state_for(module, 0), lengths=[])
    assert output.shape == (6, 0, 8) and flat(hidden)[0].shape == (4, 0, 4)
    hx = state_for(module, 3)
    output, hidden = module(torch.randn(6, 3, 5), hx, lengths=[0, 0, 0])
    assert not output.any()
    assert all(map(torch.equal, flat(hidden), flat(hx)))


def test_state_may_be_a_list() -> None:
    lstm = fastlstm.LSTM(5, 4)
    x, h, c = torch.randn(6, 3, 5), torch.randn(1, 3, 4), torch.randn(1, 3, 4)
    output, state = lstm(x, [h, c])
    assert type(state) is tuple and len(state) == 2
    assert torch.equal(output, lstm(x, (h, c))[0])


@kinds
def test_output_belongs_to_the_caller(kind: str) -> None:
    """The results of one call survive the next one, and in-place changes to the earlier ones."""
    module = build(fastlstm, kind, 5, 4)
    x, hx = torch.randn(6, 3, 5), state_for(module, 3)
    kept = [t.clone() for t in (x, *flat(hx))]
    with torch.no_grad():
        results = flat(module(x, hx))
        copies = [t.clone() for t in results]
        module(2 * x)
        assert all(map(torch.equal, copies, results))
        results[0].fill_(7)
        assert all(map(torch.equal, copies[1:], results[1:]))
    assert all(map(torch.equal, kept, (x, *flat(hx))))


@pytest.mark.parametrize("kind", [k for k in KINDS if k != "RNN_RELU"])
def test_learns(kind: str) -> None:
    """Adam on a copy task: the loss of both classes stays together and falls."""
    mine, theirs = pair(kind, 4, 16)
    tokens = torch.randint(4, (12, 8))
    x = F.one_hot(tokens, 4).double()
    losses = []
    for module in (mine, theirs):
        torch.manual_seed(0)
        head = nn.Linear(16, 4).double()
        optimizer = torch.optim.Adam([*module.parameters(), *head.parameters()], lr=0.02)
        for _ in range(40):
            loss = F.cross_entropy(head(module(x)[0][1:]).flatten(0, 1), tokens[:-1].flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    assert losses[0] < 0.7
