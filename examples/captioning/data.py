"""Examples as batches, and where they come from: generated scenes, or the user's own files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ..common.errors import UserError
from .example import Example
from .scenes import generate
from .sources import DataReport, count_words, read_examples, read_image
from .vocabulary import END, PAD, START, UNK, Vocabulary, normalize

__all__ = ["Batch", "CaptionData", "DataReport", "Example", "load_data", "read_image", "to_pixels"]

SCENES = "scenes"


@dataclass(frozen=True)
class Batch:
    """N examples. L: words of the longest caption, with START and END."""

    images: Tensor | None  # float32 [N, 3, S, S] in [-1, 1]; None where there are features
    features: Tensor | None  # float32 [N, C, H, W]
    tokens: Tensor  # int64 [N, L]: START, words, END, then PAD
    lengths: Tensor  # int64 [N], on the CPU: steps of the decoder, which are words + 1
    references: list[list[str]]  # all captions of each example, in normal form

    @property
    def inputs(self) -> Tensor:
        """What the encoder reads: the features where there are any, else the images."""
        inputs = self.images if self.features is None else self.features
        assert inputs is not None
        return inputs


def to_pixels(images: Sequence[np.ndarray], device: torch.device | str = "cpu") -> Tensor:
    """Pictures uint8 [S, S, 3] as float32 [N, 3, S, S] in [-1, 1]."""
    # As bytes they are a quarter of the traffic to a device.
    stacked = torch.from_numpy(np.stack(images)).to(device)
    return stacked.permute(0, 3, 1, 2).float().contiguous().div_(127.5).sub_(1.0)


class CaptionData:
    """``examples`` with their captions as numbers of ``vocabulary``, cut to ``max_length`` words.

    All examples have features of one shape, or all have images of one size; ValueError otherwise.
    """

    def __init__(self, examples: list[Example], vocabulary: Vocabulary, max_length: int) -> None:
        shapes = {_input_shape(example) for example in examples}
        if len(shapes) > 1:
            raise ValueError(f"examples must have inputs of one shape, got {sorted(shapes)}")
        self.examples = examples
        self.references = [[normalize(c) for c in example.captions] for example in examples]
        self._encoded = [
            [vocabulary.encode(caption, max_length) for caption in references]
            for references in self.references
        ]

    def __len__(self) -> int:
        return len(self.examples)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one example's input: [3, S, S] of images, [C, H, W] of features."""
        return _input_shape(self.examples[0])

    @property
    def has_features(self) -> bool:
        return self.examples[0].features is not None

    def batch(
        self,
        indices: Sequence[int],
        generator: torch.Generator | None = None,
        device: torch.device | str = "cpu",
    ) -> Batch:
        """The examples numbered ``indices``, with one caption of each, drawn by ``generator``.

        Without a generator it is the first caption, so that losses can be compared.
        """
        indices = [int(index) for index in indices]
        draws = (
            torch.zeros(len(indices))
            if generator is None
            else torch.rand(len(indices), generator=generator)
        ).tolist()
        tokens = []
        for index, draw in zip(indices, draws, strict=True):
            captions = self._encoded[index]
            words = captions[int(draw * len(captions))]
            tokens.append(torch.tensor([START, *words, END]))
        images, features = self._inputs(indices, device)
        return Batch(
            images=images,
            features=features,
            tokens=pad_sequence(tokens, batch_first=True, padding_value=PAD).to(device),
            lengths=torch.tensor([len(row) - 1 for row in tokens]),
            references=[self.references[index] for index in indices],
        )

    def unknown_words(self) -> int:
        """How many words of all captions are not in the vocabulary."""
        return sum(ids.count(UNK) for captions in self._encoded for ids in captions)

    def _inputs(
        self, indices: list[int], device: torch.device | str
    ) -> tuple[Tensor | None, Tensor | None]:
        chosen = [self.examples[index] for index in indices]
        if self.has_features:
            rows = np.stack([example.features for example in chosen])
            return None, torch.from_numpy(rows).to(device)
        return to_pixels([example.image for example in chosen], device), None


def load_data(
    source: str | Path,
    *,
    images: str | Path | None = None,
    features: str | Path | None = None,
    scenes: int = 8000,
    val_scenes: int = 500,
    size: int = 64,
    val_fraction: float = 0.1,
    threshold: int = 5,
    max_length: int = 20,
    seed: int = 0,
    strict: bool = False,
    vocabulary: Vocabulary | None = None,
) -> tuple[CaptionData, CaptionData, Vocabulary, DataReport]:
    """Training data, validation data, their vocabulary, and what was read and left out.

    ``source`` is "scenes", for ``scenes`` + ``val_scenes`` generated pictures of ``size`` pixels,
    or a caption file (see ``read_entries``) with its pictures under ``images`` (default: beside
    it) and, instead of or beside pictures, ``features``. Of files a share ``val_fraction``, drawn
    by ``seed``, is for validation. The words that occur ``threshold`` times in the training
    captions are the vocabulary, unless one is given. Captions are cut to ``max_length`` words.
    Missing and damaged pictures and empty captions are skipped and counted, or, with ``strict``,
    a UserError; so is a source that cannot be read, or in which too little is left.
    """
    report = DataReport(source=str(source))
    if str(source) == SCENES:
        if images is not None or features is not None:
            raise UserError("--images and --features go with a caption file, not with scenes")
        train = generate(scenes, seed, size)
        val = generate(val_scenes, seed, size, held_out=True)
    else:
        path = Path(source)
        examples = read_examples(
            path,
            report,
            images=None if images is None else Path(images),
            features=None if features is None else Path(features),
            size=size,
            strict=strict,
        )
        report.source = path.name
        train, val = _split(examples, val_fraction, seed, report)
    if vocabulary is None:
        vocabulary = Vocabulary.build((c for e in train for c in e.captions), threshold)
    training = CaptionData(train, vocabulary, max_length)
    report.examples, report.train, report.val = len(train) + len(val), len(train), len(val)
    report.vocabulary = len(vocabulary)
    report.unknown_words = training.unknown_words()
    count_words(report, train + val, max_length)
    return training, CaptionData(val, vocabulary, max_length), vocabulary, report


def _split(
    examples: list[Example], val_fraction: float, seed: int, report: DataReport
) -> tuple[list[Example], list[Example]]:
    if len(examples) < 2:
        why = f" ({report.skipped} skipped: {report.problems[0]})" if report.problems else ""
        raise UserError(f"{report.source} has {len(examples)} usable pictures, 2 are needed{why}")
    order = np.random.default_rng(seed).permutation(len(examples))
    count = min(len(examples) - 1, max(1, round(val_fraction * len(examples))))
    held_out = set(order[:count].tolist())
    train = [example for number, example in enumerate(examples) if number not in held_out]
    val = [example for number, example in enumerate(examples) if number in held_out]
    return train, val


def _input_shape(example: Example) -> tuple[int, ...]:
    if example.features is not None:
        return example.features.shape
    assert example.image is not None
    height, width, channels = example.image.shape
    return channels, height, width
