"""Models and runs of examples/captioning for its tests: small ones, and what they leave."""

import json

import torch

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


def metrics_of(out):
    return json.loads((out / "metrics.json").read_text())


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
