"""A run's directory: a new one, or one to go on in."""

from __future__ import annotations

import argparse
import dataclasses
import os
from collections.abc import Callable, Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

from . import checkpoint as checkpoints
from .config import BUDGETS, TrainingConfig, flag
from .errors import UserError
from .trainer import LAST, BaseTrainer

C = TypeVar("C", bound=TrainingConfig)
# Modules whose package has another name.
_DISTRIBUTIONS = {"PIL": "pillow"}


def require_packages(*packages: str) -> None:
    """UserError, saying what to install, if one of these modules is missing."""
    names = [_DISTRIBUTIONS.get(package, package) for package in packages]
    for package, name in zip(packages, names, strict=True):
        if find_spec(package) is None:
            raise UserError(f"this needs {name}: pip install {' '.join(names)}")


def resumed_config(
    kind: type[C],
    options: argparse.Namespace,
    given: dict[str, Any],
    stored: dict[str, Any],
) -> C:
    """The settings to go on with from ``stored``: the run's, but for those ``given``.

    UserError if ``given`` would make another run of it, or ``stored`` is no run's last state.
    """
    path = options.resume / LAST
    old = checkpoints.config_of(kind, stored, path)
    if "optimizer" not in stored:
        raise UserError(f"{path} holds weights only; it cannot be resumed")
    for name in kind.fixed_on_resume:
        if name in given and given[name] != getattr(old, name):
            raise UserError(
                f"{flag(name)} {given[name]} cannot be changed on --resume: "
                f"the run has {getattr(old, name)}; start a new run in another --out"
            )
    if not given.keys().isdisjoint(BUDGETS):
        given = {**dict.fromkeys(BUDGETS), **given}
    return dataclasses.replace(old, **given)


def resumed(
    kind: type[C],
    options: argparse.Namespace,
    given: dict[str, Any],
    read: Callable[[Path], dict[str, Any]],
) -> tuple[C, dict[str, Any]]:
    """The settings to go on with and the checkpoint; UserError if they would make another run."""
    refuse_mixed(options)
    stored = read(options.resume / LAST)
    return resumed_config(kind, options, given, stored), stored


def refuse_mixed(options: argparse.Namespace) -> None:
    """UserError if --resume comes with an option that is for a new run."""
    if options.overwrite:
        raise UserError("--resume goes on with a run, --overwrite starts one: give only one")
    if options.out and options.out.absolute() != options.resume.absolute():
        raise UserError("--resume goes on in the run's own directory; leave out --out")


def restore(trainer: BaseTrainer, stored: dict[str, Any], out: Path) -> None:
    """Puts ``trainer`` where the checkpoint was saved; UserError if no steps are left."""
    checkpoints.load_weights(trainer.model, stored, out / LAST)
    old_budget = {name: stored["config"][name] for name in BUDGETS}
    new_budget = {name: getattr(trainer.config, name) for name in BUDGETS}
    trainer.restore(stored, new_budget=old_budget != new_budget)
    record = trainer.record
    if record.finished:
        raise UserError(
            f"the run in {out} is finished ({record.step} steps, {record.seconds / 60:.1f} min); "
            "give a larger --minutes, --epochs or --steps to go on"
        )


def refuse_used(out: Path | None, files: Iterable[str], *, overwrite: bool) -> None:
    """UserError if ``out`` cannot be a run's directory, or has one of a run's ``files`` already."""
    if out is None:
        return
    path = out.absolute()
    base = next(folder for folder in (path, *path.parents) if folder.exists())
    if not base.is_dir():
        raise UserError(f"cannot write to --out {out}: {base} is not a directory")
    if not os.access(base, os.W_OK | os.X_OK):
        raise UserError(f"cannot write to --out {out}: no permission in {base}")
    if not overwrite and any((out / name).exists() for name in files):
        raise UserError(f"{out} holds a run: --resume {out} continues, --overwrite replaces it")


def claim(out: Path | None, files: Iterable[str], runs: Path) -> Path:
    """Makes the directory of a new run: ``out`` without an old run's ``files`` in it, or the next
    free number in ``runs``."""
    try:
        if out is not None:
            out.mkdir(parents=True, exist_ok=True)
            for name in files:
                (out / name).unlink(missing_ok=True)
            return out
        runs.mkdir(parents=True, exist_ok=True)
        taken = [int(path.name) for path in runs.iterdir() if path.name.isdecimal()]
        out = runs / f"{max(taken, default=0) + 1:03d}"
        out.mkdir()
        return out
    except OSError as error:
        raise UserError(f"cannot write to {out or runs}: {error.strerror}") from error
