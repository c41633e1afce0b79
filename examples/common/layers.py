"""The recurrent layers of either backend, built the same."""

from __future__ import annotations

from types import ModuleType

import torch
from torch import nn

from .errors import UserError


def make_rnn(
    backend: str,
    cell: str,
    input_size: int,
    hidden: int,
    *,
    layers: int = 1,
    dropout: float = 0.0,
    forget_bias: float = 1.0,
) -> nn.Module:
    """The layers ``cell`` (lstm, gru, rnn) of ``backend`` (fastlstm, torch); ``forget_bias`` is for the LSTM only.

    The same seed gives the same parameters with every backend.
    """
    # Dropout is between layers only; with one layer there is no between.
    options = {"dropout": dropout if layers > 1 else 0.0}
    rnn = getattr(_package(backend), cell.upper())(input_size, hidden, layers, **options)
    if cell == "lstm":
        for layer in range(layers):
            _set_forget_bias(getattr(rnn, f"bias_ih_l{layer}"), forget_bias)
            _set_forget_bias(getattr(rnn, f"bias_hh_l{layer}"), 0.0)
    return rnn


def make_cell(
    backend: str, cell: str, input_size: int, hidden: int, *, forget_bias: float = 1.0
) -> nn.Module:
    """One step of such a layer: LSTMCell, GRUCell or RNNCell."""
    names = {"lstm": "LSTMCell", "gru": "GRUCell", "rnn": "RNNCell"}
    step = getattr(_package(backend), names[cell])(input_size, hidden)
    if cell == "lstm":
        _set_forget_bias(step.bias_ih, forget_bias)
        _set_forget_bias(step.bias_hh, 0.0)
    return step


def _package(backend: str) -> ModuleType:
    if backend == "torch":
        return nn
    try:
        import fastlstm
    except ImportError as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"--backend fastlstm: {reason}; --backend torch works without it"
        ) from error
    return fastlstm


@torch.no_grad()
def _set_forget_bias(bias: nn.Parameter, value: float) -> None:
    """Gates are stacked i, f, g, o: the second quarter is the forget gate's."""
    gate = len(bias) // 4
    bias[gate : 2 * gate] = value
