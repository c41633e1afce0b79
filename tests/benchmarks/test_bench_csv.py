"""Results in CSV files: what is added, what is refused, and what a run that is cut off leaves."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from benchmarks.common import csv_files, csv_rows, files


def row(**values: object) -> dict[str, object]:
    return {**{name: f"some {name}" for name in csv_rows.FIELDS}, **values}


def test_csv_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    csv_rows.append_rows(path, [row(device='CPU, "fast"', T=25)])
    csv_rows.append_rows(path, [row(gflops=None), row(ratio="1.25")])
    rows = csv_rows.read_rows(path)
    assert [r["device"] for r in rows] == ['CPU, "fast"', "some device", "some device"]
    assert rows[0]["T"] == "25"
    assert rows[1]["gflops"] == ""
    assert rows[2]["ratio"] == "1.25"
    assert path.read_text().count("date,commit,device") == 1
    assert os.listdir(tmp_path) == ["rows.csv"]


def test_csv_with_an_unknown_field_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    csv_files.append(path, ["scheme", "us"], [{"scheme": "flag"}])
    before = path.read_text()
    assert before == "scheme,us\nflag,\n"
    with pytest.raises(ValueError, match="colour"):
        csv_files.append(path, ["scheme", "us"], [{"colour": "blue"}])
    with pytest.raises(ValueError, match="other columns"):
        csv_files.append(path, ["scheme"], [{"scheme": "flag"}])
    assert path.read_text() == before
    assert os.listdir(tmp_path) == ["rows.csv"]


def test_csv_that_cannot_be_replaced_keeps_its_rows(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "rows.csv"
    csv_rows.append_rows(path, [row()])
    before = path.read_text()

    def fail(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(files.os, "replace", fail)
    with pytest.raises(OSError, match="no space left"):
        csv_rows.append_rows(path, [row()])
    assert path.read_text() == before
    assert os.listdir(tmp_path) == ["rows.csv"]


def test_csv_refuses_other_columns(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    with pytest.raises(ValueError, match="differs in speed"):
        csv_rows.append_rows(path, [row(speed=1)])
    path.write_text("name,value\nx,1\n")
    with pytest.raises(ValueError, match="other columns"):
        csv_rows.append_rows(path, [row()])
    with pytest.raises(ValueError, match="other columns"):
        csv_rows.read_rows(path)
    assert path.read_text() == "name,value\nx,1\n"


def test_rows_of_the_first_files_are_read_and_not_mixed_with_new_ones(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(",".join(csv_rows.FIRST_FIELDS) + "\n" + ",".join("x" * 28) + "\n")
    (found,) = csv_rows.read_rows(path)
    assert list(found) == list(csv_rows.FIELDS)
    assert (found["peak_percent"], found["kernels"]) == ("x", "")
    with pytest.raises(ValueError, match="other columns"):
        csv_rows.append_rows(path, [row()])
