"""What is kept of a run: ``checkpoint.pt`` to go on from, ``best.pt`` to use."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import torch

from ..common.errors import UserError
from ..common.files import load_checkpoint
from .config import Config
from .data import Vocabulary
from .model import CharLM

PROGRAM = "fastlstm.examples.char_lm"
VERSION = 1
LAST, BEST = "checkpoint.pt", "best.pt"
RUN_FILES = (LAST, BEST, "loss.png", "samples.md", "metrics.json")
_OLD_LAYERS = re.compile("^lstm[.]")


def pack_model(model: CharLM, vocabulary: Vocabulary, config: Config) -> dict[str, Any]:
    """The part that ``sample`` and ``eval`` need."""
    return {
        "program": PROGRAM,
        "version": VERSION,
        "config": config.to_dict(),
        "vocabulary": vocabulary.symbols,
        "model": model.state_dict(),
    }


def read(path: Path) -> dict[str, Any]:
    """The checkpoint in file ``path``."""
    checkpoint = load_checkpoint(path, program=PROGRAM, version=VERSION)
    model = checkpoint.get("model")
    if isinstance(model, dict):
        # Runs from before --cell are LSTMs, and call the layers so; Config fills in the cell.
        checkpoint["model"] = {
            _OLD_LAYERS.sub("rnn.", name): value for name, value in model.items()
        }
    return checkpoint


def find(path: Path) -> Path:
    """The file meant by ``path``: itself, or a run directory's best weights, else its last."""
    if not path.is_dir():
        return path
    best = path / BEST
    return best if best.exists() else path / LAST


def config_of(checkpoint: dict[str, Any], path: Path) -> Config:
    """The run's settings; UserError if they are not those of this version."""
    try:
        return Config.from_dict(checkpoint["config"])
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} holds no valid settings of a run") from error


def load_weights(model: CharLM, checkpoint: dict[str, Any], path: Path) -> None:
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


def load_model(
    path: Path, *, backend: str | None, device: torch.device
) -> tuple[CharLM, Vocabulary, dict[str, Any]]:
    """The model in ``path`` (a file or a run directory), ready to use, and the checkpoint.

    ``backend`` None takes the run's. The checkpoint's "config" is a Config here.
    """
    path = find(path)
    checkpoint = read(path)
    checkpoint["config"] = config = config_of(checkpoint, path)
    if backend is not None:
        config = dataclasses.replace(config, backend=backend)
    vocabulary = Vocabulary(checkpoint["vocabulary"])
    model = CharLM(len(vocabulary), config)
    load_weights(model, checkpoint, path)
    return model.to(device).eval(), vocabulary, checkpoint
