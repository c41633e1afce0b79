"""Results as CSV rows: one file that grows run by run, from which the plots are drawn."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.files import replace_text

FIELDS = (
    "date",
    "commit",
    "device",
    "torch",
    "cuda",
    "cudnn",
    "threads",
    "tf32",
    "capability",
    "cell",
    "mode",
    "provider",
    "baseline",
    "T",
    "N",
    "I",
    "H",
    "dtype",
    "pairs",
    "ms",
    "ms_p10",
    "ms_p90",
    "baseline_ms",
    "ratio",
    "ratio_p10",
    "ratio_p90",
    "gflops",
    "peak_percent",
    "matmul_percent",
    "host_ms",
    "baseline_host_ms",
    "checked_T",
    "sm_mhz",
    "driver",
    "kernels",
)
# The columns of the first files, which are read on.
FIRST_FIELDS = FIELDS[: FIELDS.index("peak_percent") + 1]


def append_rows(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """Add `rows` (every field of FIELDS, None for what is unknown) to the file at `path`.

    The file is replaced in one step, so a run that is cut off leaves the old rows or the new ones,
    never half a row. Raises ValueError where a row's fields, or those of the file, are not FIELDS.
    """
    for row in rows:
        if set(row) != set(FIELDS):
            difference = ", ".join(sorted(set(row) ^ set(FIELDS)))
            raise ValueError(
                f"a row must have the fields of csv_rows.FIELDS; differs in {difference}"
            )
    check_header(path)
    old = path.read_text(encoding="utf-8") if path.exists() else ""
    text = io.StringIO()
    writer = csv.DictWriter(text, FIELDS, lineterminator="\n")
    if not old:
        writer.writeheader()
    elif not old.endswith("\n"):
        text.write("\n")
    writer.writerows(rows)
    replace_text(path, old + text.getvalue())


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of the file at `path`, values as text ("" for unknown).

    Raises ValueError where the file's header is neither FIELDS nor FIRST_FIELDS, OSError where it
    cannot be read.
    """
    if header(path) != list(FIRST_FIELDS):
        check_header(path)
    with path.open(newline="", encoding="utf-8") as file:
        return [dict.fromkeys(FIELDS, "") | row for row in csv.DictReader(file)]


def check_header(path: Path) -> None:
    """Raises ValueError where there is a file at `path` whose first line is not FIELDS."""
    if not path.exists() or path.stat().st_size == 0:
        return
    if header(path) != list(FIELDS):
        raise ValueError(f"{path} has other columns than this version writes; give another file")


def header(path: Path) -> list[str]:
    with path.open(newline="", encoding="utf-8") as file:
        return next(csv.reader(file), [])
