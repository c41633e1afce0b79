"""Captioned pictures of the user's own: caption files, pictures and features from disk."""

from __future__ import annotations

import dataclasses
import json
import sys
import zipfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps
from tqdm import tqdm

from ..common.errors import UserError
from .example import Example
from .vocabulary import tokenize

SHOWN_PROBLEMS = 5
# What Pillow raises for damaged files, depending on the format and the damage.
_DAMAGE = (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError)


@dataclass
class DataReport:
    """What was read, and what was left out and why. Goes into metrics.json as it is."""

    source: str = ""
    examples: int = 0
    train: int = 0
    val: int = 0
    captions: int = 0
    vocabulary: int = 0
    missing_images: int = 0
    corrupt_images: int = 0
    corrupt_features: int = 0
    empty_captions: int = 0
    without_captions: int = 0  # pictures none of whose captions was left
    cut_captions: int = 0
    cut_words: int = 0
    unknown_words: int = 0  # of the training captions, replaced by UNK
    problems: list[str] = field(default_factory=list)  # the first few, in words

    @property
    def skipped(self) -> int:
        """Pictures that are left out."""
        return (
            self.missing_images
            + self.corrupt_images
            + self.corrupt_features
            + self.without_captions
        )

    def skip(self, kind: str, problem: str, *, strict: bool) -> None:
        """Counts ``problem`` in the field ``kind``; UserError if ``strict``."""
        if strict:
            raise UserError(f"{problem} (--strict)")
        setattr(self, kind, getattr(self, kind) + 1)
        if len(self.problems) < SHOWN_PROBLEMS:
            self.problems.append(problem)

    def lines(self) -> list[str]:
        """For people: one line of sizes, and one for each thing that was left out or changed."""
        found = [
            f"{self.source}: {self.train:,} pictures to train on, {self.val:,} for validation, "
            f"{self.captions:,} captions, {self.vocabulary:,} words"
        ]
        left_out = {
            "pictures missing": self.missing_images,
            "pictures damaged": self.corrupt_images,
            "feature rows with a NaN or an infinity": self.corrupt_features,
            "empty captions": self.empty_captions,
            "pictures without a caption": self.without_captions,
        }
        found += [f"warning: skipped {count:,} {what}" for what, count in left_out.items() if count]
        found += [f"  {problem}" for problem in self.problems]
        if self.cut_captions:
            found.append(
                f"cut {self.cut_captions:,} captions to the longest allowed "
                f"({self.cut_words:,} words lost)"
            )
        if self.unknown_words:
            found.append(f"{self.unknown_words:,} rare words of the training captions are <unk>")
        return found

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {**dataclasses.asdict(self), "skipped": self.skipped}


def read_image(path: Path, size: int) -> np.ndarray:
    """The middle square of the picture at ``path``, uint8 [size, size, 3].

    UserError if it is missing or no picture that can be read to the end.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"no picture at {path}")
    try:
        with Image.open(path) as image:
            # JPEG decoders can halve the size for free; twice the size keeps the result sharp.
            image.draft("RGB", (2 * size, 2 * size))
            upright = ImageOps.exif_transpose(image).convert("RGB")
            return np.asarray(ImageOps.fit(upright, (size, size), Image.Resampling.BICUBIC))
    except _DAMAGE as error:
        raise UserError(f"{path} is damaged, or no picture: {error}") from error


def read_entries(path: Path) -> list[tuple[str, list[Any]]]:
    """File name and captions of every picture in a caption file, in its order.

    Either NeuralTalk2's ``[{"file_path": ..., "captions": [...]}]``, or COCO's
    ``{"images": [{"id", "file_name"}], "annotations": [{"image_id", "caption"}]}``. UserError if
    the file is neither. The captions are as they are in the file, of any type.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text (byte {error.start})") from error
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is not JSON: {error}") from error
    try:
        if isinstance(content, list):
            return [(str(entry["file_path"]), list(entry["captions"])) for entry in content]
        captions: dict[Any, list[Any]] = {image["id"]: [] for image in content["images"]}
        for annotation in content["annotations"]:
            captions[annotation["image_id"]].append(annotation["caption"])
        return [(str(image["file_name"]), captions[image["id"]]) for image in content["images"]]
    except (KeyError, TypeError) as error:
        raise UserError(
            f'{path} is neither [{{"file_path", "captions"}}] (NeuralTalk2) nor '
            f'{{"images", "annotations"}} (COCO): {error!r}'
        ) from error


