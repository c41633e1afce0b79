"""One problem by every method: plans, proof and rounds, on the emulator and with stand-ins."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import replace

import pytest
import simt_extension
import torch
from bench_stand_ins import CudaOnCpu, make_job
from cuda_devices import device

import fastlstm
from benchmarks.common import equality
from benchmarks.common.equality import Problem, Verdict
from benchmarks.common.providers import CELLS
from benchmarks.common.shapes import GRIDS, Shape
from benchmarks.common.timing import Contender
from benchmarks.gpu import kernels
from benchmarks.gpu.kernels import Choice
from benchmarks.gpu.methods import jobs, plans
from benchmarks.gpu.methods.jobs import Candidate, Job, LostError, Measurement

# Without TF32, which torch.nn does not have on a CPU.
JOB = make_job(dtype="float32", tf32=False, shape=Shape(2, 3, 2, 20), methods=("auto", "grid"))
TRAIN = replace(
    JOB, mode="train", forward="grid:16x2x8x1", methods=("auto", "block", "grid", "cluster")
)
FAILING = "grid:16x2x8x200"
TRIED = {"cluster": ["cluster:16x2x8"], "grid": ["grid:16x2x8x1", FAILING]}


@pytest.fixture
def few(monkeypatch) -> None:
    """Plans."""
    monkeypatch.setattr(plans, "words", lambda method, *_: TRIED.get(method, [method]))


@pytest.fixture
def few_plans(monkeypatch, few) -> None:
    """All of them possible, and a method's own plan the first."""

    def choice(*asked: object, backward: bool) -> Choice:
        return Choice(TRIED.get(asked[-1], [asked[-1]])[0], 1.0)

    monkeypatch.setattr(jobs, "choice", choice)


@pytest.fixture
def told(monkeypatch) -> None:
    """As a build with CUDA says it on an H100."""
    ask = simt_extension.load().cuda_choice
    monkeypatch.setattr(fastlstm._C, "cuda_choice", ask, raising=False)


@pytest.fixture
def emulator(few, told) -> Iterator[None]:
    with device("simt"):
        yield


# Plans.


def test_tiles_have_few_rows_or_all() -> None:
    assert plans.tile_rows(1) == [8]
    assert plans.tile_rows(20) == [8, 16, 24]
    assert plans.tile_rows(64) == [8, 16, 32, 64]
    assert plans.tile_rows(1000) == [8, 16, 32, 64]


def test_plans_hold_the_units_and_no_more_blocks_than_there_are() -> None:
    assert list(plans.clusters(9, 33)) == [
        *("cluster:16x4x8", "cluster:16x4x16", "cluster:32x2x8", "cluster:32x2x16"),
        *("cluster:48x2x8", "cluster:48x2x16"),
    ]
    assert list(plans.grids(20, 512, 132)) == [
        *("grid:16x32x8x3", "grid:16x32x16x2", "grid:16x32x24x1"),
        *("grid:32x16x8x3", "grid:32x16x16x2", "grid:32x16x24x1"),
        *("grid:48x11x8x3", "grid:48x11x16x2", "grid:48x11x24x1"),
    ]
    # Two turns of two groups do for four jobs where three groups have room.
    assert "grid:16x40x8x2" in plans.grids(32, 640, 132)
    assert not list(plans.clusters(1, 800))
    assert not list(plans.grids(1, 48 * 132 + 1, 132))


@pytest.mark.parametrize("shape", GRIDS["gpu"], ids=str)
def test_every_word_is_one_that_the_library_knows(shape: Shape, told) -> None:
    """And one that is possible is taken as it is."""
    possible = 0
    for method in kernels.PERSISTENT:
        for word in plans.words(method, shape.N, shape.H, 132):
            plan = kernels.choice("gru", shape, "bfloat16", False, word, backward=False).plan
            assert plan in (word, "stepwise")
            possible += plan == word
    assert possible > 0 or shape.H > 1500


def test_choice_is_that_of_the_extension(told) -> None:
    shape = Shape(100, 16, 64, 256)
    found = kernels.choice("lstm", shape, "bfloat16", None, "cluster:32x8x16", backward=True)
    assert found.plan == "cluster:32x8x16" and 0 < found.step_us < 100
    asked = ("gru", shape, "float32", False)
    assert kernels.choice(*asked, "block", backward=False).plan == "stepwise"
    with pytest.raises(ValueError, match="FASTLSTM_CUDA_KERNEL must be"):
        kernels.choice(*asked, "fast", backward=False)


