"""``compare``: one run for each way of giving the picture, and a table of what came out."""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any

from ...common.errors import UserError
from ...common.files import write_json, write_text
from ...common.interrupt import StopRequest
from ...common.machine import set_up_machine
from ...common.runs import claim, refuse_used, require_packages
from ..checkpoint import RUN_FILES
from ..cli import RUNS, given_settings
from ..compare import compare_backends
from ..config import Config
from ..runs import finish, first_batch, load, make_trainer
from .train import PACKAGES, print_header

FILES = ("compare.md", "compare.json")
COLUMNS = ("exact_match", "bleu4", "cider", "pointing")


def run(options: argparse.Namespace) -> int:
    """Trains with each of ``--injects`` on the same data and the same budget, then writes the table.

    Ctrl-C ends the run in hand; the table has what is there.
    """
    require_packages(*PACKAGES)
    base = Config(**given_settings(options))
    if len(set(options.injects)) < len(options.injects):
        raise UserError(f"--injects names one twice: {' '.join(options.injects)}")
    for folder in (options.out, *(options.out / inject for inject in options.injects)):
        refuse_used(folder, (*RUN_FILES, *FILES), overwrite=options.overwrite)
    device = set_up_machine(base.device, base.threads)
    data = load(base)
    rows = []
    with StopRequest() as stop:
        for inject in options.injects:
            config = dataclasses.replace(base, inject=inject)
            trainer = make_trainer(config, data, device, None, None)
            print_header(trainer, data)
            batch = first_batch(data, config, device)
            speed = compare_backends(config, len(data.vocabulary), batch, data.train.input_shape)
            print(f"speed       {speed}")
            out = claim(options.out / inject, RUN_FILES, RUNS)
            trainer.run(out, lambda: stop)
            greedy = finish(trainer, out, interrupted=bool(stop))
            rows.append(
                {
                    "inject": inject,
                    "steps": trainer.record.step,
                    "seconds": trainer.record.seconds,
                    "parameters": trainer.facts["parameters"],
                    "val_nats": greedy.nats,
                    **greedy.scores,
                    "decoder_ms": speed.milliseconds,
                    "finished": trainer.record.finished,
                }
            )
            print()
            if stop:
                break
    claim(options.out, FILES, RUNS)
    table = _table(rows)
    print(table)
    write_text(options.out / FILES[0], f"Each: {base.budget}, seed {base.seed}.\n\n{table}\n")
    write_json(options.out / FILES[1], {"config": base.to_dict(), "rows": rows})
    return 0


def _table(rows: list[dict[str, Any]]) -> str:
    """The rows as Markdown."""
    head = ["inject", "steps", "val nats", *(name.replace("_", " ") for name in COLUMNS)]
    backends = list(rows[0]["decoder_ms"]) if rows else []
    backends = [name for name in backends if all(name in row["decoder_ms"] for row in rows)]
    head += [f"ms a decoder step, {name}" for name in backends]
    lines = [head, ["---"] * len(head)]
    for row in rows:
        scores = [f"{row[name]:.3f}" if name in row else "-" for name in COLUMNS]
        times = [f"{row['decoder_ms'][name]:.1f}" for name in backends]
        lines.append([row["inject"], str(row["steps"]), f"{row['val_nats']:.3f}", *scores, *times])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
