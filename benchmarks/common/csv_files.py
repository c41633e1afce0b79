"""CSV files that grow by rows, each replaced in one step: old rows or new ones, never half a row."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.common.files import replace_text


def append(path: Path, fields: Sequence[str], rows: Sequence[Mapping[str, object]]) -> None:
    """Add `rows`, of which a field may be missing, to the file at `path`.

    Raises ValueError where a row has a field that `fields` has not, or the file has other columns.
    """
    check_header(path, fields)
    old = path.read_text(encoding="utf-8") if path.exists() else ""
    text = io.StringIO()
    writer = csv.DictWriter(text, fields, restval="", lineterminator="\n")
    if not old:
        writer.writeheader()
    elif not old.endswith("\n"):
        text.write("\n")
    writer.writerows(rows)
    replace_text(path, old + text.getvalue())


def read(path: Path) -> list[dict[str, str]]:
    """The rows of the file at `path`, values as text."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def header(path: Path) -> list[str]:
    with path.open(newline="", encoding="utf-8") as file:
        return next(csv.reader(file), [])


def check_header(path: Path, fields: Sequence[str]) -> None:
    """Raises ValueError where there is a file at `path` whose first line is not `fields`."""
    if not path.exists() or path.stat().st_size == 0:
        return
    if header(path) != list(fields):
        raise ValueError(f"{path} has other columns than this version writes; give another file")
