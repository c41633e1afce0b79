"""The command line: arguments in, settings out. Imports nothing heavy, so that --help is quick."""

from __future__ import annotations

import argparse
import dataclasses
from argparse import SUPPRESS
from pathlib import Path
from typing import Any, NoReturn

from ..common.errors import UserError
from ..common.schedule import SCHEDULES
from .config import BACKENDS, CELLS, DEFAULT_LEARNING_RATE, DEFAULT_MINUTES, OPTIMIZERS, Config


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see --help)")


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The arguments as a namespace; ``command`` is train, sample or eval.

    Settings of Config that were not given are absent, so that --resume can tell.
    """
    parser = Parser(
        prog="python -m examples.char_lm",
        description="Character-level recurrent language model.",
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", required=True, parser_class=Parser)
    _add_train(commands.add_parser("train", help="train a model on text", allow_abbrev=False))
    _add_sample(commands.add_parser("sample", help="write text", allow_abbrev=False))
    _add_eval(commands.add_parser("eval", help="score a text", allow_abbrev=False))
    return parser.parse_args(arguments)


def given_settings(options: argparse.Namespace) -> dict[str, Any]:
    """The settings of Config that were given on the command line."""
    names = {field.name for field in dataclasses.fields(Config)}
    settings = {name: value for name, value in vars(options).items() if name in names}
    if "text" in settings:
        # Absolute, so that a run can be resumed from anywhere.
        settings["text"] = tuple(str(Path(name).absolute()) for name in settings["text"])
    return settings


def _embedding(text: str) -> int:
    return 0 if text == "one-hot" else int(text)


def _add_train(parser: argparse.ArgumentParser) -> None:
    defaults = Config()
    rates = ", ".join(f"{name} {rate:g}" for name, rate in DEFAULT_LEARNING_RATE.items())

    def add(group: Any, name: str, help: str, **options: Any) -> None:
        default = getattr(defaults, name)
        if default is not None and default is not False and default != ():
            help += (
                f" (default {default:g})" if isinstance(default, float) else f" (default {default})"
            )
        flag = "--" + name.replace("_", "-")
        group.add_argument(flag, dest=name, help=help, default=SUPPRESS, **options)

    text = parser.add_argument_group("text")
    add(text, "text", "files to learn; default: the running Python's standard library source",
        nargs="+", metavar="FILE")  # fmt: skip
    add(text, "bytes", "learn bytes, not characters: any file will do", action="store_true")
    add(text, "encoding", "of the files", metavar="NAME")
    add(text, "corpus_mb", "how much of the standard library to read", type=float, metavar="MB")
    add(text, "val_fraction", "the end of the text, kept for validation", type=float, metavar="F")

    model = parser.add_argument_group("model")
    add(model, "cell", "kind of recurrent layer", choices=CELLS)
    add(model, "layers", "recurrent layers", type=int, metavar="N")
    add(model, "hidden", "hidden units of each", type=int, metavar="N")
    add(model, "embedding", "width of the character embedding, or one-hot",
        type=_embedding, metavar="N|one-hot")  # fmt: skip
    add(model, "dropout", "between layers and before the output", type=float, metavar="P")
    add(model, "forget_bias", "initial bias of the LSTM's forget gate", type=float, metavar="B")

    training = parser.add_argument_group("training")
    budget = training.add_mutually_exclusive_group()
    add(budget, "minutes", f"train this long in all (default {DEFAULT_MINUTES:g})",
        type=float, metavar="M")  # fmt: skip
    add(budget, "epochs", "train this many passes over the text in all", type=float, metavar="E")
    add(budget, "steps", "train this many steps in all", type=int, metavar="N")
    add(training, "seq", "characters back-propagated through at a time", type=int, metavar="T")
    add(training, "batch", "places in the text read side by side", type=int, metavar="N")
    add(training, "reset", "chance that a place forgets its state at a step",
        type=float, metavar="P")  # fmt: skip
    add(training, "optimizer", "update rule", choices=OPTIMIZERS)
    add(training, "lr", f"learning rate (default {rates})", type=float, metavar="R")
    add(training, "schedule", "decay of the learning rate", choices=SCHEDULES)
    add(training, "warmup", "steps of rising learning rate first", type=int, metavar="N")
    add(training, "final_lr", "cosine, linear: where to end, as a share of the learning rate",
        type=float, metavar="F")  # fmt: skip
    add(training, "decay_rate", "exponential: factor an epoch", type=float, metavar="F")
    add(training, "decay_after", "exponential: epochs before it starts", type=float, metavar="E")
    add(training, "clip_norm", "largest gradient norm, 0 for none", type=float, metavar="X")
    add(training, "clip_value", "largest gradient element, 0 for none", type=float, metavar="X")
    add(training, "weight_decay", "weight decay of the optimizer", type=float, metavar="X")
    add(training, "seed", "of the weights, dropout and samples", type=int, metavar="S")

    watching = parser.add_argument_group("watching")
    add(watching, "eval_every", "steps between validations, 0: 15 in a run", type=int, metavar="N")
    add(watching, "eval_chars", "validation characters scored each time; the end scores all",
        type=int, metavar="N")  # fmt: skip
    add(watching, "sample_every", "steps between samples, 0: 6 in a run", type=int, metavar="N")
    add(watching, "sample_length", "characters a sample", type=int, metavar="N")
    add(watching, "sample_temperature", "of these samples", type=float, metavar="X")
    add(watching, "ngram_chars", "training characters the n-gram baseline counts, 0: no baseline",
        type=int, metavar="N")  # fmt: skip
    watching.add_argument("--compare", action="store_true",
        help="first measure characters per second with both backends")  # fmt: skip

    files = parser.add_argument_group("files")
    files.add_argument("--out", type=Path, metavar="DIR",
        help="where the run goes (default: the next free runs/char_lm/NNN)")  # fmt: skip
    files.add_argument("--resume", type=Path, metavar="DIR",
        help="go on with the run in DIR, bit for bit as if it had not stopped")  # fmt: skip
    files.add_argument("--overwrite", action="store_true", help="replace a run that is in --out")
    add(files, "save_every", "seconds between checkpoints", type=float, metavar="S")

    machine = parser.add_argument_group("machine")
    add(machine, "backend", "whose recurrent layers", choices=BACKENDS)
    _add_machine(machine)


def _add_machine(group: Any, *, device: str = SUPPRESS, threads: Any = SUPPRESS) -> None:
    group.add_argument("--device", metavar="NAME", default=device,
        help="cpu, cuda or auto (default cpu)")  # fmt: skip
    shown = 0 if threads is SUPPRESS else threads
    group.add_argument("--threads", type=int, metavar="N", default=threads,
        help=f"CPU threads, 0: as PyTorch chooses (default {shown})")  # fmt: skip


def _add_model(parser: argparse.ArgumentParser, threads: int) -> None:
    parser.add_argument(
        "model", type=Path, metavar="MODEL", help="a run's directory or a checkpoint"
    )
    parser.add_argument(
        "--backend", choices=BACKENDS, help="whose recurrent layers (default: the run's)"
    )
    _add_machine(parser, device="cpu", threads=threads)


def _add_sample(parser: argparse.ArgumentParser) -> None:
    _add_model(parser, threads=1)
    prime = parser.add_mutually_exclusive_group()
    prime.add_argument("--prime", metavar="TEXT", help="text to go on from (default: a new line)")
    prime.add_argument("--prime-file", type=Path, metavar="FILE", help="the same, from a file")
    parser.add_argument("--length", type=int, default=500, metavar="N",
        help="characters to write (default 500)")  # fmt: skip
    parser.add_argument("--count", type=int, default=1, metavar="N", help="samples (default 1)")
    parser.add_argument("--temperature", type=float, default=0.8, metavar="X",
        help="below 1: safer, above 1: wilder, 0: greedy (default 0.8)")  # fmt: skip
    parser.add_argument("--top-k", type=int, default=0, metavar="K",
        help="draw from the K most likely only, 0: all (default 0)")  # fmt: skip
    parser.add_argument("--top-p", type=float, default=1.0, metavar="P",
        help="draw from the fewest that hold probability P (default 1)")  # fmt: skip
    parser.add_argument("--greedy", action="store_true", help="always the most likely character")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of the draws (default 0)")
    parser.add_argument("--no-stream", dest="stream", action="store_false",
        help="write each sample at once, not as it is drawn")  # fmt: skip


def _add_eval(parser: argparse.ArgumentParser) -> None:
    _add_model(parser, threads=0)
    parser.add_argument("--text", nargs="+", metavar="FILE",
        help="files to score (default: the validation split of the run)")  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print one JSON object instead")
