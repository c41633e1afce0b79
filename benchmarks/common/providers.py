"""The cells that can be measured, and who provides them: one row in a registry each."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor, nn

# Of each public cell of the library: the name that kernels have for it, gates, and whether it has a
# c. Not from the library itself, of which gpu/check.py is run to make the build; a test compares.
KINDS = (("LSTM", 4, True), ("GRU", 3, False), ("RNN_TANH", 1, False), ("RNN_RELU", 1, False))


@dataclass(frozen=True)
class Cell:
    """A recurrent cell: its class in torch.nn and in fastlstm, its gates and its states.

    mode: the name that kernels have for it. options: what the constructor is given besides sizes.
    """

    name: str
    module: str
    mode: str
    gates: int
    states: tuple[str, ...]
    options: Mapping[str, object] = field(default_factory=dict)


def make_cell(mode: str, gates: int, has_c: bool) -> Cell:
    module, _, nonlinearity = mode.partition("_")
    name = module if nonlinearity in ("", "TANH") else mode
    options = {"nonlinearity": nonlinearity.lower()} if nonlinearity else {}
    return Cell(name.lower(), module, mode, gates, ("h", "c") if has_c else ("h",), options)


CELLS: dict[str, Cell] = {cell.name: cell for cell in (make_cell(*kind) for kind in KINDS)}

# The modules of a single step: LSTMCell as "lstm_cell", and so on.
STEPS: dict[str, Cell] = {
    f"{name}_cell": replace(cell, name=f"{name}_cell", module=f"{cell.module}Cell")
    for name, cell in CELLS.items()
}


@dataclass(frozen=True)
class Provider:
    """`make(cell, input_size, hidden_size)` builds a module that is called, forward and backward,
    inside `context`; ImportError where the provider is not installed."""

    name: str
    make: Callable[[Cell, int, int], nn.Module]
    context: Callable[[], AbstractContextManager] = nullcontext


def make_torch(cell: Cell, input_size: int, hidden_size: int) -> nn.Module:
    return getattr(nn, cell.module)(input_size, hidden_size, **cell.options)


def make_fastlstm(cell: Cell, input_size: int, hidden_size: int) -> nn.Module:
    import fastlstm

    return getattr(fastlstm, cell.module)(input_size, hidden_size, **cell.options)


class ReferenceLayer(nn.Module):
    """fastlstm's plain PyTorch loop over the parameters of a torch.nn layer."""

    def __init__(self, cell: Cell, input_size: int, hidden_size: int) -> None:
        super().__init__()
        from fastlstm import reference

        self._loop = partial(getattr(reference, cell.module.lower()), **cell.options)
        for name, parameter in make_torch(cell, input_size, hidden_size).named_parameters():
            self.register_parameter(name, parameter)

    def forward(self, input: Tensor, hx: object = None) -> object:
        weights = (self.weight_ih_l0, self.weight_hh_l0, self.bias_ih_l0, self.bias_hh_l0)
        return self._loop(input, hx, [weights])


@contextlib.contextmanager
def libraries_off() -> Iterator[None]:
    """torch's own loop over time in place of the fused layer of oneDNN or cuDNN.

    Not torch.backends.mkldnn.flags(): it also touches a TF32 switch, and warns on every use.
    """
    backends = (torch.backends.mkldnn, torch.backends.cudnn)
    were_enabled = [backend.enabled for backend in backends]
    for backend in backends:
        backend.enabled = False
    try:
        yield
    finally:
        for backend, was_enabled in zip(backends, were_enabled, strict=True):
            backend.enabled = was_enabled


PROVIDERS: dict[str, Provider] = {
    provider.name: provider
    for provider in (
        Provider("torch", make_torch),
        Provider("torch-native", make_torch, context=libraries_off),
        Provider("fastlstm", make_fastlstm),
        Provider("reference", ReferenceLayer),
    )
}


def why_missing(provider: Provider, cell: Cell, device: str = "cpu") -> str | None:
    """One line that says why `provider` has no such module on `device`; None where it has one."""
    try:
        module = provider.make(cell, 1, 1)
        if device != "cpu":
            # Whether there are kernels for it shows at a call only.
            module.to(device)(torch.zeros(1, 1, 1, device=device))
    except (ImportError, AttributeError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        return f"{provider.name} cannot provide {cell.name} on {device}: {reason}"
    return None
