"""The results as CSV rows."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.files import replace_text

FIELDS = (
    *("date", "commit", "device", "driver", "cuda", "capability", "sms", "sm_mhz"),
    *("scheme", "groups", "blocks", "threads", "N", "H", "steps", "launches"),
    *("us", "us_min", "us_max", "us_with_loop", "us_loop"),
)


def check_header(path: Path) -> None:
    """Raises ValueError where there is a file at `path` whose first line is not FIELDS."""
    if not path.exists() or path.stat().st_size == 0:
        return
    with path.open(newline="", encoding="utf-8") as file:
        if next(csv.reader(file), []) != list(FIELDS):
            raise ValueError(f"{path} has other columns than this version writes")


def append_rows(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """Add `rows`, of which a field may be missing, to the file at `path`, replaced in one step.

    Raises ValueError where a row has a field that FIELDS has not, or the file has other columns.
    """
    check_header(path)
    old = path.read_text(encoding="utf-8") if path.exists() else ""
    text = io.StringIO()
    writer = csv.DictWriter(text, FIELDS, restval="", lineterminator="\n")
    if not old:
        writer.writeheader()
    elif not old.endswith("\n"):
        text.write("\n")
    writer.writerows(rows)
    replace_text(path, old + text.getvalue())
