"""Results as CSV rows: one file that grows run by run, from which the plots are drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.common import csv_files

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
    "wanted_kernel",
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
    csv_files.append(path, FIELDS, rows)


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of the file at `path`, values as text ("" for unknown).

    Raises ValueError where the file's header is neither FIELDS nor FIRST_FIELDS, OSError where it
    cannot be read.
    """
    if csv_files.header(path) != list(FIRST_FIELDS):
        check_header(path)
    return [dict.fromkeys(FIELDS, "") | row for row in csv_files.read(path)]


def check_header(path: Path) -> None:
    """Raises ValueError where there is a file at `path` whose first line is not FIELDS."""
    csv_files.check_header(path, FIELDS)