def test_what_leads_to_single_steps_is_not_possible() -> None:
    assert Choice("grid:16x2x8x1", 1.0).is_that_of("grid")
    assert not Choice("stepwise", 1.0).is_that_of("grid")
    assert Choice("stepwise", 1.0).is_that_of("stepwise")


# What is tried.


def names(job: Job) -> list[str]:
    return [candidate.name for candidate in jobs.candidates(job)]


def test_candidates_of_forward(few_plans) -> None:
    assert names(JOB) == ["stepwise", "auto", "grid:16x2x8x1", "grid:16x2x8x200"]
    assert names(replace(JOB, methods=("block",))) == ["stepwise", "block"]


def test_candidates_of_training_differ_in_backward(few_plans) -> None:
    assert names(TRAIN) == [
        "stepwise + stepwise",
        "auto + auto",
        "grid:16x2x8x1 + stepwise",
        "grid:16x2x8x1 + block",
        "grid:16x2x8x1 + grid:16x2x8x1",
        "grid:16x2x8x1 + grid:16x2x8x200",
        "grid:16x2x8x1 + cluster:16x2x8",
    ]
    assert names(replace(TRAIN, forward="stepwise"))[:3] == [
        *("stepwise + stepwise", "auto + auto", "stepwise + block")
    ]


def test_what_is_not_possible_is_not_tried(few, told) -> None:
    # The plan that the library would take is tried by its own word.
    first, *rest = names(JOB)[2:]
    assert first.startswith("grid:") and rest == [w for w in ("grid:16x2x8x1",) if w != first]
    assert names(replace(JOB, methods=("block", "cluster"), shape=Shape(2, 3, 2, 2048))) == [
        "stepwise"
    ]


def test_candidate_asks_before_forward_and_before_backward(monkeypatch) -> None:
    asked = []
    monkeypatch.setattr(kernels, "want", lambda word: asked.append(word))
    problem = Problem(CELLS["gru"], Shape(3, 2, 4, 5), "train", torch.float32)
    provider = Candidate("grid", "block").provider()
    found = problem.results(provider, torch.float32, with_state=True)
    assert asked == ["grid", "block"]
    expected = problem.results(Candidate("stepwise").provider(), torch.float32, with_state=True)
    assert found.keys() == expected.keys()
    assert asked == ["grid", "block", "stepwise"]


def test_job_comes_back_from_json() -> None:
    assert Job.read(json.loads(json.dumps(TRAIN.as_json()))) == TRAIN


# The measurement.


def events(job: Job, dev: CudaOnCpu | None = None) -> list[dict]:
    return list(Measurement(job, dev or CudaOnCpu()).events())


def of(kind: str, found: list[dict]) -> list:
    return [event[kind] for event in found if kind in event]


def test_forward_on_the_emulator(emulator, monkeypatch) -> None:
    monkeypatch.setenv("FASTLSTM_CUDA_KERNEL", "before")
    found = events(JOB)
    assert not of("red", found)
    # 200 groups have no room.
    tried = ["stepwise", "auto", "grid:16x2x8x1"]
    assert of("at", found) == ["torch", *tried, "torch", *tried]
    (table,) = of("rows", found)
    assert [row["forward"] for row in table] == ["torch", *tried]
    for row in table:
        assert row["backward"] == ""
        assert float(row["us_p10"]) <= float(row["us"]) <= float(row["us_p90"])
        assert row["rounds"] >= jobs.FIRST_ROUNDS + jobs.MIN_ROUNDS
        assert set(row) <= set(jobs.FIELDS)
    by_name = {row["forward"]: row for row in table}
    assert by_name["stepwise"]["ratio_stepwise"] == by_name["torch"]["ratio_torch"] == "1"
    assert found[-1]["checked_T"] == 2 and found[-1]["sm_mhz"] == "1980"
    assert os.environ["FASTLSTM_CUDA_KERNEL"] == "before"


def test_training_on_the_emulator(emulator, told) -> None:
    found = events(TRAIN)
    assert not of("red", found)
    (table,) = of("rows", found)
    plans_of = {(r["forward"], r["backward"]): r for r in table}
    # float32 is for grids alone.
    assert not any(word.startswith(("block", "cluster")) for _, word in plans_of)
    row = plans_of["grid:16x2x8x1", "grid:16x2x8x1"]
    assert (row["forward_plan"], row["backward_plan"]) == ("grid:16x2x8x1", "grid:16x2x8x1")
    assert float(row["forward_model_us"]) > 0 and float(row["backward_model_us"]) > 0
    assert "forward_plan" not in plans_of["torch", ""]
    assert plans_of["stepwise", "stepwise"]["backward_plan"] == "stepwise"


