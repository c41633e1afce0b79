"""``train``: a new run, or more of one."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from ...common.errors import UserError
from ...common.interrupt import StopRequest
from ...common.launch import started_by_torchrun
from ...common.machine import set_up_machine
from ...common.runs import claim, refuse_used, require_packages, resumed
from .. import checkpoint as checkpoints
from ..cli import RUNS, given_settings
from ..compare import compare_backends
from ..config import Config
from ..runs import Data, finish, first_batch, load, make_trainer
from ..trainer import Trainer
from ..vocabulary import Vocabulary

PACKAGES = ("tqdm", "matplotlib", "PIL", "sacrebleu")


def run(options: argparse.Namespace) -> int:
    """Trains. Whatever can be wrong is found before the first file is written."""
    require_packages(*PACKAGES)
    if started_by_torchrun():
        raise UserError("this program trains in one process; start it without torchrun")
    with StopRequest() as stop:
        vocabulary = None
        given = given_settings(options)
        if options.resume:
            config, stored = resumed(Config, options, given, checkpoints.read)
            out = options.resume
            vocabulary = Vocabulary.from_state_dict(stored.get("vocabulary"))
        else:
            config, stored = Config(**given), None
            out = options.out
            refuse_used(out, checkpoints.RUN_FILES, overwrite=options.overwrite)
        device = set_up_machine(config.device, config.threads)
        data = load(config, vocabulary)
        if stored and stored["facts"]["data"]["sha256"] != data.fingerprint:
            raise UserError(f"the data of {out} have changed: {config.data}")
        trainer = make_trainer(config, data, device, stored, out)
        print_header(trainer, data)
        if options.compare:
            batch = first_batch(data, config, device)
            shape = data.train.input_shape
            print(f"speed       {compare_backends(config, len(data.vocabulary), batch, shape)}")
        if not stored:
            out = claim(out, checkpoints.RUN_FILES, RUNS)
        trainer.run(out, lambda: stop)
        finish(trainer, out, interrupted=bool(stop))
        _print_next(trainer, out)
    return 0


def print_header(trainer: Trainer, data: Data) -> None:
    config, facts = trainer.config, trainer.facts
    for number, line in enumerate(data.report.lines()):
        print(f"{'' if number else 'data':11} {line}")
    threads = f", {torch.get_num_threads()} threads" if trainer.device.type == "cpu" else ""
    attention = f" ({config.attention})" if config.inject == "attend" else ""
    print(
        f"model       {config.encoder_kind} encoder, {config.grid} x {config.grid} x "
        f"{config.channels}; {config.inject}{attention}; {config.cell.upper()} {config.hidden}, "
        f"embedding {config.embedding}, {facts['parameters']:,} parameters; "
        f"{config.backend} on {trainer.device}{threads}"
    )
    shrunk = "" if trainer.batch_size == config.batch else f" (not {config.batch}: few pictures)"
    print(
        f"training    {trainer.batch_size} pictures a step{shrunk}, {config.optimizer} "
        f"{config.learning_rate:g} {config.schedule}, {config.budget}",
        flush=True,
    )
    if trainer.record.step:
        print(f"resumed     after step {trainer.record.step}")


def _print_next(trainer: Trainer, out: Path) -> None:
    files = [name for name in checkpoints.RUN_FILES if (out / name).exists()]
    print(f"files       {out}: {', '.join(files)}")
    more = "" if not trainer.record.finished else " --minutes 10"
    print(f"next        python -m examples.captioning caption {out} --beam 3")
    print(f"            python -m examples.captioning train --resume {out}{more}")
