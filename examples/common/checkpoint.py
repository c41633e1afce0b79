"""Checkpoints of models: finding them, and loading weights that may not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

from torch import nn

from .config import TrainingConfig
from .errors import UserError
from .trainer import BEST, LAST

C = TypeVar("C", bound=TrainingConfig)


def find(path: Path) -> Path:
    """The file meant by ``path``: itself, or a run directory's best weights, else its last."""
    if not path.is_dir():
        return path
    best = path / BEST
    return best if best.exists() else path / LAST


def config_of(kind: type[C], checkpoint: dict[str, Any], path: Path) -> C:
    """The run's settings; UserError if they are not those of this version."""
    try:
        return kind.from_dict(checkpoint["config"])
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} holds no valid settings of a run") from error


def load_weights(model: nn.Module, checkpoint: dict[str, Any], path: Path) -> None:
    """Copies the weights into ``model``; UserError, one line, if a name or a shape differs."""
    stored, own = checkpoint.get("model"), model.state_dict()
    if not isinstance(stored, dict) or stored.keys() != own.keys():
        raise UserError(f"{path} holds another kind of model: its parameters have other names")
    for name, tensor in own.items():
        found, expected = tuple(stored[name].shape), tuple(tensor.shape)
        if found != expected:
            raise UserError(
                f"{path} holds a model of another shape: {name} is {found}, not {expected}"
            )
    model.load_state_dict(stored)
