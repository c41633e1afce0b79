"""--minutes of the example programs: the time that was asked for is used, whatever the machine does.

Time is that of a machine which is made up: a step, an evaluation and a sample cost so many seconds
of its clock, times how slow it is by then.
"""

import functools
import threading
import types
from dataclasses import dataclass, field

import captioning_runs
import char_lm_runs
import pytest
import torch
from example_runs import assert_same_run, load, metrics_of

import examples.captioning.trainer
import examples.char_lm.trainer
from examples.captioning.__main__ import main as captioning
from examples.char_lm.__main__ import main as char_lm
from examples.common import trainer
from examples.common.config import TrainingConfig
from examples.common.distributed import Group
from examples.common.record import Record

text = char_lm_runs.text
one_picture_with_attention = captioning_runs.one_picture_with_attention
programs = pytest.mark.parametrize("program", ["char_lm", "captioning"])
MINUTES = 0.5
# Sums of these are exact, so that time added up in other parts is the same time.
STEP, EVALUATION, SAMPLE = 1 / 8, 1 / 4, 1 / 16


@dataclass
class Machine:
    """``slowness`` of the seconds that it has worked is how many times longer work takes then."""

    slowness: object = staticmethod(lambda spent: 1)
    evaluation: float = EVALUATION
    verification: float = 0.0
    now: float = 1e6
    spent: float = 0.0
    rates: list = field(default_factory=list)

    def monotonic(self):
        return self.now

    def work(self, seconds):
        seconds *= self.slowness(self.spent)
        self.now += seconds
        self.spent += seconds

    def install(self, monkeypatch):
        """Makes both programs run on it, and notes the learning rate of each step."""
        monkeypatch.setattr(trainer, "time", self)
        for module in (examples.captioning.trainer, examples.char_lm.trainer):
            for name, seconds in (
                ("_train_step", STEP),
                ("_evaluate", self.evaluation),
                ("_sample", SAMPLE),
                ("_verify", self.verification),
            ):
                if hasattr(module.Trainer, name):
                    original = getattr(module.Trainer, name)
                    monkeypatch.setattr(module.Trainer, name, self._working(original, seconds))

    def _working(self, original, seconds):
        @functools.wraps(original)
        def method(trainer, *arguments):
            original(trainer, *arguments)
            self.work(seconds)
            if original.__name__ == "_train_step":
                self.rates.append(trainer.optimizer.param_groups[0]["lr"])

        return method


def start(program, text, out, *more):
    if program == "char_lm":
        return char_lm_runs.train(text, out, "--minutes", MINUTES, *more)
    arguments = ["--inject", "h0", "--backend", "torch", "--beam", 1, "--minutes", MINUTES]
    return captioning_runs.train(out, *arguments, *more)


def resume(program, out, *more):
    main = char_lm if program == "char_lm" else captioning
    return main(["train", "--resume", str(out), *more])


@programs
@pytest.mark.parametrize(
    "slowness",
    [
        pytest.param(lambda spent: 1, id="constant"),
        pytest.param(lambda spent: 5 if spent < 0.2 * 60 * MINUTES else 1, id="slow_at_first"),
        pytest.param(lambda spent: 5 if spent > 0.5 * 60 * MINUTES else 1, id="slow_later"),
        pytest.param(lambda spent: 1 + 4 * (spent % 6 > 3), id="busy_now_and_then"),
    ],
)
def test_the_time_asked_for_is_used(text, tmp_path, monkeypatch, program, slowness):
    machine = Machine(slowness)
    machine.install(monkeypatch)
    out = tmp_path / "run"
    assert start(program, text, out) == 0
    metrics = metrics_of(out)
    assert machine.spent == pytest.approx(60 * MINUTES, rel=0.1)
    assert metrics["seconds"] == machine.spent
    assert metrics["finished"] and metrics["planned_steps"] == metrics["steps"]
    rates = machine.rates[3:]  # after the warm-up
    assert rates[0] == max(machine.rates) and rates == sorted(rates, reverse=True)
    assert rates[-1] < 0.02 * rates[0], "the end of the schedule is 0.01"
    assert metrics["history"][-1]["learning_rate"] == pytest.approx(0.01 * rates[0])
    assert 5 <= len(metrics["history"]) <= 16
    assert metrics["history"][-1]["step"] == metrics["steps"]


def test_a_slow_first_evaluation_does_not_cut_the_run_short(text, tmp_path, monkeypatch):
    """It takes a third of the time; the next ones a fifth of that."""
    machine = Machine(lambda spent: 5 if spent < 6 else 1, evaluation=2.0, verification=0.5)
    machine.install(monkeypatch)
    assert start("char_lm", text, tmp_path / "run") == 0
    assert machine.spent == pytest.approx(60 * MINUTES, rel=0.1)
    assert machine.rates[-1] < 0.02 * 0.01
    assert len(metrics_of(tmp_path / "run")["history"]) == 3, "one that was in the middle"


