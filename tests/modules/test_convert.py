"""convert, to_torch and patch_torch: recurrent modules exchanged in models and in torch.nn."""

import copy
import io
import pickle
import threading

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

import fastlstm
from fastlstm.convert import TorchPatch

NAMES = ("LSTM", "GRU", "RNN", "LSTMCell", "GRUCell", "RNNCell")
TORCHS = {name: getattr(torch.nn, name) for name in NAMES}

# A constructor of torch.nn each, with what its options can do to the state of a module.
MODULES = {
    "LSTM": lambda: nn.LSTM(5, 4),
    "LSTM-deep": lambda: nn.LSTM(5, 4, 2, batch_first=True, dropout=0.3, bidirectional=True),
    "LSTM-nobias": lambda: nn.LSTM(5, 4, bias=False),
    "LSTM-proj": lambda: nn.LSTM(5, 4, 2, proj_size=3),
    "GRU": lambda: nn.GRU(5, 4, 2, bidirectional=True),
    "RNN": lambda: nn.RNN(5, 4, 2),
    "RNN-relu": lambda: nn.RNN(5, 4, nonlinearity="relu", bias=False),
    "LSTMCell": lambda: nn.LSTMCell(5, 4),
    "GRUCell": lambda: nn.GRUCell(5, 4, bias=False),
    "RNNCell": lambda: nn.RNNCell(5, 4),
    "RNNCell-relu": lambda: nn.RNNCell(5, 4, nonlinearity="relu"),
}
modules = pytest.mark.parametrize("make", MODULES.values(), ids=MODULES)


def flat(value) -> list[Tensor]:
    return [value] if isinstance(value, Tensor) else [t for v in value for t in flat(v)]


def results_and_grads(module: nn.Module) -> list[Tensor]:
    """Outputs, and the gradients of the input and the parameters; masks from seed 5."""
    g = torch.Generator().manual_seed(4)
    shape = (6, 5) if isinstance(module, nn.RNNCellBase) else (6, 3, 5)
    x = torch.randn(shape, generator=g, dtype=torch.float64).requires_grad_()
    torch.manual_seed(5)
    results = flat(module(x))
    wanted = [x, *module.parameters()]
    total = sum((r * torch.randn(r.shape, generator=g)).sum() for r in results)
    return [*(r.detach() for r in results), *torch.autograd.grad(total, wanted)]


def assert_close(found: list[Tensor], expected: list[Tensor]) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-12)


def is_ours(module: nn.Module) -> bool:
    return type(module) is getattr(fastlstm, type(module).__name__)


@modules
def test_there_and_back(make) -> None:
    theirs = make().double()
    text, names = repr(theirs), list(theirs.state_dict())
    parameters, expected = list(theirs.parameters()), results_and_grads(theirs)
    module = theirs
    assert fastlstm.convert(module) is module and is_ours(module)
    assert repr(module) == text and list(module.state_dict()) == names
    assert all(p is q for p, q in zip(module.parameters(), parameters, strict=True))
    assert_close(results_and_grads(module), expected)
    for again in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert is_ours(again)
        assert_close(results_and_grads(again), expected)
    module.float().double()
    assert_close(results_and_grads(module), results_and_grads(make_like(module)))

    assert fastlstm.to_torch(module) is module
    assert type(module) is TORCHS[type(module).__name__]
    assert repr(module) == text and list(module.state_dict()) == names
    assert all(p is q for p, q in zip(module.parameters(), parameters, strict=True))
    again = pickle.loads(pickle.dumps(module))
    assert_close(results_and_grads(again), results_and_grads(module))
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(2)
    assert_close(results_and_grads(module.float().double()), results_and_grads(module))


def make_like(module: nn.Module) -> nn.Module:
    """A module of torch.nn, never converted, with the weights of ``module``."""
    return fastlstm.to_torch(copy.deepcopy(module))


