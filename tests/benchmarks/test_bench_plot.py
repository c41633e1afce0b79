"""What is drawn of the rows in a CSV file."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from benchmarks import plot
from benchmarks.common import rows
from benchmarks.common.shapes import GRIDS


def plotted_rows() -> list[dict[str, object]]:
    rng = random.Random(0)
    same = {name: f"some {name}" for name in rows.FIELDS}
    same |= {"cell": "lstm", "wanted_kernel": "auto", "ratio": 2.0}
    return [
        same
        | {"mode": mode, "provider": provider, **shape._asdict()}
        | {"ratio_p10": 1.0 + rng.random(), "ratio_p90": 2.0 + rng.random()}
        for mode in ("infer", "train")
        for provider in ("fastlstm", "reference")
        for shape in GRIDS["quick"]
    ]


def test_latest_row_of_each_shape_is_drawn() -> None:
    found = plotted_rows()
    newer = {**found[0], "date": "later", "ratio": 3.0}
    latest = plot.latest([*found, newer])
    assert len(latest) == len(found)
    assert latest[0]["ratio"] == "3.0"
    assert {plot.series_label(r, latest) for r in latest} == {"fastlstm", "reference"}
    other_threads = {**latest[0], "threads": "9"}
    assert plot.series_label(other_threads, [*latest, other_threads]) == "fastlstm, threads 9"


def test_kernel_that_was_asked_for_is_told() -> None:
    found = plot.latest(plotted_rows())
    forced = [{**r, "wanted_kernel": "grid"} for r in found]
    assert plot.series_label(forced[0], forced) == "fastlstm, kernel grid"
    assert plot.series_label(forced[0], [*found, *forced]) == "fastlstm, kernel grid"
    assert plot.series_label(found[0], [*found, *forced]) == "fastlstm, kernel auto"
    # Of the files without that column, and of a CPU.
    for without in ("", "none"):
        row = {**found[0], "wanted_kernel": without}
        assert plot.series_label(row, [row, *forced]) == "fastlstm"


def test_picture_is_written(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    source, picture = tmp_path / "rows.csv", tmp_path / "ratios.png"
    # One more, in a panel without the other series, beside panels without any.
    step = {**plotted_rows()[0], "cell": "gru", "mode": "infer, lengths 20..200", "T": 200}
    rows.append(source, [*plotted_rows(), step])
    assert plot.main([str(source), str(picture)]) == 0
    assert picture.read_bytes().startswith(b"\x89PNG")
