"""What programs do with their modules: fastlstm's in the place of torch.nn's, kind by kind.

The same treatment is given to a module of either package, and the two have to agree afterwards.
"""

import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from foreign_models import MODELS, waves
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

import fastlstm

KINDS: dict[str, dict] = {
    "LSTM": {"num_layers": 2, "proj_size": 3},
    "GRU": {"num_layers": 2, "bidirectional": True},
    "RNN": {"num_layers": 2},
    "RNN-relu": {"nonlinearity": "relu", "batch_first": True},
    "LSTMCell": {},
    "GRUCell": {},
    "RNNCell": {},
    "RNNCell-relu": {"nonlinearity": "relu"},
}
kinds = pytest.mark.parametrize("kind", KINDS)
cells = pytest.mark.parametrize("kind", [kind for kind in KINDS if "Cell" in kind])


def randn(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def flat(value) -> list[Tensor]:
    return [value] if isinstance(value, Tensor) else [t for v in value for t in flat(v)]


def pair(kind: str) -> tuple[nn.Module, nn.Module]:
    """Ours and torch's, with the same weights, in float64."""
    theirs = getattr(nn, kind.partition("-")[0])(5, 4, **KINDS[kind], dtype=torch.float64)
    mine = getattr(fastlstm, kind.partition("-")[0])(5, 4, **KINDS[kind], dtype=torch.float64)
    mine.load_state_dict(theirs.state_dict())
    return mine, theirs


def weight_name(kind: str, what: str = "weight_hh") -> str:
    return what if "Cell" in kind else f"{what}_l0"


def results_and_grads(module: nn.Module, wanted: list[Tensor] | None = None) -> list[Tensor]:
    g = torch.Generator().manual_seed(4)
    shape = (6, 5) if isinstance(module, nn.RNNCellBase) else (6, 3, 5)
    dtype = next(module.parameters()).dtype
    x = torch.randn(shape, generator=g, dtype=torch.float64).to(dtype).requires_grad_()
    torch.manual_seed(5)
    results = flat(module(x))
    wanted = [x, *(module.parameters() if wanted is None else wanted)]
    cotangents = [torch.randn(r.shape, generator=g, dtype=torch.float64).to(dtype) for r in results]
    grads = torch.autograd.grad(results, wanted, cotangents)
    return [*(r.detach() for r in results), *grads]


def assert_close(found: list[Tensor], expected: list[Tensor]) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-12)


def assert_agree(modules: tuple[nn.Module, nn.Module]) -> None:
    mine, theirs = modules
    assert_close(results_and_grads(mine), results_and_grads(theirs))


def change_weights(module: nn.Module) -> None:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(1.25)


@kinds
@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@pytest.mark.parametrize("swap", [False, True], ids=["in_place", "swap"])
def test_to_another_dtype_and_back(kind: str, swap: bool) -> None:
    """Either way that Module.to has of replacing a parameter."""
    modules = pair(kind)
    torch.__future__.set_swap_module_params_on_conversion(swap)
    try:
        for module in modules:
            results_and_grads(module)
            module.to(torch.float32)
            assert results_and_grads(module)[0].dtype == torch.float32
            module.to(torch.float64)
            change_weights(module)
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)
    assert_agree(modules)


@kinds
def test_tensors_of_a_checkpoint_become_the_weights(kind: str) -> None:
    """A large checkpoint's way in: nothing is allocated for the module before."""
    _, theirs = pair(kind)
    with torch.device("meta"):
        mine = getattr(fastlstm, kind.partition("-")[0])(5, 4, **KINDS[kind])
    state = {name: value.clone() for name, value in theirs.state_dict().items()}
    mine.load_state_dict(state, assign=True)
    assert all(p.data_ptr() == state[name].data_ptr() for name, p in mine.named_parameters())
    assert_agree((mine, theirs))


class Doubled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


def old_weight_norm(module: nn.Module, name: str) -> None:
    with pytest.warns(FutureWarning, match="weight_norm"):
        nn.utils.weight_norm(module, name)


TREATMENTS: dict[str, Callable[[nn.Module, str], object]] = {
    "old_weight_norm": old_weight_norm,
    "spectral_norm": parametrizations.spectral_norm,
    "doubled": lambda m, name: parametrize.register_parametrization(m, name, Doubled()),
    "prune": lambda m, name: prune.l1_unstructured(m, name, amount=0.5),
}


@kinds
@pytest.mark.parametrize("what", ["weight_hh", "weight_ih"])
@pytest.mark.parametrize("treatment", TREATMENTS)
def test_weights_computed_from_others(treatment: str, what: str, kind: str) -> None:
    """The weight in use is another tensor at every call, and the gradient reaches its origin."""
    modules = pair(kind)
    untreated = results_and_grads(modules[0])[0]
    for module in modules:
        torch.manual_seed(2)
        TREATMENTS[treatment](module, weight_name(kind, what))
        # While training, spectral_norm computes another weight each time somebody looks at it.
        module.eval()
    for _ in range(2):
        assert_agree(modules)
        for module in modules:
            change_weights(module)
    assert not torch.allclose(results_and_grads(modules[0])[0], untreated)


@kinds
def test_parametrizations_cached_and_removed(kind: str) -> None:
    modules = pair(kind)
    for module in modules:
        parametrizations.weight_norm(module, weight_name(kind))
    with parametrize.cached():
        assert getattr(modules[0], weight_name(kind)) is getattr(modules[0], weight_name(kind))
        assert_agree(modules)
    for module in modules:
        change_weights(module)
        parametrize.remove_parametrizations(module, weight_name(kind))
    assert type(modules[0]) is getattr(fastlstm, kind.partition("-")[0])
    assert_agree(modules)


