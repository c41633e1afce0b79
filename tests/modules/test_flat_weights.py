"""Programs that assign to torch.nn's list of weights, ``_flat_weights``, as weight drop does."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from module_pairs import CLOSE, assert_same_module, build, kinds, pair, randn
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import fastlstm

NAME, INDEX = "weight_hh_l0", 1


def output_and_gradient(module: nn.Module, x: Tensor, leaf: Tensor) -> tuple[Tensor, Tensor]:
    y = module(x)[0]
    return y, torch.autograd.grad(y.square().sum(), leaf)[0]


@kinds
@pytest.mark.parametrize("how", ["list", "entry", "negative", "slice"])
def test_what_is_assigned_is_used_and_differentiated(kind: str, how: str) -> None:
    mine, theirs = pair(kind, 5, 4, 2)
    x, found = randn(6, 3, 5), []
    raw = randn(*mine.weight_hh_l0.shape).requires_grad_()
    for module in (mine, theirs):
        if how == "list":
            weights = list(module._flat_weights)
            weights[INDEX] = 2 * raw
            module._flat_weights = weights
        elif how == "slice":
            module._flat_weights[1:2] = [2 * raw]
        else:
            module._flat_weights[INDEX if how == "entry" else INDEX - 8] = 2 * raw
        assert torch.equal(module._flat_weights[INDEX], 2 * raw)
        assert NAME in dict(module.named_parameters())
        found.append(output_and_gradient(module, x, raw))
    torch.testing.assert_close(*found, **CLOSE)


class DropEntry(nn.Module):
    """Weight drop that leaves the parameter where it is and assigns to the list."""

    def __init__(self, rnn: nn.Module) -> None:
        super().__init__()
        self.rnn = rnn

    def forward(self, x: Tensor) -> Tensor:
        weight = getattr(self.rnn, NAME)
        self.rnn._flat_weights[INDEX] = F.dropout(weight, 0.5, self.training)
        return self.rnn(x)[0]


class Moved(nn.Module):
    """The parameter moved to the wrapper."""

    def __init__(self, rnn: nn.Module) -> None:
        super().__init__()
        self.raw = nn.Parameter(getattr(rnn, NAME).data)
        delattr(rnn, NAME)
        self.rnn = rnn


class DropList(Moved):
    """The whole list assigned."""

    def forward(self, x: Tensor) -> Tensor:
        dropped = F.dropout(self.raw, 0.5, self.training)
        self.rnn._flat_weights = [
            dropped if name == NAME else getattr(self.rnn, name)
            for name in self.rnn._flat_weights_names
        ]
        return self.rnn(x)[0]


class DropParameter(nn.Module):
    """A tensor put among the parameters, and into the list."""

    def __init__(self, rnn: nn.Module) -> None:
        super().__init__()
        self.raw = nn.Parameter(getattr(rnn, NAME).data)
        rnn._parameters[NAME] = F.dropout(self.raw, 0.5, False)
        rnn.flatten_parameters = lambda: None
        self.rnn = rnn

    def forward(self, x: Tensor) -> Tensor:
        dropped = F.dropout(self.raw, 0.5, self.training)
        self.rnn._parameters[NAME] = dropped
        self.rnn._flat_weights[INDEX] = dropped
        return self.rnn(x)[0]


class DropAttribute(Moved):
    """A plain attribute in the place of the parameter; the list made anew from the names."""

    def __init__(self, rnn: nn.Module) -> None:
        super().__init__(rnn)
        setattr(rnn, NAME, self.raw.clone())

    def forward(self, x: Tensor) -> Tensor:
        setattr(self.rnn, NAME, F.dropout(self.raw, 0.5, self.training))
        names = self.rnn._flat_weights_names
        self.rnn._flat_weights = [
            getattr(self.rnn, n) if hasattr(self.rnn, n) else None for n in names
        ]
        return self.rnn(x)[0]


@kinds
@pytest.mark.parametrize("wrapper", [DropEntry, DropList, DropParameter, DropAttribute])
def test_weight_drop_trains_as_with_torch_nn(kind: str, wrapper: type[nn.Module]) -> None:
    mine, theirs = pair(kind, 5, 4, 2)
    x, found = randn(6, 3, 5), []
    for model in (wrapper(mine), wrapper(theirs)):
        torch.manual_seed(11)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        outputs = []
        for _ in range(3):
            optimizer.zero_grad()
            outputs.append(model(x))
            outputs[-1].square().sum().backward()
            optimizer.step()
        outputs.append(model.eval()(x))
        found.append([*outputs, *sorted(model.state_dict().values(), key=lambda t: t.sum().item())])
    torch.testing.assert_close(*found, **CLOSE)


@kinds
def test_an_entry_holds_as_long_as_in_torch_nn(kind: str) -> None:
    """Until another weight gets the name: set, loaded in place, cast, or for one functional call."""
    mine, theirs = pair(kind, 5, 4)
    x, entry, other = (
        randn(6, 3, 5),
        randn(*mine.weight_hh_l0.shape),
        randn(*mine.weight_hh_l0.shape),
    )
    found = []
    for module in (mine, theirs):
        outputs = []

        def assigned(module=module, outputs=outputs) -> None:
            module._flat_weights[INDEX] = entry
            outputs.append(module(x)[0])

        assigned()
        outputs.append(module(x)[0])
        module.load_state_dict({n: v + 1 for n, v in module.state_dict().items()})
        outputs.append(module(x)[0])
        module.weight_hh_l0 = module.weight_hh_l0
        outputs.append(module(x)[0])
        assigned()
        module.weight_hh_l0 = nn.Parameter(other)
        outputs.append(module(x)[0])
        assigned()
        outputs.append(torch.func.functional_call(module, {NAME: other}, (x,))[0])
        module(x)  # torch.nn's list goes stale again
        assigned()
        module.to(torch.float32).to(torch.float64)
        outputs.append(module(x)[0])
        found.append(outputs)
    torch.testing.assert_close(*found, rtol=1e-6, atol=1e-6)
    assert not torch.equal(found[0][0], found[0][3])


@kinds
def test_copies_and_conversions_have_the_named_weights(kind: str) -> None:
    mine, _ = pair(kind, 5, 4, 2)
    x = randn(6, 3, 5)
    expected = mine(x)[0]
    mine._flat_weights[INDEX] = 2 * mine.weight_hh_l0
    assert not torch.equal(mine(x)[0], expected)
    for other in (copy.deepcopy(mine), pickle.loads(pickle.dumps(mine))):
        assert torch.equal(other(x)[0], expected) and "_assigned" not in vars(other)
    fastlstm.to_torch(mine)
    assert "_assigned" not in vars(mine)
    torch.testing.assert_close(mine(x)[0], expected, **CLOSE)
    mine._flat_weights[INDEX] = 2 * mine.weight_hh_l0
    assert torch.equal(fastlstm.convert(mine)(x)[0], expected)


@kinds
def test_parametrized_weights_and_the_list(kind: str) -> None:
    mine, theirs = (parametrizations.weight_norm(m, "weight_ih_l0") for m in pair(kind, 5, 4))
    for module in (mine, theirs):
        module._flat_weights = [getattr(module, n) for n in module._flat_weights_names]
    assert_same_module(mine, theirs, randn(6, 3, 5))


@kinds
def test_compiled_module_uses_an_entry(kind: str) -> None:
    mine, _ = pair(kind, 5, 4)
    x = randn(6, 3, 5)
    mine._flat_weights[INDEX] = randn(*mine.weight_hh_l0.shape)
    compiled = torch.compile(mine, fullgraph=True, backend="eager")
    assert torch.equal(compiled(x)[0], mine(x)[0])


def test_what_the_list_refuses() -> None:
    rnn = build(fastlstm, "GRU", 5, 4)
    with pytest.raises(ValueError, match="_flat_weights must have 4 entries, got 3"):
        rnn._flat_weights = rnn._flat_weights[:3]
    with pytest.raises(ValueError, match="_flat_weights must have 4 entries, got 5"):
        rnn._flat_weights[1:2] = [rnn.weight_hh_l0] * 2
    for name, args in (("append", (None,)), ("pop", ()), ("clear", ()), ("reverse", ())):
        with pytest.raises(TypeError, match="assign to an entry"):
            getattr(rnn._flat_weights, name)(*args)
    with pytest.raises(TypeError, match="assign to an entry"):
        rnn._flat_weights += [None]
    with pytest.raises(TypeError, match="assign to an entry"):
        del rnn._flat_weights[0]
    rnn._flat_weights[INDEX] = None
    with pytest.raises(TypeError, match="w_hh must be a Tensor, got NoneType"):
        rnn(torch.zeros(2, 3, 5))
    assert type(copy.deepcopy(rnn._flat_weights)) is list
