"""Results as rows of CSV files, which grow run by run: old rows or new ones, never half a row."""

from __future__ import annotations

import csv
import io
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.common.shapes import Shape
from benchmarks.common.timing import PairStats

# The columns of the first files, which are read on.
FIRST_FIELDS = (
    *("date", "commit", "device", "torch", "cuda", "cudnn", "threads", "tf32", "capability"),
    *("cell", "mode", "provider", "baseline", "T", "N", "I", "H", "dtype"),
    *("pairs", "ms", "ms_p10", "ms_p90", "baseline_ms", "ratio", "ratio_p10", "ratio_p90"),
    *("gflops", "peak_percent"),
)
FIELDS = (
    *(*FIRST_FIELDS, "matmul_percent", "host_ms", "baseline_host_ms", "checked_T", "sm_mhz"),
    *("driver", "wanted_kernel", "kernels"),
)


def row(
    conditions: Mapping[str, str],
    stats: PairStats,
    shape: Shape,
    dtype: str = "float32",
    gflops: float | None = None,
    peak_percent: float | None = None,
    **more: object,
) -> dict[str, object]:
    """One result with its conditions: every field of FIELDS, None for what is unknown."""
    times = ("ms", "ms_p10", "ms_p90", "baseline_ms", "ratio", "ratio_p10", "ratio_p90")
    return {
        **dict.fromkeys(FIELDS),
        **conditions,
        **shape._asdict(),
        "dtype": dtype,
        "pairs": stats.pairs,
        **{name: f"{getattr(stats, name):.6g}" for name in times},
        "gflops": None if gflops is None else f"{gflops:.6g}",
        "peak_percent": None if peak_percent is None else f"{peak_percent:.4g}",
        **more,
    }


def append(
    path: Path | None, rows: Sequence[Mapping[str, object]], fields: Sequence[str] = FIELDS
) -> None:
    """Add `rows`, of which a field may be missing, to the file at `path`; nowhere where None.

    Raises ValueError where a row has a field that `fields` has not, or the file has other columns.
    """
    if path is None or not rows:
        return
    check_header(path, fields)
    old = path.read_text(encoding="utf-8") if path.exists() else ""
    text = io.StringIO()
    writer = csv.DictWriter(text, fields, lineterminator="\n")
    if not old:
        writer.writeheader()
    elif not old.endswith("\n"):
        text.write("\n")
    writer.writerows(rows)
    replace_text(path, old + text.getvalue())


def check_header(path: Path, *known: Sequence[str]) -> None:
    """Raises ValueError where there is a file at `path` whose first line is none of `known`."""
    if not path.exists() or path.stat().st_size == 0:
        return
    with path.open(newline="", encoding="utf-8") as file:
        if next(csv.reader(file), []) not in map(list, known):
            raise ValueError(
                f"{path} has other columns than this version writes; give another file"
            )


def read(path: Path, *known: Sequence[str]) -> list[dict[str, str]]:
    """The rows of the file at `path`, values as text ("" for unknown).

    known: the headers that it may have, FIELDS or FIRST_FIELDS where none is given; a row has the
    fields of the first. Raises ValueError where it has another, OSError where it cannot be read.
    """
    known = known or (FIELDS, FIRST_FIELDS)
    check_header(path, *known)
    with path.open(newline="", encoding="utf-8") as file:
        return [dict.fromkeys(known[0], "") | row for row in csv.DictReader(file)]


def replace_text(path: Path, text: str) -> None:
    """Write `text` to the file at `path` in one step: there are the old lines or the new ones."""
    # Resolved first: replacing a symbolic link would leave its target behind.
    path = path.resolve()
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".tmp")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        # mkstemp's files are private to their owner; results are as public as the umask says.
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