def test_what_fastlstm_adds_survives_the_way_there_and_back() -> None:
    lstm = fastlstm.LSTM(5, 4, forget_bias=2.0)
    text = repr(lstm)
    assert type(fastlstm.to_torch(lstm)) is nn.LSTM
    fastlstm.convert(lstm).reset_parameters()
    assert repr(lstm) == text and lstm.bias_ih_l0[4:8].eq(2).all()
    fastlstm.convert(nn.LSTM(5, 4)).reset_parameters()


class Tagger(nn.Module):
    """Recurrent modules at every depth, one of them in two places."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.LSTM(5, 4, batch_first=True, bidirectional=True)
        self.middle = nn.Sequential(nn.Linear(8, 8), nn.ModuleDict({"gru": nn.GRU(8, 8)}))
        self.cells = nn.ModuleList([nn.GRUCell(8, 8), nn.LSTMCell(8, 8), nn.RNNCell(8, 8)])
        self.shared = self.middle[1]["gru"]
        self.plain = [nn.RNN(8, 8)]
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.middle[0](self.first(x)[0])
        y = self.shared(self.middle[1]["gru"](y)[0])[0]
        h = self.cells[0](y[:, -1])
        h, _ = self.cells[1](h)
        return self.head(self.cells[2](h))


def test_a_whole_model_while_it_is_trained() -> None:
    """The optimizer, made before, goes on with the same moments."""
    losses = []
    for change in (lambda model: model, fastlstm.convert):
        torch.manual_seed(1)
        model = Tagger().double()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
        x, y = torch.randn(6, 7, 5, dtype=torch.float64), torch.randint(2, (6,))
        losses.append([])
        for step in range(8):
            model = change(model) if step == 3 else model
            loss = nn.functional.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses[-1].append(loss.item())
    assert losses[1] == pytest.approx(losses[0], rel=1e-9) and losses[0][-1] < losses[0][0]
    found = [m for m in model.modules() if isinstance(m, (nn.RNNBase, nn.RNNCellBase))]
    assert len(found) == 5 and all(map(is_ours, found))
    assert model.shared is model.middle[1]["gru"]
    assert type(model.plain[0]) is nn.RNN, "not registered, so not part of the model"
    fastlstm.to_torch(model)
    assert not any(map(is_ours, found)) and model.shared is model.middle[1]["gru"]


def test_flags_hooks_and_attributes_stay() -> None:
    lstm = nn.LSTM(5, 4, 2, dropout=0.5).double().eval()
    lstm.weight_hh_l1.requires_grad_(False)
    lstm.note = "mine"
    calls = []
    handles = [
        lstm.register_forward_pre_hook(lambda *_: calls.append("pre")),
        lstm.register_forward_hook(lambda *_: calls.append("forward")),
        lstm.register_full_backward_hook(lambda *_: calls.append("backward")),
        lstm.register_state_dict_post_hook(lambda *_: calls.append("state_dict")),
        lstm.weight_ih_l0.register_hook(lambda grad: calls.append("weight")),
    ]
    parent = nn.ModuleDict({"a": lstm})
    fastlstm.convert(parent)
    assert parent["a"] is lstm and is_ours(lstm)
    assert lstm.note == "mine" and not lstm.training and not lstm.weight_hh_l1.requires_grad
    lstm.state_dict()
    lstm(torch.randn(6, 3, 5, dtype=torch.float64).requires_grad_())[0].sum().backward()
    assert sorted(calls) == ["backward", "forward", "pre", "state_dict", "weight"]
    for handle in handles:
        handle.remove()
    calls.clear()
    lstm(torch.randn(6, 3, 5, dtype=torch.float64))[0].sum().backward()
    assert calls == []


def test_tied_parameters_stay_tied() -> None:
    model = nn.Sequential(nn.GRU(5, 4), nn.GRU(5, 4))
    model[1].weight_hh_l0 = model[0].weight_hh_l0
    model[0].bias_hh_l0 = model[0].bias_ih_l0
    fastlstm.convert(model)
    assert model[1].weight_hh_l0 is model[0].weight_hh_l0
    assert model[0].bias_hh_l0 is model[0].bias_ih_l0 and len(list(model.parameters())) == 6


class Doubled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


def old_weight_norm(module: nn.Module, name: str) -> None:
    with pytest.warns(FutureWarning, match="weight_norm"):
        nn.utils.weight_norm(module, name)


@pytest.mark.parametrize("direction", ["convert", "to_torch"])
@pytest.mark.parametrize("kind", NAMES)
@pytest.mark.parametrize(
    "norm",
    [
        parametrizations.weight_norm,
        old_weight_norm,
        lambda module, name: parametrize.register_parametrization(module, name, Doubled()),
    ],
    ids=["weight_norm", "old_weight_norm", "parametrize"],
)
def test_parametrized(norm, kind: str, direction: str) -> None:
    namespace = nn if direction == "convert" else fastlstm
    module = getattr(namespace, kind)(5, 4).double()
    name = "weight_hh" if kind.endswith("Cell") else "weight_hh_l0"
    norm(module, name)
    # torch can copy neither what the old weight_norm nor what a call leaves in its own modules.
    copied = None if norm is old_weight_norm else copy.deepcopy(module)
    text, expected, names = repr(module), results_and_grads(module), list(module.state_dict())
    getattr(fastlstm, direction)(module)
    target = getattr(fastlstm if direction == "convert" else nn, kind)
    assert isinstance(module, target)
    assert repr(module) == text and list(module.state_dict()) == names
    assert_close(results_and_grads(module), expected)
    if copied is not None:
        assert not isinstance(copied, target), "the class that copies share is not changed"
        assert_close(results_and_grads(copied), expected)
        assert_close(results_and_grads(getattr(fastlstm, direction)(copied)), expected)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(1.5)
    assert not torch.allclose(results_and_grads(module)[0], expected[0])
    if norm is not old_weight_norm:
        parametrize.remove_parametrizations(module, name)
        assert type(module) is target and name in module._parameters


def test_subclasses_are_left_alone() -> None:
    class Louder(nn.LSTM):
        def forward(self, input, hx=None):
            output, state = super().forward(input, hx)
            return 2 * output, state

    class Quieter(fastlstm.LSTM):
        pass

    louder, quieter = Louder(5, 4), Quieter(5, 4)
    model = nn.Sequential(louder, quieter, parametrizations.weight_norm(Louder(5, 4), "bias_ih_l0"))
    classes = [type(m) for m in model]
    fastlstm.convert(model)
    fastlstm.to_torch(model)
    assert [type(m) for m in model] == classes


def test_nothing_to_do() -> None:
    model = nn.Linear(3, 3)
    assert fastlstm.convert(model) is model and fastlstm.to_torch(model) is model
    lstm = fastlstm.LSTM(5, 4)
    assert fastlstm.convert(lstm) is lstm and type(lstm) is fastlstm.LSTM
    for function in (fastlstm.convert, fastlstm.to_torch):
        with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, got dict"):
            function({"lstm": lstm})


def test_meta_and_frozen_weights() -> None:
    with torch.device("meta"):
        model = fastlstm.convert(nn.Sequential(nn.LSTM(5, 4, 2)))
    assert all(p.is_meta for p in model.parameters())
    model.to_empty(device="cpu").requires_grad_(False)
    assert not any(p.requires_grad for p in fastlstm.to_torch(model).parameters())


class Caller(nn.Module):
    """TorchScript can call nn.LSTM, but not compile one by itself."""

    def __init__(self, called: nn.Module) -> None:
        super().__init__()
        self.called = called

    def forward(self, x: Tensor):
        return self.called(x)


@modules
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_torchscript_after_to_torch(make) -> None:
    """TorchScript is one of those that know torch.nn's classes only."""
    model = fastlstm.convert(Caller(make().double().eval()))
    x = torch.randn(6, 5, dtype=torch.float64)
    x = x if isinstance(model.called, nn.RNNCellBase) else x.unsqueeze(1)
    expected = flat(model(x))
    scripted = torch.jit.script(fastlstm.to_torch(model))
    assert_close(flat(scripted(x)), expected)


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_dynamic_quantisation_after_to_torch() -> None:
    model = fastlstm.convert(nn.Sequential(nn.LSTM(16, 16)).eval())
    x = torch.randn(6, 3, 16)
    with pytest.warns(DeprecationWarning):
        quantized = torch.ao.quantization.quantize_dynamic(
            fastlstm.to_torch(copy.deepcopy(model)), {nn.LSTM}, dtype=torch.qint8
        )
    assert "quantized" in type(quantized[0]).__module__
    torch.testing.assert_close(quantized(x)[0], model(x)[0], rtol=0.1, atol=0.02)


