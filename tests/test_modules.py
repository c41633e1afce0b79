"""fastlstm.LSTM in the place of torch.nn.LSTM."""

import copy
import io
import pickle

import pytest
import torch
import torch.nn.functional as F
from helpers import OUTPUTS, assert_error_within
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.nn.utils.rnn import pack_sequence

import fastlstm

CONSTRUCTIONS = [
    {},
    {"num_layers": 2},
    {"num_layers": 3, "bidirectional": True, "dropout": 0.25},
    {"bias": False},
    {"batch_first": True, "bidirectional": True},
    {"num_layers": 2, "bias": False, "batch_first": True, "dropout": 0.5, "bidirectional": True},
    {"dtype": torch.float64},
    {"device": "cpu", "dtype": torch.bfloat16},
]
constructions = pytest.mark.parametrize(
    "kwargs",
    CONSTRUCTIONS,
    ids=lambda kw: "-".join(f"{k}={v}" for k, v in kw.items()) or "default",
)


def pair(*args, **kwargs) -> tuple[fastlstm.LSTM, nn.LSTM]:
    """A fastlstm.LSTM and the torch.nn.LSTM with the same weights, in float64."""
    kwargs.setdefault("dtype", torch.float64)
    theirs = nn.LSTM(*args, **kwargs)
    mine = fastlstm.LSTM(*args, **kwargs)
    mine.load_state_dict(theirs.state_dict())
    return mine, theirs


def results_and_grads(
    lstm: nn.Module, x: Tensor, hx: tuple[Tensor, Tensor] | None = None
) -> list[Tensor]:
    """Outputs, then the gradients of input, state and parameters; dropout drawn from seed 5."""
    leaves = [t.detach().clone().requires_grad_() for t in (x, *(hx or ()))]
    torch.manual_seed(5)
    output, (h_n, c_n) = lstm(leaves[0], tuple(leaves[1:]) if hx else None)
    results = [output, h_n, c_n]
    g = torch.Generator().manual_seed(6)
    cotangents = [torch.randn(r.shape, generator=g).to(r.dtype) for r in results]
    wanted = leaves + list(lstm.parameters())
    grads = torch.autograd.grad(results, wanted, cotangents, materialize_grads=True)
    return [*(r.detach() for r in results), *grads]


def assert_same_module(mine: nn.Module, theirs: nn.Module, *args) -> None:
    torch.testing.assert_close(
        results_and_grads(mine, *args), results_and_grads(theirs, *args), rtol=1e-11, atol=1e-12
    )