@pytest.mark.slow
@programs
@pytest.mark.parametrize("end", ["interrupted", "killed"])
def test_a_resumed_run_is_the_same_run(text, tmp_path, monkeypatch, program, end):
    """To the last bit, where the machine takes the same time for the same steps again."""
    straight, parts = tmp_path / "straight", tmp_path / "parts"
    with monkeypatch.context() as patch:
        Machine().install(patch)
        assert start(program, text, straight, "--save-every", 2) == 0
    kind = (examples.char_lm if program == "char_lm" else examples.captioning).trainer.Trainer
    with monkeypatch.context() as patch:
        Machine().install(patch)
        if end == "killed":
            kill_at_step(patch, kind, 97)
            with pytest.raises(RuntimeError, match="killed"):
                start(program, text, parts, "--save-every", 2)
        else:
            stop_at_step(patch, kind, 60)
            assert start(program, text, parts, "--save-every", 2) == 0
    step = load(parts / "checkpoint.pt")["progress"]["step"]
    assert step == 60 if end == "interrupted" else 80 < step < 97
    with monkeypatch.context() as patch:
        Machine(now=0.0).install(patch)
        assert resume(program, parts) == 0
    assert metrics_of(parts)["finished"]
    assert metrics_of(parts)["seconds"] == metrics_of(straight)["seconds"]
    assert_same_run(straight, parts)


def kill_at_step(patch, kind, number):
    original = kind._train_step

    def step(self):
        if self.record.step == number:
            raise RuntimeError("killed")
        original(self)

    patch.setattr(kind, "_train_step", step)


def stop_at_step(patch, kind, number):
    original = kind.run

    def run(self, out, should_stop):
        original(self, out, lambda: self.record.step >= number)

    patch.setattr(kind, "run", run)


def test_more_time_goes_on_from_where_it_is(text, tmp_path, monkeypatch):
    machine = Machine()
    machine.install(monkeypatch)
    out = tmp_path / "run"
    assert start("char_lm", text, out) == 0
    assert resume("char_lm", out) == 2, "finished"
    machine.rates.clear()
    assert resume("char_lm", out, "--minutes", str(2 * MINUTES)) == 0
    assert machine.spent == pytest.approx(2 * 60 * MINUTES, rel=0.1)
    # Half of the cosine is left, and is gone through to its end.
    assert machine.rates[0] == pytest.approx(0.5 * 0.01, rel=0.1)
    assert machine.rates[-1] < 0.02 * 0.01


def test_a_run_whose_time_was_made_into_steps_uses_its_time(text, tmp_path, monkeypatch):
    """As older checkpoints have it: the steps that were planned for them say nothing any more."""
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        Machine().install(patch)
        stop_at_step(patch, examples.char_lm.trainer.Trainer, 60)
        assert start("char_lm", text, out) == 0
    checkpoint = load(out / "checkpoint.pt")
    progress = checkpoint["progress"]
    del progress["used"], progress["aside_seconds"]
    progress["total_steps"] = 60
    torch.save(checkpoint, out / "checkpoint.pt")
    machine = Machine()
    machine.install(monkeypatch)
    assert resume("char_lm", out) == 0
    assert progress["seconds"] + machine.spent == pytest.approx(60 * MINUTES, rel=0.1)
    assert 0.005 < machine.rates[0] < 0.01 and machine.rates[-1] < 0.02 * 0.01


def test_processes_agree_on_the_rate_and_the_end(tmp_path, monkeypatch):
    """Two with clocks of their own, one of them slower: the slower one's time counts for both."""
    clock = threading.local()
    monkeypatch.setattr(trainer, "time", types.SimpleNamespace(monotonic=lambda: clock.now))
    barrier = threading.Barrier(2, timeout=20)
    said = [None, None]

    @dataclass(frozen=True)
    class Pair(Group):
        def maximum(self, *values):
            said[self.rank] = values
            barrier.wait()
            largest = tuple(max(pair) for pair in zip(*said, strict=True))
            barrier.wait()
            return largest

    trainers = [Toy(clock, Pair(rank, 2)) for rank in range(2)]
    failures = []

    def run(toy):
        try:
            clock.now = 0.0
            toy.run(tmp_path)
        except Exception as error:
            failures.append(error)
            barrier.abort()

    threads = [threading.Thread(target=run, args=[toy]) for toy in trainers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    first, second = trainers
    assert first.rates == second.rates and len(first.rates) > 20
    assert first.record.seconds == second.record.seconds == pytest.approx(6.0, rel=0.1)
    assert first.record.history == second.record.history
    assert (tmp_path / "checkpoint.pt").exists()


class Toy(trainer.BaseTrainer):
    """Learns nothing, for 6 seconds; a step of process 1 takes twice as long, but for some."""

    def __init__(self, clock, group):
        class Config(TrainingConfig):
            rules = ()
            default_rates = {"adam": 1.0}  # noqa: RUF012
            default_minutes = 0.1

        model = torch.nn.Linear(1, 1)
        super().__init__(Config(warmup=2), model, torch.device("cpu"), 10, Record, group)
        self.clock, self.rates = clock, []

    def _train_step(self):
        self.rates.append(self._learning_rate())
        self.clock.now += 0.1 * (1 + (self.group.rank == self.record.step % 3 // 2))
        self.record.add_step(loss=1.0, grad_norm=1.0, clipped=False)

    def _verify(self):
        pass

    def _evaluate(self, display):
        self.clock.now += 0.01 * (1 + self.group.rank)
        record = self.record
        record.history.append({"step": record.step, "seconds": round(record.seconds, 3)})

    def _status(self):
        return ""

    def _packed_model(self):
        return {"model": self.model.state_dict()}
