"""Every setting of a run, with its default."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from ..common.errors import UserError
from ..common.schedule import SCHEDULES

BACKENDS = ("fastlstm", "torch")
CELLS = ("lstm", "gru", "rnn")
DEFAULT_MINUTES = 1.0
# Adagrad and RMSProp at the rates of min-char-rnn and char-rnn; Adam's was tuned for short runs.
DEFAULT_LEARNING_RATE = {"adam": 1e-2, "rmsprop": 2e-3, "adagrad": 1e-1}
OPTIMIZERS = tuple(DEFAULT_LEARNING_RATE)


@dataclass(frozen=True)
class Config:
    """What defines a run. ``None`` means "chosen from the other settings"."""

    text: tuple[str, ...] = ()  # files, joined in this order; none: the standard library's source
    bytes: bool = False
    encoding: str = "utf-8"
    corpus_mb: float = 8.0  # of the standard library; files given as text are read whole
    val_fraction: float = 0.1

    cell: str = "lstm"
    layers: int = 1
    hidden: int = 256
    embedding: int = 64  # 0: one-hot
    dropout: float = 0.0
    forget_bias: float = 1.0  # lstm only

    seq: int = 64
    batch: int = 16
    reset: float = 0.02  # chance a window that a stream starts from a cold state, as a sample does
    optimizer: str = "adam"
    lr: float | None = None
    schedule: str = "cosine"
    warmup: int = 40  # steps
    final_lr: float = 0.01  # of lr, where cosine and linear end
    decay_rate: float = 0.97  # exponential: factor an epoch ...
    decay_after: float = 10.0  # ... after this many epochs
    clip_norm: float = 1.0  # 0: off
    clip_value: float = 0.0  # 0: off
    weight_decay: float = 0.0

    minutes: float | None = None  # one of these three; none of them: DEFAULT_MINUTES
    epochs: float | None = None
    steps: int | None = None

    eval_every: int = 0  # steps; 0: 15 times a run
    eval_chars: int = 16384  # of the validation split while training; the end scores all of it
    sample_every: int = 0  # steps; 0: six times a run, sooner at first
    sample_length: int = 200
    sample_temperature: float = 0.8
    save_every: float = 30.0  # seconds
    ngram_chars: int = 2_000_000  # the baseline counts the last this many training characters

    backend: str = "fastlstm"
    device: str = "cpu"
    threads: int = 0  # 0: as PyTorch chooses
    seed: int = 0

    def __post_init__(self) -> None:
        for name, test, rule in _RULES:
            value = getattr(self, name)
            if value is not None and not (_finite(value) and test(value)):
                raise UserError(f"--{name.replace('_', '-')} must be {rule}, got {value}")
        if sum(getattr(self, name) is not None for name in BUDGETS) > 1:
            raise UserError("give only one of --minutes, --epochs and --steps")

    @property
    def learning_rate(self) -> float:
        return DEFAULT_LEARNING_RATE[self.optimizer] if self.lr is None else self.lr

    @property
    def time_budget(self) -> float | None:
        """Seconds of training, or None if the budget is in epochs or steps."""
        if self.minutes is not None:
            return 60.0 * self.minutes
        return 60.0 * DEFAULT_MINUTES if self.epochs is None and self.steps is None else None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as stored in a checkpoint and in metrics.json."""
        return {**dataclasses.asdict(self), "text": list(self.text)}

    @staticmethod
    def from_dict(values: dict[str, Any]) -> Config:
        return Config(**{**values, "text": tuple(values["text"])})


BUDGETS = ("minutes", "epochs", "steps")
# Another value of these would make another run of it; the rest may change on --resume.
FIXED_ON_RESUME = (
    *("text", "bytes", "encoding", "corpus_mb", "val_fraction"),
    *("cell", "layers", "hidden", "embedding", "forget_bias", "seq", "batch", "optimizer", "seed"),
)


def _finite(value: object) -> bool:
    return not isinstance(value, float) or math.isfinite(value)


_RULES = (
    ("corpus_mb", lambda v: v > 0, "above 0"),
    ("val_fraction", lambda v: 0 < v < 1, "between 0 and 1"),
    ("cell", lambda v: v in CELLS, f"one of {', '.join(CELLS)}"),
    ("layers", lambda v: v >= 1, "at least 1"),
    ("hidden", lambda v: v >= 1, "at least 1"),
    ("embedding", lambda v: v >= 0, "a width, or one-hot"),
    ("dropout", lambda v: 0 <= v < 1, "at least 0 and below 1"),
    ("forget_bias", lambda v: True, "a number"),
    ("seq", lambda v: v >= 1, "at least 1"),
    ("batch", lambda v: v >= 1, "at least 1"),
    ("reset", lambda v: 0 <= v <= 1, "between 0 and 1"),
    ("seed", lambda v: 0 <= v < 2**31, "at least 0 and below 2^31"),
    ("optimizer", lambda v: v in OPTIMIZERS, f"one of {', '.join(OPTIMIZERS)}"),
    ("lr", lambda v: v > 0, "above 0"),
    ("schedule", lambda v: v in SCHEDULES, f"one of {', '.join(SCHEDULES)}"),
    ("warmup", lambda v: v >= 0, "at least 0"),
    ("final_lr", lambda v: 0 <= v <= 1, "between 0 and 1"),
    ("decay_rate", lambda v: 0 < v <= 1, "above 0 and at most 1"),
    ("decay_after", lambda v: v >= 0, "at least 0"),
    ("clip_norm", lambda v: v >= 0, "at least 0"),
    ("clip_value", lambda v: v >= 0, "at least 0"),
    ("weight_decay", lambda v: v >= 0, "at least 0"),
    ("minutes", lambda v: v > 0, "above 0"),
    ("epochs", lambda v: v > 0, "above 0"),
    ("steps", lambda v: v >= 1, "at least 1"),
    ("eval_every", lambda v: v >= 0, "at least 0"),
    ("eval_chars", lambda v: v >= 1, "at least 1"),
    ("sample_every", lambda v: v >= 0, "at least 0"),
    ("sample_length", lambda v: v >= 1, "at least 1"),
    ("sample_temperature", lambda v: v > 0, "above 0"),
    ("save_every", lambda v: v >= 0, "at least 0"),
    ("ngram_chars", lambda v: v >= 0, "at least 0"),
    ("backend", lambda v: v in BACKENDS, f"one of {', '.join(BACKENDS)}"),
    ("threads", lambda v: v >= 0, "at least 0"),
)