def in_torch() -> set[str]:
    """Which names of torch.nn are fastlstm's now."""
    namespaces = (torch.nn, torch.nn.modules, torch.nn.modules.rnn)
    for name in NAMES:
        assert len({getattr(n, name) for n in namespaces}) == 1
        assert getattr(torch.nn, name) in (TORCHS[name], getattr(fastlstm, name))
    return {name for name in NAMES if getattr(torch.nn, name) is getattr(fastlstm, name)}


def test_patch_as_a_block() -> None:
    with fastlstm.patch_torch() as patch:
        assert in_torch() == set(NAMES)
        from torch.nn import GRU

        assert GRU is fastlstm.GRU
        model = Tagger()
        assert isinstance(model.first, nn.LSTM)

        class Own(nn.LSTM):
            pass

    assert in_torch() == set()
    assert isinstance(patch, TorchPatch)
    assert is_ours(model.first) and is_ours(model.cells[0]) and issubclass(Own, fastlstm.LSTM)
    assert not isinstance(model.first, nn.LSTM) and type(nn.LSTM(5, 4)) is TORCHS["LSTM"]
    assert model.double()(torch.randn(6, 7, 5, dtype=torch.float64)).shape == (6, 2)


def test_patch_without_a_block_and_after_an_error() -> None:
    patch = fastlstm.patch_torch()
    assert in_torch() == set(NAMES)
    patch.undo()
    patch.undo()
    assert in_torch() == set()
    with pytest.raises(KeyError), fastlstm.patch_torch():
        raise KeyError
    assert in_torch() == set()


