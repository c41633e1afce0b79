"""Captions from a model: greedy, drawn, or the best of a beam.

N: images, B: beams, V: words, L: locations of the grid. All of it is batched and stays on the
device of the model; the same model gives the same captions in batches of any size, up to rounding.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..common.errors import UserError
from .decoder import Memory
from .model import Captioner
from .vocabulary import END, PAD, START, UNK

NEVER = float("-inf")


@dataclass(frozen=True)
class Captions:
    """``tokens`` int64 [N, T] without START: words, END, then PAD. ``attention`` [N, T, L] is that
    with which each was chosen, or None. ``log_probability`` [N] is of the caption with its END."""

    tokens: Tensor
    attention: Tensor | None
    log_probability: Tensor


@dataclass(frozen=True)
class DecodingOptions:
    """``beam`` 1 takes the best word each time, or draws it where ``temperature`` is above 0. A
    larger beam keeps that many captions and returns the one of the largest
    log p / length^length_penalty, or the greedy one where that has a larger one. 0 compares the
    probabilities themselves; 1 their geometric means (Wu et al. 2016, eq. 14, has a smoothed
    variant). Above 0 long captions win that are certain word by word, over short ones whose first
    words share the probability with those of other phrasings.
    """

    max_length: int = 20  # words; what has not ended then is ended
    beam: int = 1
    length_penalty: float = 0.0
    temperature: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name, smallest in (("max_length", 1), ("beam", 1), ("temperature", 0)):
            value = getattr(self, name)
            if not smallest <= value < float("inf"):
                option = name.replace("_", "-")
                raise UserError(f"--{option} must be at least {smallest}, got {value}")
        if not abs(self.length_penalty) < float("inf"):
            raise UserError(f"--length-penalty must be a number, got {self.length_penalty}")
        if self.beam > 1 and self.temperature > 0:
            raise UserError("--temperature draws words, --beam searches: give only one")


@torch.inference_mode()
def caption(model: Captioner, images: Tensor, options: DecodingOptions) -> Captions:
    """Captions of ``images`` (or features) [N, ...]; leaves the model's mode as it was."""
    was_training = model.training
    model.eval()
    memory = model.start(images)
    result = _one_by_one(model, memory, len(images), options)
    if options.beam > 1:
        # A beam may lose the greedy caption on the way, where it would have been the best.
        found = _beam_search(model, memory, len(images), options)
        result = _better(found, result, options.length_penalty)
    model.train(was_training)
    return result


def _one_by_one(model: Captioner, memory: Memory, count: int, options: DecodingOptions) -> Captions:
    """Greedy, or drawn. A caption that has ended goes on as PAD, and costs nothing."""
    device = model.device
    # On the CPU, so that a seed means the same on every device.
    generator = torch.Generator().manual_seed(options.seed)
    tokens = torch.full((count,), START, device=device)
    ended = torch.zeros(count, dtype=torch.bool, device=device)
    total = torch.zeros(count, device=device)
    words, attention = [], []
    for step in range(options.max_length + 1):
        log_probs, memory, weights = _next_word(model, tokens, memory)
        if step == options.max_length:
            choice = torch.zeros_like(tokens)
        elif options.temperature > 0:
            chances = F.softmax(log_probs / options.temperature, 1).cpu()
            choice = torch.multinomial(chances, 1, generator=generator).squeeze(1).to(device)
        else:
            choice = log_probs.argmax(1)
        chosen = log_probs.gather(1, choice.unsqueeze(1)).squeeze(1)
        total += chosen.masked_fill(ended, 0.0)
        tokens = (choice + END).masked_fill(ended, PAD)
        ended = ended | (tokens == END)
        words.append(tokens)
        attention.append(weights)
        if ended.all():
            break
    seen = None if attention[0] is None else torch.stack(attention, 1)
    return Captions(torch.stack(words, 1), seen, total)


