"""What is kept of a run: ``checkpoint.pt`` to go on from, ``best.pt`` to use."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import torch

from ..common.checkpoint import config_of, find, load_weights
from ..common.files import load_checkpoint
from ..common.trainer import BEST, LAST
from .config import Config
from .data import Vocabulary
from .model import CharLM

PROGRAM = "fastlstm.examples.char_lm"
VERSION = 1
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


def load_model(
    path: Path, *, backend: str | None, device: torch.device
) -> tuple[CharLM, Vocabulary, dict[str, Any]]:
    """The model in ``path`` (a file or a run directory), ready to use, and the checkpoint.

    ``backend`` None takes the run's. The checkpoint's "config" is a Config here.
    """
    path = find(path)
    checkpoint = read(path)
    checkpoint["config"] = config = config_of(Config, checkpoint, path)
    if backend is not None:
        config = dataclasses.replace(config, backend=backend)
    vocabulary = Vocabulary(checkpoint["vocabulary"])
    model = CharLM(len(vocabulary), config)
    load_weights(model, checkpoint, path)
    return model.to(device).eval(), vocabulary, checkpoint
