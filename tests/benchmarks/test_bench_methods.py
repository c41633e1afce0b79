"""bench_methods.py: the process that measures and what becomes of it, the order, tables and rows."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from bench_stand_ins import CudaOnCpu, make_job

from benchmarks import bench_methods
from benchmarks.bench_methods import Run
from benchmarks.common import rows
from benchmarks.common.devices import DEVICES
from benchmarks.common.shapes import GRIDS, Shape
from benchmarks.gpu.kernels import Choice
from benchmarks.gpu.methods import jobs, plans, worker
from benchmarks.gpu.methods.jobs import FIELDS, Job, LostError, Measurement
from benchmarks.gpu.methods.worker import Worker, WorkerLostError

JOB = make_job(
    dtype="bfloat16", tf32=None, shape=Shape(4, 2, 3, 5), methods=("auto", "block", "grid")
)
CONDITIONS = {"device": "GPU", "date": "today", "threads": "1"}


# The process that measures.


CELL = "{'at': job['cell']}"


def stub(*statements: str) -> list[str]:
    """A worker that does this for each `job` that comes; a dict is what it says."""
    code = "import json, os, sys, time\nfor line in sys.stdin:\n    job = json.loads(line)\n"
    for statement in statements:
        said = f"print(json.dumps({statement}), flush=True)"
        code += f"    {said if statement.startswith('{') else statement}\n"
    return [sys.executable, "-S", "-c", code]


GRID, DONE = "{'at': 'grid'}", "{'done': True}"


def test_events_of_a_job_end_with_it() -> None:
    with Worker(stub(CELL, "{'x': 1}", DONE)) as asked:
        assert list(asked.events(JOB)) == [{"at": "lstm"}, {"x": 1}]
        # The same process answers the next one.
        gru = replace(JOB, cell="gru")
        assert list(asked.events(gru)) == [{"at": "gru"}, {"x": 1}]
        # A job that is left has no answers for the next.
        for _ in asked.events(JOB):
            break
        assert next(iter(asked.events(gru))) == {"at": "gru"}


@pytest.mark.parametrize(
    "end, why",
    [
        ("os._exit(5)", "its process ended with code 5"),
        ("(print('{\"ro', end='', flush=True), os._exit(6))", "its process ended with code 6"),
        ("time.sleep(60)", "silent for 1 s"),
        ('(print(\'{"lost": "a fault"}\', flush=True), sys.exit(3))', "a fault"),
    ],
    ids=["ends", "in_a_line", "hangs", "says_so"],
)
def test_process_that_is_lost_names_what_was_at_work(end: str, why: str) -> None:
    start = time.monotonic()
    silence = 1.0 if "sleep" in end else 30.0
    with Worker(stub(GRID, f"job['cell'] != 'lstm' or {end}", DONE), silence) as asked:
        found = []
        with pytest.raises(WorkerLostError, match=f"^{why}$") as lost:
            for event in asked.events(JOB):
                found.append(event)
        assert (found, lost.value.at) == ([{"at": "grid"}], "grid")
        # The next job has a new one.
        assert list(asked.events(replace(JOB, cell="gru"))) == [{"at": "grid"}]
    assert time.monotonic() - start < 20


def test_words_of_a_kernel_are_passed_on(capsys) -> None:
    words = "a wait took too many looks"
    with Worker(stub(GRID, f"print({words!r}, flush=True)", DONE)) as asked:
        assert list(asked.events(JOB)) == [{"at": "grid"}]
    assert capsys.readouterr().out == f"{words}\n"


def test_process_that_has_ended_is_lost(tmp_path: Path) -> None:
    with Worker([sys.executable, "-S", "-c", ""]) as asked, pytest.raises(WorkerLostError):
        list(asked.events(JOB))


def test_worker_answers_every_job(monkeypatch) -> None:
    monkeypatch.setattr(Measurement, "events", lambda self: iter([{"at": self.job.cell}]))
    lines = [json.dumps(replace(JOB, cell=cell).as_json()) for cell in ("lstm", "gru")]
    found = list(worker.answers(lines, CudaOnCpu()))
    assert found == [{"at": "lstm"}, {"done": True}, {"at": "gru"}, {"done": True}]


def test_worker_ends_where_the_device_is_lost(monkeypatch, capsys) -> None:
    def lost(_: Measurement) -> Iterator[dict]:
        yield {"at": "grid"}
        raise LostError("a fault")

    monkeypatch.setattr(Measurement, "events", lost)
    monkeypatch.setitem(DEVICES, "cuda", CudaOnCpu)
    monkeypatch.setattr(worker.sys, "stdin", [json.dumps(JOB.as_json())])
    monkeypatch.setattr(worker.gc, "freeze", lambda: None)
    assert worker.main() == worker.LOST
    assert capsys.readouterr().out.splitlines() == ['{"at": "grid"}', '{"lost": "a fault"}']


def test_worker_is_started_from_its_file() -> None:
    """And takes fastlstm from the environment: its own folder and the sources come last."""
    command = [worker.COMMAND[0], "-S", *worker.COMMAND[1:]]
    with Worker(command) as asked, pytest.raises(WorkerLostError, match="ended with code 1"):
        list(asked.events(JOB))  # -S: without torch


# The run.


def row(us: float, forward: str, backward: str = "", rounds: int = 7, **more: object) -> dict:
    found = {"forward": forward, "backward": backward, "rounds": rounds, "us": f"{us:g}"}
    found |= {"us_p10": f"{us:g}", "us_p90": f"{us:g}"}
    return found | {"ratio_stepwise": "2", "ratio_torch": "3"} | more


def answer(*table: dict, before: tuple[dict, ...] = ()) -> list[dict]:
    return [*before, {"rows": list(table), "checked_T": 4, "sm_mhz": "1980"}]


class Answers:
    """Stands in for a worker: what is said to each job, and which came."""

    def __init__(self, *answers: list[dict] | WorkerLostError) -> None:
        self.answers = list(answers)
        self.asked: list[Job] = []

    def __call__(self, job: Job) -> Iterator[dict]:
        self.asked.append(job)
        found = self.answers.pop(0)
        if isinstance(found, WorkerLostError):
            raise found
        return iter(found)


TABLE = (row(9, "torch"), row(4, "auto"), row(3, "grid:16x3x8x1"), row(6, "stepwise"))


def run(*answers: list[dict] | WorkerLostError, csv: Path | None = None) -> tuple[Run, Answers]:
    asked = Answers(*answers)
    return Run(asked, CONDITIONS, csv), asked


def test_training_has_the_best_forward_of_its_problem(capsys) -> None:
    slow = row(1, "cluster:16x2x8", rounds=2)
    training = [row(20, "torch"), row(9, "auto", "auto")]
    training += [row(6, "grid:16x3x8x1", "block"), row(8, "stepwise", "stepwise")]
    found, asked = run(answer(*TABLE, slow), answer(*training))
    found.measure([JOB, replace(JOB, mode="train")], 1.0, lambda: 0.0)
    assert [job.forward for job in asked.asked] == ["auto", "grid:16x3x8x1"]
    out = capsys.readouterr().out
    lines = [line for line in out.splitlines() if " 7 " in f"{line} "]
    assert [line.split()[0] for line in lines[:4]] == ["grid:16x3x8x1", "auto", "stepwise", "torch"]
    assert "and 1 that were slower in the first rounds" in out
    assert found.summary().splitlines() == [
        "auto takes 1.41 times as long as the best of 2 jobs (geometric mean), at most 1.50 times: "
        "lstm, train, bfloat16, T,N,I,H = 4,2,3,5",
        "9 rows measured, 0 red",
    ]


def test_rows_carry_problem_and_conditions(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    plan = {"forward_plan": "block", "forward_model_us": "2.5"}
    found, _ = run(answer(*TABLE[:1], row(4, "auto", **plan)), csv=path)
    found.measure([replace(JOB, dtype="float32", tf32=True)], 1.0, lambda: 0.0)
    torch_row, auto = rows.read(path, FIELDS)
    wanted = {"device": "GPU", "date": "today", "cell": "lstm", "mode": "infer", "T": "4", "H": "5"}
    wanted |= {"dtype": "float32", "tf32": "on", "checked_T": "4", "sm_mhz": "1980", **plan}
    wanted |= {"forward": "auto", "us": "4", "rounds": "7", "ratio_stepwise": "2"}
    assert wanted.items() <= auto.items()
    assert list(auto) == list(FIELDS)
    assert (torch_row["forward"], torch_row["forward_plan"]) == ("torch", "")


def test_what_is_wrong_is_red_and_remarks_are_said(capsys) -> None:
    before = ({"at": "grid"}, {"red": "grid", "lines": ["output: error", "h_n: error"]})
    before += ({"remark": "auto", "lines": ["h_n: above"]},)
    found, _ = run(answer(*TABLE, before=before))
    found.measure([JOB], 1.0, lambda: 0.0)
    out = capsys.readouterr().out
    assert "grid: RED  output: error\ngrid: RED  h_n: error\n" in out
    assert "auto: torch.nn does not round to TF32: h_n: above" in out
    assert found.summary().endswith("4 rows measured, 1 red")


def test_method_that_ends_its_process_is_left_out_from_then_on(capsys) -> None:
    lost = WorkerLostError("auto + grid:16x3x8x1", "silent for 60 s")
    found, asked = run(lost, answer(*TABLE), answer(*TABLE), answer(*TABLE))
    train = replace(JOB, mode="train")
    others = [replace(train, shape=Shape(9, 9, 9, 9)), replace(train, dtype="float16")]
    found.measure([train, *others], 1.0, lambda: 0.0)
    assert [job.methods for job in asked.asked] == [
        ("auto", "block", "grid"),
        ("auto", "block"),
        ("auto", "block"),
        # Another dtype has other kernels.
        ("auto", "block", "grid"),
    ]
    out = capsys.readouterr().out
    assert "auto + grid:16x3x8x1: RED  ended its process: silent for 60 s" in out
    assert found.summary().endswith("12 rows measured, 1 red")


@pytest.mark.parametrize("at", ["torch", "stepwise", ""])
def test_job_that_cannot_be_measured_is_given_up(at: str, capsys) -> None:
    found, asked = run(WorkerLostError(at, "a fault"), answer(*TABLE))
    found.measure([JOB, replace(JOB, cell="gru")], 1.0, lambda: 0.0)
    assert [job.cell for job in asked.asked] == ["lstm", "gru"]
    assert f"{at or 'its process'}: RED  ended its process: a fault" in capsys.readouterr().out


def test_no_job_is_begun_after_the_budget() -> None:
    now = iter([0.0, 9.0, 11.0])
    found, asked = run(answer(*TABLE), answer(*TABLE))
    several = [replace(JOB, cell=cell) for cell in ("lstm", "gru", "rnn", "rnn_relu")]
    found.measure(several, 10.0, lambda: next(now))
    assert [job.cell for job in asked.asked] == ["lstm", "gru"]
    assert found.summary().splitlines()[-1] == (
        "8 rows measured, 0 red, no time for 2 jobs from rnn, infer, bfloat16, T,N,I,H = 4,2,3,5 on"
    )


def test_most_important_jobs_come_first() -> None:
    args = bench_methods.build_parser().parse_args([])
    found = bench_methods.all_jobs(args, 132)
    shapes = len(GRIDS["gpu"])
    assert len(found) == shapes * 2 * 2 * 4
    first = found[: 2 * shapes]
    assert {(job.cell, job.dtype) for job in first} == {("lstm", "bfloat16")}
    assert [job.shape for job in first[::2]] == list(GRIDS["gpu"])
    assert [job.mode for job in first[:2]] == ["infer", "train"]
    settings = list(dict.fromkeys((job.cell, job.dtype, job.tf32) for job in found))
    assert settings == [
        *(("lstm", "bfloat16", None), ("gru", "bfloat16", None)),
        *(("lstm", "float32", True), ("gru", "float32", True)),
        *(("lstm", "float32", False), ("gru", "float32", False)),
        *(("lstm", "float16", None), ("gru", "float16", None)),
    ]
    argv = "--shape 4,2,3,5 --cells gru --dtype float16 --mode train --methods grid --seed 3"
    (job,) = bench_methods.all_jobs(bench_methods.build_parser().parse_args(argv.split()), 108)
    assert (job.shape, job.methods, job.seed) == (Shape(4, 2, 3, 5), ("auto", "grid"), 3)
    assert (job.mode, job.multiprocessors) == ("train", 108)


# The program.


@pytest.fixture
def gpu(monkeypatch) -> None:
    """A GPU whose kernels are those of the CPU, measured in this process."""

    class Here(Worker):
        def events(self, job: Job) -> Iterator[dict]:
            return Measurement(job, CudaOnCpu()).events()

    class Properties:
        multi_processor_count = 132

    monkeypatch.setitem(DEVICES, "cuda", CudaOnCpu)
    monkeypatch.setattr(bench_methods, "Worker", Here)
    monkeypatch.setattr(bench_methods.torch.cuda, "get_device_properties", lambda: Properties)
    monkeypatch.setattr(plans, "words", lambda method, *_: [method])
    monkeypatch.setattr(jobs, "choice", lambda *asked, **_: Choice(asked[-1], 1.0))


SMALL = "--shape 4,2,3,5 --cells gru --dtype bfloat16 --seconds 0.01 --methods grid"


def test_program_measures_and_keeps_rows(gpu, tmp_path: Path, capsys) -> None:
    path = tmp_path / "rows.csv"
    assert bench_methods.main([*SMALL.split(), "--csv", str(path)]) == 0
    found = rows.read(path, FIELDS)
    assert [(r["mode"], r["forward"], r["backward"]) for r in found][:4] == [
        ("infer", "torch", ""),
        ("infer", "stepwise", ""),
        ("infer", "auto", ""),
        ("infer", "grid", ""),
    ]
    assert [r["backward"] for r in found if r["mode"] == "train"][:3] == ["", "stepwise", "auto"]
    assert all(float(r["us"]) > 0 and r["device"] == "GPU" for r in found)
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == f"{len(found)} rows measured, 0 red"
    assert lines[-2].startswith("auto takes ")


def test_red_and_nothing_measured_are_code_1(gpu, monkeypatch) -> None:
    monkeypatch.setattr(Measurement, "events", lambda _: iter([{"red": "grid", "lines": ["x"]}]))
    assert bench_methods.main(SMALL.split()) == 1
    monkeypatch.setattr(Measurement, "events", lambda _: iter([]))
    assert bench_methods.main(SMALL.split()) == 1


def test_interrupt_leaves_a_summary(gpu, monkeypatch, capsys) -> None:
    def interrupted(_: Measurement) -> Iterator[dict]:
        raise KeyboardInterrupt

    monkeypatch.setattr(Measurement, "events", interrupted)
    assert bench_methods.main(SMALL.split()) == 130
    assert capsys.readouterr().out.splitlines()[-1] == "0 rows measured, 0 red"