def _beam_search(
    model: Captioner, memory: Memory, count: int, options: DecodingOptions
) -> Captions:
    """The ``beam`` best captions side by side; one that has ended stays in the beam as it is, until
    better ones push it out."""
    device, beam = model.device, options.beam
    memory = memory.repeat(beam)
    tokens = torch.full((count * beam,), START, device=device)
    ended = torch.zeros(count, beam, dtype=torch.bool, device=device)
    # All beams begin alike: only the first may go on, or they would stay alike.
    total = torch.full((count, beam), NEVER, device=device)
    total[:, 0] = 0.0
    lengths = torch.zeros(count, beam, device=device)
    words = torch.empty(count, beam, 0, dtype=torch.long, device=device)
    attention: Tensor | None = None
    first = (torch.arange(count, device=device) * beam).unsqueeze(1)
    for step in range(options.max_length + 1):
        log_probs, memory, weights = _next_word(model, tokens, memory)
        gain = log_probs.view(count, beam, -1)
        # What has ended can go on in one way: as it is, with PAD where END would stand.
        only_end = torch.full_like(gain, NEVER)
        only_end[:, :, 0] = gain[:, :, 0].masked_fill(ended, 0.0)
        is_last = step == options.max_length
        gain = only_end if is_last else torch.where(ended.unsqueeze(2), only_end, gain)
        totals = total.unsqueeze(2) + gain
        steps = (lengths + ~ended).unsqueeze(2).expand_as(gain)
        scores = totals / steps**options.length_penalty
        best, place = scores.flatten(1).topk(beam, dim=1)
        parent, choice = place // gain.size(2), place % gain.size(2)
        total = totals.flatten(1).gather(1, place)
        lengths = steps.flatten(1).gather(1, place)
        had_ended = ended.gather(1, parent)
        new = (choice + END).masked_fill(had_ended, PAD)
        words = torch.cat([_of_parents(words, parent), new.unsqueeze(2)], 2)
        if weights is not None:
            seen = weights.view(count, beam, 1, -1)
            seen = seen if attention is None else torch.cat([attention, seen], 2)
            attention = _of_parents(seen, parent)
        ended = had_ended | (new == END)
        memory = memory.select((first + parent).flatten())
        tokens = new.flatten()
        if _are_safe(best[:, 0], ended, total, options).all():
            break
    # Sorted by topk: the first of each beam is the best.
    return Captions(words[:, 0], None if attention is None else attention[:, 0], total[:, 0])


def _better(first: Captions, second: Captions, length_penalty: float) -> Captions:
    """For each image the caption of the larger score, ``first`` where they are equal."""
    scores = [
        found.log_probability / (found.tokens != PAD).sum(1) ** length_penalty
        for found in (first, second)
    ]
    of_second = scores[1] > scores[0]
    length = max(first.tokens.size(1), second.tokens.size(1))

    def choose(one: Tensor, other: Tensor) -> Tensor:
        """Of [N, T, ...], made as long as each other with PAD, or weights of 0."""
        rest = (0, 0) * (one.dim() - 2)
        one, other = (F.pad(t, (*rest, 0, length - t.size(1))) for t in (one, other))
        return torch.where(of_second.view(-1, *(1,) * (one.dim() - 1)), other, one)

    attention = None
    if first.attention is not None and second.attention is not None:
        attention = choose(first.attention, second.attention)
    return Captions(
        choose(first.tokens, second.tokens),
        attention,
        torch.where(of_second, second.log_probability, first.log_probability),
    )


def _are_safe(best: Tensor, ended: Tensor, total: Tensor, options: DecodingOptions) -> Tensor:
    """For which images [N] the first beam has ended with a score ``best`` that no open one can
    reach: at most its ``total``, kept to the greatest length."""
    open_total = total.masked_fill(ended, NEVER).amax(1)
    limit = open_total / (options.max_length + 1) ** max(0.0, options.length_penalty)
    return ended[:, 0] & (best >= limit)


def _next_word(
    model: Captioner, tokens: Tensor, memory: Memory
) -> tuple[Tensor, Memory, Tensor | None]:
    """Log probabilities [N, V - END] after ``tokens`` [N]; UNK, which says nothing, has none."""
    logits, memory, weights = model.decoder.step(tokens, memory)
    logits[:, UNK - END] = NEVER
    return F.log_softmax(logits, 1), memory, weights


def _of_parents(t: Tensor, parent: Tensor) -> Tensor:
    """Rows of ``t`` [N, B, ...] that ``parent`` [N, B] names, for each image."""
    index = parent.view(*parent.shape, *(1,) * (t.dim() - 2)).expand(-1, -1, *t.shape[2:])
    return t.gather(1, index)
