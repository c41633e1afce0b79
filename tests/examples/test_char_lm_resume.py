"""examples/char_lm goes on where a run stopped: by itself, by a signal, by kill -9."""

import signal
import subprocess
import sys
import time

import char_lm_runs
import pytest
import torch
from char_lm_runs import SMALL, backends, stopping_when, train
from example_runs import ROOT, assert_same_run, contents, load, metrics_of

from examples.char_lm.__main__ import main
from examples.char_lm.checkpoint import RUN_FILES

text, run = char_lm_runs.text, char_lm_runs.run


@backends
@pytest.mark.parametrize(
    "settings",
    [
        "--layers 2 --dropout 0.3 --clip-norm 0.2",
        "--embedding one-hot --optimizer rmsprop --clip-value 0.01 --schedule linear --reset 0.3",
        "--optimizer adagrad --schedule exponential --decay-after 0 --epochs 0.3",
    ],
)
def test_ten_and_ten_steps_are_twenty(text, tmp_path, monkeypatch, backend, settings):
    budget = [] if "--epochs" in settings else ["--steps", "20"]
    arguments = [*settings.split(), *budget, "--eval-every", "4"]
    straight, parts = tmp_path / "straight", tmp_path / "parts"
    assert train(text, straight, *arguments, backend=backend) == 0
    with stopping_when(monkeypatch, lambda record: record.step >= 10):
        assert train(text, parts, *arguments, backend=backend) == 0
    assert metrics_of(parts)["steps"] == 10 and not metrics_of(parts)["finished"]
    torch.rand(100)  # another place in the random numbers, as in another process
    assert main(["train", "--resume", str(parts)]) == 0
    assert metrics_of(parts)["finished"] and metrics_of(parts)["steps"] > 15
    assert_same_run(straight, parts)
    assert metrics_of(straight)["val_nats"] == metrics_of(parts)["val_nats"]
    assert metrics_of(straight)["clipped_share"] == metrics_of(parts)["clipped_share"]


def test_a_finished_run_goes_on_with_a_larger_budget(run, capsys):
    before = contents(run)
    assert main(["train", "--resume", str(run)]) == 2
    assert main(["train", "--resume", str(run), "--steps", "15"]) == 2
    assert capsys.readouterr().err.count("is finished (20 steps") == 2
    assert contents(run) == before
    assert main(["train", "--resume", str(run), "--steps", "30", "--lr", "0.001"]) == 0
    assert metrics_of(run)["steps"] == 30 and metrics_of(run)["config"]["lr"] == 0.001


def test_resume_with_the_other_backend(run):
    assert main(["train", "--resume", str(run), "--steps", "25", "--backend", "fastlstm"]) == 0
    assert metrics_of(run)["config"]["backend"] == "fastlstm" and metrics_of(run)["steps"] == 25


# Signals


def start(text, out, *more):
    arguments = [sys.executable, "-m", "examples.char_lm", "train", "--text", str(text)]
    arguments += ["--out", str(out), "--backend", "torch", *SMALL, "--minutes", "5", *more]
    return subprocess.Popen(
        arguments, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def wait_for_step(process):
    """Reads the output until the run has made steps and evaluated."""
    for line in process.stdout:
        if line.startswith("step ") and not line.startswith("step 0 "):
            return
    raise AssertionError(process.stderr.read())


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_saves_and_exits_with_0(text, tmp_path, number):
    out = tmp_path / "run"
    process = start(text, out, "--eval-every", "5")
    wait_for_step(process)
    process.send_signal(number)
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert errors == "" and "interrupted" in output and "--resume" in output
    metrics = metrics_of(out)
    steps = metrics["steps"]
    assert not metrics["finished"] and steps >= 5 and metrics["val_nats"] > 0
    assert load(out / "checkpoint.pt")["progress"]["step"] == steps
    assert main(["train", "--resume", str(out), "--steps", str(steps + 5)]) == 0
    assert metrics_of(out)["steps"] == steps + 5


@pytest.mark.slow
def test_kill_9_leaves_a_checkpoint(text, tmp_path):
    out = tmp_path / "run"
    process = start(text, out, "--eval-every", "5", "--save-every", "0")
    wait_for_step(process)
    time.sleep(0.3)
    process.kill()
    process.communicate()
    step = load(out / "checkpoint.pt")["progress"]["step"]
    assert step >= 4
    assert main(["train", "--resume", str(out), "--steps", str(step + 5)]) == 0
    assert sorted(path.name for path in out.iterdir()) == sorted(RUN_FILES)
