"""One training run from its settings: the same for ``train`` and for ``compare``."""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..common.errors import UserError
from ..common.runs import restore
from . import checkpoint as checkpoints
from .config import Config
from .data import Batch, CaptionData, DataReport, load_data
from .decoding import DecodingOptions
from .evaluate import Evaluation, evaluate
from .model import Captioner
from .report import describe_scores, write_metrics, write_pages, write_plot
from .trainer import Trainer
from .vocabulary import Vocabulary


@dataclass(frozen=True)
class Data:
    """What a run learns from and is judged by."""

    train: CaptionData
    val: CaptionData
    vocabulary: Vocabulary
    report: DataReport

    @property
    def fingerprint(self) -> str:
        """Of the captions, pictures' names and shapes: pictures themselves can be many."""
        digest = hashlib.sha256()
        for part in (self.train, self.val):
            digest.update(repr(part.input_shape).encode())
            for example, references in zip(part.examples, part.references, strict=True):
                digest.update("\n".join([example.name, *references]).encode("utf-8", "replace"))
        return digest.hexdigest()


def load(config: Config, vocabulary: Vocabulary | None = None) -> Data:
    """The data ``config`` names; a run that goes on brings its vocabulary."""
    train, val, vocabulary, report = load_data(
        config.data,
        images=config.images,
        features=config.features,
        scenes=config.scenes,
        val_scenes=config.val_scenes,
        size=config.image_size,
        val_fraction=config.val_fraction,
        threshold=config.word_threshold,
        max_length=config.max_length,
        seed=config.seed,
        strict=config.strict,
        vocabulary=vocabulary,
    )
    if config.captions:
        examples = [
            dataclasses.replace(example, captions=example.captions[: config.captions])
            for example in train.examples
        ]
        train = CaptionData(examples, vocabulary, config.max_length)
    if train.has_features != (config.encoder_kind == "features"):
        raise UserError(
            f"--encoder {config.encoder_kind} does not go with "
            f"{'features' if train.has_features else 'pictures'}"
        )
    return Data(train, val, vocabulary, report)


def make_trainer(
    config: Config,
    data: Data,
    device: torch.device,
    stored: dict[str, Any] | None,
    out: Path | None,
) -> Trainer:
    """A run at its beginning, or where the checkpoint ``stored`` in ``out`` has it."""
    torch.manual_seed(config.seed)
    if stored:
        # Its CNN's weights are in the checkpoint; the file they came from may be gone.
        config = dataclasses.replace(config, weights=None)
    model = Captioner(len(data.vocabulary), config, data.train.input_shape[0]).to(device)
    trainer = Trainer(config, model, data.vocabulary, data.train, data.val)
    if stored:
        restore(trainer, stored, out or Path())
    trainer.facts = {
        "data": {**dataclasses.asdict(data.report), "sha256": data.fingerprint},
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "batch": trainer.batch_size,
        "steps_per_epoch": trainer.steps_per_epoch,
    }
    return trainer


def first_batch(data: Data, config: Config, device: torch.device) -> Batch:
    """A batch of the training data as long as those of the run, to measure with."""
    generator = torch.Generator().manual_seed(config.seed)
    return data.train.batch(range(min(config.batch, len(data.train))), generator, device)


def finish(trainer: Trainer, out: Path, *, interrupted: bool) -> Evaluation:
    """Scores the best weights of the run and writes its files; returns the greedy captions."""
    record, config = trainer.record, trainer.config
    model, step = trainer.model, record.step
    if record.best_step != step:
        best = out / checkpoints.BEST
        model, step = _load(best, trainer), record.best_step
    # After Ctrl-C somebody waits for the prompt: the slice is enough.
    limit = config.eval_images if interrupted else None
    greedy = evaluate(
        model,
        trainer.val,
        trainer.vocabulary,
        DecodingOptions(max_length=config.max_length),
        limit=limit,
    )
    beam = None
    if config.beam > 1:
        options = DecodingOptions(max_length=config.max_length, beam=config.beam)
        beam = evaluate(
            model, trainer.val, trainer.vocabulary, options, limit=limit, with_loss=False
        )
    write_metrics(
        out / "metrics.json",
        config=config,
        record=record,
        facts=trainer.facts,
        greedy=greedy,
        beam=beam,
        step=step,
    )
    title = f"{trainer.facts['data']['source']}, {config.inject}"
    write_plot(out / "loss.png", record, title)
    write_pages(out, trainer.val, greedy, beam, title)

    part = "a slice of the validation pictures" if interrupted else "the validation pictures"
    weights = "" if step == record.step else f", weights of step {step}"
    print(
        f"{'interrupted' if interrupted else 'done':11} {record.step} steps, "
        f"{record.seconds:.1f} s, {record.pictures_per_second:,.0f} pictures per second"
    )
    print(
        f"validation  {greedy.nats:.3f} nats per word on {part} ({len(greedy.written):,}{weights})"
    )
    print(f"greedy      {describe_scores(greedy.scores)}")
    if beam is not None:
        print(f"beam {config.beam:<6} {describe_scores(beam.scores)}")
    return greedy


def _load(path: Path, trainer: Trainer) -> Captioner:
    return checkpoints.load_model(path, backend=trainer.config.backend, device=trainer.device)[0]
