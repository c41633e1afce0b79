"""The parameters of LSTM, GRU and RNN: torch.nn's names, values and pickles, replaced at any time."""

import copy
import io
import pickle

import pytest
import torch
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
    state_for,
)
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

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
PROJECTIONS = [
    {"proj_size": 2},
    {"proj_size": 3, "num_layers": 2, "bidirectional": True},
    {"proj_size": 1, "bias": False},
]
constructions = pytest.mark.parametrize(
    ("kind", "kwargs"),
    [(kind, kwargs) for kind in KINDS for kwargs in CONSTRUCTIONS]
    + [("LSTM", kwargs) for kwargs in PROJECTIONS],
    ids=lambda v: v if isinstance(v, str) else ids(v),
)


@constructions
def test_same_parameters_from_the_same_seed(kind: str, kwargs: dict) -> None:
    torch.manual_seed(7)
    theirs = build(nn, kind, 5, 4, **kwargs)
    next_number = torch.rand(())
    torch.manual_seed(7)
    mine = build(fastlstm, kind, 5, 4, **kwargs)
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
def test_repr_is_torchs(kind: str, kwargs: dict) -> None:
    assert repr(build(fastlstm, kind, 5, 4, **kwargs)) == repr(build(nn, kind, 5, 4, **kwargs))


@constructions
def test_state_dict_goes_both_ways(kind: str, kwargs: dict) -> None:
    mine, theirs = (build(package, kind, 5, 4, **kwargs) for package in (fastlstm, nn))
    assert mine.load_state_dict(theirs.state_dict()) == theirs.load_state_dict(mine.state_dict())
    assert all(map(torch.equal, mine.parameters(), theirs.parameters()))
    other = build(nn, kind, 5, 4, **kwargs)
    other.load_state_dict(build(fastlstm, kind, 5, 4, **kwargs).state_dict(), strict=True)


@kinds
def test_is_an_rnn_of_torch(kind: str) -> None:
    mine, theirs = pair(kind, 5, 4, 2, bidirectional=True)
    assert isinstance(mine, nn.RNNBase)
    assert not isinstance(mine, (nn.LSTM, nn.GRU, nn.RNN))
    own = {"_flat_weights", "_flat_weight_refs"}
    assert set(vars(theirs)) - own <= set(vars(mine))
    for name in set(vars(theirs)) - own - {"_parameters"}:
        assert getattr(mine, name) == getattr(theirs, name), name
    by_name = build(fastlstm, kind, input_size=5, hidden_size=4)
    assert (by_name.input_size, by_name.hidden_size) == (5, 4)


def test_positional_arguments_of_rnn() -> None:
    """Its fourth argument is the nonlinearity, in both packages."""
    args = (5, 4, 2, "relu", False, True, 0.0, True)
    mine, theirs = fastlstm.RNN(*args), nn.RNN(*args)
    assert mine.mode == "RNN_RELU" and mine.nonlinearity == "relu"
    assert repr(mine) == repr(theirs)


@kinds
def test_all_weights(kind: str) -> None:
    mine, theirs = pair(kind, 5, 4, 2, bidirectional=True)
    assert [len(w) for w in mine.all_weights] == [4, 4, 4, 4]
    for w, v in zip(mine.all_weights, theirs.all_weights, strict=True):
        assert all(map(torch.equal, w, v))
    assert mine.all_weights[1][0] is mine.weight_ih_l0_reverse
    assert [len(w) for w in build(fastlstm, kind, 5, 4, bias=False).all_weights] == [2]


def test_all_weights_of_a_projection() -> None:
    lstm = fastlstm.LSTM(5, 4, proj_size=2)
    assert [w.shape for w in lstm.all_weights[0]] == [(16, 5), (16, 2), (16,), (16,), (2, 4)]


@kinds
def test_checkpoint_of_torch_nn(kind: str, tmp_path) -> None:
    class Model(nn.Module):
        def __init__(self, package) -> None:
            super().__init__()
            self.rnn = build(package, kind, 5, 4, 2, batch_first=True)
            self.head = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.rnn(x)[0])

    theirs, mine = Model(nn).double(), Model(fastlstm).double()
    torch.save(theirs.state_dict(), tmp_path / "model.pt")
    mine.load_state_dict(torch.load(tmp_path / "model.pt"))
    x = randn(2, 6, 5)
    torch.testing.assert_close(mine(x), theirs(x), **CLOSE)