class Features:
    """Rows of an ``.npz`` file: an array [N, C, H, W], and file names [N] if the order differs.

    The array is called ``features``, or is the only one of four dimensions; the names ``names``.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        try:
            with np.load(self.path, allow_pickle=False) as arrays:
                stored = {name: arrays[name] for name in arrays.files}
        except FileNotFoundError as error:
            raise UserError(f"no features at {path}") from error
        except (OSError, ValueError, EOFError, TypeError, zipfile.BadZipFile) as error:
            # TypeError: a single array, of an .npy file.
            raise UserError(f"{path} is not an .npz file that can be read: {error}") from error
        grids = [name for name, array in stored.items() if array.ndim == 4]
        name = "features" if "features" in stored else grids[0] if len(grids) == 1 else None
        if name is None or stored[name].ndim != 4 or stored[name].dtype.kind != "f":
            shapes = ", ".join(f"{n} {a.dtype} {a.shape}" for n, a in stored.items()) or "nothing"
            raise UserError(f"{path} needs one float array [N, C, H, W], it holds {shapes}")
        self.rows = stored[name]
        self._row_of: dict[str, int] | None = None
        if "names" in stored:
            self._row_of = {str(n): row for row, n in enumerate(stored["names"].tolist())}

    def check(self, entries: int) -> None:
        """UserError unless there is a row for each of ``entries``; names are looked up later."""
        if self._row_of is None and len(self.rows) != entries:
            raise UserError(
                f"{self.path} has {len(self.rows)} rows for {entries} pictures; "
                'add the file names as an array "names" if it is another selection'
            )

    def row(self, number: int, name: str) -> np.ndarray | None:
        """Features of entry ``number``, called ``name``: float32 [C, H, W]; None if not there."""
        if self._row_of is not None:
            found = self._row_of.get(name)
            if found is None:
                return None
            number = found
        return self.rows[number].astype(np.float32)


def read_examples(
    path: Path,
    report: DataReport,
    *,
    images: Path | None,
    features: Path | None,
    size: int,
    strict: bool,
) -> list[Example]:
    """The usable examples of the caption file at ``path``; ``report`` says what is left out.

    Pictures are looked for under ``images``, or beside the caption file. With ``features`` they
    are read only if ``images`` is given, to be shown.
    """
    entries = read_entries(path)
    table = Features(features) if features is not None else None
    if table is not None:
        table.check(len(entries))
    folder = images if images is not None else path.parent
    examples = []
    bar = tqdm(entries, desc="reading pictures", leave=False, disable=not sys.stderr.isatty())
    for number, (name, raw) in enumerate(bar):
        captions = _usable_captions(name, raw, report, strict)
        if not captions:
            report.skip("without_captions", f"{name} has no caption", strict=strict)
            continue
        row = None
        if table is not None:
            row = table.row(number, name)
            if row is None or not np.isfinite(row).all():
                why = "are not there" if row is None else "hold a NaN or an infinity"
                report.skip("corrupt_features", f"features of {name} {why}", strict=strict)
                continue
        image = None
        if table is None or images is not None:
            image = _read_or_skip(folder / name, size, report, strict)
            if image is None:
                continue
        examples.append(Example(name, image, row, captions))
    return examples


def _usable_captions(name: str, raw: list[Any], report: DataReport, strict: bool) -> list[str]:
    captions = []
    for caption in raw:
        if isinstance(caption, str) and tokenize(caption):
            captions.append(caption)
        else:
            report.skip(
                "empty_captions", f"{name} has an empty caption: {caption!r}", strict=strict
            )
    return captions


def _read_or_skip(path: Path, size: int, report: DataReport, strict: bool) -> np.ndarray | None:
    if not path.is_file():
        report.skip("missing_images", f"no picture at {path}", strict=strict)
        return None
    try:
        return read_image(path, size)
    except UserError as error:
        report.skip("corrupt_images", str(error), strict=strict)
        return None


def count_words(report: DataReport, examples: list[Example], max_length: int) -> None:
    """Counts in ``report`` the captions, and those that are cut to ``max_length`` words."""
    lengths = Counter(len(tokenize(c)) for example in examples for c in example.captions)
    report.captions = lengths.total()
    over = {length: count for length, count in lengths.items() if length > max_length}
    report.cut_captions = sum(over.values())
    report.cut_words = sum((length - max_length) * count for length, count in over.items())
