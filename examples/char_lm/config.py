"""Every setting of a run, with its default."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ..common.config import Rule, TrainingConfig


@dataclass(frozen=True)
class Config(TrainingConfig):
    """What defines a run. ``None`` means "chosen from the other settings"."""

    default_minutes: ClassVar[float] = 1.0
    # Adagrad and RMSProp at the rates of min-char-rnn and char-rnn; Adam's was tuned for short runs.
    default_rates: ClassVar[dict[str, float]] = {"adam": 1e-2, "rmsprop": 2e-3, "adagrad": 1e-1}

    text: tuple[str, ...] = ()  # files, joined in this order; none: the standard library's source
    bytes: bool = False
    encoding: str = "utf-8"
    corpus_mb: float = 8.0  # of the standard library; files given as text are read whole
    val_fraction: float = 0.1

    layers: int = 1
    embedding: int = 64  # 0: one-hot

    seq: int = 64
    reset: float = 0.02  # chance a window that a stream starts from a cold state, as a sample does

    eval_chars: int = 16384  # of the validation split while training; the end scores all of it
    sample_every: int = 0  # steps; 0: six times a run, sooner at first
    sample_length: int = 200
    sample_temperature: float = 0.8
    ngram_chars: int = 2_000_000  # the baseline counts the last this many training characters

    rules: ClassVar[tuple[Rule, ...]] = (
        ("corpus_mb", lambda v: v > 0, "above 0"),
        ("val_fraction", lambda v: 0 < v < 1, "between 0 and 1"),
        ("layers", lambda v: v >= 1, "at least 1"),
        ("embedding", lambda v: v >= 0, "a width, or one-hot"),
        ("seq", lambda v: v >= 1, "at least 1"),
        ("reset", lambda v: 0 <= v <= 1, "between 0 and 1"),
        ("eval_chars", lambda v: v >= 1, "at least 1"),
        ("sample_every", lambda v: v >= 0, "at least 0"),
        ("sample_length", lambda v: v >= 1, "at least 1"),
        ("sample_temperature", lambda v: v > 0, "above 0"),
        ("ngram_chars", lambda v: v >= 0, "at least 0"),
    )
    fixed_on_resume: ClassVar[tuple[str, ...]] = (
        *("text", "bytes", "encoding", "corpus_mb", "val_fraction", "cell", "layers", "hidden"),
        *("embedding", "forget_bias", "seq", "batch", "optimizer", "seed"),
    )

    def to_dict(self) -> dict[str, Any]:
        return {**super().to_dict(), "text": list(self.text)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Config:
        return cls(**{**values, "text": tuple(values["text"])})
