"""``caption``: a line for each picture on stdout; what cannot be read is told on stderr."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from ...common.errors import UserError
from ...common.machine import set_up_machine
from ...common.runs import require_packages
from ..checkpoint import load_model
from ..data import to_pixels
from ..decoding import DecodingOptions
from ..evaluate import BATCH, Written, write_captions
from ..example import Example
from ..gallery import Row, write_gallery
from ..pictures import Attended, save_attention
from ..scenes import generate
from ..sources import Features, read_image
from .train import PACKAGES

# Of files in a directory that is given; a file given by name is tried whatever it is called.
ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")


def run(options: argparse.Namespace) -> int:
    """Captions the pictures, or rows of features, or new scenes."""
    require_packages(*PACKAGES)
    device = set_up_machine(options.device, options.threads)
    model, vocabulary, checkpoint = load_model(
        options.model, backend=options.backend, device=device
    )
    config = checkpoint["config"]
    decoding = DecodingOptions(
        max_length=config.max_length if options.max_length is None else options.max_length,
        beam=options.beam,
        length_penalty=options.length_penalty,
        temperature=options.temperature,
        seed=options.seed,
    )
    if options.attention and config.inject != "attend":
        raise UserError(f"--attention needs a model with attention; this one has {config.inject}")
    shape = tuple(checkpoint["input_shape"])
    examples = _examples(options, config.encoder_kind == "features", shape)
    written: list[Written] = []
    for begin in range(0, len(examples), BATCH):
        inputs = _inputs(examples[begin : begin + BATCH], device)
        written += write_captions(model, inputs, vocabulary, decoding)
    if options.json:
        found = [
            {"name": example.name, "caption": caption.text}
            for example, caption in zip(examples, written, strict=True)
        ]
        print(json.dumps(found, ensure_ascii=False))
    else:
        for example, caption in zip(examples, written, strict=True):
            print(f"{example.name}\t{caption.text}")
    _write_pages(options, examples, written)
    return 0


def _examples(
    options: argparse.Namespace, of_features: bool, shape: tuple[int, ...]
) -> list[Example]:
    if of_features:
        if options.features is None or options.pictures:
            raise UserError("this model takes features: give --features FILE.npz and no picture")
        rows = Features(options.features).rows
        if rows.shape[1:] != shape:
            found = list(rows.shape[1:])
            raise UserError(
                f"the model takes features {list(shape)}, {options.features} has {found}"
            )
        return [
            Example(f"row {number}", None, row.astype("float32"), [])
            for number, row in enumerate(rows)
        ]
    if options.features is not None:
        raise UserError("this model takes pictures, not --features")
    if options.pictures:
        return _read_pictures(options.pictures, shape[1], strict=options.strict)
    if options.count < 1:
        raise UserError(f"--count must be at least 1, got {options.count}")
    return generate(options.count, options.seed, shape[1], held_out=True)


def _read_pictures(paths: list[Path], size: int, *, strict: bool) -> list[Example]:
    examples, skipped = [], 0
    for path in _files(paths):
        try:
            examples.append(Example(str(path), read_image(path, size), None, []))
        except UserError as error:
            if strict:
                raise
            print(f"warning: {error}", file=sys.stderr)
            skipped += 1
    if skipped:
        print(f"warning: skipped {skipped} of {skipped + len(examples)}", file=sys.stderr)
    if not examples:
        raise UserError("there is no picture to caption")
    return examples


def _files(paths: list[Path]) -> Iterator[Path]:
    for path in paths:
        if path.is_dir():
            yield from sorted(p for p in path.iterdir() if p.suffix.lower() in ENDINGS)
        else:
            yield path


def _inputs(examples: list[Example], device: torch.device) -> torch.Tensor:
    if examples[0].features is None:
        return to_pixels([example.image for example in examples], device)
    return torch.stack([torch.from_numpy(example.features) for example in examples]).to(device)


def _write_pages(
    options: argparse.Namespace, examples: list[Example], written: list[Written]
) -> None:
    pairs = list(zip(examples, written, strict=True))
    if options.html:
        rows = [Row(e.name, e.image, caption.text, references=e.captions) for e, caption in pairs]
        write_gallery(options.html, rows, title="Captions")
    attended = [
        Attended(example.image, caption.words, caption.attention, example.boxes or {})
        for example, caption in pairs
        if caption.attention is not None and caption.words
    ]
    if options.attention and attended:
        save_attention(options.attention, attended)
