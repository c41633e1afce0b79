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
# A time budget becomes a number of steps after this share of it, and at least so many steps.
CALIBRATION_SHARE, CALIBRATION_STEPS, WARM_STEPS = 0.05, 5, 3
# Beyond this share of the budget a run stops where it is: the machine slowed down since.
OVERTIME = 1.1
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
        self._began_at = 0
        self._warm: tuple[int, float] | None = None  # step, step_seconds

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
        self._evaluate(display)

    def _after_step(self, display: Progress) -> None:  # noqa: B027, a hook
        """What comes after a step and its evaluation."""

    def _other_work(self) -> tuple[float, float]:
        """Seconds a step, and seconds in all, that go into ``_after_step``."""
        return 0.0, 0.0

    @property
    def finished(self) -> bool:
        """Whether the budget is used up."""
        budget = self.config.time_budget
        unplanned = self.record.total_steps is None
        return self.record.finished or (unplanned and self.record.seconds >= budget)

    def run(self, out: Path, should_stop: Callable[[], object] = lambda: False) -> None:
        """Trains, in directory ``out``, until the budget is used up or ``should_stop()``.

        Saves at the start and at the end, so that there is a checkpoint whatever happens.
        """
        self.out = out
        record = self.record
        display = Progress(record.total_steps, record.step)
        self._began_at, self._warm = record.step, None
        clock = time.monotonic()
        (stop,) = self.group.maximum(bool(should_stop()))
        try:
            self.save()
            self.model.train()
            if not record.history:
                self._begin(display)
            while not record.finished and not stop:
                began = time.monotonic()
                self._train_step()
                now = time.monotonic()
                # What is decided by the clock or by a signal has to be decided by all alike.
                step_seconds, seconds, stop = self.group.maximum(
                    now - began, now - clock, bool(should_stop())
                )
                clock = now
                record.step_seconds += step_seconds
                record.seconds += seconds
                if record.total_steps is None and self._calibrated():
                    self._plan(display)
                    display.set_total(record.total_steps)
                elif self._evaluation_due() or record.finished:
                    self._evaluate(display)
                self._after_step(display)
                if record.seconds - self._saved_at > self.config.save_every:
                    self.save()
                budget = self.config.time_budget
                if budget and record.seconds > OVERTIME * budget and not record.finished:
                    display.print("note: slower than when the steps were planned; stopping here")
                    record.total_steps = record.step
                display.step(self._status())
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
        """Goes back to where ``checkpoint`` was saved; ``new_budget`` plans the steps anew."""
        self.model.load_state_dict(checkpoint["model"])
        self.optimizer.load_state_dict(checkpoint["optimizer"])
        self.record = type(self.record).from_dict(checkpoint["progress"])
        if new_budget:
            self.record.total_steps = self._planned_steps()
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
            total_steps=self.record.total_steps,
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

    def _calibrated(self) -> bool:
        """Whether enough of the time budget has been spent to plan the rest of it."""
        record, budget = self.record, self.config.time_budget
        steps, seconds = self._since_warm()
        return record.seconds >= budget or (
            steps >= CALIBRATION_STEPS and seconds >= min(10.0, CALIBRATION_SHARE * budget)
        )

    def _since_warm(self) -> tuple[int, float]:
        """Steps and their seconds in this process, without its first few, which take longer."""
        record = self.record
        if self._warm is None and record.step >= self._began_at + WARM_STEPS:
            self._warm = (record.step, record.step_seconds)
        step, seconds = self._warm or (record.step, record.step_seconds)
        return record.step - step, record.step_seconds - seconds

    def _plan(self, display: Progress) -> None:
        """Turns what is left of the time budget into steps, once: a resumed run keeps the plan."""
        record = self.record
        began = time.monotonic()
        self._evaluate(display)
        evaluation, a_step, in_all = self.group.maximum(
            time.monotonic() - began, *self._other_work()
        )
        steps, step_seconds = self._since_warm()
        seconds = step_seconds / max(1, steps) + a_step
        room = self.config.time_budget - record.seconds - evaluation
        if self.config.eval_every:
            seconds += evaluation / self.config.eval_every
            left = room
        else:
            affordable = int(EVALUATION_SHARE * room / evaluation)
            record.evaluations = max(2, min(record.evaluations, affordable))
            left = room - record.evaluations * evaluation
        # However slow the rest, at least half of the time left goes to training.
        left = max(left - in_all, room / 2, 0.0)
        record.total_steps = record.step + (int(left / seconds) if seconds else 0)

    def _evaluation_due(self) -> bool:
        record, every = self.record, self.config.eval_every
        if every == 0 and record.total_steps is None:
            return False
        return record.step % (every or math.ceil(record.total_steps / record.evaluations)) == 0