@cells
def test_weight_deleted_and_set_as_a_plain_tensor(kind: str) -> None:
    """Weight drop, as AWD-LSTM does it."""
    modules, name = pair(kind), weight_name(kind)
    raw = getattr(modules[1], name).detach().clone().requires_grad_()
    for _ in range(2):
        mask, found = torch.rand(raw.shape) < 0.5, []
        for module in modules:
            module._parameters.pop(name, None)
            setattr(module, name, raw * mask)
            assert name not in dict(module.named_parameters())
            found.append(results_and_grads(module, [raw, *module.parameters()]))
        assert_close(*found)
        assert found[0][-1 - len(list(module.parameters()))][~mask].eq(0).all()


@cells
def test_tied_biases(kind: str) -> None:
    modules = pair(kind)
    for module in modules:
        setattr(module, weight_name(kind, "bias_hh"), getattr(module, weight_name(kind, "bias_ih")))
    assert len(list(modules[0].parameters())) == len(pair(kind)[0].state_dict()) - 1
    assert_agree(modules)


@kinds
def test_averaged_model(kind: str) -> None:
    averaged = []
    for module in pair(kind):
        average = torch.optim.swa_utils.AveragedModel(module)
        for _ in range(3):
            average.update_parameters(module)
            change_weights(module)
        averaged.append(average.module)
    assert_agree(tuple(averaged))


IN_WORKERS = """
import torch, fastlstm
from torch import nn

torch.manual_seed(0)
torch.set_num_threads(2)
modules = [fastlstm.LSTM(5, 33), fastlstm.LSTM(5, 33, 2, bidirectional=True, proj_size=7),
           fastlstm.GRU(5, 33, 2), fastlstm.RNN(5, 33), fastlstm.RNN(5, 33, nonlinearity="relu"),
           fastlstm.LSTMCell(5, 33), fastlstm.GRUCell(5, 33), fastlstm.RNNCell(5, 33)]
x = torch.randn(7, 24, 5)

def numbers(module):
    y = module(x[0] if isinstance(module, nn.RNNCellBase) else x)
    y = y if isinstance(y, torch.Tensor) else y[0]
    return [y.detach(), *torch.autograd.grad(y.square().sum(), list(module.parameters()))]

# The kernels' threads are started here, and do not survive the fork.
expected = [numbers(module) for module in modules]

class Features(torch.utils.data.Dataset):
    def __len__(self):
        return len(modules)

    def __getitem__(self, k):
        return k, all(map(torch.equal, numbers(modules[k]), expected[k]))

loader = torch.utils.data.DataLoader(
    Features(), batch_size=2, num_workers=2, multiprocessing_context="fork", timeout=60
)
for _ in range(2):
    equal = {int(k): bool(v) for ks, vs in loader for k, v in zip(ks, vs)}
    assert equal == dict.fromkeys(range(len(modules)), True), equal
    assert all(map(torch.equal, numbers(modules[0]), expected[0]))
"""


@pytest.mark.skipif(not hasattr(__import__("os"), "fork"), reason="no fork on this system")
def test_every_kind_in_the_workers_of_a_data_loader() -> None:
    command = [sys.executable, "-c", IN_WORKERS]
    result = subprocess.run(command, timeout=120, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def losses_and_grads(model: nn.Module, loss: Callable[[nn.Module], Tensor]) -> list[Tensor]:
    """The losses of a few steps of Adam, and the gradients of the last."""
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    found = []
    for step in range(4):
        torch.manual_seed(step)
        optimizer.zero_grad()
        value = loss(model)
        value.backward()
        optimizer.step()
        found.append(value.detach())
    assert found[-1] != found[0]
    return found + [p.grad for p in model.parameters()]


def assert_all_ours(model: nn.Module) -> None:
    found = [m for m in model.modules() if isinstance(m, (nn.RNNBase, nn.RNNCellBase))]
    assert found and all(type(m).__module__.startswith("fastlstm") for m in found)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.filterwarnings("ignore:dropout option adds dropout")
def test_models_not_written_for_us(name: str) -> None:
    """Converted, or built under the patch: the same losses as with torch.nn, step by step."""
    model, loss = seeded(name)
    expected = losses_and_grads(model, loss)

    converted, loss = seeded(name)
    assert_all_ours(fastlstm.convert(converted))
    torch.testing.assert_close(losses_and_grads(converted, loss), expected, rtol=1e-8, atol=1e-10)

    with fastlstm.patch_torch():
        patched, loss = seeded(name)
        found = losses_and_grads(patched, loss)
    assert_all_ours(patched)
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-10)


def seeded(name: str) -> tuple[nn.Module, Callable[[nn.Module], Tensor]]:
    torch.manual_seed(1)
    model, loss = MODELS[name]()
    return model.double(), loss


def test_lbfgs() -> None:
    """Many backward passes a step, from the optimizer's own closure."""
    losses = []
    for change in (lambda model: model, fastlstm.convert):
        torch.manual_seed(1)
        model, loss = waves()
        model = change(model.double())
        optimizer = torch.optim.LBFGS(model.parameters(), lr=0.5, max_iter=8)

        def closure(model=model, loss=loss, optimizer=optimizer) -> Tensor:
            optimizer.zero_grad()
            value = loss(model)
            value.backward()
            return value

        losses.append([optimizer.step(closure).item() for _ in range(3)])
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)
    assert losses[0][-1] < 0.8 * losses[0][0]
