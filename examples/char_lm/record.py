"""What a run has done so far, in plain values that go into a checkpoint as they are."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ..common.record import Record


@dataclass
class RunRecord(Record):
    """A Record, and what is counted in characters."""

    chars: int = 0
    best_nats: float | None = None  # on the validation slice
    samples: list[dict[str, Any]] = field(default_factory=list)

    @property
    def chars_per_second(self) -> float:
        return self.chars / self.step_seconds if self.step_seconds else 0.0
