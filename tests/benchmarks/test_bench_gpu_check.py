"""gpu/check.py: phases, limits, exit codes and what is kept, on a machine without a GPU."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks.common.devices import Cuda
from benchmarks.gpu import check
from benchmarks.gpu.workplace import Result, Workplace

ALL = ["build", "test", "sanitize", "exchange", "methods", "bench", "profile"]


@pytest.fixture
def gpu(monkeypatch, tmp_path: Path) -> dict[str, str]:
    """A GPU that can be asked for its name, and folders of the test's own; its conditions."""
    conditions = {"device": "NVIDIA H100 80GB HBM3", "torch": "x", "date": "1"}
    monkeypatch.setattr(Cuda, "why_unusable", lambda _: None)
    monkeypatch.setattr(Cuda, "conditions", lambda _: dict(conditions))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(check, "ROOT", tmp_path)
    return conditions


def plan(monkeypatch, **results: Result | type[KeyboardInterrupt]) -> list[tuple[str, float]]:
    """Let phases end as `results` says; returns where their names and limits are kept."""
    asked = []

    def run_phase(name: str, place: Workplace, seconds: float) -> Result:
        asked.append((name, seconds))
        result = results.get(name, Result("green", "well"))
        if result is KeyboardInterrupt:
            raise KeyboardInterrupt
        return result

    monkeypatch.setattr(check, "run_phase", run_phase)
    return asked


def test_every_phase_runs_and_a_red_one_makes_code_1(
    gpu, tmp_path: Path, monkeypatch, capsys
) -> None:
    red = Result("red", "2 of 9 tests failed", "the end\nof the log")
    asked = plan(monkeypatch, test=red, sanitize=Result("skipped", "not installed"))
    assert check.main([]) == 1
    assert [name for name, _ in asked] == ALL
    limits = dict(asked)
    assert {name: limits[name] for name in check.LIMITS} == check.LIMITS
    # All that is left, of nine minutes less what stopping and writing take.
    assert 500 < limits["profile"] <= 530
    lines = capsys.readouterr().out.splitlines()
    states = {"test": "red", "sanitize": "skipped"}
    assert [line.split()[:2] for line in lines if " s  " in line] == [
        [name, states.get(name, "green")] for name in ALL
    ]
    assert "the end" in lines
    summary = json.loads((tmp_path / "build" / "gpu-check" / "summary.json").read_text())
    assert summary["conditions"] == gpu
    assert summary["phases"]["test"]["state"] == "red"
    assert summary["phases"]["bench"]["text"] == "well"


def test_skipped_phases_are_not_red(gpu, monkeypatch) -> None:
    plan(monkeypatch, sanitize=Result("skipped", "not installed"))
    assert check.main([]) == 0


def test_phases_are_picked_and_the_last_one_gets_the_time(gpu, monkeypatch) -> None:
    asked = plan(monkeypatch)
    assert check.main(["--phases", "build,test", "--budget", "310"]) == 0
    assert asked[0] == ("build", 210)
    assert asked[1] == ("test", pytest.approx(300, abs=5))
    assert check.main(["--phases", "build,test", "--budget", "100"]) == 0
    assert asked[2] == ("build", pytest.approx(90, abs=5))


def test_phases_fit_into_nine_minutes() -> None:
    """Whatever the first ones take, the last ones share what is left of them."""
    fixed = sum(check.LIMITS.values())
    left = check.BUDGET - check.RESERVE
    assert {*check.LIMITS, *check.SHARES} == set(ALL)
    limits = []
    for index in range(len(ALL)):
        limits.append(check.limit(ALL, index, left - sum(limits)))
    assert sum(limits) == pytest.approx(left)
    assert limits[:4] == list(check.LIMITS.values())
    assert limits[4:] == pytest.approx([(left - fixed) * share / 100 for share in (45, 45, 10)])


def test_second_call_shares_its_time_among_what_measures() -> None:
    names = ["methods", "bench", "profile"]
    assert check.limit(names, 0, 530.0) == pytest.approx(238.5)
    assert check.limit(names, 1, 291.5) == pytest.approx(291.5 * 45 / 55)
    assert check.limit(names, 2, 60.0) == 60.0
    # Before phases with a limit of their own that much is kept for them.
    assert check.limit(["bench", "test"], 0, 150.0) == 40.0
    assert check.limit(["bench", "build"], 0, 150.0) == 0.0


def test_second_call_adds_to_the_summary_of_the_first(gpu, tmp_path: Path, monkeypatch) -> None:
    plan(monkeypatch, sanitize=Result("red", "a race", "where"))

    def phases(names: str, code: int = 0) -> dict[str, tuple[str, str]]:
        """After a call, on the next day."""
        assert check.main(["--out", str(tmp_path / "out"), "--phases", names]) == code
        gpu["date"] += "1"
        found = json.loads((tmp_path / "out" / "summary.json").read_text())["phases"]
        return {name: (phase["state"], phase["date"]) for name, phase in found.items()}

    first = {"build": ("green", "1"), "sanitize": ("red", "1")}
    assert phases("build,sanitize", code=1) == first
    assert phases("bench") == first | {"bench": ("green", "11")}
    # What was found of another commit is no longer of interest.
    gpu["commit"] = "def"
    assert phases("bench") == {"bench": ("green", "111")}
    (tmp_path / "out" / "summary.json").write_text("cut off {")
    assert phases("bench") == {"bench": ("green", "1111")}


def test_interrupt_leaves_the_summary(gpu, tmp_path: Path, monkeypatch) -> None:
    asked = plan(monkeypatch, test=KeyboardInterrupt)
    assert check.main(["--out", str(tmp_path / "out")]) == 130
    assert [name for name, _ in asked] == ["build", "test"]
    found = json.loads((tmp_path / "out" / "summary.json").read_text())["phases"]
    assert {name: phase["text"] for name, phase in found.items()} == {
        "build": "well",
        "test": "interrupted",
    }


def test_files_lie_in_the_project_or_in_one_folder(gpu, tmp_path: Path) -> None:
    def place(*argv: str) -> Workplace:
        return check.workplace(check.build_parser().parse_args(argv), gpu["device"])

    found, name = place(), "cells_nvidia_h100_80gb_hbm3"
    assert found.csv == tmp_path / "benchmarks" / "results" / f"{name}.csv"
    assert found.picture == tmp_path / "docs" / f"{name}.png"
    assert found.logs == found.build == tmp_path / "build" / "gpu-check"
    out = tmp_path / "out"
    found = place("--out", str(out))
    assert (found.csv, found.picture, found.logs) == (out / f"{name}.csv", out / f"{name}.png", out)
    assert found.build == tmp_path / "build" / "gpu-check"
