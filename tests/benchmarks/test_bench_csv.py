"""Results in CSV files: what is added, what is refused, and what a run that is cut off leaves."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from benchmarks.common import rows

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def path(tmp_path: Path):
    """Of a file; nothing else is left beside it."""
    yield tmp_path / "rows.csv"
    assert os.listdir(tmp_path) == ["rows.csv"]


def row(**values: object) -> dict[str, object]:
    return {**{name: f"some {name}" for name in rows.FIELDS}, **values}


def test_round_trip(path: Path) -> None:
    rows.append(path, [row(device='CPU, "fast"', T=25)])
    rows.append(path, [row(gflops=None), row(ratio="1.25")])
    found = rows.read(path)
    assert [r["device"] for r in found] == ['CPU, "fast"', "some device", "some device"]
    assert (found[0]["T"], found[1]["gflops"], found[2]["ratio"]) == ("25", "", "1.25")
    assert path.read_text().count("date,commit,device") == 1


def test_other_columns_are_refused(path: Path) -> None:
    fields = ["scheme", "us"]
    rows.append(path, [{"scheme": "flag"}], fields)
    before = path.read_text()
    assert before == "scheme,us\nflag,\n"
    with pytest.raises(ValueError, match="colour"):
        rows.append(path, [{"colour": "blue"}], fields)
    with pytest.raises(ValueError, match="other columns"):
        rows.append(path, [{"scheme": "flag"}], fields[:1])
    with pytest.raises(ValueError, match="other columns"):
        rows.read(path)
    assert path.read_text() == before


def test_file_that_cannot_be_replaced_keeps_its_rows(path: Path, monkeypatch) -> None:
    rows.append(path, [row()])
    before = path.read_text()

    def fail(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(rows.os, "replace", fail)
    with pytest.raises(OSError, match="no space left"):
        rows.append(path, [row()])
    assert path.read_text() == before


def test_rows_of_the_first_files_are_read_and_not_mixed_with_new_ones(path: Path) -> None:
    path.write_text(",".join(rows.FIRST_FIELDS) + "\n" + ",".join("x" * 28) + "\n")
    (found,) = rows.read(path)
    assert list(found) == list(rows.FIELDS)
    assert (found["peak_percent"], found["kernels"]) == ("x", "")
    with pytest.raises(ValueError, match="other columns"):
        rows.append(path, [row()])


def test_measured_results_that_are_kept_can_be_drawn() -> None:
    for path in (ROOT / "benchmarks" / "results").glob("*.csv"):
        # Of the exchange schemes and of the methods there are no pictures.
        if not path.name.startswith(("exchange_", "methods_")):
            assert rows.read(path), path
