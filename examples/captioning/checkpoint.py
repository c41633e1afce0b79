"""What is kept of a run: ``checkpoint.pt`` to go on from, ``best.pt`` to use."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch

from ..common import checkpoint as common
from ..common.errors import UserError
from ..common.files import load_checkpoint
from ..common.trainer import BEST, LAST
from .config import Config
from .model import Captioner
from .vocabulary import Vocabulary

PROGRAM = "fastlstm.examples.captioning"
VERSION = 1
RUN_FILES = (LAST, BEST, "loss.png", "gallery.html", "attention.png", "metrics.json")


def pack_model(
    model: Captioner, vocabulary: Vocabulary, config: Config, input_shape: tuple[int, ...]
) -> dict[str, Any]:
    """The part that ``caption`` and ``eval`` need."""
    more = {"vocabulary": vocabulary.state_dict(), "input_shape": list(input_shape)}
    return common.pack_model(PROGRAM, VERSION, model, config, **more)


def read(path: Path) -> dict[str, Any]:
    """The checkpoint in file ``path``."""
    return load_checkpoint(path, program=PROGRAM, version=VERSION)


def input_shape_of(checkpoint: dict[str, Any], path: Path) -> tuple[int, ...]:
    """[3, S, S] of the images the model takes, or [C, H, W] of the features."""
    shape = checkpoint.get("input_shape")
    if not isinstance(shape, list) or len(shape) != 3 or not all(isinstance(n, int) for n in shape):
        raise UserError(f"{path} does not say what its model takes")
    return tuple(shape)


def load_model(
    path: Path, *, backend: str | None, device: torch.device
) -> tuple[Captioner, Vocabulary, dict[str, Any]]:
    """The model in ``path`` (a file or a run directory), ready to use, and the checkpoint.

    ``backend`` None takes the run's. The checkpoint's "config" is a Config here.
    """
    path, checkpoint, config = common.read_run(Config, path, read, backend=backend)
    # The weights come from the checkpoint: the file they began from may be gone.
    config = dataclasses.replace(config, weights=None)
    vocabulary = Vocabulary.from_state_dict(checkpoint.get("vocabulary"))
    model = Captioner(len(vocabulary), config, input_shape_of(checkpoint, path)[0])
    common.load_weights(model, checkpoint, path)
    return model.to(device).eval(), vocabulary, checkpoint
