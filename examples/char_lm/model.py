"""The model: tokens -> embedding or one-hot -> LSTM, GRU or RNN -> logits."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from ..common.layers import make_rnn
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
        self.rnn = make_rnn(
            config.backend,
            config.cell,
            width or vocab_size,
            config.hidden,
            layers=config.layers,
            dropout=config.dropout,
            forget_bias=config.forget_bias,
        )
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
