"""The command line: arguments in, settings out. Imports nothing heavy, so that --help is quick."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..common import cli
from ..common.cli import (
    add_computing,
    add_files,
    add_model,
    add_training,
    program_parser,
    setting_adder,
)
from .config import Config

RUNS = Path("runs/char_lm")


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The arguments as a namespace; ``command`` is train, sample or eval.

    Settings of Config that were not given are absent, so that --resume can tell.
    """
    parser, command = program_parser(
        "examples.char_lm", "Character-level recurrent language model."
    )
    _add_train(command("train", "train a model on text"))
    _add_sample(command("sample", "write text"))
    _add_eval(command("eval", "score a text"))
    return parser.parse_args(arguments)


def given_settings(options: argparse.Namespace) -> dict[str, Any]:
    """The settings of Config that were given on the command line."""
    settings = cli.given_settings(Config, options)
    if "text" in settings:
        # Absolute, so that a run can be resumed from anywhere.
        settings["text"] = tuple(str(Path(name).absolute()) for name in settings["text"])
    return settings


def _embedding(text: str) -> int:
    return 0 if text == "one-hot" else int(text)


def _add_train(parser: argparse.ArgumentParser) -> None:
    defaults = Config()
    add = setting_adder(defaults)

    text = parser.add_argument_group("text")
    add(text, "text", "files to learn; default: the running Python's standard library source",
        nargs="+", metavar="FILE")  # fmt: skip
    add(text, "bytes", "learn bytes, not characters: any file will do", action="store_true")
    add(text, "encoding", "of the files", metavar="NAME")
    add(text, "corpus_mb", "how much of the standard library to read", type=float, metavar="MB")
    add(text, "val_fraction", "the end of the text, kept for validation", type=float, metavar="F")

    model = parser.add_argument_group("model")
    add(model, "cell")
    add(model, "layers", "recurrent layers", type=int, metavar="N")
    add(model, "hidden", "hidden units of each", type=int, metavar="N")
    add(model, "embedding", "width of the character embedding, or one-hot",
        type=_embedding, metavar="N|one-hot")  # fmt: skip
    add(model, "dropout", "between layers and before the output", type=float, metavar="P")
    add(model, "forget_bias")

    training = add_training(parser, add, defaults, "text")
    add(training, "seq", "characters back-propagated through at a time", type=int, metavar="T")
    add(training, "batch", "places in the text read side by side", type=int, metavar="N")
    add(training, "reset", "chance that a place forgets its state at a step",
        type=float, metavar="P")  # fmt: skip
    add(training, "seed", "of the weights, dropout and samples", type=int, metavar="S")

    watching = parser.add_argument_group("watching")
    add(watching, "eval_every")
    add(watching, "eval_chars", "validation characters scored each time; the end scores all",
        type=int, metavar="N")  # fmt: skip
    add(watching, "sample_every", "steps between samples, 0: 6 in a run", type=int, metavar="N")
    add(watching, "sample_length", "characters a sample", type=int, metavar="N")
    add(watching, "sample_temperature", "of these samples", type=float, metavar="X")
    add(watching, "ngram_chars", "training characters the n-gram baseline counts, 0: no baseline",
        type=int, metavar="N")  # fmt: skip
    watching.add_argument("--compare", action="store_true",
        help="first measure characters per second with both backends")  # fmt: skip

    add_files(parser, add, RUNS)

    add_computing(parser, add)


def _add_sample(parser: argparse.ArgumentParser) -> None:
    add_model(parser, threads=1)
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
    add_model(parser, threads=0)
    parser.add_argument("--text", nargs="+", metavar="FILE",
        help="files to score (default: the validation split of the run)")  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print one JSON object instead")
