"""What a run has done so far, in plain values that go into a checkpoint as they are."""

from __future__ import annotations

from dataclasses import dataclass

from ..common.record import Record


@dataclass
class CaptionRecord(Record):
    """A Record, and what is counted in pictures and words."""

    pictures: int = 0
    words: int = 0
    best_cider: float | None = None  # on the validation slice
    best_nats: float | None = None

    def is_best(self, cider: float, nats: float) -> bool:
        """Whether an evaluation beats the best; between equal CIDEr, by the lower loss."""
        if self.best_cider is None or self.best_nats is None:
            return True
        return (cider, -nats) > (self.best_cider, -self.best_nats)

    @property
    def pictures_per_second(self) -> float:
        return self.pictures / self.step_seconds if self.step_seconds else 0.0
