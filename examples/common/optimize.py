"""Update rules, and gradients that are too large."""

from __future__ import annotations

import math

import torch
from torch import nn

from .config import TrainingConfig


def make_optimizer(config: TrainingConfig, model: nn.Module) -> torch.optim.Optimizer:
    """The optimizer ``config`` names, for the parameters of ``model`` that are trained."""
    options = {"lr": config.learning_rate, "weight_decay": config.weight_decay}
    parameters = [p for p in model.parameters() if p.requires_grad]
    if config.optimizer == "rmsprop":
        return torch.optim.RMSprop(parameters, alpha=0.95, **options)
    if config.optimizer == "adagrad":
        return torch.optim.Adagrad(parameters, **options)
    return torch.optim.AdamW(parameters, betas=(0.9, 0.99), fused=True, **options)


def clip_gradients(model: nn.Module, norm: float, value: float) -> tuple[float, bool]:
    """Clips gradients elementwise to ``value``, then as a whole to ``norm``; 0 turns either off.

    Returns the norm before clipping, and whether anything was clipped.
    """
    parameters = [p for p in model.parameters() if p.grad is not None]
    gradients = [p.grad for p in parameters]
    before = float(nn.utils.get_total_norm(gradients))
    if not math.isfinite(before):
        return before, False
    clipped = False
    now = before
    if value and any(float(g.abs().max()) > value for g in gradients):
        nn.utils.clip_grad_value_(parameters, value)
        clipped = True
        now = float(nn.utils.get_total_norm(gradients))
    if norm and now > norm:
        nn.utils.clip_grads_with_norm_(parameters, norm, torch.tensor(now))
        clipped = True
    return before, clipped
