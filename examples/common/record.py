"""What a run has done so far, in plain values that go into a checkpoint as they are."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

MEMORY = 0.98  # of the moving averages: about the last 50 steps
MAX_POINTS = 400


@dataclass
class Curve:
    """The training loss as at most MAX_POINTS means of ``every`` steps each."""

    every: int = 1
    points: list[float] = field(default_factory=list)
    pending: list[float] = field(default_factory=list)

    def add(self, value: float) -> None:
        self.pending.append(value)
        if len(self.pending) == self.every:
            self.points.append(sum(self.pending) / self.every)
            self.pending = []
        if len(self.points) == MAX_POINTS:
            pairs = zip(self.points[::2], self.points[1::2], strict=True)
            self.points = [(first + second) / 2 for first, second in pairs]
            self.every *= 2

    def xy(self, scale: float) -> tuple[list[float], list[float]]:
        """Middle of each mean's steps, times ``scale``, and the means."""
        x = [(index + 0.5) * self.every * scale for index in range(len(self.points))]
        return x, self.points


@dataclass
class Record:
    """Counts and averages. ``seconds`` include evaluations, ``step_seconds`` only the steps, and
    ``aside_seconds`` is how long the last evaluation took, and whatever else there is."""

    step: int = 0
    total_steps: int | None = None  # None: the budget is in time
    evaluations: int = 15  # spread over the run, unless --eval-every says otherwise
    seconds: float = 0.0
    step_seconds: float = 0.0
    aside_seconds: dict[str, float] = field(default_factory=dict)
    used: float = 0.0  # share of a time budget, as of the last step
    clipped: int = 0
    initial_loss: float | None = None
    best_step: int = 0
    averages: dict[str, float] = field(default_factory=dict)
    curve: Curve = field(default_factory=Curve)
    history: list[dict[str, Any]] = field(default_factory=list)

    def add_step(self, *, loss: float, grad_norm: float, clipped: bool) -> None:
        if self.initial_loss is None:
            self.initial_loss = loss
        self.step += 1
        self.clipped += clipped
        self.curve.add(loss)
        # The first steps average over themselves, not over an invented start.
        weight = max(1.0 - MEMORY, 1.0 / self.step)
        for name, value in (("loss", loss), ("grad_norm", grad_norm), ("clipped", float(clipped))):
            old = self.averages.get(name, value)
            self.averages[name] = old + weight * (value - old)

    @property
    def train_nats(self) -> float | None:
        return self.averages.get("loss")

    @property
    def clipped_share(self) -> float:
        """Of all steps, the share in which gradients were clipped."""
        return self.clipped / max(1, self.step)

    @property
    def progress(self) -> float:
        """Share of the budget that is used, from 0 to 1."""
        return self.used if self.total_steps is None else min(1.0, self.step / self.total_steps)

    @property
    def expected_steps(self) -> float | None:
        """Steps of the whole run: of a time budget at the mean pace so far, None at its start."""
        if self.total_steps is not None:
            return self.total_steps
        return self.step / self.used if self.used else None

    @property
    def planned_steps(self) -> int | None:
        """``expected_steps``, rounded."""
        return self.expected_steps and round(self.expected_steps)

    @property
    def finished(self) -> bool:
        return self.progress >= 1

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Record:
        return cls(**{**values, "curve": Curve(**values["curve"])})