class Slow(dict):
    """A timer that gives what is said for each name, or raises it, and keeps who was timed."""

    def __init__(self, said: dict[str, float | Exception]) -> None:
        super().__init__(said)
        self.timed: list[str] = []

    def __call__(self, contender: Contender) -> float:
        self.timed.append(contender.name)
        found = self.get(contender.name, 1.0)
        if isinstance(found, Exception):
            raise found
        return found


def test_best_plans_are_timed_for_longer(few_plans, monkeypatch) -> None:
    many = [f"grid:16x2x8x{n}" for n in range(1, 6)]
    monkeypatch.setitem(TRIED, "grid", many)
    seconds = {name: 0.5 + abs(n - 3) for n, name in enumerate(many)}
    timer = Slow(seconds | {"torch": 6.0, "stepwise": 3.0})
    dev = CudaOnCpu()
    monkeypatch.setattr(dev, "timer", lambda: timer)
    (table,) = of("rows", events(replace(JOB, seconds=1e-9), dev))
    found = {row["forward"]: row for row in table}
    long = {name for name, row in found.items() if row["rounds"] > jobs.FIRST_ROUNDS}
    assert long == {"torch", "stepwise", "auto", "grid:16x2x8x4", "grid:16x2x8x3"}
    best = found["grid:16x2x8x4"]
    assert (best["us"], best["ratio_stepwise"], best["ratio_torch"]) == ("2.5e+05", "6", "12")
    # In the same rounds, in an order that is drawn.
    last = timer.timed[-5:]
    assert set(last) == long
    assert len({tuple(timer.timed[i : i + 5]) for i in range(-25, 0, 5)}) > 1


def test_wrong_and_failing_candidates_are_red_and_not_timed(few_plans, monkeypatch) -> None:
    judge = equality.judge
    calls = equality.calls

    def judged(problem, found) -> Verdict:
        verdict = judge(problem, found)
        return Verdict(["output: error"], []) if found.get("wrong") else verdict

    def called(problem, provider):
        if provider.name == FAILING:
            raise RuntimeError("too much shared memory\nmore")
        return calls(problem, provider) | ({"wrong": 1} if provider.name == "auto" else {})

    monkeypatch.setattr(equality, "judge", judged)
    monkeypatch.setattr(equality, "calls", called)
    found = events(JOB)
    red = {event["red"]: event["lines"] for event in found if "red" in event}
    assert red == {"auto": ["output: error"], FAILING: ["RuntimeError: too much shared memory"]}
    (table,) = of("rows", found)
    assert [row["forward"] for row in table] == ["torch", "stepwise", "grid:16x2x8x1"]


def test_candidate_that_fails_when_timed_is_red(few_plans, monkeypatch) -> None:
    dev = CudaOnCpu()
    timer = Slow({FAILING: RuntimeError("out of memory")})
    monkeypatch.setattr(dev, "timer", lambda: timer)
    found = events(JOB, dev)
    assert of("red", found) == [FAILING]
    assert FAILING not in [row["forward"] for row in of("rows", found)[0]]


def test_lost_device_ends_the_job_at_its_candidate(few_plans, monkeypatch) -> None:
    calls = equality.calls

    def lost(*_: object) -> None:
        raise RuntimeError("unspecified launch failure")

    def called(problem, provider):
        return lost() if provider.name == FAILING else calls(problem, provider)

    monkeypatch.setattr(equality, "calls", called)
    dev = CudaOnCpu()
    monkeypatch.setattr(dev, "synchronize", lost)
    found = []
    with pytest.raises(LostError, match="^RuntimeError: unspecified launch failure$"):
        for event in Measurement(JOB, dev).events():
            found.append(event)
    assert found[-1] == {"at": FAILING}


def test_remark_of_a_check_is_passed_on(few_plans, monkeypatch) -> None:
    monkeypatch.setattr(equality, "judge", lambda *_: Verdict([], ["output: error"]))
    found = events(replace(JOB, methods=()))
    assert [event["lines"] for event in found if "remark" in event] == [["output: error"]]
    assert [row["forward"] for row in of("rows", found)[0]] == ["torch", "stepwise"]
