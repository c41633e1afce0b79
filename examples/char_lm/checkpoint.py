"""What is kept of a run: ``checkpoint.pt`` to go on from, ``best.pt`` to use."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

from ..common import checkpoint as common
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
    return common.pack_model(PROGRAM, VERSION, model, config, vocabulary=vocabulary.symbols)


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
    path, checkpoint, config = common.read_run(Config, path, read, backend=backend)
    vocabulary = Vocabulary(checkpoint["vocabulary"])
    model = CharLM(len(vocabulary), config)
    common.load_weights(model, checkpoint, path)
    return model.to(device).eval(), vocabulary, checkpoint
