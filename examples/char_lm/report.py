"""What a run leaves for people and for programs: samples.md, loss.png, metrics.json."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

from ..common.files import write_json, write_text
from ..common.plots import save_loss_plot
from .config import Config
from .data import Vocabulary
from .evaluate import bits
from .ngram import Baseline
from .record import RunRecord


def default_prime(vocabulary: Vocabulary) -> str | bytes:
    """What a sample starts from if nothing is asked for: a new line, if the text has any."""
    if vocabulary.symbols is None:
        return b"\n"
    return "\n" if "\n" in vocabulary.symbols else vocabulary.symbols[0]


def printable(text: str) -> str:
    """``text`` without the control characters that would disturb a terminal."""
    return "".join(c if c.isprintable() or c in "\n\t" else "\N{MIDDLE DOT}" for c in text)


def nats_and_bits(nats: float) -> str:
    return f"{nats:.3f} nats ({bits(nats):.3f} bits per character)"


def write_samples(path: Path, samples: list[dict[str, Any]], config: Config) -> None:
    """All samples of the run, first to last, as Markdown."""
    lines = [
        "# Samples",
        "",
        f"{config.sample_length} characters each, temperature {config.sample_temperature:g}, "
        f"seed {config.seed}.",
    ]
    for entry in samples:
        text = printable(entry["text"])
        longest = max((len(run) for run in re.findall("`+", text)), default=0)
        fence = "`" * max(3, longest + 1)
        lines += ["", f"## Step {entry['step']}, {entry['seconds']:.0f} s", ""]
        lines += [f"{fence}text", text, fence]
    write_text(path, "\n".join(lines) + "\n")


def write_plot(path: Path, record: RunRecord, baseline: Baseline | None, title: str) -> None:
    """Training and validation loss over the characters read, with the baselines."""
    scale = record.chars / max(1, record.step) / 1e6
    history = record.history
    curves = {
        "train": record.curve.xy(scale),
        "validation": (
            [entry["chars"] / 1e6 for entry in history],
            [entry["val_nats"] for entry in history],
        ),
    }
    levels = {}
    if baseline is not None:
        levels = {"uniform": baseline.uniform, f"{baseline.best_order}-gram": baseline.best}
    save_loss_plot(
        path,
        {name: curve for name, curve in curves.items() if curve[0]},
        levels,
        title=title,
        xlabel="characters read (millions)",
        ylabel="nats per character",
        scale=("bits per character", bits(1.0)),
    )


def write_metrics(
    path: Path,
    *,
    config: Config,
    record: RunRecord,
    facts: dict[str, Any],
    validation: dict[str, Any],
) -> None:
    """``metrics.json``; the names are part of the program's interface."""
    write_json(
        path,
        {
            "val_nats": validation["nats"],
            "val_bpc": bits(validation["nats"]),
            "val_chars": validation["chars"],
            "val_step": validation["step"],
            "last_val_nats": validation["last_nats"],
            "train_nats": record.train_nats,
            "chars_per_second": record.chars_per_second,
            "seconds": record.seconds,
            "step_seconds": record.step_seconds,
            "steps": record.step,
            "planned_steps": record.planned_steps,
            "chars": record.chars,
            "finished": record.finished,
            "grad_norm": record.averages.get("grad_norm"),
            "clipped_share": record.clipped_share,
            **facts,
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "config": config.to_dict(),
            "history": record.history,
        },
    )
