"""The options that training programs have in common. Imports nothing heavy."""

from __future__ import annotations

import argparse
import dataclasses
from argparse import SUPPRESS
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from .config import BACKENDS, CELLS, OPTIMIZERS, TrainingConfig, flag
from .errors import UserError
from .schedule import SCHEDULES

# Adds the option of one setting to a group: add(group, setting, help, **options of argparse), or
# add(group, setting) for one of these.
Adder = Callable[..., None]
_COMMON = {
    "cell": ("kind of recurrent layer", {"choices": CELLS}),
    "forget_bias": ("initial bias of the LSTM's forget gate", {"type": float, "metavar": "B"}),
    "eval_every": ("steps between validations, 0: 15 in a run", {"type": int, "metavar": "N"}),
    "backend": ("whose recurrent layers", {"choices": BACKENDS}),
}


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see --help)")


def program_parser(
    package: str, description: str
) -> tuple[argparse.ArgumentParser, Callable[[str, str], argparse.ArgumentParser]]:
    """The parser of ``python -m package``, and a function that adds a command: (name, help)."""
    parser = Parser(prog=f"python -m {package}", description=description, allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True, parser_class=Parser)

    def command(name: str, help: str) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=help, allow_abbrev=False)

    return parser, command


def setting_adder(defaults: TrainingConfig) -> Adder:
    """A function that adds the option of a setting; its help ends with the default.

    A setting that is not given is absent from the parsed options, so that --resume can tell.
    """

    def add(group: Any, name: str, help: str = "", **options: Any) -> None:
        if not help:
            help, options = _COMMON[name]
        default = getattr(defaults, name)
        if default is not None and default is not False and default != ():
            help += (
                f" (default {default:g})" if isinstance(default, float) else f" (default {default})"
            )
        group.add_argument(flag(name), dest=name, help=help, default=SUPPRESS, **options)

    return add


def given_settings(kind: type[TrainingConfig], options: argparse.Namespace) -> dict[str, Any]:
    """The settings of ``kind`` that were given on the command line."""
    names = {field.name for field in dataclasses.fields(kind)}
    return {name: value for name, value in vars(options).items() if name in names}


def add_computing(parser: argparse.ArgumentParser, add: Adder) -> None:
    """Adds the group of options about what computes."""
    group = parser.add_argument_group("machine")
    add(group, "backend")
    add_machine(group)


def add_training(
    parser: argparse.ArgumentParser, add: Adder, config: TrainingConfig, unit: str
) -> Any:
    """Adds the group of options about training, and returns it; ``unit``: what an epoch reads."""
    rates = ", ".join(f"{name} {rate:g}" for name, rate in config.default_rates.items())
    group = parser.add_argument_group("training")
    budget = group.add_mutually_exclusive_group()
    add(budget, "minutes", f"train this long in all (default {config.default_minutes:g})",
        type=float, metavar="M")  # fmt: skip
    add(budget, "epochs", f"train this many passes over the {unit} in all",
        type=float, metavar="E")  # fmt: skip
    add(budget, "steps", "train this many steps in all", type=int, metavar="N")
    add(group, "optimizer", "update rule", choices=OPTIMIZERS)
    add(group, "lr", f"learning rate (default {rates})", type=float, metavar="R")
    add(group, "schedule", "decay of the learning rate", choices=SCHEDULES)
    add(group, "warmup", "steps of rising learning rate first", type=int, metavar="N")
    add(group, "final_lr", "cosine, linear: where to end, as a share of the learning rate",
        type=float, metavar="F")  # fmt: skip
    add(group, "decay_rate", "exponential: factor an epoch", type=float, metavar="F")
    add(group, "decay_after", "exponential: epochs before it starts", type=float, metavar="E")
    add(group, "clip_norm", "largest gradient norm, 0 for none", type=float, metavar="X")
    add(group, "clip_value", "largest gradient element, 0 for none", type=float, metavar="X")
    add(group, "weight_decay", "weight decay of the optimizer", type=float, metavar="X")
    return group


def add_files(parser: argparse.ArgumentParser, add: Adder, runs: Path) -> None:
    """Adds the group of options about the run's directory."""
    files = parser.add_argument_group("files")
    files.add_argument("--out", type=Path, metavar="DIR",
        help=f"where the run goes (default: the next free {runs}/NNN)")  # fmt: skip
    files.add_argument("--resume", type=Path, metavar="DIR",
        help="go on with the run in DIR, bit for bit as if it had not stopped")  # fmt: skip
    files.add_argument("--overwrite", action="store_true", help="replace a run that is in --out")
    add(files, "save_every", "seconds between checkpoints", type=float, metavar="S")


def add_machine(group: Any, *, device: str = SUPPRESS, threads: Any = SUPPRESS) -> None:
    """Adds --device and --threads with these defaults."""
    group.add_argument("--device", metavar="NAME", default=device,
        help="cpu, cuda or auto (default cpu)")  # fmt: skip
    shown = 0 if threads is SUPPRESS else threads
    group.add_argument("--threads", type=int, metavar="N", default=threads,
        help=f"CPU threads, 0: as PyTorch chooses (default {shown})")  # fmt: skip


def add_model(parser: argparse.ArgumentParser, threads: int) -> None:
    """Adds what every command that uses a trained model takes."""
    parser.add_argument(
        "model", type=Path, metavar="MODEL", help="a run's directory or a checkpoint"
    )
    parser.add_argument(
        "--backend", choices=BACKENDS, help="whose recurrent layers (default: the run's)"
    )
    add_machine(parser, device="cpu", threads=threads)