@kinds
def test_deepcopy_and_pickle(kind: str) -> None:
    options = {"forget_bias": 1.0, "proj_size": 2} if kind == "LSTM" else {}
    module = build(fastlstm, kind, 5, 4, 2, bidirectional=True, **options)
    x = torch.randn(6, 3, 5)
    expected = module(x)[0]
    saved = io.BytesIO()
    torch.save(module, saved)
    saved.seek(0)
    copies = [
        copy.deepcopy(module),
        pickle.loads(pickle.dumps(module)),
        torch.load(saved, weights_only=False),
        copy.deepcopy(copy.deepcopy(module)),
    ]
    for other in copies:
        assert type(other) is type(module) and repr(other) == repr(module)
        assert torch.equal(other(x)[0], expected)
        other(x)[0].sum().backward()
        with torch.no_grad():
            other.weight_hh_l0.zero_()
        assert not torch.equal(other(x)[0], expected)
    assert torch.equal(module(x)[0], expected)


@kinds
def test_state_of_a_pickle_goes_both_ways(kind: str) -> None:
    """The state either class pickles makes the other, as after renaming a class in old files."""
    mine, theirs = pair(kind, 5, 4, 2, bidirectional=True)
    x = randn(6, 3, 5)
    for source, target in ((mine, type(theirs)), (theirs, type(mine))):
        other = target.__new__(target)
        other.__setstate__(copy.deepcopy(source).__getstate__())
        torch.testing.assert_close(other(x), source(x), **CLOSE)
        assert copy.deepcopy(other).weight_hh_l1.shape == other.weight_hh_l1.shape


def test_setstate_of_a_pickle_older_than_proj_size() -> None:
    lstm = fastlstm.LSTM(5, 4)
    state = copy.deepcopy(lstm).__getstate__()
    del state["proj_size"]
    other = fastlstm.LSTM.__new__(fastlstm.LSTM)
    other.__setstate__(state)
    assert other.proj_size == 0
    x = torch.randn(6, 3, 5)
    assert torch.equal(other(x)[0], lstm(x)[0])


@kinds
def test_change_of_dtype(kind: str) -> None:
    module = build(fastlstm, kind, 5, 4)
    x = torch.randn(6, 3, 5)
    single = module(x)[0]
    module.to(torch.float64)
    double = module(x.double())[0]
    assert double.dtype == torch.float64
    torch.testing.assert_close(double.float(), single)
    assert module.float()(x)[0].dtype == torch.float32


@kinds
def test_meta_device(kind: str) -> None:
    by_argument = build(fastlstm, kind, 5, 4, 2, device="meta")
    with torch.device("meta"):
        by_context = build(fastlstm, kind, 5, 4, 2)
    for module in (by_argument, by_context):
        assert all(p.is_meta for p in module.parameters())
        output, hidden = module(torch.randn(6, 3, 5, device="meta"))
        assert output.shape == (6, 3, 4) and all(h.shape == (2, 3, 4) for h in flat(hidden))
        module = module.to_empty(device="cpu")
        module.load_state_dict(build(nn, kind, 5, 4, 2).state_dict())
        assert module(torch.randn(6, 3, 5))[0].shape == (6, 3, 4)


@kinds
def test_no_list_of_weights_goes_stale(kind: str) -> None:
    """torch.nn keeps one, which flatten_parameters works on until the next call of the module."""
    mine, theirs = pair(kind, 5, 4)
    weight, x = nn.Parameter(randn(*mine.weight_hh_l0.shape)), randn(6, 3, 5)
    for module in (mine, theirs):
        module._parameters["weight_hh_l0"] = weight
        assert module.flatten_parameters() is None
    assert theirs._flat_weights[1] is not weight
    assert mine._flat_weights[1] is weight
    assert "_flat_weights" not in vars(mine)
    assert_same_module(mine, theirs, x)


@kinds
def test_weights_changed_in_place_count(kind: str) -> None:
    mine, theirs = pair(kind, 5, 4, 2)
    x = randn(6, 3, 5)
    for module in (mine, theirs):
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            module(x)[0].square().sum().backward()
            optimizer.step()
    assert_same_module(mine, theirs, x)


@kinds
def test_weights_replaced_count(kind: str) -> None:
    mine, theirs = pair(kind, 5, 4)
    weight = nn.Parameter(randn(*mine.weight_hh_l0.shape))
    for module in (mine, theirs):
        module(randn(6, 3, 5))
        module.weight_hh_l0 = weight
    assert_same_module(mine, theirs, randn(6, 3, 5))


@kinds
def test_weight_drop(kind: str) -> None:
    """As AWD-LSTM does it: the parameter deleted, a plain tensor put in its place."""
    mine, theirs = pair(kind, 5, 4)
    raw = theirs.weight_hh_l0.detach().clone().requires_grad_()
    mask = torch.rand(raw.shape) < 0.5
    x, grads = randn(6, 3, 5), []
    for module in (mine, theirs):
        del module._parameters["weight_hh_l0"]
        module.weight_hh_l0 = raw * mask
        assert "weight_hh_l0" not in dict(module.named_parameters())
        grads.append(torch.autograd.grad(module(x)[0].sum(), raw)[0])
    assert grads[0][~mask].eq(0).all() and grads[0][mask].ne(0).any()
    torch.testing.assert_close(*grads, **CLOSE)


