"""The recurrent half: word after word, from an image vector or with attention to a grid.

T: steps, N: captions, V: words, E: width of a word's vector, H: units, L: locations, F: features.
Words go in by their number in the vocabulary; out come logits of the V - END numbers from END on,
since a caption never goes on with PAD or START. Both decoders have the same four methods.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from ..common.layers import make_cell, make_rnn
from .attention import ATTENTIONS
from .config import Config
from .vocabulary import END


@dataclass(frozen=True)
class Memory:
    """What a decoder knows between two steps: row n is that of caption n in every tensor.

    ``state`` changes from step to step, ``image`` belongs to the picture.
    """

    state: tuple[Tensor, ...]
    image: tuple[Tensor, ...]

    def repeat(self, times: int) -> Memory:
        """Each row ``times`` times in succession."""
        return Memory(
            tuple(t.repeat_interleave(times, 0) for t in self.state),
            tuple(t.repeat_interleave(times, 0) for t in self.image),
        )

    def select(self, rows: Tensor) -> Memory:
        """The states of ``rows`` (int64 [N]), each of which must belong to the same picture as
        the row whose place it takes."""
        return Memory(tuple(t[rows] for t in self.state), self.image)


class VectorDecoder(nn.Module):
    """Sees the image as one vector [N, image_width], in one of four ways (``config.inject``).

    ``add``: through a weight of its own, on top of the first word (START); ``every``: on top of
    every word; ``token``: as a word before START (Vinyals et al. 2015); ``h0``: as the initial
    hidden state (CS231n). Training takes one call of the recurrent layer for the whole caption.
    """

    def __init__(self, vocab_size: int, image_width: int, config: Config) -> None:
        super().__init__()
        self.inject, self.backend = config.inject, config.backend
        # torch.nn's layer only. Padded rows are more steps, but on the CPU faster than packed ones.
        self.packed = False
        self.embedding = nn.Embedding(vocab_size, config.embedding)
        target = config.hidden if config.inject == "h0" else config.embedding
        self.image = nn.Linear(image_width, target)
        self.rnn = make_rnn(
            config.backend,
            config.cell,
            config.embedding,
            config.hidden,
            forget_bias=config.forget_bias,
        )
        self.has_c = config.cell == "lstm"
        self.dropout = nn.Dropout(config.dropout)
        self.head = nn.Linear(config.hidden, vocab_size - END)

    def forward(self, image: Tensor, tokens: Tensor, lengths: Tensor) -> tuple[Tensor, None]:
        """Hidden states [T, N, H] after each of ``tokens`` [T, N], for the head, and no attention.

        Row n has lengths[n] words; what comes after them is not to be used.
        """
        seen = self.image(image)
        if self.inject == "h0":
            return self._run(tokens, self.embedding.weight, lengths, self._state_of(seen)), None
        if self.inject == "every":
            return self._run_vectors(self.embedding(tokens) + seen, lengths), None
        # A row of the table for each image: the layer projects the table, not T * N vectors.
        vocab_size = self.embedding.num_embeddings
        rows = vocab_size + torch.arange(tokens.size(1), device=tokens.device)
        if self.inject == "token":
            table = torch.cat([self.embedding.weight, seen])
            steps = torch.cat([rows.unsqueeze(0), tokens])
            return self._run(steps, table, lengths + 1)[1:], None
        table = torch.cat([self.embedding.weight, self.embedding(tokens[0]) + seen])
        return self._run(torch.cat([rows.unsqueeze(0), tokens[1:]]), table, lengths), None

    def start(self, image: Tensor) -> Memory:
        """What is known before the first word, START, is read."""
        seen = self.image(image)
        if self.inject == "h0":
            h, c = self._split(self._state_of(seen))
            return Memory((h.squeeze(0), *(t.squeeze(0) for t in c)), ())
        h = seen.new_zeros(len(seen), self.rnn.hidden_size)
        memory = Memory((h, h) if self.has_c else (h,), ())
        if self.inject == "token":
            return self._step_on(seen, memory)[1]
        return Memory(memory.state, (seen,))

    def step(self, tokens: Tensor, memory: Memory) -> tuple[Tensor, Memory, None]:
        """Logits [N, V - END] of the words after ``tokens`` [N]."""
        x = self.embedding(tokens)
        if memory.image:
            x = x + memory.image[0]
        h, after = self._step_on(x, memory)
        image = () if self.inject == "add" else memory.image
        return self.head(h), Memory(after.state, image), None

    def _step_on(self, x: Tensor, memory: Memory) -> tuple[Tensor, Memory]:
        """One step of the layer on x [N, E]."""
        state = tuple(t.unsqueeze(0) for t in memory.state)
        output, hx = self.rnn(x.unsqueeze(0), state if self.has_c else state[0])
        h, c = self._split(hx)
        after = (h.squeeze(0), *(t.squeeze(0) for t in c))
        return output.squeeze(0), Memory(after, memory.image)

    def _state_of(self, h: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """The layer's state with this h [N, H]; c begins at zero."""
        h = h.unsqueeze(0)
        return (h, torch.zeros_like(h)) if self.has_c else h

    def _split(self, hx: Tensor | tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, ...]]:
        return (hx[0], (hx[1],)) if self.has_c else (hx, ())

    def _run(self, tokens: Tensor, table: Tensor, lengths: Tensor, hx: object = None) -> Tensor:
        """The layer on rows of ``table``."""
        if self.backend == "fastlstm":
            return self.rnn(tokens, hx, embedding=table, lengths=lengths)[0]
        return self._run_vectors(F.embedding(tokens, table), lengths, hx)

    def _run_vectors(self, x: Tensor, lengths: Tensor, hx: object = None) -> Tensor:
        if self.backend == "fastlstm":
            return self.rnn(x, hx, lengths=lengths)[0]
        if not self.packed:
            return self.rnn(x, hx)[0]
        x = pack_padded_sequence(x, lengths, enforce_sorted=False)
        return pad_packed_sequence(self.rnn(x, hx)[0])[0]


