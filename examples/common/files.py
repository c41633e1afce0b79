"""Files that are either whole or absent, whatever interrupts the program."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import torch

from .errors import UserError


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """Yields a binary file that takes the place of ``path`` only once it is complete and on disk.

    A reader, or a program killed half-way, sees the old file or the new one, never a mixture.
    """
    path = Path(path)
    # A fixed name: what a killed program leaves behind, the next write replaces.
    partial = path.with_name(f".{path.name}.partial")
    try:
        with open(partial, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise UserError(f"cannot write {path}: {error.strerror}") from error
        raise
    _sync_directory(path.parent)


def write_text(path: Path, text: str) -> None:
    """Writes ``text`` as UTF-8 to ``path``, atomically."""
    with atomic_write(path) as file:
        file.write(text.encode("utf-8", errors="surrogatepass"))


def write_json(path: Path, value: Any) -> None:
    """Writes ``value`` as strict JSON (no NaN) to ``path``, atomically."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n")


def save_checkpoint(path: Path, checkpoint: dict[str, Any]) -> None:
    """Writes ``checkpoint`` (tensors and plain Python values) to ``path``, atomically."""
    with atomic_write(path) as file:
        torch.save(checkpoint, file)


def load_checkpoint(path: Path, *, program: str, version: int) -> dict[str, Any]:
    """Reads a checkpoint of ``program`` onto the CPU without running any code stored in it.

    UserError if the file is missing, damaged, or was written by another program or version.
    """
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise UserError(f"no checkpoint at {path}") from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except (
        RuntimeError,
        EOFError,
        KeyError,
        ValueError,
        pickle.UnpicklingError,
        zipfile.BadZipFile,
    ) as error:
        raise UserError(f"{path} is not a checkpoint, or is damaged") from error
    if not isinstance(checkpoint, dict) or checkpoint.get("program") != program:
        raise UserError(f"{path} is not a checkpoint of {program}")
    if checkpoint.get("version") != version:
        raise UserError(f"{path} has checkpoint format {checkpoint.get('version')}, not {version}")
    return checkpoint


def _sync_directory(path: Path) -> None:
    """Makes a rename durable; not every file system lets a directory be opened or synced."""
    with contextlib.suppress(OSError):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