def randn(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


@constructions
@pytest.mark.filterwarnings("ignore:dropout option adds dropout")
def test_same_parameters_from_the_same_seed(kwargs: dict) -> None:
    torch.manual_seed(7)
    theirs = nn.LSTM(5, 4, **kwargs)
    next_number = torch.rand(())
    torch.manual_seed(7)
    mine = fastlstm.LSTM(5, 4, **kwargs)
    assert torch.rand(()) == next_number
    assert list(mine.state_dict()) == list(theirs.state_dict())
    for name, value in theirs.state_dict().items():
        found = mine.state_dict()[name]
        assert found.dtype == value.dtype and torch.equal(found, value), name
    assert [n for n, _ in mine.named_parameters()] == [n for n, _ in theirs.named_parameters()]
    torch.manual_seed(8)
    mine.reset_parameters()
    torch.manual_seed(8)
    theirs.reset_parameters()
    assert all(map(torch.equal, mine.parameters(), theirs.parameters()))


@constructions
def test_repr_is_torchs(kwargs: dict) -> None:
    assert repr(fastlstm.LSTM(5, 4, **kwargs)) == repr(nn.LSTM(5, 4, **kwargs))


def test_is_an_rnn_of_torch() -> None:
    lstm = fastlstm.LSTM(5, 4, 2, bidirectional=True)
    assert isinstance(lstm, nn.RNNBase)
    assert lstm.mode == "LSTM"
    attributes = ("input_size", "hidden_size", "num_layers", "bias", "batch_first", "proj_size")
    assert [getattr(lstm, a) for a in attributes] == [5, 4, 2, True, False, 0]
    assert fastlstm.LSTM(input_size=5, hidden_size=4).input_size == 5


def test_all_weights() -> None:
    mine, theirs = pair(5, 4, 2, bidirectional=True)
    assert [len(w) for w in mine.all_weights] == [4, 4, 4, 4]
    for w, v in zip(mine.all_weights, theirs.all_weights, strict=True):
        assert all(map(torch.equal, w, v))
    assert mine.all_weights[1][0] is mine.weight_ih_l0_reverse
    assert [len(w) for w in fastlstm.LSTM(5, 4, bias=False).all_weights] == [2]


@constructions
def test_state_dict_goes_both_ways(kwargs: dict) -> None:
    mine, theirs = fastlstm.LSTM(5, 4, **kwargs), nn.LSTM(5, 4, **kwargs)
    assert mine.load_state_dict(theirs.state_dict()) == theirs.load_state_dict(mine.state_dict())
    assert all(map(torch.equal, mine.parameters(), theirs.parameters()))
    other = nn.LSTM(5, 4, **kwargs)
    other.load_state_dict(fastlstm.LSTM(5, 4, **kwargs).state_dict(), strict=True)


def test_checkpoint_of_torch_nn(tmp_path) -> None:
    class Model(nn.Module):
        def __init__(self, lstm_class: type) -> None:
            super().__init__()
            self.lstm = lstm_class(5, 4, 2, batch_first=True)
            self.head = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.lstm(x)[0])

    theirs, mine = Model(nn.LSTM).double(), Model(fastlstm.LSTM).double()
    torch.save(theirs.state_dict(), tmp_path / "model.pt")
    mine.load_state_dict(torch.load(tmp_path / "model.pt"))
    x = randn(2, 6, 5)
    torch.testing.assert_close(mine(x), theirs(x), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("num_layers", [1, 2, 3])
@pytest.mark.parametrize("bidirectional", [False, True], ids=["forward", "bidirectional"])
@pytest.mark.parametrize("dropout", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("layout", ["time_first", "batch_first", "unbatched"])
@pytest.mark.filterwarnings("ignore:dropout option adds dropout")
def test_same_results_as_torch_nn(
    num_layers: int, bidirectional: bool, dropout: float, layout: str
) -> None:
    """Outputs and gradients; the same seed gives the same dropout masks."""
    mine, theirs = pair(
        5,
        4,
        num_layers,
        dropout=dropout,
        bidirectional=bidirectional,
        batch_first=layout == "batch_first",
    )
    x = randn(6, 5) if layout == "unbatched" else randn(6, 3, 5)
    batch = {"time_first": (3,), "batch_first": (6,), "unbatched": ()}[layout]
    state = tuple(randn(num_layers * (1 + bidirectional), *batch, 4) for _ in range(2))
    for training in (True, False):
        mine.train(training)
        theirs.train(training)
        assert_same_module(mine, theirs, x, state)
        assert_same_module(mine, theirs, x)


def test_dropout_leaves_the_generator_where_torch_nn_does() -> None:
    mine, theirs = pair(5, 4, 3, dropout=0.5)
    after = []
    for lstm in (mine, theirs):
        torch.manual_seed(5)
        lstm(randn(6, 3, 5))
        after.append(torch.rand(3))
    assert torch.equal(*after)


def test_dropout_changes_from_call_to_call_and_stops_in_eval() -> None:
    lstm = fastlstm.LSTM(5, 40, 2, dropout=0.5)
    x = torch.randn(6, 3, 5)
    assert not torch.equal(lstm(x)[0], lstm(x)[0])
    lstm.dropout = 0.0
    assert torch.equal(lstm(x)[0], lstm(x)[0])
    lstm.dropout = 0.5
    lstm.eval()
    assert torch.equal(lstm(x)[0], lstm(x)[0])


def test_backward_in_eval_mode() -> None:
    lstm = fastlstm.LSTM(5, 4, 2, bidirectional=True)
    x = torch.randn(6, 3, 5)
    train = results_and_grads(lstm, x)
    evaluated = results_and_grads(lstm.eval(), x)
    assert all(map(torch.equal, train, evaluated))


@pytest.mark.parametrize("order", ["as_given", "list"])
def test_state_may_be_a_list(order: str) -> None:
    lstm = fastlstm.LSTM(5, 4)
    x, h, c = torch.randn(6, 3, 5), torch.randn(1, 3, 4), torch.randn(1, 3, 4)
    hx = (h, c) if order == "as_given" else [h, c]
    output, state = lstm(x, hx)
    assert type(state) is tuple and len(state) == 2
    assert torch.equal(output, lstm(x, (h, c))[0])


def test_output_belongs_to_the_caller() -> None:
    """The results of one call survive the next one, and in-place changes to the earlier ones."""
    lstm = fastlstm.LSTM(5, 4)
    x, state = torch.randn(6, 3, 5), (torch.randn(1, 3, 4), torch.randn(1, 3, 4))
    kept = [t.clone() for t in (x, *state)]
    with torch.no_grad():
        output, (h_n, c_n) = lstm(x, state)
        copies = [t.clone() for t in (output, h_n, c_n)]
        lstm(2 * x)
        assert all(map(torch.equal, copies, (output, h_n, c_n)))
        output.fill_(7)
        assert torch.equal(h_n, copies[1]) and torch.equal(c_n, copies[2])
    assert all(map(torch.equal, kept, (x, *state)))


def test_deepcopy_and_pickle() -> None:
    lstm = fastlstm.LSTM(5, 4, 2, bidirectional=True, forget_bias=1.0)
    x = torch.randn(6, 3, 5)
    expected = lstm(x)[0]
    saved = io.BytesIO()
    torch.save(lstm, saved)
    saved.seek(0)
    copies = [
        copy.deepcopy(lstm),
        pickle.loads(pickle.dumps(lstm)),
        torch.load(saved, weights_only=False),
    ]
    for other in copies:
        assert type(other) is fastlstm.LSTM and repr(other) == repr(lstm)
        assert torch.equal(other(x)[0], expected)
        other(x)[0].sum().backward()
        with torch.no_grad():
            other.weight_hh_l0.zero_()
        assert not torch.equal(other(x)[0], expected)
    assert torch.equal(lstm(x)[0], expected)


def test_setstate_of_a_pickle_older_than_proj_size() -> None:
    lstm = fastlstm.LSTM(5, 4)
    state = copy.deepcopy(lstm).__getstate__()
    del state["proj_size"]
    other = fastlstm.LSTM.__new__(fastlstm.LSTM)
    other.__setstate__(state)
    assert other.proj_size == 0
    x = torch.randn(6, 3, 5)
    assert torch.equal(other(x)[0], lstm(x)[0])


def test_change_of_dtype() -> None:
    lstm = fastlstm.LSTM(5, 4)
    x = torch.randn(6, 3, 5)
    single = lstm(x)[0]
    lstm.to(torch.float64)
    double = lstm(x.double())[0]
    assert double.dtype == torch.float64
    torch.testing.assert_close(double.float(), single)
    assert lstm.float()(x)[0].dtype == torch.float32


def test_meta_device() -> None:
    by_argument = fastlstm.LSTM(5, 4, 2, device="meta")
    with torch.device("meta"):
        by_context = fastlstm.LSTM(5, 4, 2)
    for lstm in (by_argument, by_context):
        assert all(p.is_meta for p in lstm.parameters())
        lstm = lstm.to_empty(device="cpu")
        lstm.load_state_dict(nn.LSTM(5, 4, 2).state_dict())
        assert lstm(torch.randn(6, 3, 5))[0].shape == (6, 3, 4)


def test_flatten_parameters_does_nothing() -> None:
    lstm = fastlstm.LSTM(5, 4)
    before = [p.data_ptr() for p in lstm.parameters()]
    assert lstm.flatten_parameters() is None
    assert [p.data_ptr() for p in lstm.parameters()] == before


def test_weights_changed_in_place_count() -> None:
    mine, theirs = pair(5, 4, 2)
    x = randn(6, 3, 5)
    for lstm in (mine, theirs):
        optimizer = torch.optim.SGD(lstm.parameters(), lr=0.5)
        for _ in range(3):
            optimizer.zero_grad()
            lstm(x)[0].square().sum().backward()
            optimizer.step()
    assert_same_module(mine, theirs, x)


def test_weights_replaced_count() -> None:
    mine, theirs = pair(5, 4)
    weight = nn.Parameter(randn(16, 4))
    for lstm in (mine, theirs):
        lstm(randn(6, 3, 5))
        lstm.weight_hh_l0 = weight
    assert_same_module(mine, theirs, randn(6, 3, 5))


def test_weight_drop() -> None:
    """As AWD-LSTM does it: the parameter deleted, a plain tensor put in its place."""
    mine, theirs = pair(5, 4)
    raw = theirs.weight_hh_l0.detach().clone().requires_grad_()
    mask = torch.rand(16, 4) < 0.5
    x, grads = randn(6, 3, 5), []
    for lstm in (mine, theirs):
        del lstm._parameters["weight_hh_l0"]
        lstm.weight_hh_l0 = raw * mask
        assert "weight_hh_l0" not in dict(lstm.named_parameters())
        grads.append(torch.autograd.grad(lstm(x)[0].sum(), raw)[0])
    assert grads[0][~mask].eq(0).all() and grads[0][mask].ne(0).any()
    torch.testing.assert_close(*grads, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("name", ["weight_hh_l0", "weight_ih_l1", "bias_ih_l0"])
def test_weight_norm(name: str) -> None:
    mine, theirs = (parametrizations.weight_norm(m, name) for m in pair(5, 4, 2))
    assert f"parametrizations.{name}.original1" in dict(mine.named_parameters())
    assert_same_module(mine, theirs, randn(6, 3, 5))
    with torch.no_grad():
        for lstm in (mine, theirs):
            lstm.parametrizations[name].original0.mul_(3)
    assert_same_module(mine, theirs, randn(6, 3, 5))


def test_functional_call() -> None:
    mine, theirs = pair(5, 4, 2)
    x = randn(6, 3, 5)
    names = [n for n, _ in mine.named_parameters()]
    new = {n: randn(*p.shape).requires_grad_() for n, p in mine.named_parameters()}
    unchanged = mine(x)[0].detach()
    found, expected = (torch.func.functional_call(m, new, (x,))[0] for m in (mine, theirs))
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-12)
    grads = [torch.autograd.grad(y.sum(), [new[n] for n in names]) for y in (found, expected)]
    torch.testing.assert_close(*grads, rtol=1e-11, atol=1e-12)
    assert torch.equal(mine(x)[0], unchanged)


def test_tied_biases() -> None:
    mine, theirs = pair(5, 4)
    for lstm in (mine, theirs):
        lstm.bias_hh_l0 = lstm.bias_ih_l0
    assert len(list(mine.parameters())) == 3
    assert_same_module(mine, theirs, randn(6, 3, 5))


def test_frozen_weights() -> None:
    mine, theirs = pair(5, 4, 2)
    x, grads = randn(6, 3, 5), []
    for lstm in (mine, theirs):
        lstm.requires_grad_(False)
        lstm.bias_ih_l1.requires_grad_()
        lstm(x)[0].sum().backward()
        assert lstm.weight_ih_l0.grad is None and lstm.bias_hh_l1.grad is None
        grads.append(lstm.bias_ih_l1.grad)
    torch.testing.assert_close(*grads, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("bidirectional", [False, True], ids=["forward", "bidirectional"])
def test_forget_bias(bidirectional: bool) -> None:
    torch.manual_seed(3)
    plain = fastlstm.LSTM(5, 4, 2, bidirectional=bidirectional)
    torch.manual_seed(3)
    lstm = fastlstm.LSTM(5, 4, 2, bidirectional=bidirectional, forget_bias=1.5)
    for (name, p), q in zip(lstm.named_parameters(), plain.parameters(), strict=True):
        if name.startswith("bias"):
            assert (p[4:8] == (1.5 if name.startswith("bias_ih") else 0.0)).all()
            assert torch.equal(p[:4], q[:4]) and torch.equal(p[8:], q[8:])
        else:
            assert torch.equal(p, q)
    lstm.reset_parameters()
    assert (lstm.bias_ih_l1[4:8] == 1.5).all()
    assert (fastlstm.LSTM(5, 4, forget_bias=0.0).bias_ih_l0[4:8] == 0.0).all()
    with pytest.raises(ValueError, match="forget_bias"):
        fastlstm.LSTM(5, 4, bias=False, forget_bias=1.0)


def test_not_there_yet() -> None:
    with pytest.raises(NotImplementedError, match="proj_size"):
        fastlstm.LSTM(5, 4, proj_size=2)
    with pytest.raises(NotImplementedError, match="Packed"):
        fastlstm.LSTM(5, 4)(pack_sequence([torch.randn(3, 5), torch.randn(2, 5)]))


@pytest.mark.parametrize("layout", ["time_first", "batch_first", "unbatched"])
@pytest.mark.parametrize("bidirectional", [False, True], ids=["forward", "bidirectional"])
def test_tokens_embedding_and_states(layout: str, bidirectional: bool) -> None:
    """The module hands its extra arguments on, in every layout."""
    D = 1 + bidirectional
    mine, theirs = pair(5, 4, 2, batch_first=layout == "batch_first", bidirectional=bidirectional)
    size = (6,) if layout == "unbatched" else (6, 3)
    batch = {"time_first": (3,), "batch_first": (6,), "unbatched": ()}[layout]
    hx = (randn(2 * D, *batch, 4), randn(2 * D, *batch, 4))
    tokens, table = torch.randint(5, size), randn(5, 5)
    close = {"rtol": 1e-11, "atol": 1e-12}
    one_hot = F.one_hot(tokens, 5).double()
    torch.testing.assert_close(mine(tokens, hx), theirs(one_hot, hx), **close)
    torch.testing.assert_close(mine(tokens), theirs(one_hot), **close)
    embedded = theirs(table[tokens], hx)
    torch.testing.assert_close(mine(tokens, hx, embedding=table), embedded, **close)
    output, hidden, states = mine(tokens, hx, embedding=table, return_states=True)
    torch.testing.assert_close((output, hidden), embedded, **close)
    assert len(states.h) == len(states.c) == 2
    assert all(s.shape == (*size, 4 * D) for s in (*states.h, *states.c))
    assert torch.equal(states.h[1], output)
    time = 1 if layout == "batch_first" else 0
    for layer in range(2):
        for values, last in ((states.h, hidden[0]), (states.c, hidden[1])):
            forward = values[layer].select(time, -1)[..., :4]
            assert torch.equal(forward, last[layer * D])
            if bidirectional:
                reverse = values[layer].select(time, 0)[..., 4:]
                assert torch.equal(reverse, last[layer * D + 1])


def test_states_are_those_before_dropout() -> None:
    lstm = fastlstm.LSTM(5, 40, 2, dropout=0.5)
    _, _, states = lstm(torch.randn(6, 3, 5), return_states=True)
    assert (states.h[0] != 0).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "f16"])
@pytest.mark.parametrize(
    "kwargs",
    [{}, {"num_layers": 2, "bidirectional": True}, {"bias": False, "batch_first": True}],
    ids=["plain", "deep", "nobias"],
)
def test_half_precision(dtype: torch.dtype, kwargs: dict) -> None:
    """Input and output in the half type, arithmetic in float32: held to the same error rule."""
    rows = []
    for seed in range(4):
        torch.manual_seed(seed)
        mine, theirs = pair(5, 17, dtype=dtype, **kwargs)
        true = nn.LSTM(5, 17, dtype=torch.float64, **kwargs)
        true.load_state_dict(theirs.state_dict())
        x = torch.randn(9, 3, 5).to(dtype)
        batch = 9 if "batch_first" in kwargs else 3
        hx = tuple(torch.randn(len(mine.all_weights), batch, 17).to(dtype) for _ in range(2))
        found, base = results_and_grads(mine, x, hx), results_and_grads(theirs, x, hx)
        expected = results_and_grads(true, x.double(), tuple(h.double() for h in hx))
        rows.append(list(zip(found, base, expected, strict=True)))
    names = [*OUTPUTS, "grad x", "grad h0", "grad c0"]
    names += [f"grad {n}" for n, _ in mine.named_parameters()]
    for name, *triples in zip(names, *rows, strict=True):
        assert_error_within(name, *(torch.stack(part) for part in zip(*triples, strict=True)))


def test_half_precision_tokens() -> None:
    lstm = fastlstm.LSTM(5, 17, dtype=torch.bfloat16)
    tokens, table = torch.randint(5, (9, 3)), torch.randn(5, 5, dtype=torch.bfloat16)
    one_hot = F.one_hot(tokens, 5).bfloat16()
    torch.testing.assert_close(lstm(tokens)[0], lstm(one_hot)[0])
    embedded = lstm(tokens, embedding=table)[0]
    assert embedded.dtype == torch.bfloat16
    torch.testing.assert_close(embedded, lstm(table[tokens])[0], rtol=2e-2, atol=2e-2)


def test_learns() -> None:
    """Adam on a copy task: the loss of both classes stays together and falls."""
    mine, theirs = pair(4, 16)
    tokens = torch.randint(4, (12, 8))
    x = F.one_hot(tokens, 4).double()
    losses = []
    for lstm in (mine, theirs):
        torch.manual_seed(0)
        head = nn.Linear(16, 4).double()
        optimizer = torch.optim.Adam([*lstm.parameters(), *head.parameters()], lr=0.02)
        for _ in range(40):
            loss = F.cross_entropy(head(lstm(x)[0][1:]).flatten(0, 1), tokens[:-1].flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    assert losses[0] < 0.7
