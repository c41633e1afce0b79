"""Every setting of a run, with its default."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..common.config import Rule, TrainingConfig, one_of

INJECTS = ("add", "h0", "token", "every", "attend")
ATTENTION_KINDS = ("dot", "additive")
SCENES = "scenes"


@dataclass(frozen=True)
class Config(TrainingConfig):
    """What defines a run. ``None`` means "chosen from the other settings"."""

    default_minutes: ClassVar[float] = 2.0
    default_rates: ClassVar[dict[str, float]] = {"adam": 2e-3, "rmsprop": 1e-3, "adagrad": 1e-2}

    data: str = SCENES  # or a JSON file of captions
    images: str | None = None  # directory of its pictures; None: the file's own
    features: str | None = None  # .npz: features instead of pictures
    scenes: int = 8000
    val_scenes: int = 500  # unseen combinations
    val_fraction: float = 0.1  # of the pictures of a caption file
    strict: bool = False
    word_threshold: int = 5
    max_length: int = 20  # words of a caption
    captions: int = 0  # only the first so many of each training picture, 0: all
    image_size: int = 56  # pixels a side; 4 times the grid, as the small CNN reduces it

    encoder: str | None = None  # small, features (where there are any), or torchvision:NAME
    weights: str | None = None  # state dict for torchvision's model
    freeze_cnn: bool = False
    grid: int = 14  # locations a side
    channels: int = 64  # features of a location
    image_width: int = 256  # of the vector a decoder without attention gets
    inject: str = "attend"
    attention: str = "dot"
    alpha_c: float = 0.0  # of the doubly stochastic penalty
    embedding: int = 300

    batch: int = 32
    clip_norm: float = 5.0
    beam: int = 3
    eval_images: int = 200  # of the validation pictures while training; the end scores all

    @property
    def encoder_kind(self) -> str:
        """What reads the pictures, or their features."""
        return self.encoder or ("features" if self.features else "small")

    rules: ClassVar[tuple[Rule, ...]] = (
        ("scenes", lambda v: v >= 1, "at least 1"),
        ("val_scenes", lambda v: v >= 1, "at least 1"),
        ("val_fraction", lambda v: 0 < v < 1, "between 0 and 1"),
        ("word_threshold", lambda v: v >= 1, "at least 1"),
        ("max_length", lambda v: v >= 1, "at least 1"),
        ("captions", lambda v: v >= 0, "at least 0"),
        ("image_size", lambda v: v >= 32, "at least 32"),
        (
            "encoder",
            lambda v: v in ("small", "features") or v.removeprefix("torchvision:") not in ("", v),
            "small, features or torchvision:NAME",
        ),
        ("grid", lambda v: v >= 1, "at least 1"),
        ("channels", lambda v: v >= 2, "at least 2"),
        ("image_width", lambda v: v >= 1, "at least 1"),
        ("inject", *one_of(INJECTS)),
        ("attention", *one_of(ATTENTION_KINDS)),
        ("alpha_c", lambda v: v >= 0, "at least 0"),
        ("embedding", lambda v: v >= 1, "at least 1"),
        ("beam", lambda v: v >= 1, "at least 1"),
        ("eval_images", lambda v: v >= 1, "at least 1"),
    )
    fixed_on_resume: ClassVar[tuple[str, ...]] = (
        *("data", "images", "features", "scenes", "val_scenes", "val_fraction"),
        *("word_threshold", "max_length", "image_size", "encoder", "freeze_cnn", "grid"),
        *("channels", "image_width", "inject", "attention", "embedding", "captions", "alpha_c"),
        *("cell", "hidden", "forget_bias", "batch", "optimizer", "seed"),
    )
