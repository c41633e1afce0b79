"""bench_exchange.py: its plan, the process of a scheme, its rows, and its phase of gpu/check.py."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from bench_stand_ins import answer, make_place

from benchmarks import bench_exchange
from benchmarks.common import rows
from benchmarks.gpu import phases
from benchmarks.gpu.exchange import worker
from benchmarks.gpu.exchange.plan import CLUSTER_SHARED_BYTES, FIELDS, PLAN
from benchmarks.gpu.workplace import Result

# What is measured.


@pytest.mark.parametrize("sms", [132, 108, 78])
@pytest.mark.parametrize("scheme", PLAN)
def test_plan_fits_the_gpu(scheme: str, sms: int) -> None:
    problems = list(PLAN[scheme](sms, {4: 30, 8: 16, 16: 0}))
    assert problems and len(set(problems)) == len(problems)
    for p in problems:
        assert p.chunks >= p.blocks and p.groups <= 160 and p.rows >= 1
        if scheme.startswith("cluster"):
            assert p.groups in (1, 30, 16) and 2 * 16 * p.chunks + 4096 < CLUSTER_SHARED_BYTES
        else:
            assert p.groups * p.blocks <= sms
        if scheme == "flag":
            # Its buffer has a place for every step.
            assert p.groups * p.chunks * 16 * p.steps < 1 << 30


def test_plan_has_the_shapes_that_decide() -> None:
    for scheme in ("counter", "flag"):
        problems = list(PLAN[scheme](132, {8: 16}))
        sizes = {(p.groups, p.rows * p.groups, p.units) for p in problems}
        assert {(g, *size) for g in (1, 2, 4, 8) for size in ((16, 768), (64, 1024))} <= sizes
    assert {p.blocks for p in PLAN["counter"](132, {})} == {132, 66, 33, 16}
    assert min(p.steps for p in PLAN["flag"](132, {})) < 2000
    assert not list(PLAN["cluster_async"](108, {}))


def test_time_of_a_step_is_that_of_the_launch_less_the_loop() -> None:
    times = bench_exchange.step_times([4.0, 3.0, 8.0], [1.0, 1.0, 9.0], 2000)
    expected = {"us": "1.5000", "us_min": "1.0000", "us_max": "3.5000"}
    assert times == expected | {"us_with_loop": "2.0000", "us_loop": "0.5000"}


# The process of a scheme.


def test_worker_that_dies_or_hangs_leaves_what_it_had(tmp_path: Path, monkeypatch) -> None:
    def python_is(script: str) -> None:
        path = tmp_path / "python"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        monkeypatch.setattr(worker.sys, "executable", str(path))

    python_is("echo '{\"ms\": [1]}'; printf '{\"ms'; echo why >&2; exit 3")
    first, second = worker.answers(tmp_path, [{}, {}], 60)
    assert first == {"ms": [1]}
    assert second == {"error": "its process ended with code 3: why"}
    python_is("echo '{\"ms\": [1]}'; exec sleep 60")
    start = time.monotonic()
    found = worker.answers(tmp_path, [{}, {}, {}], 1)
    assert found == [{"ms": [1]}, *[{"error": "stopped after 1 s"}] * 2]
    assert time.monotonic() - start < 20


# The program.

DEVICE = {"device": "GPU", "capability": "sm_90", "sms": "132", "sm_mhz": "1755", "cuda": "13.0"}


class Gpu:
    """Stands in for the worker: keeps what was asked; `failing` jobs fail."""

    def __init__(self, failing: str = "", capability: str = "sm_90") -> None:
        self.failing = failing
        self.facts = DEVICE | {"capability": capability}
        self.asked: list[dict] = []

    def __call__(self, path: Path, jobs: list[dict], seconds: float) -> list[dict]:
        self.asked += jobs
        return [self.answer(job) for job in jobs]

    def answer(self, job: dict) -> dict:
        if self.failing and self.failing in (job["job"], job.get("scheme")):
            return {"error": "wrong numbers were read"}
        return {
            "device": self.facts,
            "max_clusters": {"clusters": 8},
            "launches": {"stream": [3.0], "graph": [2.0]},
            "measure": {"ms": [5.0, 4.0, 6.0], "empty_ms": [1.0]},
        }[job["job"]]


@pytest.fixture
def answered(monkeypatch):
    """Lets a Gpu answer main()."""
    monkeypatch.setattr(bench_exchange, "prepare", lambda parser, folder: Path("library"))
    monkeypatch.setattr(bench_exchange.machine, "gpu_driver", lambda: "580")

    def use(gpu: Gpu) -> Gpu:
        monkeypatch.setattr(bench_exchange, "answers", gpu)
        return gpu

    return use


def test_every_scheme_is_a_row_of_table_and_file(answered, tmp_path: Path, capsys) -> None:
    gpu, path = answered(Gpu()), tmp_path / "rows.csv"
    assert bench_exchange.main(["--csv", str(path)]) == 0
    found = rows.read(path, FIELDS)
    others = {"max_clusters", "launch_stream", "launch_graph"}
    assert {row["scheme"] for row in found} == {*PLAN, *others}
    assert len(found) == sum(job["job"] == "measure" for job in gpu.asked) + 3 + 2
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == f"{len(found)} rows measured, 0 red"
    (row,) = (r for r in found if (r["scheme"], r["groups"], r["H"]) == ("counter", "4", "768"))
    wanted = {"device": "GPU", "driver": "580", "cuda": "13.0", "sm_mhz": "1755", "sms": "132"}
    wanted |= {"blocks": "33", "threads": "256", "N": "4", "steps": "2000", "launches": "6"}
    wanted |= {"us": "2.0000", "us_min": "1.5000", "us_max": "2.5000", "us_loop": "0.5000"}
    assert wanted.items() <= row.items()
    assert row["date"] and row["commit"]
    line = next(line for line in lines if line.startswith("launch_graph"))
    assert line.split()[-5:] == ["1.0000", "1.0000", "1.0000", "1.0000", "0.0000"]
    # Rows are added to those that are there.
    assert bench_exchange.main(["--csv", str(path), "--schemes", "launches"]) == 0
    assert len(rows.read(path, FIELDS)) == len(found) + 3 + 2


def test_wrong_numbers_are_red_and_not_kept(answered, tmp_path: Path, capsys) -> None:
    answered(Gpu(failing="flag"))
    path = tmp_path / "rows.csv"
    assert bench_exchange.main(["--csv", str(path), "--schemes", "flag,block"]) == 1
    assert {row["scheme"] for row in rows.read(path, FIELDS)} == {"block", "max_clusters"}
    out = capsys.readouterr().out
    assert "RED  wrong numbers were read" in out
    assert f"{len(list(PLAN['flag'](132, {})))} red" in out.splitlines()[-1]
    # Without an answer the schemes of clusters have no rows, which must not pass unnoticed.
    answered(Gpu(failing="max_clusters"))
    assert bench_exchange.main(["--schemes", "cluster_async,block"]) == 1
    assert capsys.readouterr().out.splitlines()[-1] == "6 rows measured, 3 red"
    answered(Gpu(failing="device"))
    assert bench_exchange.main([]) == 1
    assert "the GPU does not answer" in capsys.readouterr().out


def test_gpu_without_clusters_is_not_asked_for_them(answered) -> None:
    gpu = answered(Gpu(capability="sm_80"))
    assert bench_exchange.main([]) == 0
    schemes = {job["scheme"] for job in gpu.asked if job["job"] == "measure"}
    assert schemes == {"counter", "flag", "block", "grid_sync"}
    assert "max_clusters" not in {job["job"] for job in gpu.asked}


def test_no_scheme_is_begun_after_the_budget() -> None:
    gpu, now = Gpu(), iter([0.0, 30.0, 61.0])

    def ask(jobs: list[dict], seconds: float) -> list[dict]:
        return gpu(Path(), jobs, seconds)

    schemes = ["block", "grid_sync", "counter", "flag"]
    report = bench_exchange.Report(None, {})
    left = bench_exchange.measure(ask, schemes, DEVICE, 60.0, report, lambda: next(now))
    assert left == ["counter", "flag"]
    assert {job["scheme"] for job in gpu.asked if "scheme" in job} == {"block", "grid_sync"}


def test_phase_needs_no_extension_and_keeps_its_rows(tmp_path: Path, monkeypatch) -> None:
    place = make_place(tmp_path)
    place.extension.unlink()
    commands = answer(monkeypatch, {"exchange": (0, "table\n\n9 rows measured, 0 red\n")})
    result = phases.run_phase("exchange", place, 60)
    assert result == Result("green", "9 rows measured, 0 red")
    args = bench_exchange.build_parser().parse_args(commands.asked["exchange"].arguments[2:])
    assert (args.budget, commands.seconds["exchange"]) == (55.0, 60)
    assert args.csv == place.csv.with_name("exchange_h100.csv")
    assert args.build == place.build / "exchange"
    answer(monkeypatch, {"exchange": (1, "9 rows measured, 1 red\n")})
    assert phases.run_phase("exchange", place, 60).state == "red"
    assert phases.run_phase("exchange", place, 4).state == "skipped"
