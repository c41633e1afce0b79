"""How well a model captions pictures it has not learnt from."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch

from . import metrics
from .data import Batch, CaptionData
from .decoding import DecodingOptions, caption
from .model import Captioner
from .vocabulary import Vocabulary

BATCH = 64


@dataclass(frozen=True)
class Written:
    """One caption. ``attention`` [T, G, G] is that of its T words, or None; ``log_probability`` is
    of the caption with its end, in nats."""

    text: str
    attention: np.ndarray | None
    log_probability: float

    @property
    def words(self) -> list[str]:
        return self.text.split()


@dataclass(frozen=True)
class Evaluation:
    """``scores``: metrics.score, ``log_likelihood``, the mean log probability of the captions in
    nats, and of an attending model ``pointing``, the share of named things that it looked at.
    ``nats``: mean loss a word of each picture's first caption, or None."""

    written: list[Written]
    scores: dict[str, float] = field(default_factory=dict)
    nats: float | None = None

    @property
    def texts(self) -> list[str]:
        return [written.text for written in self.written]


def write_captions(
    model: Captioner, batch_inputs: torch.Tensor, vocabulary: Vocabulary, options: DecodingOptions
) -> list[Written]:
    """A caption for each of the images or features [N, ...]."""
    found = caption(model, batch_inputs, options)
    side = model.encoder.grid
    written = []
    chances = found.log_probability.tolist()
    for number, (tokens, chance) in enumerate(zip(found.tokens.tolist(), chances, strict=True)):
        text = vocabulary.decode(tokens)
        attention = None
        if found.attention is not None:
            of_words = found.attention[number, : len(text.split())]
            attention = of_words.unflatten(1, (side, side)).cpu().numpy()
        written.append(Written(text, attention, chance))
    return written


def evaluate(
    model: Captioner,
    data: CaptionData,
    vocabulary: Vocabulary,
    options: DecodingOptions,
    *,
    limit: int | None = None,
    with_loss: bool = True,
) -> Evaluation:
    """Captions the first ``limit`` pictures of ``data`` (default: all) and scores them."""
    count = min(len(data), limit or len(data))
    written, nats, words = [], 0.0, 0
    for begin in range(0, count, BATCH):
        batch = data.batch(range(begin, min(count, begin + BATCH)), device=model.device)
        written += write_captions(model, batch.inputs, vocabulary, options)
        if with_loss:
            batch_nats, batch_words = mean_loss(model, batch)
            nats, words = nats + batch_nats * batch_words, words + batch_words
    scores = metrics.score([w.text for w in written], data.references[:count])
    scores |= pointing(data, written)
    scores["log_likelihood"] = sum(w.log_probability for w in written) / count
    return Evaluation(written, scores, nats / words if words else None)


@torch.inference_mode()
def mean_loss(model: Captioner, batch: Batch) -> tuple[float, int]:
    """Mean loss in nats a word, and how many words; leaves the model's mode as it was."""
    was_training = model.training
    model.eval()
    loss = model.loss(batch.inputs, batch.tokens, batch.lengths)
    model.train(was_training)
    return loss.nats.item(), loss.words


def pointing(data: CaptionData, written: list[Written]) -> dict[str, float]:
    """The share of named things looked at, where there is attention and the boxes are known."""
    hits = count = 0
    for example, caption_ in zip(data.examples, written, strict=False):
        if caption_.attention is None or example.boxes is None:
            continue
        found, named = metrics.pointing(caption_.attention, caption_.words, example.boxes)
        hits, count = hits + found, count + named
    return {"pointing": hits / count} if count else {}
