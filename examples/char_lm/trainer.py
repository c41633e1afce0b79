"""Truncated back-propagation through time over a corpus, with everything needed to go on later."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..common.distributed import ALONE, Group
from ..common.errors import TrainingError
from ..common.files import save_checkpoint
from ..common.progress import Progress
from ..common.schedule import learning_rate_factor
from .checkpoint import BEST, LAST, pack_model
from .config import Config
from .data import TrainingStreams, Vocabulary
from .evaluate import bits, evaluate
from .model import CharLM, State
from .record import RunRecord
from .report import default_prime, printable, write_samples
from .sampling import SamplingOptions, sample

EVALUATION_SHARE = 0.1  # of a time budget, at most
SAMPLE_AT = (0.0, 0.02, 0.08, 0.25, 0.5, 1.0)  # of the run
# A time budget becomes a number of steps after this share of it, and at least so many steps.
CALIBRATION_SHARE, CALIBRATION_STEPS, WARM_STEPS = 0.05, 5, 3
# Beyond this share of the budget a run stops where it is: the machine slowed down since.
OVERTIME = 1.1
EXPLODED = 3.0  # times the first loss


class Trainer:
    """One run. ``restore`` is the exact opposite of ``save``.

    With a group of several processes, each trains on some of the streams with the same weights;
    all of them call every public method, and number 0 writes what there is to write.
    """

    def __init__(
        self,
        config: Config,
        model: CharLM,
        vocabulary: Vocabulary,
        streams: TrainingStreams,
        val: Tensor,
        group: Group = ALONE,
    ) -> None:
        self.config, self.model, self.vocabulary = config, model, vocabulary
        self.streams, self.val = streams, val
        self.group, self._rows = group, group.part_of(streams.batch)
        self.facts: dict[str, Any] = {}  # plain values, stored along (corpus, baseline)
        self.out = Path()
        self.device = model.head.weight.device
        self.optimizer = make_optimizer(config, model)
        self.state: State | None = None
        self.record = RunRecord(total_steps=self._planned_steps())
        self._saved_at = 0.0  # of record.seconds
        self._sample_seconds = 0.0
        self._began_at = 0
        self._warm: tuple[int, float] | None = None  # step, step_seconds

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
                self._evaluate(display)
                self._sample(display)
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
                if self._sample_due():
                    self._sample(display)
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
        """Writes ``checkpoint.pt``: weights, optimizer, random numbers, place, state, averages.

        TrainingError, and nothing written, if the weights have gone bad since the last step.
        """
        self._verify()
        self._saved_at = self.record.seconds
        state = self._whole_state()
        if not self.group.is_main:
            return
        checkpoint = pack_model(self.model, self.vocabulary, self.config)
        checkpoint["optimizer"] = self.optimizer.state_dict()
        checkpoint["progress"] = self.record.to_dict()
        checkpoint["state"] = state
        checkpoint["facts"] = self.facts
        checkpoint["rng"] = torch.get_rng_state()
        if self.device.type == "cuda":
            checkpoint["cuda_rng"] = torch.cuda.get_rng_state(self.device)
        save_checkpoint(self.out / LAST, checkpoint)

    def save_best(self, path: Path) -> None:
        """Writes what ``sample`` and ``eval`` need to ``path``."""
        packed = pack_model(self.model, self.vocabulary, self.config)
        save_checkpoint(path, {**packed, "facts": self.facts})

    def restore(self, checkpoint: dict[str, Any], *, new_budget: bool) -> None:
        """Goes back to where ``checkpoint`` was saved; ``new_budget`` plans the steps anew."""
        self.model.load_state_dict(checkpoint["model"])
        self.optimizer.load_state_dict(checkpoint["optimizer"])
        self.record = RunRecord.from_dict(checkpoint["progress"])
        if new_budget:
            self.record.total_steps = self._planned_steps()
        state = checkpoint["state"]
        if state is not None:
            self.state = tuple(part[:, self._rows].to(self.device) for part in state)
        torch.set_rng_state(checkpoint["rng"])
        if self.device.type == "cuda" and "cuda_rng" in checkpoint:
            torch.cuda.set_rng_state(checkpoint["cuda_rng"], self.device)

    def _train_step(self) -> None:
        record, config = self.record, self.config
        if self.group.size > 1:
            # Dropout: another mask in every process, and the same again after a resume.
            place = record.step * self.group.size + self.group.rank
            torch.manual_seed(config.seed * 1_000_000_007 + place)
        for group in self.optimizer.param_groups:
            group["lr"] = self._learning_rate()
        self.optimizer.zero_grad(set_to_none=True)
        loss, state = self._next_loss()
        loss.backward()
        loss = loss.detach()
        self.group.sum_([loss, *(parameter.grad for parameter in self.model.parameters())])
        self._check(loss.item(), "loss")
        grad_norm, clipped = clip_gradients(self.model, config.clip_norm, config.clip_value)
        self._check(grad_norm, "gradient norm")
        self.optimizer.step()
        # Detached: the state goes on for ever, the gradient stops at the window.
        self.state = tuple(part.detach() for part in state)
        chars = self.streams.batch * self.streams.seq
        record.add_step(loss=loss.item(), grad_norm=grad_norm, clipped=clipped, chars=chars)

    def _next_loss(self) -> tuple[Tensor, State]:
        """The part of this process's rows in the mean loss of the next window, and their state."""
        inputs, targets, carry = self.streams.window(self.record.step)
        share = targets[:, self._rows].numel() / targets.numel()
        inputs, targets = (t[:, self._rows].to(self.device) for t in (inputs, targets))
        logits, state = self.model(inputs, self._carried(carry[self._rows].to(self.device)))
        return share * F.cross_entropy(logits.flatten(0, 1), targets.flatten()), state

    def _carried(self, carry: Tensor) -> State | None:
        """The state for the next window: zero for the streams that start anew (bool [N])."""
        if self.state is None or not carry.any():
            return None
        if carry.all():
            return self.state
        return tuple(part * carry.unsqueeze(-1) for part in self.state)

    def _whole_state(self) -> list[Tensor] | None:
        """The state of all streams, whichever process they belong to."""
        if self.state is None:
            return None
        return [self.group.whole(part, self.streams.batch, dim=1) for part in self.state]

    @torch.no_grad()
    def _verify(self) -> None:
        """Checks the loss the next step would see, so that no checkpoint holds ruined weights."""
        self.model.eval()
        loss, _ = self._next_loss()
        self.model.train()
        self.group.sum_([loss])
        self._check(loss.item(), "loss")

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
            epoch=step / self.streams.steps_per_epoch,
            decay_rate=config.decay_rate,
            decay_after=config.decay_after,
        )

    def _planned_steps(self) -> int | None:
        """The steps of the run if they follow from the settings, None for a time budget."""
        if self.config.steps is not None:
            return self.config.steps
        if self.config.epochs is not None:
            return max(1, round(self.config.epochs * self.streams.steps_per_epoch))
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
        evaluation, sampling = self.group.maximum(time.monotonic() - began, self._sample_seconds)
        steps, step_seconds = self._since_warm()
        seconds = step_seconds / max(1, steps)
        room = self.config.time_budget - record.seconds - evaluation
        if self.config.eval_every:
            seconds += evaluation / self.config.eval_every
            left = room
        else:
            affordable = int(EVALUATION_SHARE * room / evaluation)
            record.evaluations = max(2, min(record.evaluations, affordable))
            left = room - record.evaluations * evaluation
        if self.config.sample_every:
            seconds += sampling / self.config.sample_every
        else:
            left -= len(SAMPLE_AT) * sampling
        # However slow the rest, at least half of the time left goes to training.
        left = max(left, room / 2, 0.0)
        record.total_steps = record.step + (int(left / seconds) if seconds else 0)

    def _evaluation_due(self) -> bool:
        record, every = self.record, self.config.eval_every
        if every == 0 and record.total_steps is None:
            return False
        return record.step % (every or math.ceil(record.total_steps / record.evaluations)) == 0

    def _sample_due(self) -> bool:
        record = self.record
        if self.config.sample_every:
            return record.step % self.config.sample_every == 0 or record.finished
        if record.total_steps is None:
            return False
        return record.step in {math.ceil(share * record.total_steps) for share in SAMPLE_AT}

    def _evaluate(self, display: Progress) -> None:
        """Scores the validation slice; keeps weights that are the best yet as ``best.pt``."""
        record = self.record
        nats, _ = evaluate(self.model, self.val, self.config.eval_chars)
        self._check(nats, "validation loss")
        record.history.append(
            {
                "step": record.step,
                "seconds": round(record.seconds, 3),
                "chars": record.chars,
                "train_nats": record.train_nats,
                "val_nats": nats,
                "learning_rate": self._learning_rate(),
                "grad_norm": record.averages.get("grad_norm"),
                "clipped_share": record.averages.get("clipped"),
                "chars_per_second": record.chars_per_second,
            }
        )
        if record.best_nats is None or nats < record.best_nats:
            record.best_nats, record.best_step = nats, record.step
            if self.group.is_main:
                self.save_best(self.out / BEST)
        display.log(self._status(with_step=True))

    def _sample(self, display: Progress) -> None:
        record, config = self.record, self.config
        self._verify()
        if not self.group.is_main:
            return
        began = time.monotonic()
        options = SamplingOptions(temperature=config.sample_temperature)
        prime = self.vocabulary.encode(default_prime(self.vocabulary))
        ids = sample(self.model, prime, config.sample_length, options, config.seed)
        text = self.vocabulary.decode_text(ids)
        self._sample_seconds = time.monotonic() - began
        record.samples.append(
            {"step": record.step, "seconds": round(record.seconds, 1), "text": text}
        )
        write_samples(self.out / "samples.md", record.samples, config)
        head = f"--- sample after {record.step} steps, {record.seconds:.0f} s "
        display.print(f"{head:-<78}\n{printable(text)}\n{'':-<78}")

    def _status(self, *, with_step: bool = False) -> str:
        record = self.record
        parts = [f"step {record.step}"] if with_step or record.total_steps is None else []
        if record.step:
            parts.append(f"train {record.train_nats:.3f}")
        if record.history:
            nats = record.history[-1]["val_nats"]
            parts.append(f"val {nats:.3f} nats {bits(nats):.3f} bpc")
        if record.step:
            parts.append(f"{record.chars_per_second / 1000:.1f}k char/s")
            parts.append(f"grad {record.averages['grad_norm']:.2f}")
            parts.append(f"clipped {100 * record.averages['clipped']:.0f}%")
        return " | ".join(parts)


