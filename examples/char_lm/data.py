"""Corpus, vocabulary, split, and the training text as parallel streams."""

from __future__ import annotations

import hashlib
import platform
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..common.errors import UserError
from .config import Config

MIN_SYMBOLS = 64
# Tests repeat themselves; encodings and pydoc_data are generated tables and prose, not source.
STDLIB_SKIP = {
    *("test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"),
    *("encodings", "pydoc_data"),
}


@dataclass(frozen=True)
class Corpus:
    """The whole text: ``data`` is a str, or bytes in byte mode."""

    name: str
    data: str | bytes
    sha256: str  # of the raw bytes

    def describe(self) -> str:
        unit = "bytes" if isinstance(self.data, bytes) else "characters"
        return f"{self.name}, {len(self.data):,} {unit}, sha256 {self.sha256[:12]}"


def load_corpus(config: Config) -> Corpus:
    """Reads what ``config`` names: its files, or the standard library's source if it names none."""
    if config.text:
        parts = [(Path(name), read_file(Path(name))) for name in config.text]
        name = ", ".join(path.name for path, _ in parts)
    else:
        parts, name = _standard_library(int(config.corpus_mb * 1e6))
    raw = b"".join(part for _, part in parts)
    if config.bytes:
        data: str | bytes = raw
    else:
        data = "".join(decode(part, config.encoding, path) for path, part in parts)
    if len(data) < MIN_SYMBOLS:
        unit = "bytes" if config.bytes else "characters"
        raise UserError(
            f"{name} is too short: {len(data)} {unit}, at least {MIN_SYMBOLS} are needed"
        )
    return Corpus(name, data, hashlib.sha256(raw).hexdigest())


def read_file(path: Path) -> bytes:
    """The bytes of a file that is there and not empty; UserError otherwise."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    if not raw:
        raise UserError(f"{path} is empty")
    return raw


def decode(raw: bytes, encoding: str, path: Path) -> str:
    """``raw`` as text; a byte order mark is dropped, line ends stay as they are."""
    try:
        return raw.decode(encoding).removeprefix("\ufeff")
    except LookupError as error:
        raise UserError(f"unknown --encoding {encoding}") from error
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not {encoding} text (byte {error.start}); use --bytes, or --encoding"
        ) from error


def _standard_library(limit: int) -> tuple[list[tuple[Path, bytes]], str]:
    """The running Python's own modules in path order, up to ``limit`` bytes, whole lines."""
    root = Path(sysconfig.get_paths()["stdlib"])
    relative = (path.relative_to(root) for path in root.rglob("*.py"))
    names = sorted(path.as_posix() for path in relative if not STDLIB_SKIP.intersection(path.parts))
    parts: list[tuple[Path, bytes]] = []
    size = 0
    for name in names:
        raw = (root / name).read_bytes()
        whole_lines = raw[: limit - size].rfind(b"\n") + 1
        parts.append((root / name, raw if size + len(raw) <= limit else raw[:whole_lines]))
        size += len(raw)
        if size >= limit:
            break
    version = platform.python_version()
    if not parts:
        raise UserError(f"no standard library source under {root} within --corpus-mb; use --text")
    return parts, f"Python {version} standard library ({len(parts)} of its {len(names)} files)"


