"""Checkpoints of models: what is in them, finding them, and loading weights that may not fit."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from torch import nn

from .config import TrainingConfig
from .errors import UserError
from .trainer import BEST, LAST

C = TypeVar("C", bound=TrainingConfig)


def pack_model(
    program: str, version: int, model: nn.Module, config: TrainingConfig, **more: Any
) -> dict[str, Any]:
    """The part of a checkpoint that is enough to use the model; ``more``: what else that takes."""
    return {
        "program": program,
        "version": version,
        "config": config.to_dict(),
        **more,
        "model": model.state_dict(),
    }


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


def read_run(
    kind: type[C], path: Path, read: Callable[[Path], dict[str, Any]], *, backend: str | None
) -> tuple[Path, dict[str, Any], C]:
    """The file meant by ``path``, what ``read`` finds there, and the settings for its model.

    These are the run's but for ``backend``, None for the run's; the checkpoint's "config" is the
    run's, and a ``kind`` here.
    """
    path = find(path)
    checkpoint = read(path)
    checkpoint["config"] = config = config_of(kind, checkpoint, path)
    if backend is not None:
        config = dataclasses.replace(config, backend=backend)
    return path, checkpoint, config


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
