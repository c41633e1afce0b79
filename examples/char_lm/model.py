"""The model: tokens -> embedding or one-hot -> LSTM, GRU or RNN -> logits."""

from __future__ import annotations

from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..common.errors import UserError
from .config import Config

State = tuple[Tensor, ...]  # LSTM: h, c; GRU and RNN: h; each [layers, N, H]


class CharLM(nn.Module):
    """Next-character model. Parameters and ``state_dict`` are the same with both backends."""

    def __init__(self, vocab_size: int, config: Config) -> None:
        super().__init__()
        self.vocab_size = vocab_size
        self.backend = config.backend
        width = config.embedding
        self.embedding = nn.Embedding(vocab_size, width) if width else None
        self.rnn = _make_rnn(width or vocab_size, config)
        self.dropout = nn.Dropout(config.dropout)
        self.head = nn.Linear(config.hidden, vocab_size)

    def forward(self, tokens: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Logits [T, N, V] of the character after each of ``tokens`` (int64 [T, N]), new state."""
        # Only the LSTM takes and returns a pair; here a state is a tuple for every cell.
        hx = state[0] if state is not None and len(state) == 1 else state
        if self.backend == "fastlstm":
            # Token ids go to the layer as they are: it reads rows of W_ih, or of the table projected
            # by W_ih once, and never multiplies by one-hot vectors.
            table = None if self.embedding is None else self.embedding.weight
            options = {} if table is None else {"embedding": table}
            output, hx = self.rnn(tokens, hx, **options)
        else:
            output, hx = self.rnn(self._vectors(tokens), hx)
        state = (hx,) if isinstance(hx, Tensor) else hx
        return self.head(self.dropout(output)), state

    def _vectors(self, tokens: Tensor) -> Tensor:
        if self.embedding is not None:
            return self.embedding(tokens)
        return F.one_hot(tokens, self.vocab_size).to(self.head.weight.dtype)


def _make_rnn(input_size: int, config: Config) -> nn.Module:
    # Dropout is between layers only; with one layer there is no between.
    options = {"dropout": config.dropout if config.layers > 1 else 0.0}
    if config.cell == "lstm" and config.backend == "fastlstm":
        options["forget_bias"] = config.forget_bias
    rnn_class = getattr(_package(config.backend), config.cell.upper())
    rnn = rnn_class(input_size, config.hidden, config.layers, **options)
    if config.cell == "lstm" and config.backend == "torch":
        _set_forget_bias(rnn, config.forget_bias)
    return rnn


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
def _set_forget_bias(lstm: nn.LSTM, value: float) -> None:
    """What ``fastlstm.LSTM(forget_bias=value)`` does: gates are stacked i, f, g, o."""
    forget = slice(lstm.hidden_size, 2 * lstm.hidden_size)
    for layer in range(lstm.num_layers):
        getattr(lstm, f"bias_ih_l{layer}")[forget] = value
        getattr(lstm, f"bias_hh_l{layer}")[forget] = 0.0