class Vocabulary:
    """Token ids of characters (``symbols``: one string, id = position) or of bytes (None)."""

    def __init__(self, symbols: str | None) -> None:
        self.symbols = symbols
        points = [] if symbols is None else [ord(symbol) for symbol in symbols]
        self._points = np.array(points, dtype=np.uint32)  # ascending

    @staticmethod
    def of(data: str | bytes) -> Vocabulary:
        """Of all characters in ``data``, in code point order; of all 256 bytes for bytes."""
        return Vocabulary(None if isinstance(data, bytes) else "".join(sorted(set(data))))

    def __len__(self) -> int:
        return 256 if self.symbols is None else len(self.symbols)

    def encode(self, data: str | bytes) -> Tensor:
        """Token ids, 1-d, in the smallest integer type that holds them.

        UserError if ``data`` has a character that is not in the vocabulary.
        """
        if self.symbols is None:
            raw = data.encode("utf-8", "surrogateescape") if isinstance(data, str) else data
            return torch.from_numpy(np.frombuffer(raw, dtype=np.uint8).copy())
        assert isinstance(data, str)
        points = np.frombuffer(data.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
        ids = np.searchsorted(self._points, points).clip(max=len(self) - 1)
        unknown = self._points[ids] != points
        if unknown.any():
            characters = sorted({chr(point) for point in points[unknown]})
            shown = ", ".join(f"{c!r} (U+{ord(c):04X})" for c in characters[:3])
            more = f" and {len(characters) - 3} more" if len(characters) > 3 else ""
            raise UserError(f"not in the model's vocabulary: {shown}{more}")
        kind = np.uint8 if len(self) <= 256 else np.int32
        return torch.from_numpy(ids.astype(kind))

    def decode(self, ids: Sequence[int]) -> str | bytes:
        """The text, or the bytes in byte mode."""
        if self.symbols is None:
            return bytes(ids)
        return "".join(self.symbols[i] for i in ids)

    def decode_text(self, ids: Sequence[int]) -> str:
        """The text for people to read: bytes that are not UTF-8 become U+FFFD."""
        data = self.decode(ids)
        return data if isinstance(data, str) else data.decode("utf-8", "replace")


def split(ids: Tensor, val_fraction: float) -> tuple[Tensor, Tensor]:
    """Training text, and the last ``val_fraction`` of it all for validation."""
    cut = int(len(ids) * (1 - val_fraction))
    train, val = ids[:cut], ids[cut:]
    if len(val) < 2 or len(train) < MIN_SYMBOLS // 2:
        raise UserError(
            f"the text is too short for --val-fraction {val_fraction:g}: "
            f"{len(train)} for training and {len(val)} for validation"
        )
    return train, val


def fit_streams(length: int, batch: int, seq: int) -> tuple[int, int]:
    """``batch`` and ``seq``, made smaller until ``length`` tokens give four windows a stream."""
    seq = min(seq, max(1, (length - 1) // 4))
    return min(batch, max(1, (length - 1) // (4 * seq))), seq


class TrainingStreams:
    """``batch`` places in ``ids`` read side by side, ``seq`` tokens a step.

    Stream j reads the j-th of ``batch`` equal parts from left to right, so that the state after
    one window is the right state for the next. Every epoch starts at another offset, and so cuts
    the windows elsewhere. Everything is a function of the step: there is no position to store.
    """

    def __init__(self, ids: Tensor, batch: int, seq: int, *, reset: float, seed: int) -> None:
        """``reset``: chance that a stream forgets its state before a window. Without it a model
        meets a cold state once an epoch, and then samples from one badly."""
        self.ids, self.batch, self.seq = ids, batch, seq
        self._reset, self._seed = reset, seed
        self._stride = (len(ids) - 1) // batch
        self.steps_per_epoch = max(1, self._stride // seq - 1)
        self._starts = torch.arange(batch) * self._stride  # [N]
        self._steps = torch.arange(seq + 1).unsqueeze(1)  # [T + 1, 1]

    def window(self, step: int) -> tuple[Tensor, Tensor, Tensor]:
        """Inputs and targets, int64 [T, N], of ``step`` (from 0), and which streams carry their
        state into it, bool [N]: none where an epoch begins."""
        epoch, index = divmod(step, self.steps_per_epoch)
        where = self._steps + self._starts + (self._offset(epoch) + index * self.seq)
        tokens = self.ids[where].long()
        carry = torch.rand(self.batch, generator=self._generator(2 * step)) >= self._reset
        return tokens[:-1], tokens[1:], carry & (index > 0)

    def _offset(self, epoch: int) -> int:
        slack = self._stride - self.steps_per_epoch * self.seq
        if epoch == 0 or slack == 0:
            return 0
        return int(torch.randint(slack + 1, (), generator=self._generator(2 * epoch + 1)))

    def _generator(self, number: int) -> torch.Generator:
        return torch.Generator().manual_seed(self._seed * 1_000_000_007 + number)