class AttendingDecoder(nn.Module):
    """Looks at the grid [N, L, F] for every word (Xu et al. 2015; the order is that of Luong et al.
    2015, section 3.3).

    The state after a word emits the question. The answer, a weighted sum of the grid, stands beside
    the state when the next word is chosen, and beside that word when it is read: that a step needs
    the one before is why training goes step by step.
    """

    def __init__(self, vocab_size: int, features: int, config: Config) -> None:
        super().__init__()
        self.features = features
        self.embedding = nn.Embedding(vocab_size, config.embedding)
        self.attention = ATTENTIONS[config.attention](features, config.hidden)
        self.cell = make_cell(
            config.backend,
            config.cell,
            config.embedding + features,
            config.hidden,
            forget_bias=config.forget_bias,
        )
        self.has_c = config.cell == "lstm"
        self.dropout = nn.Dropout(config.dropout)
        self.head = nn.Linear(config.hidden + features, vocab_size - END)

    def forward(self, grid: Tensor, tokens: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """What the head gets [T, N, H + F] after each of ``tokens`` [T, N], and the attention
        [T, N, L] in it; past lengths[n] neither is to be used."""
        memory = self.start(grid)
        outputs, weights = [], []
        for x in self.embedding(tokens).unbind(0):
            memory, seen = self._step_on(x, memory)
            outputs.append(self._output(memory))
            weights.append(seen)
        return torch.stack(outputs), torch.stack(weights)

    def start(self, grid: Tensor) -> Memory:
        """What is known before the first word, START, is read."""
        seen = grid.new_zeros(len(grid), self.features)
        h = grid.new_zeros(len(grid), self.cell.hidden_size)
        return Memory((seen, h, h) if self.has_c else (seen, h), self.attention.prepare(grid))

    def step(self, tokens: Tensor, memory: Memory) -> tuple[Tensor, Memory, Tensor]:
        """Logits [N, V - END] of the words after ``tokens`` [N], and the attention [N, L] they were
        chosen with."""
        memory, weights = self._step_on(self.embedding(tokens), memory)
        return self.head(self._output(memory)), memory, weights

    def _output(self, memory: Memory) -> Tensor:
        seen, h, *_ = memory.state
        return torch.cat([h, seen], 1)

    def _step_on(self, x: Tensor, memory: Memory) -> tuple[Memory, Tensor]:
        seen, *state = memory.state
        x = torch.cat([x, seen], 1)
        state = self.cell(x, tuple(state)) if self.has_c else (self.cell(x, state[0]),)
        seen, weights = self.attention(memory.image, state[0])
        return Memory((seen, *state), memory.image), weights
