"""What a run leaves for people and for programs: pictures, gallery.html, metrics.json."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ..common.files import write_json
from ..common.plots import save_loss_plot
from .config import Config
from .data import CaptionData
from .evaluate import Evaluation, Written
from .gallery import Row, write_gallery
from .pictures import Attended, save_attention
from .record import CaptionRecord

ATTENDED = 8  # pictures in attention.png
SHOWN = ("exact_match", "bleu4", "cider", "rouge_l", "pointing", "log_likelihood")


def describe_scores(scores: dict[str, float]) -> str:
    """The scores that matter most, in a line."""
    parts = []
    for name in SHOWN:
        if name in scores:
            share = name in ("exact_match", "pointing")
            text = f"{100 * scores[name]:.1f}%" if share else f"{scores[name]:.3f}"
            parts.append(f"{name} {text}")
    return ", ".join(parts)


def write_plot(path: Path, record: CaptionRecord, title: str) -> None:
    """Training and validation loss over the pictures seen."""
    scale = record.pictures / max(1, record.step) / 1e3
    curves = {
        "train": record.curve.xy(scale),
        "validation": (
            [entry["step"] * scale for entry in record.history],
            [entry["val_nats"] for entry in record.history],
        ),
    }
    save_loss_plot(
        path,
        {name: curve for name, curve in curves.items() if curve[0]},
        {},
        title=title,
        xlabel="pictures seen (thousands)",
        ylabel="nats per word",
    )


def write_pages(
    out: Path, data: CaptionData, greedy: Evaluation, beam: Evaluation | None, title: str
) -> None:
    """``gallery.html`` of the best and the worst captions; ``attention.png`` where there is any."""
    rows = []
    for number, written in enumerate(greedy.written):
        example = data.examples[number]
        references = data.references[number]
        rows.append(
            Row(
                name=example.name,
                image=example.image,
                greedy=written.text,
                beam=None if beam is None else beam.texts[number],
                references=references,
                score=overlap(written.text, references),
            )
        )
    facts = {"pictures": f"{len(rows):,}"}
    facts["greedy"] = describe_scores(greedy.scores)
    if beam is not None:
        facts["beam"] = describe_scores(beam.scores)
    write_gallery(out / "gallery.html", rows, title=title, facts=facts)
    write_attention(out / "attention.png", data, greedy.written)


def write_attention(path: Path, data: CaptionData, written: list[Written]) -> None:
    """Where the model looked, for the first few pictures; no file if it does not attend."""
    attended = [
        Attended(example.image, found.words, found.attention, example.boxes or {})
        for example, found in zip(data.examples, written, strict=False)
        if found.attention is not None and found.words
    ]
    if attended:
        save_attention(path, attended[:ATTENDED])


def overlap(text: str, references: list[str]) -> float:
    """1 for a caption that is a reference, else the share of words in common with the nearest: a
    score of one picture, which BLEU and CIDEr are too coarse for."""
    words = set(text.split())
    shares = [
        len(words & set(reference.split())) / max(1, len(words | set(reference.split())))
        for reference in references
    ]
    # The same words in another order are not the same caption.
    return 1.0 if text in references else 0.99 * max(shares)


def write_metrics(
    path: Path,
    *,
    config: Config,
    record: CaptionRecord,
    facts: dict[str, Any],
    greedy: Evaluation,
    beam: Evaluation | None,
    step: int,
) -> None:
    """``metrics.json``; the names are part of the program's interface."""
    write_json(
        path,
        {
            **greedy.scores,
            "beam": None if beam is None else {"width": config.beam, **beam.scores},
            "val_nats": greedy.nats,
            "val_pictures": len(greedy.written),
            "val_step": step,
            "train_nats": record.train_nats,
            "pictures_per_second": record.pictures_per_second,
            "seconds": record.seconds,
            "step_seconds": record.step_seconds,
            "steps": record.step,
            "planned_steps": record.planned_steps,
            "pictures": record.pictures,
            "words": record.words,
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
