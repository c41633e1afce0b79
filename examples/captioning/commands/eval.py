"""``eval``: the scores of a model on captioned pictures."""

from __future__ import annotations

import argparse
import dataclasses
import json
import time

from ...common.errors import UserError
from ...common.machine import set_up_machine
from ...common.runs import require_packages
from ..checkpoint import load_model
from ..data import CaptionData
from ..decoding import DecodingOptions
from ..evaluate import evaluate
from ..report import describe_scores
from ..runs import load
from ..sources import DataReport, read_examples
from .train import PACKAGES


def run(options: argparse.Namespace) -> int:
    """Scores the model on ``--data``, or the validation split of the run, and prints the results of
    greedy captions and of the beam's."""
    require_packages(*PACKAGES)
    if options.data is None and (options.images or options.features):
        raise UserError("--images and --features go with --data")
    device = set_up_machine(options.device, options.threads)
    model, vocabulary, checkpoint = load_model(
        options.model, backend=options.backend, device=device
    )
    config = checkpoint["config"]
    decoding = DecodingOptions(
        max_length=config.max_length if options.max_length is None else options.max_length,
        beam=config.beam if options.beam is None else options.beam,
        length_penalty=options.length_penalty,
    )
    if options.data is None:
        data = load(config, vocabulary)
        if data.fingerprint != checkpoint["facts"]["data"]["sha256"]:
            raise UserError(f"the data of {options.model} have changed: {config.data}")
        pictures, what = data.val, f"the validation split of {data.report.source}"
    else:
        report = DataReport(source=str(options.data))
        examples = read_examples(
            options.data,
            report,
            images=options.images,
            features=options.features,
            size=config.image_size,
            strict=options.strict,
        )
        if not examples:
            raise UserError(f"{options.data} has no usable picture")
        pictures, what = CaptionData(examples, vocabulary, config.max_length), options.data.name
        expected = tuple(checkpoint["input_shape"])
        if pictures.input_shape != expected:
            found = list(pictures.input_shape)
            raise UserError(f"the model takes {list(expected)}, {options.data} has {found}")
        for line in [] if options.json else _skipped(report):
            print(line)
    began = time.monotonic()
    greedy = evaluate(model, pictures, vocabulary, dataclasses.replace(decoding, beam=1))
    speed = len(pictures) / (time.monotonic() - began)
    beam = None
    if decoding.beam > 1:
        beam = evaluate(model, pictures, vocabulary, decoding, with_loss=False)
    if options.json:
        result = {"data": what, "pictures": len(pictures), **greedy.scores, "nats": greedy.nats}
        result["beam"] = beam and {"width": decoding.beam, **beam.scores}
        settings = dataclasses.asdict(decoding)
        print(json.dumps({**result, "pictures_per_second": speed, "decoding": settings}))
        return 0
    print(f"data        {what}, {len(pictures):,} pictures")
    print(f"greedy      {describe_scores(greedy.scores)}")
    if beam is not None:
        print(f"beam {decoding.beam:<6} {describe_scores(beam.scores)}")
    bleu = ", ".join(f"{greedy.scores[f'bleu{n}']:.3f}" for n in range(1, 5))
    print(f"bleu 1-4    {bleu}, greedy")
    print(f"loss        {greedy.nats:.3f} nats per word")
    print(f"speed       {speed:,.0f} pictures per second, greedy")
    return 0


def _skipped(report: DataReport) -> list[str]:
    return [line for line in report.lines()[1:] if line]
