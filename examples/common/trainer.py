"""The loop of a training run: steps, evaluations and checkpoints within a budget."""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .config import TrainingConfig
from .distributed import ALONE, Group
from .errors import TrainingError
from .files import save_checkpoint
from .optimize import make_optimizer
from .progress import Progress
from .record import Record
from .schedule import learning_rate_factor

EVALUATION_SHARE = 0.1  # of a time budget, at most
# Of a time budget, the most that is kept for what comes after the last step. A first evaluation
# that took longer met a busy machine, or one that had yet to load something.
CLOSING_SHARE = 0.2
EXPLODED = 3.0  # times the first loss
LAST, BEST = "checkpoint.pt", "best.pt"


class BaseTrainer(ABC):
    """One run of a program, which says what a step, an evaluation and a checkpoint are.

    With a group of several processes, all of them call every public method, and number 0 writes
    what there is to write.
    """

    def __init__(
        self,
        config: TrainingConfig,
        model: nn.Module,
        device: torch.device,
        steps_per_epoch: int,
        record: Callable[..., Record],
        group: Group = ALONE,
    ) -> None:
        self.config, self.model, self.device, self.group = config, model, device, group
        self.steps_per_epoch = steps_per_epoch
        self.facts: dict[str, Any] = {}  # plain values, stored along
        self.out = Path()
        self.optimizer = make_optimizer(config, model)
        self.record = record(total_steps=self._planned_steps())
        self._saved_at = 0.0  # of record.seconds
        self._counted_at = 0.0  # of the clock: until then, time is in record.seconds

    @abstractmethod
    def _train_step(self) -> None:
        """One step, counted in ``record``."""

    @abstractmethod
    def _verify(self) -> None:
        """TrainingError if the weights have gone bad since the last step."""

    @abstractmethod
    def _evaluate(self, display: Progress) -> None:
        """Scores the model and keeps weights that are the best yet as BEST."""

    @abstractmethod
    def _status(self) -> str:
        """Where the run stands, for the live line."""

    def _begin(self, display: Progress) -> None:
        """What comes before the first step."""
        self._timed("evaluation", self._evaluate, display)

    def _after_step(self, display: Progress, before: float) -> None:  # noqa: B027, a hook
        """What comes after a step and its evaluation; ``before`` it, progress was less."""

    def run(self, out: Path, should_stop: Callable[[], object] = lambda: False) -> None:
        """Trains, in directory ``out``, until the budget is used up or ``should_stop()``.

        Saves at the start and at the end, so that there is a checkpoint whatever happens.
        """
        self.out = out
        record = self.record
        display = Progress(record.planned_steps, record.step)
        self._counted_at = time.monotonic()
        (stop,) = self.group.maximum(bool(should_stop()))
        try:
            self.save()
            self.model.train()
            if not record.history:
                self._begin(display)
            while not record.finished and not stop:
                before, began = record.progress, time.monotonic()
                self._train_step()
                now = time.monotonic()
                # What is decided by the clock or by a signal has to be decided by all alike.
                step_seconds, seconds, stop = self.group.maximum(
                    now - began, now - self._counted_at, bool(should_stop())
                )
                self._counted_at = now
                record.step_seconds += step_seconds
                record.seconds += seconds
                self._use_time()
                if self._evaluation_due() or record.finished:
                    self._timed("evaluation", self._evaluate, display)
                self._after_step(display, before)
                if record.seconds - self._saved_at > self.config.save_every:
                    self.save()
                display.set_total(record.planned_steps)
                display.step(self._status())
            self._count_time()
            self.save()
        finally:
            display.close()

    def save(self) -> None:
        """Writes ``checkpoint.pt``, from which ``restore`` goes on exactly.

        TrainingError, and nothing written, if the weights have gone bad since the last step.
        """
        self._verify()
        self._saved_at = self.record.seconds
        checkpoint = self._checkpoint()
        if self.group.is_main:
            save_checkpoint(self.out / LAST, checkpoint)

    @abstractmethod
    def _packed_model(self) -> dict[str, Any]:
        """The part of a checkpoint that is enough to use the model, "model" among it."""

    def _checkpoint(self) -> dict[str, Any]:
        checkpoint = {
            **self._packed_model(),
            "optimizer": self.optimizer.state_dict(),
            "progress": self.record.to_dict(),
            "facts": self.facts,
            "rng": torch.get_rng_state(),
        }
        if self.device.type == "cuda":
            checkpoint["cuda_rng"] = torch.cuda.get_rng_state(self.device)
        return checkpoint

    def save_best(self) -> None:
        """Writes ``best.pt``: what is needed to use the model."""
        if self.group.is_main:
            save_checkpoint(self.out / BEST, {**self._packed_model(), "facts": self.facts})

    def restore(self, checkpoint: dict[str, Any], *, new_budget: bool) -> None:
        """Goes back to where ``checkpoint`` was saved; a ``new_budget`` changes what share of it is
        used."""
        self.model.load_state_dict(checkpoint["model"])
        self.optimizer.load_state_dict(checkpoint["optimizer"])
        self.record = type(self.record).from_dict(checkpoint["progress"])
        self.record.total_steps = self._planned_steps()
        # Runs from before there was "used" had a number of steps instead, made from the time.
        if new_budget or "used" not in checkpoint["progress"]:
            self.record.used = 0.0
            self._use_time()
        torch.set_rng_state(checkpoint["rng"])
        if self.device.type == "cuda" and "cuda_rng" in checkpoint:
            torch.cuda.set_rng_state(checkpoint["cuda_rng"], self.device)

    def _check(self, value: float, what: str) -> None:
        initial = self.record.initial_loss
        exploded = what == "loss" and initial is not None and value > EXPLODED * initial
        if math.isfinite(value) and not exploded:
            return
        seen = f"{value:.3g}, {EXPLODED:g} times the first" if exploded else f"{value}"
        raise TrainingError(
            f"the {what} is {seen} after step {self.record.step}; try a smaller --lr "
            f"(now {self.config.learning_rate:g}) or a tighter --clip-norm "
            f"(now {self.config.clip_norm:g}); the last good checkpoint is {self.out / LAST}"
        )

    def _learning_rate(self) -> float:
        config, step = self.config, self.record.step
        return config.learning_rate * learning_rate_factor(
            step,
            schedule=config.schedule,
            total_steps=self.record.expected_steps,
            warmup_steps=config.warmup,
            final=config.final_lr,
            epoch=step / self.steps_per_epoch,
            decay_rate=config.decay_rate,
            decay_after=config.decay_after,
        )

    def _set_learning_rate(self) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self._learning_rate()

    def _planned_steps(self) -> int | None:
        """The steps of the run if they follow from the settings, None for a time budget."""
        if self.config.steps is not None:
            return self.config.steps
        if self.config.epochs is not None:
            return max(1, round(self.config.epochs * self.steps_per_epoch))
        return None

    def _count_time(self) -> float:
        """Adds the time since the last call to ``record.seconds``, and returns it."""
        now = time.monotonic()
        (seconds,) = self.group.maximum(now - self._counted_at)
        self._counted_at = now
        self.record.seconds += seconds
        return seconds

    def _timed(self, name: str, work: Callable[[Progress], None], display: Progress) -> None:
        """Does what a run does beside its steps, and keeps how long it took."""
        self._count_time()
        work(display)
        self.record.aside_seconds[name] = self._count_time()

    def _time_for_steps(self, budget: float) -> float:
        """When the last step of a time ``budget`` is to end, in seconds: the rest is for what comes
        after it."""
        return budget - min(CLOSING_SHARE * budget, sum(self.record.aside_seconds.values()))

    def _use_time(self) -> None:
        """After a step: how much of a time budget is used, from which the rate follows.

        The clock says it anew each time, since no pace lasts. It is a part of the record, so that a
        resumed run takes up the rate where it was.
        """
        record, budget = self.record, self.config.time_budget
        if budget is not None:
            # Never less than it was: a faster evaluation leaves more time to the steps.
            used = min(1.0, record.seconds / self._time_for_steps(budget))
            record.used = max(record.used, used)

    def _evaluation_due(self) -> bool:
        record, every, budget = self.record, self.config.eval_every, self.config.time_budget
        if every:
            return record.step % every == 0
        if budget is None:
            return record.step % math.ceil(record.total_steps / record.evaluations) == 0
        # Expensive ones are rarer, but one is near the middle, which says better than the first how
        # long they take; none comes shortly before the last.
        spacing = record.aside_seconds.get("evaluation", 0.0) / EVALUATION_SHARE
        spacing = min(0.4 * budget, max(budget / record.evaluations, spacing))
        since = record.seconds - record.history[-1]["seconds"]
        left = self._time_for_steps(budget) - record.seconds
        return since >= spacing and left >= spacing / 2
