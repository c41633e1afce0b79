"""The model: tokens -> embedding or one-hot -> LSTM -> logits."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..common.errors import UserError
from .config import Config

State = tuple[Tensor, Tensor]  # h, c: [layers, N, H]


class CharLM(nn.Module):
    """Next-character model. Parameters and ``state_dict`` are the same with both backends."""

    def __init__(self, vocab_size: int, config: Config) -> None:
        super().__init__()
        self.vocab_size = vocab_size
        self.backend = config.backend
        width = config.embedding
        self.embedding = nn.Embedding(vocab_size, width) if width else None
        self.lstm = _make_lstm(width or vocab_size, config)
        self.dropout = nn.Dropout(config.dropout)
        self.head = nn.Linear(config.hidden, vocab_size)

    def forward(self, tokens: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Logits [T, N, V] of the character after each of ``tokens`` (int64 [T, N]), new state."""
        if self.backend == "fastlstm":
            # Token ids go to the LSTM as they are: it reads rows of W_ih, or of the table projected
            # by W_ih once, and never multiplies by one-hot vectors.
            table = None if self.embedding is None else self.embedding.weight
            options = {} if table is None else {"embedding": table}
            output, state = self.lstm(tokens, state, **options)
        else:
            output, state = self.lstm(self._vectors(tokens), state)
        return self.head(self.dropout(output)), state

    def _vectors(self, tokens: Tensor) -> Tensor:
        if self.embedding is not None:
            return self.embedding(tokens)
        return F.one_hot(tokens, self.vocab_size).to(self.head.weight.dtype)


def _make_lstm(input_size: int, config: Config) -> nn.Module:
    sizes = {"input_size": input_size, "hidden_size": config.hidden, "num_layers": config.layers}
    # nn.LSTM drops out between layers only; with one layer there is no between.
    dropout = config.dropout if config.layers > 1 else 0.0
    if config.backend == "torch":
        lstm = nn.LSTM(**sizes, dropout=dropout)
        _set_forget_bias(lstm, config.forget_bias)
        return lstm
    try:
        from fastlstm import LSTM
    except ImportError as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"--backend fastlstm: {reason}; --backend torch works without it"
        ) from error
    return LSTM(**sizes, dropout=dropout, forget_bias=config.forget_bias)


@torch.no_grad()
def _set_forget_bias(lstm: nn.LSTM, value: float) -> None:
    """What ``fastlstm.LSTM(forget_bias=value)`` does: gates are stacked i, f, g, o."""
    forget = slice(lstm.hidden_size, 2 * lstm.hidden_size)
    for layer in range(lstm.num_layers):
        getattr(lstm, f"bias_ih_l{layer}")[forget] = value
        getattr(lstm, f"bias_hh_l{layer}")[forget] = 0.0
