"""The settings that every training program has, and how settings are checked."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from .errors import UserError
from .schedule import SCHEDULES

BACKENDS = ("fastlstm", "torch")
CELLS = ("lstm", "gru", "rnn")
OPTIMIZERS = ("adam", "rmsprop", "adagrad")
BUDGETS = ("minutes", "epochs", "steps")

# Setting, what its value must fulfil, and that in words. A value of None is always allowed.
Rule = tuple[str, Callable[[Any], bool], str]


@dataclass(frozen=True)
class TrainingConfig:
    """What defines a run, whatever it learns. ``None`` means "chosen from the other settings".

    A program derives its own settings from it and gives the class variables.
    """

    default_minutes: ClassVar[float]
    default_rates: ClassVar[Mapping[str, float]]  # by optimizer
    rules: ClassVar[tuple[Rule, ...]]  # of the program's own settings
    # Another value of these would make another run of it; the rest may change on --resume.
    fixed_on_resume: ClassVar[tuple[str, ...]]

    cell: str = "lstm"
    hidden: int = 256
    dropout: float = 0.0
    forget_bias: float = 1.0  # lstm only

    batch: int = 16
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

    minutes: float | None = None  # one of these three; none of them: default_minutes
    epochs: float | None = None
    steps: int | None = None

    eval_every: int = 0  # steps; 0: 15 times a run
    save_every: float = 30.0  # seconds

    backend: str = "fastlstm"
    device: str = "cpu"
    threads: int = 0  # 0: as PyTorch chooses
    seed: int = 0

    def __post_init__(self) -> None:
        for name, test, rule in (*_RULES, *self.rules):
            value = getattr(self, name)
            if value is not None and not (_finite(value) and test(value)):
                raise UserError(f"{flag(name)} must be {rule}, got {value}")
        if sum(getattr(self, name) is not None for name in BUDGETS) > 1:
            raise UserError("give only one of --minutes, --epochs and --steps")

    @property
    def learning_rate(self) -> float:
        return self.default_rates[self.optimizer] if self.lr is None else self.lr

    @property
    def time_budget(self) -> float | None:
        """Seconds of training, or None if the budget is in epochs or steps."""
        if self.minutes is not None:
            return 60.0 * self.minutes
        return 60.0 * self.default_minutes if self.epochs is None and self.steps is None else None

    @property
    def budget(self) -> str:
        """How long the run is to be, for people."""
        if self.time_budget is not None:
            return f"{self.time_budget / 60:g} min"
        return f"{self.steps} steps" if self.steps else f"{self.epochs:g} epochs"

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as stored in a checkpoint and in metrics.json."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TrainingConfig:
        """The opposite of ``to_dict``; KeyError or TypeError for another program's values."""
        return cls(**values)


def flag(name: str) -> str:
    """The option on the command line of the setting ``name``."""
    return "--" + name.replace("_", "-")


def _finite(value: object) -> bool:
    return not isinstance(value, float) or math.isfinite(value)


def one_of(values: tuple[str, ...]) -> tuple[Callable[[Any], bool], str]:
    """The last two parts of a rule: a value among ``values``."""
    return (lambda value: value in values), f"one of {', '.join(values)}"


_RULES: tuple[Rule, ...] = (
    ("cell", *one_of(CELLS)),
    ("hidden", lambda v: v >= 1, "at least 1"),
    ("dropout", lambda v: 0 <= v < 1, "at least 0 and below 1"),
    ("forget_bias", lambda v: True, "a number"),
    ("batch", lambda v: v >= 1, "at least 1"),
    ("optimizer", *one_of(OPTIMIZERS)),
    ("lr", lambda v: v > 0, "above 0"),
    ("schedule", *one_of(SCHEDULES)),
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
    ("save_every", lambda v: v >= 0, "at least 0"),
    ("backend", *one_of(BACKENDS)),
    ("threads", lambda v: v >= 0, "at least 0"),
    ("seed", lambda v: 0 <= v < 2**31, "at least 0 and below 2^31"),
)