@pytest.mark.parametrize("order", [(0, 1), (1, 0)], ids=["first_first", "last_first"])
def test_patches_overlap(order: tuple[int, int]) -> None:
    patches = [fastlstm.patch_torch(), fastlstm.patch_torch()]
    patches[order[0]].undo()
    patches[order[0]].undo()
    assert in_torch() == set(NAMES)
    patches[order[1]].undo()
    assert in_torch() == set()


def test_patch_restores_what_it_found(monkeypatch: pytest.MonkeyPatch) -> None:
    class Mine(nn.GRU):
        pass

    monkeypatch.setattr(torch.nn, "GRU", Mine)
    with fastlstm.patch_torch() as patch:
        assert torch.nn.GRU is fastlstm.GRU
    assert torch.nn.GRU is Mine and torch.nn.modules.GRU is TORCHS["GRU"]
    monkeypatch.setattr(torch.nn, "GRU", TORCHS["GRU"])
    patch.undo()
    assert torch.nn.GRU is TORCHS["GRU"], "undone before"


def test_patch_holds_for_every_thread() -> None:
    seen = []
    with fastlstm.patch_torch():
        thread = threading.Thread(target=lambda: seen.append(in_torch()))
        thread.start()
        thread.join(timeout=30)
    assert seen == [set(NAMES)]

    def nest() -> None:
        for _ in range(200):
            with fastlstm.patch_torch(), fastlstm.patch_torch():
                in_torch()

    threads = [threading.Thread(target=nest) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert in_torch() == set()


def test_a_model_pickled_whole_is_loaded_with_the_classes_in_force() -> None:
    theirs = Tagger().double()
    saved = io.BytesIO()
    torch.save(theirs, saved)
    saved.seek(0)
    with fastlstm.patch_torch():
        mine = torch.load(saved, weights_only=False)
    assert is_ours(mine.first) and is_ours(mine.cells[1])
    x = torch.randn(6, 7, 5, dtype=torch.float64)
    torch.testing.assert_close(mine(x), theirs(x), rtol=1e-11, atol=1e-12)