@kinds
@pytest.mark.parametrize("name", ["weight_hh_l0", "weight_ih_l1", "bias_ih_l0"])
def test_weight_norm(kind: str, name: str) -> None:
    mine, theirs = (parametrizations.weight_norm(m, name) for m in pair(kind, 5, 4, 2))
    assert f"parametrizations.{name}.original1" in dict(mine.named_parameters())
    assert_same_module(mine, theirs, randn(6, 3, 5))
    with torch.no_grad():
        for module in (mine, theirs):
            module.parametrizations[name].original0.mul_(3)
    assert_same_module(mine, theirs, randn(6, 3, 5))
    for module in (mine, theirs):
        parametrize.remove_parametrizations(module, name)
    assert_same_module(mine, theirs, randn(6, 3, 5))


@kinds
def test_functional_call(kind: str) -> None:
    mine, theirs = pair(kind, 5, 4, 2)
    x = randn(6, 3, 5)
    names = [n for n, _ in mine.named_parameters()]
    new = {n: randn(*p.shape).requires_grad_() for n, p in mine.named_parameters()}
    unchanged = mine(x)[0].detach()
    found, expected = (torch.func.functional_call(m, new, (x,))[0] for m in (mine, theirs))
    torch.testing.assert_close(found, expected, **CLOSE)
    grads = [torch.autograd.grad(y.sum(), [new[n] for n in names]) for y in (found, expected)]
    torch.testing.assert_close(*grads, **CLOSE)
    assert torch.equal(mine(x)[0], unchanged)


@kinds
def test_tied_biases(kind: str) -> None:
    mine, theirs = pair(kind, 5, 4)
    for module in (mine, theirs):
        module.bias_hh_l0 = module.bias_ih_l0
    assert len(list(mine.parameters())) == 3
    assert_same_module(mine, theirs, randn(6, 3, 5))


@kinds
@pytest.mark.parametrize("name", ["bias_ih_l0", "bias_hh_l0"])
def test_a_bias_of_none_stands_for_zeros(kind: str, name: str) -> None:
    mine, _ = pair(kind, 5, 4)
    x = randn(6, 3, 5)
    with torch.no_grad():
        getattr(mine, name).zero_()
        expected = mine(x)[0]
        setattr(mine, name, None)
        assert torch.equal(mine(x)[0], expected)


@kinds
def test_frozen_weights(kind: str) -> None:
    mine, theirs = pair(kind, 5, 4, 2)
    x, grads = randn(6, 3, 5), []
    for module in (mine, theirs):
        module.requires_grad_(False)
        module.bias_ih_l1.requires_grad_()
        module(x)[0].sum().backward()
        assert module.weight_ih_l0.grad is None and module.bias_hh_l1.grad is None
        grads.append(module.bias_ih_l1.grad)
    torch.testing.assert_close(*grads, **CLOSE)


@directions
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
    assert repr(lstm).endswith("forget_bias=1.5)")
    with pytest.raises(ValueError, match="forget_bias"):
        fastlstm.LSTM(5, 4, bias=False, forget_bias=1.0)


def test_forget_bias_is_for_the_lstm() -> None:
    for cls in (fastlstm.GRU, fastlstm.RNN):
        with pytest.raises(TypeError, match="forget_bias"):
            cls(5, 4, forget_bias=1.0)


@kinds
def test_expected_sizes(kind: str) -> None:
    """The public methods of torch.nn that checks are made of."""
    options = {"proj_size": 3} if kind == "LSTM" else {}
    mine, theirs = pair(kind, 5, 4, 2, bidirectional=True, **options)
    x, batch_sizes = randn(6, 3, 5), torch.tensor([2, 1])
    for args in ((x, None), (randn(3, 5), batch_sizes)):
        for name in ("get_expected_hidden_size", "get_expected_cell_size"):
            if hasattr(theirs, name):
                assert getattr(mine, name)(*args) == getattr(theirs, name)(*args)
    hx = state_for(mine, 3)
    for module in (mine, theirs):
        assert module.check_forward_args(x, hx, None) is None
        order = module.permute_hidden(hx, torch.tensor([2, 0, 1]))
        assert torch.equal(flat(order)[0], flat(hx)[0][:, [2, 0, 1]])
        assert module.permute_hidden(hx, None) is hx
