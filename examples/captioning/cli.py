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
from .config import ATTENTION_KINDS, INJECTS, SCENES, Config

RUNS = Path("runs/captioning")
# Settings that are paths; stored absolute, so that a run can be resumed from anywhere.
PATHS = ("data", "images", "features", "weights")
COMPARED = ("add", "every", "attend")


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The arguments as a namespace; ``command`` is train, caption, eval or compare.

    Settings of Config that were not given are absent, so that --resume can tell.
    """
    parser, command = program_parser(
        "examples.captioning", "Captions for pictures, by a convolutional and a recurrent network."
    )
    _add_train(command("train", "train a model on captioned pictures"))
    _add_caption(command("caption", "caption pictures"))
    _add_eval(command("eval", "score a model"))
    _add_compare(command("compare", "train with each way of giving the picture, in a table"))
    return parser.parse_args(arguments)


def given_settings(options: argparse.Namespace) -> dict[str, Any]:
    """The settings of Config that were given on the command line."""
    settings = cli.given_settings(Config, options)
    for name in PATHS:
        if settings.get(name) not in (None, SCENES):
            settings[name] = str(Path(settings[name]).absolute())
    return settings


def _add_train(parser: argparse.ArgumentParser) -> None:
    _add_settings(parser)
    parser.add_argument("--compare", action="store_true",
        help="first measure training steps of the decoder with both backends")  # fmt: skip
    add_files(parser, setting_adder(Config()), RUNS)


def _add_compare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--injects", nargs="+", choices=INJECTS, default=list(COMPARED),
        metavar="NAME",
        help=f"ways of giving the picture (default {' '.join(COMPARED)}), "
        "with the budget for each")  # fmt: skip
    parser.add_argument("--out", type=Path, required=True, metavar="DIR",
        help="where the runs and the table go")  # fmt: skip
    parser.add_argument("--overwrite", action="store_true", help="replace runs that are there")
    _add_settings(parser)


def _add_settings(parser: argparse.ArgumentParser) -> None:
    defaults = Config()
    add = setting_adder(defaults)

    data = parser.add_argument_group("data")
    add(data, "data", f"{SCENES}, or captions in NeuralTalk2's or COCO's JSON", metavar="FILE")
    add(data, "images", "directory of the pictures (default: that of the file)", metavar="DIR")
    add(data, "features", "features instead of pictures: [N, C, H, W] in an .npz", metavar="FILE")
    add(data, "scenes", "generated pictures to learn from", type=int, metavar="N")
    add(data, "val_scenes", "generated pictures to validate with", type=int, metavar="N")
    add(data, "val_fraction", "of a file's pictures, kept for validation", type=float, metavar="F")
    add(data, "word_threshold", "rarer words are unknown", type=int, metavar="N")
    add(data, "max_length", "words of a caption; the rest is cut", type=int, metavar="N")
    add(data, "captions", "only the first N of each picture to learn from, 0: all",
        type=int, metavar="N")  # fmt: skip
    add(data, "image_size", "pixels a side", type=int, metavar="S")
    add(data, "strict", "end at a damaged or missing picture, or an empty caption, "
        "instead of leaving it out", action="store_true")  # fmt: skip

    model = parser.add_argument_group("model")
    add(model, "encoder", "small, features, or torchvision:NAME (default: small, or features "
        "where there are any)", metavar="NAME")  # fmt: skip
    add(model, "weights", "state dict for torchvision's model", metavar="FILE")
    add(model, "freeze_cnn", "keep the CNN as it is", action="store_true")
    add(model, "grid", "locations a side", type=int, metavar="G")
    add(model, "channels", "features of a location", type=int, metavar="N")
    add(model, "image_width", "of the picture as one vector", type=int, metavar="N")
    if parser.prog.split()[-1] != "compare":
        add(model, "inject", "how the decoder gets the picture", choices=INJECTS)
    add(model, "attention", "how a location is scored", choices=ATTENTION_KINDS)
    add(model, "alpha_c", "weight of the doubly stochastic penalty", type=float, metavar="X")
    add(model, "cell")
    add(model, "hidden", "its units", type=int, metavar="N")
    add(model, "embedding", "width of a word's vector", type=int, metavar="N")
    add(model, "dropout", "before the output", type=float, metavar="P")
    add(model, "forget_bias")

    training = add_training(parser, add, defaults, "pictures")
    add(training, "batch", "pictures a step", type=int, metavar="N")
    add(training, "seed", "of the scenes, the weights and the order", type=int, metavar="S")

    watching = parser.add_argument_group("watching")
    add(watching, "eval_every")
    add(watching, "eval_images", "validation pictures captioned each time; the end takes all",
        type=int, metavar="N")  # fmt: skip
    add(watching, "beam", "captions kept by the beam search at the end, 1: none",
        type=int, metavar="B")  # fmt: skip

    add_computing(parser, add)


def _add_decoding(parser: argparse.ArgumentParser, *, beam: int | None) -> None:
    default = "the run's" if beam is None else f"{beam}"
    parser.add_argument("--beam", type=int, default=beam, metavar="B",
        help=f"captions kept by the beam search, 1: greedy (default {default})")  # fmt: skip
    parser.add_argument("--length-penalty", type=float, default=0.0, metavar="X",
        help="of the beam: the best has the largest log p / length^X (default 0)")  # fmt: skip
    parser.add_argument("--max-length", type=int, metavar="N",
        help="words of a caption (default: as in training)")  # fmt: skip


def _add_caption(parser: argparse.ArgumentParser) -> None:
    add_model(parser, threads=0)
    parser.add_argument("pictures", nargs="*", type=Path, metavar="PICTURE",
        help="files, or directories of them; none: new generated scenes")  # fmt: skip
    parser.add_argument("--features", type=Path, metavar="FILE",
        help="for a model of features: [N, C, H, W] in an .npz")  # fmt: skip
    parser.add_argument("--count", type=int, default=8, metavar="N",
        help="generated scenes where no picture is given (default 8)")  # fmt: skip
    parser.add_argument("--strict", action="store_true", help="end at a damaged or missing picture")
    _add_decoding(parser, beam=1)
    parser.add_argument("--temperature", type=float, default=0.0, metavar="X",
        help="draw words: below 1 safer, above 1 wilder, 0: the best (default 0)")  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, metavar="S",
        help="of the draws and the scenes (default 0)")  # fmt: skip
    parser.add_argument("--html", type=Path, metavar="FILE",
        help="write pictures and captions as a page")  # fmt: skip
    parser.add_argument("--attention", type=Path, metavar="FILE",
        help="write where the model looked, word by word, as a PNG")  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print JSON instead")


def _add_eval(parser: argparse.ArgumentParser) -> None:
    add_model(parser, threads=0)
    parser.add_argument("--data", type=Path, metavar="FILE",
        help="captions to score against (default: the validation split of the run)")  # fmt: skip
    parser.add_argument("--images", type=Path, metavar="DIR", help="directory of its pictures")
    parser.add_argument("--features", type=Path, metavar="FILE", help="its features")
    parser.add_argument("--strict", action="store_true", help="end at a damaged or missing picture")
    _add_decoding(parser, beam=None)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead")