def make_optimizer(config: Config, model: nn.Module) -> torch.optim.Optimizer:
    options = {"lr": config.learning_rate, "weight_decay": config.weight_decay}
    if config.optimizer == "rmsprop":
        return torch.optim.RMSprop(model.parameters(), alpha=0.95, **options)
    if config.optimizer == "adagrad":
        return torch.optim.Adagrad(model.parameters(), **options)
    return torch.optim.AdamW(model.parameters(), betas=(0.9, 0.99), fused=True, **options)


def clip_gradients(model: nn.Module, norm: float, value: float) -> tuple[float, bool]:
    """Clips gradients elementwise to ``value``, then as a whole to ``norm``; 0 turns either off.

    Returns the norm before clipping, and whether anything was clipped.
    """
    parameters = [p for p in model.parameters() if p.grad is not None]
    gradients = [p.grad for p in parameters]
    before = float(nn.utils.get_total_norm(gradients))
    if not math.isfinite(before):
        return before, False
    clipped = False
    now = before
    if value and any(float(g.abs().max()) > value for g in gradients):
        nn.utils.clip_grad_value_(parameters, value)
        clipped = True
        now = float(nn.utils.get_total_norm(gradients))
    if norm and now > norm:
        nn.utils.clip_grads_with_norm_(parameters, norm, torch.tensor(now))
        clipped = True
    return before, clipped
