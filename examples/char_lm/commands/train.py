"""``train``: a new run, or more of one."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...common.distributed import processes
from ...common.errors import UserError
from ...common.interrupt import StopRequest
from ...common.machine import set_up_machine
from ...common.runs import (
    claim,
    refuse_used,
    require_packages,
    restore,
    resumed,
)
from .. import checkpoint as checkpoints
from ..cli import RUNS, given_settings
from ..compare import compare_backends
from ..config import Config
from ..data import Corpus, TrainingStreams, Vocabulary, fit_streams, load_corpus, split
from ..evaluate import evaluate
from ..model import CharLM
from ..ngram import Baseline, ngram_baseline
from ..report import nats_and_bits, write_metrics, write_plot
from ..trainer import Trainer


def run(options: argparse.Namespace) -> int:
    """Trains. Whatever can be wrong is found before the first file is written."""
    require_packages("tqdm", "matplotlib")
    with processes() as group, StopRequest() as stop:
        given = given_settings(options)
        if options.resume:
            config, stored = resumed(Config, options, given, checkpoints.read)
            out = options.resume
        else:
            config, stored = Config(**given), None
            out = options.out
            refuse_used(out, checkpoints.RUN_FILES, overwrite=options.overwrite)
        device = set_up_machine(config.device, config.threads)
        corpus = load_corpus(config)
        if stored and stored["facts"]["corpus"]["sha256"] != corpus.sha256:
            raise UserError(f"the text of {out} has changed: now {corpus.describe()}")
        vocabulary = Vocabulary.of(corpus.data)
        train_ids, val_ids = split(vocabulary.encode(corpus.data), config.val_fraction)
        batch, seq = fit_streams(len(train_ids), config.batch, config.seq)
        if batch < group.size:
            raise UserError(f"--batch {batch} has too few rows for {group.size} processes")
        streams = TrainingStreams(train_ids, batch, seq, reset=config.reset, seed=config.seed)
        torch.manual_seed(config.seed)
        model = CharLM(len(vocabulary), config).to(device)
        trainer = Trainer(config, model, vocabulary, streams, val_ids, group)
        if stored:
            restore(trainer, stored, out)
        trainer.facts = {
            **_facts(corpus, trainer),
            "baseline": stored["facts"]["baseline"] if stored else None,
        }

        _print_header(corpus, trainer)
        # Before one process writes, all have seen the files as they were.
        group.wait()
        if group.is_main:
            # The others go on to where they first need this one.
            if options.compare:
                print(f"speed       {compare_backends(config, len(vocabulary), streams, device)}")
            if not stored:
                trainer.facts["baseline"] = _baseline(config, vocabulary, train_ids, val_ids)
                out = claim(out, checkpoints.RUN_FILES, RUNS)
        _print_baseline(trainer)
        trainer.run(out or Path(), lambda: stop)
        if group.is_main:
            _finish(trainer, out, interrupted=bool(stop))
    return 0


def _facts(corpus: Corpus, trainer: Trainer) -> dict[str, Any]:
    """What metrics.json and the checkpoint say about the run beside its settings."""
    return {
        "corpus": {
            "name": corpus.name,
            "length": len(corpus.data),
            "sha256": corpus.sha256,
            "train": len(trainer.streams.ids),
            "validation": len(trainer.val),
            "vocabulary": len(trainer.vocabulary),
            "python": sys.version.split()[0],
        },
        "processes": trainer.group.size,
        "parameters": sum(parameter.numel() for parameter in trainer.model.parameters()),
        "batch": trainer.streams.batch,
        "seq": trainer.streams.seq,
        "steps_per_epoch": trainer.streams.steps_per_epoch,
    }


def _baseline(
    config: Config, vocabulary: Vocabulary, train_ids: Tensor, val_ids: Tensor
) -> dict[str, Any] | None:
    """n-grams of the characters just before the validation text, scored on at most a quarter as
    many of it: a few seconds at the default."""
    if not config.ngram_chars:
        return None
    counted = train_ids[-config.ngram_chars :].numpy()
    scored = val_ids[: max(1, config.ngram_chars // 4)].numpy()
    return ngram_baseline(counted, scored, len(vocabulary)).to_dict()


def _print_header(corpus: Corpus, trainer: Trainer) -> None:
    config, streams, facts = trainer.config, trainer.streams, trainer.facts
    kind = "byte values" if config.bytes else "different characters in both"
    inputs = f"embedding {config.embedding}" if config.embedding else "one-hot input"
    threads = f", {torch.get_num_threads()} threads" if trainer.device.type == "cpu" else ""
    if trainer.group.size > 1:
        threads += f", {trainer.group.size} processes"
    shrunk = ""
    if (streams.batch, streams.seq) != (config.batch, config.seq):
        shrunk = f" (not {config.batch} x {config.seq}: the text is short)"
    print(f"text        {corpus.describe()}")
    print(
        f"split       {facts['corpus']['train']:,} to train on, the last "
        f"{facts['corpus']['validation']:,} to validate; {len(trainer.vocabulary)} {kind}"
    )
    print(
        f"model       {config.cell.upper()} {config.layers} x {config.hidden}, {inputs}, "
        f"{facts['parameters']:,} parameters; {config.backend} on {trainer.device}{threads}"
    )
    print(
        f"training    {streams.batch} streams x {streams.seq} characters a step{shrunk}, "
        f"{config.optimizer} {config.learning_rate:g} {config.schedule}, {config.budget}"
    )
    if trainer.record.step:
        print(f"resumed     after step {trainer.record.step}")


def _print_baseline(trainer: Trainer) -> None:
    baseline = Baseline.from_dict(trainer.facts["baseline"])
    if baseline:
        print(f"baselines   {baseline.describe()}", flush=True)


def _finish(trainer: Trainer, out: Path, *, interrupted: bool) -> None:
    """Scores the run, writes its files, and says what to do next."""
    record, config = trainer.record, trainer.config
    # After Ctrl-C somebody waits for the prompt: the slice is enough.
    limit = config.eval_chars if interrupted else None
    last_nats, chars = evaluate(trainer.model, trainer.val, limit)
    nats, step = last_nats, record.step
    best = out / checkpoints.BEST
    if record.best_step != record.step:
        nats, _ = evaluate(_load_best(best, trainer), trainer.val, limit)
        step = record.best_step
    write_metrics(
        out / "metrics.json",
        config=config,
        record=record,
        facts=trainer.facts,
        validation={"nats": nats, "chars": chars, "step": step, "last_nats": last_nats},
    )
    baseline = Baseline.from_dict(trainer.facts["baseline"])
    write_plot(out / "loss.png", record, baseline, trainer.facts["corpus"]["name"])

    part = "a slice of the validation text" if interrupted else "the validation text"
    weights = "" if step == record.step else f", weights of step {step}"
    print(
        f"{'interrupted' if interrupted else 'done':11} {record.step} steps, "
        f"{record.seconds:.1f} s, {record.chars_per_second:,.0f} characters per second"
    )
    print(f"validation  {nats_and_bits(nats)} on {part} ({chars:,} characters{weights})")
    _print_baseline(trainer)
    print(f"files       {out}: {', '.join(checkpoints.RUN_FILES)}")
    more = "" if not record.finished else " --minutes 5"
    print(f"next        python -m examples.char_lm sample {out}")
    print(f"            python -m examples.char_lm train --resume {out}{more}")


def _load_best(path: Path, trainer: Trainer) -> CharLM:
    backend = trainer.config.backend
    return checkpoints.load_model(path, backend=backend, device=trainer.device)[0]
