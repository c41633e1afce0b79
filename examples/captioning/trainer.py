"""Training of encoder and decoder together, with everything needed to go on later."""

from __future__ import annotations

from typing import Any

import torch

from ..common.optimize import clip_gradients
from ..common.progress import Progress
from ..common.trainer import BaseTrainer
from .checkpoint import pack_model
from .config import Config
from .data import Batch, CaptionData
from .decoding import DecodingOptions
from .evaluate import evaluate, mean_loss
from .model import Captioner
from .record import CaptionRecord
from .vocabulary import Vocabulary

EXAMPLES_SHOWN = 3


class Trainer(BaseTrainer):
    """One run. Which pictures and captions a step takes follows from its number and the seed."""

    record: CaptionRecord
    config: Config

    def __init__(
        self,
        config: Config,
        model: Captioner,
        vocabulary: Vocabulary,
        train: CaptionData,
        val: CaptionData,
    ) -> None:
        self.batch_size = min(config.batch, len(train))
        steps_per_epoch = len(train) // self.batch_size
        super().__init__(config, model, model.device, steps_per_epoch, CaptionRecord)
        self.vocabulary, self.train, self.val = vocabulary, train, val
        self._order: tuple[int, list[int]] = (-1, [])  # epoch, and its pictures

    def _packed_model(self) -> dict[str, Any]:
        return pack_model(self.model, self.vocabulary, self.config, self.train.input_shape)

    def _batch(self, step: int) -> Batch:
        """The pictures of ``step`` (from 0), with one caption of each."""
        epoch, index = divmod(step, self.steps_per_epoch)
        if self._order[0] != epoch:
            generator = self._generator(2 * epoch + 1)
            order = torch.randperm(len(self.train), generator=generator).tolist()
            self._order = (epoch, order)
        begin = index * self.batch_size
        chosen = self._order[1][begin : begin + self.batch_size]
        return self.train.batch(chosen, self._generator(2 * step), self.device)

    def _generator(self, number: int) -> torch.Generator:
        return torch.Generator().manual_seed(self.config.seed * 1_000_000_007 + number)

    def _train_step(self) -> None:
        record, config = self.record, self.config
        self._set_learning_rate()
        batch = self._batch(record.step)
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.model.loss(batch.inputs, batch.tokens, batch.lengths)
        loss.total.backward()
        self._check(loss.total.item(), "loss")
        grad_norm, clipped = clip_gradients(self.model, config.clip_norm, config.clip_value)
        self._check(grad_norm, "gradient norm")
        self.optimizer.step()
        record.pictures += len(batch.lengths)
        record.words += loss.words
        record.add_step(loss=loss.nats.item(), grad_norm=grad_norm, clipped=clipped)

    def _verify(self) -> None:
        nats, _ = mean_loss(self.model, self._batch(self.record.step))
        self._check(nats, "next loss")

    def _evaluate(self, display: Progress) -> None:
        """Captions the validation slice; keeps weights that are the best yet as ``best.pt``."""
        record, config = self.record, self.config
        options = DecodingOptions(max_length=config.max_length)
        found = evaluate(self.model, self.val, self.vocabulary, options, limit=config.eval_images)
        self._check(found.nats, "validation loss")
        record.history.append(
            {
                "step": record.step,
                "seconds": round(record.seconds, 3),
                "train_nats": record.train_nats,
                "val_nats": found.nats,
                **found.scores,
                "learning_rate": self._learning_rate(),
                "grad_norm": record.averages.get("grad_norm"),
                "clipped_share": record.averages.get("clipped"),
                "pictures_per_second": record.pictures_per_second,
            }
        )
        if record.is_best(found.scores["cider"], found.nats):
            record.best_cider, record.best_nats = found.scores["cider"], found.nats
            record.best_step = record.step
            self.save_best()
        display.log(self._status(with_step=True))
        self._show(display, found.texts)

    def _show(self, display: Progress, texts: list[str]) -> None:
        """A few captions; where they are all the same, whether that is a reason to worry."""
        if not self.record.step:
            return
        if len(set(texts)) == 1 and len(texts) > 1:
            display.print(
                f'    every picture: "{texts[0]}" (usual at first: words come before sight)'
            )
            return
        for text, references in zip(texts[:EXAMPLES_SHOWN], self.val.references, strict=False):
            mark = "+" if text in references else "-"
            display.print(f'    {mark} "{text}" for "{references[0]}"')

    def _status(self, *, with_step: bool = False) -> str:
        record = self.record
        parts = [f"step {record.step}"] if with_step or record.planned_steps is None else []
        if record.step:
            parts.append(f"train {record.train_nats:.3f}")
        if record.history:
            last = record.history[-1]
            parts.append(f"val {last['val_nats']:.3f} nats")
            parts.append(f"exact {100 * last['exact_match']:.1f}%")
            parts.append(f"cider {last['cider']:.2f}")
            if "pointing" in last:
                parts.append(f"pointing {100 * last['pointing']:.0f}%")
        if record.step:
            parts.append(f"{record.pictures_per_second:.0f} pictures/s")
            parts.append(f"grad {record.averages['grad_norm']:.2f}")
        return " | ".join(parts)
