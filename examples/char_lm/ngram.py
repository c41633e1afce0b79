"""The baseline to beat: interpolated Witten-Bell n-grams, counted with numpy.

    p(w | h) = (count(h w) + kinds(h) * p(w | h')) / (count(h) + kinds(h))

h' is h without its first character, kinds(h) is how many different characters follow h in the
training text, and p(w | no context at all) starts from the uniform 1 / V. A context that never
occurred leaves the shorter one's probability as it is.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Baseline:
    """Nats per character on the validation text, by order (1: unigram)."""

    uniform: float
    orders: dict[int, float]
    train_chars: int
    val_chars: int

    @property
    def best_order(self) -> int:
        return min(self.orders, key=self.orders.__getitem__)

    @property
    def best(self) -> float:
        return self.orders[self.best_order]

    def describe(self) -> str:
        levels = {"uniform": self.uniform, f"{self.best_order}-gram": self.best}
        shown = [
            f"{name} {nats:.3f} nats ({nats / math.log(2):.3f} bits)"
            for name, nats in levels.items()
        ]
        counted = f"counted on {self.train_chars:,} characters, scored on {self.val_chars:,}"
        return f"{', '.join(shown)}; {counted}"

    def to_dict(self) -> dict[str, Any]:
        """Plain values, the best order spelled out."""
        values = dataclasses.asdict(self)
        return {**values, "best_order": self.best_order, "best": self.best}

    @staticmethod
    def from_dict(values: dict[str, Any] | None) -> Baseline | None:
        if values is None:
            return None
        return Baseline(**{f.name: values[f.name] for f in dataclasses.fields(Baseline)})


def ngram_baseline(
    train: np.ndarray, val: np.ndarray, vocab_size: int, max_order: int = 6
) -> Baseline:
    """Counts ``train``, scores every token of ``val`` (which follows it) under each order."""
    orders = {}
    for order, probability in ngram_probabilities(train, val, vocab_size, max_order).items():
        orders[order] = float(-np.log(probability).mean())
    return Baseline(math.log(vocab_size), orders, len(train), len(val))


def ngram_probabilities(
    train: np.ndarray, val: np.ndarray, vocab_size: int, max_order: int = 6
) -> dict[int, np.ndarray]:
    """For each order from 1, the probability of each token of ``val`` given those before it."""
    tokens = np.concatenate([train, val]).astype(np.int64)
    cut = len(train)
    probability = np.full(len(val), 1.0 / vocab_size)
    by_order: dict[int, np.ndarray] = {}
    # gram[i] numbers the n-gram that ends at i among all n-grams of the text; a context is the
    # (n-1)-gram that ends one earlier. Renumbering at each order keeps the keys below 2^63.
    context = np.zeros(len(tokens), dtype=np.int64)
    for order in range(1, min(max_order, cut) + 1):
        first = order - 1  # the first position with a whole n-gram behind it
        keys = context[first:] * vocab_size + tokens[first:]
        grams, gram = np.unique(keys, return_inverse=True)
        in_train, in_val = gram[: cut - first], gram[cut - first :]
        count = np.bincount(in_train, minlength=len(grams))
        context_of = grams // vocab_size
        contexts = int(context.max()) + 1
        total = np.bincount(context_of, weights=count, minlength=contexts)
        kinds = np.bincount(context_of[count > 0], minlength=contexts)
        seen = context[cut:]
        weight = total[seen] + kinds[seen]
        mixed = (count[in_val] + kinds[seen] * probability) / np.maximum(weight, 1)
        probability = np.where(weight > 0, mixed, probability)
        by_order[order] = probability
        context = np.concatenate([np.zeros(first + 1, dtype=np.int64), gram[:-1]])
    return by_order
