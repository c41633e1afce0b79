"""Text from a model, one character at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..common.errors import UserError
from ..common.machine import one_thread
from .model import CharLM, State

READ_AT_ONCE = 256


@dataclass(frozen=True)
class SamplingOptions:
    """``top_k`` 0 and ``top_p`` 1 keep every character; ``greedy`` ignores the rest."""

    temperature: float = 0.8
    top_k: int = 0
    top_p: float = 1.0
    greedy: bool = False

    def __post_init__(self) -> None:
        if not self.temperature >= 0 or self.temperature == float("inf"):
            raise UserError(f"--temperature must be at least 0, got {self.temperature}")
        if self.top_k < 0:
            raise UserError(f"--top-k must be at least 0, got {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise UserError(f"--top-p must be above 0 and at most 1, got {self.top_p}")

    @property
    def takes_best(self) -> bool:
        """Temperature 0 is the limit of ever sharper distributions: the most likely character."""
        return self.greedy or self.temperature == 0


def probabilities(logits: Tensor, options: SamplingOptions) -> Tensor:
    """The distribution drawn from, [V], of logits [V]: temperature, then top-k, then top-p.

    top-k keeps the k most likely; top-p the fewest most likely whose probabilities sum to at least
    p, never none. What is kept is scaled to sum to 1.
    """
    # The largest logit is taken off first, so that a tiny temperature cannot overflow.
    probs = torch.softmax((logits - logits.max()) / options.temperature, dim=-1)
    if 0 < options.top_k < probs.numel():
        values, indices = probs.topk(options.top_k)
        probs = torch.zeros_like(probs).scatter_(0, indices, values / values.sum())
    if options.top_p < 1:
        values, indices = probs.sort(descending=True, stable=True)
        before = values.cumsum(0) - values
        values = torch.where(before < options.top_p, values, 0.0)
        probs = torch.zeros_like(probs).scatter_(0, indices, values / values.sum())
    return probs


class Sampler:
    """Draws characters and keeps the state between calls: 2 x 100 characters equal 1 x 200.

    ``read`` must have been given at least one token before ``generate``.
    """

    def __init__(self, model: CharLM, options: SamplingOptions, generator: torch.Generator) -> None:
        self.model = model.eval()
        self.options = options
        self.generator = generator
        self._state: State | None = None
        self._logits: Tensor | None = None

    @torch.inference_mode()
    def read(self, ids: Tensor) -> None:
        """Takes ``ids`` (1-d) as the text so far."""
        tokens = ids.long().unsqueeze(1).to(self.model.head.weight.device)
        for window in tokens.split(READ_AT_ONCE):
            logits, self._state = self.model(window, self._state)
            self._logits = logits[-1, 0]

    @torch.inference_mode()
    def generate(self, length: int) -> Iterator[int]:
        """Yields ``length`` token ids."""
        if self._logits is None:
            raise ValueError("read() some text before generate()")
        for _ in range(length):
            token = self._draw(self._logits)
            logits, self._state = self.model(token.view(1, 1), self._state)
            self._logits = logits[0, 0]
            yield token.item()

    def _draw(self, logits: Tensor) -> Tensor:
        if self.options.takes_best:
            return logits.argmax()
        probs = probabilities(logits, self.options)
        # Drawn on the CPU, where the generator is, so that a seed means the same everywhere.
        return torch.multinomial(probs.cpu(), 1, generator=self.generator).to(logits.device)


def sample(
    model: CharLM, prime: Tensor, length: int, options: SamplingOptions, seed: int
) -> list[int]:
    """``length`` token ids after ``prime``; leaves the model's mode as it was."""
    was_training = model.training
    sampler = Sampler(model, options, torch.Generator().manual_seed(seed))
    with one_thread():
        sampler.read(prime)
        tokens = list(sampler.generate(length))
    model.train(was_training)
    return tokens
