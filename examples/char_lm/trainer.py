"""Truncated back-propagation through time over a corpus, with everything needed to go on later."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..common.distributed import ALONE, Group
from ..common.optimize import clip_gradients
from ..common.progress import Progress
from ..common.trainer import BaseTrainer
from .checkpoint import pack_model
from .config import Config
from .data import TrainingStreams, Vocabulary
from .evaluate import bits, evaluate
from .model import CharLM, State
from .record import RunRecord
from .report import default_prime, printable, write_samples
from .sampling import SamplingOptions, sample

SAMPLE_AT = (0.0, 0.02, 0.08, 0.25, 0.5, 1.0)  # of the run


class Trainer(BaseTrainer):
    """One run. With a group of several processes, each trains on some of the streams with the same
    weights."""

    record: RunRecord

    def __init__(
        self,
        config: Config,
        model: CharLM,
        vocabulary: Vocabulary,
        streams: TrainingStreams,
        val: Tensor,
        group: Group = ALONE,
    ) -> None:
        device = model.head.weight.device
        super().__init__(config, model, device, streams.steps_per_epoch, RunRecord, group)
        self.vocabulary, self.streams, self.val = vocabulary, streams, val
        self._rows = group.part_of(streams.batch)
        self.state: State | None = None

    def restore(self, checkpoint: dict[str, Any], *, new_budget: bool) -> None:
        super().restore(checkpoint, new_budget=new_budget)
        state = checkpoint["state"]
        if state is not None:
            self.state = tuple(part[:, self._rows].to(self.device) for part in state)

    def _packed_model(self) -> dict[str, Any]:
        return pack_model(self.model, self.vocabulary, self.config)

    def _checkpoint(self) -> dict[str, Any]:
        return {**super()._checkpoint(), "state": self._whole_state()}

    def _train_step(self) -> None:
        record, config = self.record, self.config
        if self.group.size > 1:
            # Dropout: another mask in every process, and the same again after a resume.
            place = record.step * self.group.size + self.group.rank
            torch.manual_seed(config.seed * 1_000_000_007 + place)
        self._set_learning_rate()
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
        record.chars += chars
        record.add_step(loss=loss.item(), grad_norm=grad_norm, clipped=clipped)

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

    def _begin(self, display: Progress) -> None:
        super()._begin(display)
        self._timed("sample", self._sample, display)

    def _after_step(self, display: Progress, before: float) -> None:
        if self._sample_due(before):
            self._timed("sample", self._sample, display)

    def _sample_due(self, before: float) -> bool:
        record = self.record
        if self.config.sample_every:
            return record.step % self.config.sample_every == 0 or record.finished
        return any(before < share <= record.progress for share in SAMPLE_AT)

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
            self.save_best()
        display.log(self._status(with_step=True))

    def _sample(self, display: Progress) -> None:
        record, config = self.record, self.config
        self._verify()
        if not self.group.is_main:
            return
        options = SamplingOptions(temperature=config.sample_temperature)
        prime = self.vocabulary.encode(default_prime(self.vocabulary))
        ids = sample(self.model, prime, config.sample_length, options, config.seed)
        text = self.vocabulary.decode_text(ids)
        record.samples.append(
            {"step": record.step, "seconds": round(record.seconds, 1), "text": text}
        )
        write_samples(self.out / "samples.md", record.samples, config)
        head = f"--- sample after {record.step} steps, {record.seconds:.0f} s "
        display.print(f"{head:-<78}\n{printable(text)}\n{'':-<78}")

    def _status(self, *, with_step: bool = False) -> str:
        record = self.record
        parts = [f"step {record.step}"] if with_step or record.planned_steps is None else []
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
