"""Learning rate as a function of the step: warm-up, then a decay over the rest of the run."""

from __future__ import annotations

import math

SCHEDULES = ("cosine", "linear", "exponential", "constant")


def learning_rate_factor(
    step: int,
    *,
    schedule: str,
    total_steps: float | None,
    warmup_steps: int,
    final: float = 0.0,
    epoch: float = 0.0,
    decay_rate: float = 1.0,
    decay_after: float = 0.0,
) -> float:
    """What to multiply the base learning rate by at ``step`` (from 0).

    The first ``warmup_steps`` steps rise linearly to 1. ``cosine`` and ``linear`` then fall to
    ``final`` at ``total_steps``; they stay at 1 while ``total_steps`` is None (not known yet).
    ``exponential`` multiplies by ``decay_rate`` for each epoch after ``decay_after`` epochs.
    """
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    if schedule == "constant":
        return 1.0
    if schedule == "exponential":
        return decay_rate ** max(0.0, epoch - decay_after)
    if total_steps is None:
        return 1.0
    progress = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
    if schedule == "linear":
        return final + (1.0 - final) * (1.0 - progress)
    if schedule == "cosine":
        return final + (1.0 - final) * 0.5 * (1.0 + math.cos(math.pi * progress))
    raise ValueError(f"schedule must be one of {', '.join(SCHEDULES)}, got {schedule!r}")
