"""Small models and runs of examples/captioning for its tests, and the fixtures that make them.

A test module takes a fixture by giving it its name: ``run = captioning_runs.run``.
"""

import functools
import shutil
from pathlib import Path

import example_runs
import pytest
import torch

from examples.captioning import report
from examples.captioning.__main__ import main
from examples.captioning.config import Config
from examples.captioning.model import Captioner

V = 9  # words of a small model, with the four special ones

SMALL = [
    *("--scenes", "40", "--val-scenes", "12", "--image-size", "32", "--grid", "8"),
    *("--channels", "8", "--image-width", "12", "--hidden", "16", "--embedding", "10"),
    *("--batch", "8", "--threads", "1", "--warmup", "3", "--eval-images", "6", "--beam", "2"),
]


def small_config(**settings) -> Config:
    """The settings of SMALL as a Config, with others on top."""
    sizes = dict(scenes=40, val_scenes=12, image_size=32, grid=8, channels=8, image_width=12)
    return Config(**{**sizes, "hidden": 16, "embedding": 10, "batch": 8, **settings})


def train(out, *more):
    return main(["train", "--out", str(out), *SMALL, *map(str, more)])


assert_refused = functools.partial(example_runs.assert_refused, main)


@pytest.fixture(autouse=True)
def one_picture_with_attention(monkeypatch):
    """Drawing eight takes longer than everything else in these runs."""
    monkeypatch.setattr(report, "ATTENDED", 1)


@functools.cache
def finished_run(session):
    """One for all modules: they have the folder of the session in common.

    Long enough to name shapes, or there would be nothing to point at.
    """
    out = session / "captioning"
    assert train(out, "--steps", 60, "--lr", 0.01, "--eval-every", 6) == 0
    return out


@pytest.fixture
def run(one_picture_with_attention, tmp_path_factory, tmp_path):
    """A run of 60 steps with attention, to do with as one likes."""
    return Path(shutil.copytree(finished_run(tmp_path_factory.getbasetemp()), tmp_path / "run"))


def make_model(*, vocab_size: int = V, seed: int = 0, scale: float = 1.0, **settings) -> Captioner:
    """A small model. With a larger ``scale`` its words depend more on what came before."""
    torch.manual_seed(seed)
    model = Captioner(vocab_size, small_config(**settings))
    with torch.no_grad():
        for weight in (model.decoder.head.weight, model.decoder.embedding.weight):
            weight.mul_(scale)
    return model


def images_of(count: int) -> torch.Tensor:
    return torch.rand(count, 3, 32, 32) * 2 - 1
