"""The program examples/char_lm: train, sample, eval, and everything that can go wrong with them."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from char_lm_runs import (
    ROOT,
    SMALL,
    assert_same_run,
    backends,
    contents,
    load,
    metrics_of,
    stopping_when,
    train,
    write_words,
)

from examples.char_lm import compare
from examples.char_lm.__main__ import main
from examples.char_lm.checkpoint import RUN_FILES
from examples.char_lm.commands import sample as sample_command
from examples.common import trainer


@pytest.fixture
def text(tmp_path):
    return write_words(tmp_path / "text.txt")


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("char_lm")
    assert train(write_words(folder / "text.txt"), folder / "run", "--steps", 20) == 0
    return folder / "run"


@pytest.fixture
def run(finished_run, tmp_path):
    """A run of 20 steps, to do with as one likes."""
    return Path(shutil.copytree(finished_run, tmp_path / "run"))


# Training


@backends
def test_train_leaves_a_run(text, tmp_path, capfd, backend):
    out = tmp_path / "run"
    assert train(text, out, "--steps", 40, "--lr", 0.03, backend=backend) == 0
    assert sorted(path.name for path in out.iterdir()) == sorted(RUN_FILES)
    metrics = metrics_of(out)
    assert metrics["val_nats"] < 0.8 * metrics["baseline"]["uniform"]
    assert metrics["val_bpc"] == pytest.approx(metrics["val_nats"] / 0.6931471805599453)
    assert metrics["val_chars"] == 399 and metrics["steps"] == 40 and metrics["finished"]
    assert metrics["train_nats"] > 0 and metrics["seconds"] > 0 and metrics["grad_norm"] > 0
    assert metrics["chars_per_second"] > 0 and 0 <= metrics["clipped_share"] <= 1
    assert metrics["config"]["hidden"] == 16 and metrics["config"]["text"] == [str(text)]
    assert metrics["baseline"]["best"] < metrics["baseline"]["uniform"]
    assert len(metrics["history"]) >= 10
    assert (out / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert (out / "samples.md").read_text().count("## Step") >= 5
    assert load(out / "best.pt")["program"] == "fastlstm.examples.char_lm"
    output, errors = capfd.readouterr()
    assert errors == "", "a log gets no progress bar"
    assert "gram" in output and "step 40 | train" in output and "bits per character" in output


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


def test_dropout_and_seed_change_the_run(text, tmp_path):
    weights = []
    for number, settings in enumerate(["", "--dropout 0.3", "--seed 1"]):
        assert train(text, tmp_path / str(number), "--steps", 4, *settings.split()) == 0
        weights.append(load(tmp_path / str(number) / "checkpoint.pt")["model"]["head.weight"])
    assert not torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


def test_a_time_budget_is_planned_once(text, tmp_path, monkeypatch):
    monkeypatch.setattr(trainer, "OVERTIME", 100)
    out = tmp_path / "run"
    with stopping_when(monkeypatch, lambda record: record.total_steps is not None):
        assert train(text, out, "--minutes", 0.03) == 0
    metrics = metrics_of(out)
    planned = metrics["planned_steps"]
    assert 5 <= metrics["steps"] < planned and not metrics["finished"]
    assert main(["train", "--resume", str(out)]) == 0
    metrics = metrics_of(out)
    assert metrics["finished"] and metrics["steps"] == planned == metrics["planned_steps"]
    assert metrics["history"][-1]["learning_rate"] < 0.001


def test_a_time_budget_holds_when_the_machine_slows_down(text, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(trainer, "OVERTIME", 0.4)
    assert train(text, tmp_path / "run", "--minutes", 0.03) == 0
    assert "note: slower than when the steps were planned" in capsys.readouterr().out
    metrics = metrics_of(tmp_path / "run")
    assert metrics["finished"] and 0.7 < metrics["seconds"] < 1.7
    assert main(["train", "--resume", str(tmp_path / "run")]) == 2


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


def test_best_weights_are_kept_apart_from_the_last(text, tmp_path):
    """With a rate that ruins the model late, the result is that of the best weights."""
    out = tmp_path / "run"
    assert train(text, out, "--steps", 60, "--lr", 0.02, "--schedule", "constant") == 0
    arguments = ["train", "--resume", str(out), "--steps", "90", "--lr", "0.6"]
    assert main([*arguments, "--clip-norm", "0"]) == 0
    metrics = metrics_of(out)
    best = min(metrics["history"], key=lambda entry: entry["val_nats"])
    assert metrics["val_step"] == best["step"] < 90
    assert metrics["val_nats"] == pytest.approx(best["val_nats"], rel=0.2)
    assert metrics["val_nats"] < metrics["last_val_nats"]


def test_hello(tmp_path, capsys):
    path, out = tmp_path / "hello.txt", tmp_path / "run"
    path.write_text("hello\n" * 60)
    assert train(path, out, "--steps", 120, "--lr", 0.03) == 0
    assert metrics_of(out)["val_nats"] < 0.05
    capsys.readouterr()
    assert main(["sample", str(out), "--prime", "h", "--greedy", "--length", "10"]) == 0
    assert capsys.readouterr().out == "hello\nhello"


def test_any_bytes_can_be_learned(tmp_path, capfdbinary):
    path, out = tmp_path / "data.bin", tmp_path / "run"
    path.write_bytes(bytes(range(256)) * 12)
    assert train(path, out, "--bytes", "--steps", 3) == 0
    assert metrics_of(out)["corpus"]["vocabulary"] == 256
    capfdbinary.readouterr()
    assert main(["sample", str(out), "--prime", "é", "--length", "50", "--temperature", "2"]) == 0
    output = capfdbinary.readouterr().out
    assert output.startswith("é".encode()) and len(output) == 52
    with pytest.raises(UnicodeDecodeError):
        output.decode()


def test_out_is_the_next_free_directory(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for number in ("001", "002"):
        arguments = ["train", "--text", "text.txt", "--backend", "torch", *SMALL, "--steps", "2"]
        assert main(arguments) == 0
        assert (tmp_path / "runs" / "char_lm" / number / "checkpoint.pt").exists()


def test_overwrite_replaces_only_the_run(run, text):
    (run / "notes.txt").write_text("mine")
    assert train(text, run, "--steps", 3, "--overwrite") == 0
    assert metrics_of(run)["steps"] == 3 and (run / "notes.txt").read_text() == "mine"


def test_nan_stops_with_advice_and_keeps_the_last_good_checkpoint(text, tmp_path, capsys):
    out = tmp_path / "run"
    # Nothing but saving may look at the weights that the second step ruins.
    arguments = "--steps 50 --lr 1e38 --warmup 0 --save-every 0 --eval-every 99 --sample-every 99"
    assert train(text, out, *arguments.split()) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and error.startswith("stopped: ")
    assert "--lr" in error and "checkpoint.pt" in error
    weights = load(out / "checkpoint.pt")["model"]
    assert all(value.isfinite().all() for value in weights.values())


def test_exploding_loss_stops(text, tmp_path, capsys):
    assert train(text, tmp_path / "run", "--steps", 50, "--lr", 30, "--clip-norm", 0) == 1
    assert "times the first" in capsys.readouterr().err


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


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_saves_and_exits_with_0(text, tmp_path, number):
    out = tmp_path / "run"
    process = start(text, out, "--eval-every", "5")
    wait_for_step(process)
    process.send_signal(number)
    output, errors = process.communicate(timeout=30)
    assert process.returncode == 0, errors
    assert errors == "" and "interrupted" in output and "--resume" in output
    metrics = metrics_of(out)
    steps = metrics["steps"]
    assert not metrics["finished"] and steps >= 5 and metrics["val_nats"] > 0
    assert load(out / "checkpoint.pt")["progress"]["step"] == steps
    assert main(["train", "--resume", str(out), "--steps", str(steps + 5)]) == 0
    assert metrics_of(out)["steps"] == steps + 5


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


# Sampling and scoring


def sampled(capsys, *arguments):
    capsys.readouterr()
    assert main(["sample", *map(str, arguments)]) == 0
    return capsys.readouterr().out


def test_sample_follows_its_options(run, capsys, monkeypatch):
    text = sampled(capsys, run, "--length", 80, "--prime", "the ")
    assert len(text) == 84 and text.startswith("the ")
    assert text == sampled(capsys, run, "--length", 80, "--prime", "the ", "--no-stream")
    assert text == sampled(capsys, run / "best.pt", "--length", 80, "--prime", "the ")
    assert text != sampled(capsys, run, "--length", 80, "--prime", "the ", "--seed", 1)
    greedy = sampled(capsys, run, "--length", 80, "--greedy")
    assert greedy == sampled(capsys, run, "--length", 80, "--greedy", "--seed", 5)
    assert greedy == sampled(capsys, run, "--length", 80, "--temperature", 0)
    assert greedy == sampled(capsys, run, "--length", 80, "--top-k", 1)
    assert greedy == sampled(capsys, run, "--length", 80, "--top-p", 1e-6)
    assert sampled(capsys, run, "--length", 9, "--count", 3).count("-" * 78) == 3


def test_prime_from_a_file(run, tmp_path, capsys):
    prime = tmp_path / "prime.txt"
    prime.write_text("the cat ")
    assert sampled(capsys, run, "--prime-file", prime, "--length", 5) == sampled(
        capsys, run, "--prime", "the cat ", "--length", 5
    )


def test_sample_streams(run, capsys, monkeypatch):
    pieces = []
    monkeypatch.setattr(sample_command, "_write", pieces.append)
    assert main(["sample", str(run), "--length", "30"]) == 0
    assert [len(piece) for piece in pieces if piece] == [1] * 30
    pieces.clear()
    assert main(["sample", str(run), "--length", "30", "--no-stream"]) == 0
    assert [len(piece) for piece in pieces if piece] == [30]


def test_sample_into_a_closed_pipe_is_quiet(run):
    reader, writer = os.pipe()
    os.close(reader)
    process = subprocess.run(
        [sys.executable, "-m", "examples.char_lm", "sample", str(run), "--length", "5"],
        cwd=ROOT,
        stdout=writer,
        stderr=subprocess.PIPE,
    )
    os.close(writer)
    assert process.returncode == 0 and process.stderr == b""


def test_eval_repeats_the_validation(run, text, tmp_path, capsys):
    capsys.readouterr()
    assert main(["eval", str(run), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["nats"] == pytest.approx(metrics_of(run)["val_nats"], rel=1e-6)
    assert result["ngram_nats"] == metrics_of(run)["baseline"]["best"]
    other = tmp_path / "other.txt"
    other.write_text(text.read_text()[3600:])
    assert main(["eval", str(run), "--text", str(other)]) == 0
    assert f"{result['nats']:.3f} nats" in capsys.readouterr().out


def test_eval_is_the_same_with_both_backends(run, capsys):
    results = []
    for backend in ("torch", "fastlstm"):
        capsys.readouterr()
        assert main(["eval", str(run), "--json", "--backend", backend]) == 0
        results.append(json.loads(capsys.readouterr().out)["nats"])
    assert results[0] == pytest.approx(results[1], rel=1e-5)


@pytest.fixture
def quick_turns(monkeypatch):
    monkeypatch.setattr(compare, "SECONDS_A_TURN", 0.01)


def test_compare_prints_both_speeds(text, tmp_path, capsys, quick_turns):
    plain, compared = tmp_path / "plain", tmp_path / "compared"
    assert train(text, plain, "--steps", 3, "--dropout", 0.2) == 0
    capsys.readouterr()
    assert train(text, compared, "--steps", 3, "--dropout", 0.2, "--compare") == 0
    line = next(s for s in capsys.readouterr().out.splitlines() if s.startswith("speed"))
    assert "fastlstm" in line and "torch" in line and "same loss" in line
    assert_same_run(plain, compared)


def test_compare_refuses_backends_that_disagree(text, tmp_path, capsys, monkeypatch, quick_turns):
    losses = iter([1.0, 1.001])
    monkeypatch.setattr(compare._Stepper, "__init__", lambda self, *arguments: None)
    monkeypatch.setattr(compare._Stepper, "loss", lambda self: next(losses))
    assert train(text, tmp_path / "run", "--steps", 3, "--compare") == 1
    assert "disagree" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


# Mistakes: one line, exit code 2, nothing overwritten


def assert_refused(capsys, directory, arguments, *words):
    before = contents(directory)
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == 2
    output, error = capsys.readouterr()
    assert error.startswith("error: ") and error.count("\n") == 1 and output == ""
    for word in words:
        assert word in error
    assert contents(directory) == before


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, ["cannot read", "No such file"]),
        (b"", ["is empty"]),
        (b"short", ["too short", "5 characters", "64"]),
        (b"\xff\xfe\x00" * 100, ["not utf-8", "--bytes", "byte 0"]),
    ],
)
@pytest.mark.parametrize("command", ["train", "eval"])
def test_bad_text_is_refused(run, tmp_path, capsys, content, words, command):
    path = tmp_path / "bad.txt"
    if content is not None:
        path.write_bytes(content)
    arguments = {
        "train": ["train", "--text", path, "--backend", "torch", "--out", run, "--overwrite"],
        "eval": ["eval", run, "--text", path],
    }[command]
    assert_refused(capsys, tmp_path, arguments, "bad.txt", *words)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("--text .", ["Is a directory"]),
        ("--encoding klingon", ["unknown --encoding klingon"]),
        ("--layers 0", ["--layers must be at least 1, got 0"]),
        ("--dropout 1", ["--dropout"]),
        ("--lr nan", ["--lr must be above 0"]),
        ("--clip-norm -1", ["--clip-norm"]),
        ("--val-fraction 0.0001", ["too short for --val-fraction"]),
        ("--embedding wide", ["--embedding"]),
        ("--hidden many", ["--hidden", "many"]),
        ("--steps 5 --minutes 5", ["--minutes", "not allowed"]),
        ("--seed -1", ["--seed"]),
        ("--device abacus", ["--device abacus is not available"]),
        ("--threads -2", ["--threads"]),
        ("--no-such-option", ["--no-such-option"]),
    ],
)
def test_bad_options_are_refused(text, tmp_path, capsys, arguments, words):
    out = tmp_path / "run"
    command = ["train", "--text", text, "--out", out, "--backend", "torch", *arguments.split()]
    assert_refused(capsys, tmp_path, command, *words)
    assert not out.exists()


def test_a_used_directory_is_refused(run, text, tmp_path, capsys):
    command = ["train", "--text", text, "--backend", "torch", "--out"]
    assert_refused(capsys, tmp_path, [*command, run], "holds a run", "--resume", "--overwrite")
    assert_refused(capsys, tmp_path, [*command, text], "is not a directory")
    assert_refused(capsys, tmp_path, [*command, text / "below"], "cannot write")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("--hidden 32", ["--hidden 32 cannot be changed", "the run has 16"]),
        ("--layers 2", ["--layers"]),
        ("--embedding one-hot", ["--embedding"]),
        ("--batch 8", ["--batch"]),
        ("--optimizer adagrad", ["--optimizer"]),
        ("--bytes", ["--bytes"]),
        ("--text other.txt", ["--text"]),
        ("--overwrite", ["--overwrite"]),
        ("--out elsewhere", ["--out"]),
    ],
)
def test_resume_refuses_another_run(run, tmp_path, capsys, arguments, words):
    command = ["train", "--resume", run, "--steps", 50, *arguments.split()]
    assert_refused(capsys, tmp_path, command, *words)


def test_another_text_is_refused(text, tmp_path, capsys):
    run = tmp_path / "run"
    assert train(text, run, "--steps", 5) == 0
    text.write_text(text.read_text().replace("cat", "dog"))
    assert_refused(capsys, tmp_path, ["train", "--resume", run, "--steps", 50], "has changed")
    assert_refused(capsys, tmp_path, ["eval", run], "has changed")


def test_resume_needs_a_whole_checkpoint(run, tmp_path, capsys):
    assert_refused(capsys, tmp_path, ["train", "--resume", tmp_path / "no"], "no checkpoint at")
    (run / "checkpoint.pt").write_bytes((run / "best.pt").read_bytes())
    assert_refused(capsys, tmp_path, ["train", "--resume", run], "weights only")


def test_unknown_characters_are_refused(run, tmp_path, capsys):
    words = ["not in the model's vocabulary", "'Z' (U+005A)"]
    assert_refused(capsys, tmp_path, ["sample", run, "--prime", "the Z"], *words)
    path = tmp_path / "other.txt"
    path.write_text("the cat Z" * 20)
    assert_refused(capsys, tmp_path, ["sample", run, "--prime-file", path], *words)
    assert_refused(capsys, tmp_path, ["eval", run, "--text", path], *words)


@pytest.mark.parametrize(
    "arguments",
    [
        "--length 0",
        "--count 0",
        "--temperature -1",
        "--top-k -1",
        "--top-p 0",
        "--prime a --prime-file b",
    ],
)
def test_bad_sample_options_are_refused(run, tmp_path, capsys, arguments):
    words = [arguments.split()[0]]
    assert_refused(capsys, tmp_path, ["sample", run, *arguments.split()], *words)


def damage(path, how):
    checkpoint = load(path)
    if how == "truncated":
        path.write_bytes(path.read_bytes()[:1000])
        return
    if how == "text":
        path.write_text("not a checkpoint")
        return
    if how == "other program":
        checkpoint["program"] = "other"
    elif how == "other version":
        checkpoint["version"] = 99
    elif how == "other shape":
        checkpoint["model"]["head.weight"] = torch.zeros(3, 4)
    elif how == "other names":
        checkpoint["model"]["extra"] = torch.zeros(3)
    elif how == "no settings":
        checkpoint["config"] = {"hidden": 16}
    torch.save(checkpoint, path)


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("truncated", ["is damaged"]),
        ("text", ["not a checkpoint"]),
        ("other program", ["not a checkpoint of"]),
        ("other version", ["format 99"]),
        ("other shape", ["another shape", "head.weight", "(3, 4)"]),
        ("other names", ["other names"]),
        ("no settings", ["settings"]),
    ],
)
def test_bad_checkpoints_are_refused(run, tmp_path, capsys, how, words):
    for name in ("best.pt", "checkpoint.pt"):
        damage(run / name, how)
    assert_refused(capsys, tmp_path, ["sample", run], *words)
    assert_refused(capsys, tmp_path, ["eval", run], *words)
    command = ["train", "--resume", run, "--steps", 50]
    assert_refused(capsys, tmp_path, command, *words)


def test_a_checkpoint_runs_no_code(run, tmp_path, capsys):
    class Bomb:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "exploded"),))

    torch.save({"program": "fastlstm.examples.char_lm", "bomb": Bomb()}, run / "best.pt")
    assert_refused(capsys, tmp_path, ["sample", run], "not a checkpoint")
    assert not (tmp_path / "exploded").exists()
