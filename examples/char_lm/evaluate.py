"""Loss of a model on a text, read in parallel."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .model import CharLM

WARM_UP = 128  # characters read, not scored, to give a stream a state
MAX_STREAMS = 64
IGNORED = -100  # cross_entropy's default
WINDOW = 128


@torch.inference_mode()
def evaluate(model: CharLM, ids: Tensor, max_chars: int | None = None) -> tuple[float, int]:
    """Mean loss in nats of the characters of ``ids`` after the first, and how many were scored.

    The text is read as parallel streams with carried state. A stream that starts inside the text
    first reads the WARM_UP characters before its part, so that it is not scored on a cold state;
    every character is scored exactly once. With ``max_chars``, only about that many characters, in
    pieces spread evenly over the text; the same ones each time.
    """
    device = model.head.weight.device
    inputs, targets = evaluation_streams(ids, max_chars)
    was_training = model.training
    model.eval()
    total = torch.zeros((), dtype=torch.float64)
    state = None
    for begin in range(0, len(inputs), WINDOW):
        logits, state = model(inputs[begin : begin + WINDOW].to(device), state)
        wanted = targets[begin : begin + WINDOW].to(device)
        loss = F.cross_entropy(logits.flatten(0, 1), wanted.flatten(), reduction="sum")
        total += loss.double().cpu()
    model.train(was_training)
    scored = int((targets != IGNORED).sum())
    return float(total) / scored, scored


def evaluation_streams(ids: Tensor, max_chars: int | None = None) -> tuple[Tensor, Tensor]:
    """Inputs and targets [T, streams]; targets that are not scored are IGNORED."""
    scorable = len(ids) - 1
    wanted = min(scorable, max_chars or scorable)
    streams = max(1, min(MAX_STREAMS, wanted // (2 * WARM_UP)))
    stride = math.ceil(scorable / streams)
    length = math.ceil(wanted / streams)
    warm_up = min(WARM_UP, stride) if streams > 1 else 0
    starts = torch.arange(streams) * stride  # of the scored part of each stream
    # Stream 0 has nothing before it: it reads its part first, and idles at the end instead.
    offset = torch.full((streams,), -warm_up)
    offset[0] = 0
    where = torch.arange(warm_up + length).unsqueeze(1) + starts + offset  # [T, streams]
    part = where - starts
    scored = (part >= 0) & (part < length) & (part < stride) & (where < scorable)
    where = where.clamp(0, scorable - 1)
    targets = torch.where(scored, ids[where + 1].long(), IGNORED)
    return ids[where].long(), targets


def bits(nats: float) -> float:
    """Nats per character as bits per character."""
    return nats / math.log(2)
