"""The program examples/captioning: train, caption, eval, compare."""

import json
import re
import signal
import subprocess
import sys

import captioning_runs
import pytest
import torch
from captioning_runs import SMALL, assert_refused, train
from example_runs import ROOT, assert_same_run, load, metrics_of

from examples.captioning import compare
from examples.captioning.__main__ import main
from examples.captioning.checkpoint import RUN_FILES
from examples.captioning.config import Config
from examples.captioning.trainer import Trainer

run = captioning_runs.run
one_picture_with_attention = captioning_runs.one_picture_with_attention


def stop_at(monkeypatch, step):
    """From here on, a run stops the way it does on Ctrl-C once it has made ``step`` steps."""
    original = Trainer.run

    def stopped(self, out, should_stop):
        original(self, out, lambda: self.record.step >= step or should_stop())

    monkeypatch.setattr(Trainer, "run", stopped)


# Training


def test_train_leaves_a_run(run, capsys):
    assert sorted(path.name for path in run.iterdir()) == sorted(RUN_FILES)
    metrics = metrics_of(run)
    assert metrics["val_pictures"] == 12 and metrics["steps"] == 60 and metrics["finished"]
    for name in ("exact_match", "bleu1", "bleu4", "rouge_l", "pointing"):
        assert 0 <= metrics[name] <= 1, name
    assert metrics["cider"] >= 0 and metrics["beam"]["width"] == 2 and metrics["seconds"] > 0
    assert metrics["val_nats"] > 0 and metrics["pictures"] == 480 and metrics["words"] > 480
    assert metrics["data"]["train"] == 40 and metrics["config"]["inject"] == "attend"
    assert len(metrics["history"]) >= 10 and "exact_match" in metrics["history"][-1]
    for picture in ("loss.png", "attention.png"):
        assert (run / picture).read_bytes().startswith(b"\x89PNG")
    assert "data:image/png;base64" in (run / "gallery.html").read_text()
    assert load(run / "best.pt")["program"] == "fastlstm.examples.captioning"


def test_train_says_what_it_does(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(compare, "SECONDS_A_TURN", 0.01)
    assert train(tmp_path / "run", "--steps", 6, "--inject", "h0", "--compare") == 0
    output, errors = capfd.readouterr()
    assert errors == "", "a log gets no progress bar"
    assert "scenes: 40 pictures to train on, 12 for validation" in output
    assert "small encoder, 8 x 8 x 8; h0; LSTM 16" in output
    assert "fastlstm is faster than torch " in output and "torch, packed" in output
    assert "step 6 | train" in output and "exact_match" in output and "--resume" in output
    assert not (tmp_path / "run" / "attention.png").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        "--inject attend --attention additive --alpha-c 0.1 --dropout 0.3",
        "--inject token --cell gru --optimizer rmsprop --clip-value 0.01 --backend torch",
    ],
)
def test_ten_and_ten_steps_are_twenty(tmp_path, monkeypatch, settings):
    arguments = [*settings.split(), "--steps", "20", "--eval-every", "7"]
    straight, parts = tmp_path / "straight", tmp_path / "parts"
    assert train(straight, *arguments) == 0
    with monkeypatch.context() as patch:
        stop_at(patch, 10)
        assert train(parts, *arguments) == 0
    assert metrics_of(parts)["steps"] == 10 and not metrics_of(parts)["finished"]
    torch.rand(100)  # another place in the random numbers, as in another process
    assert main(["train", "--resume", str(parts)]) == 0
    assert metrics_of(parts)["finished"]
    assert_same_run(straight, parts)


def test_a_time_budget_is_kept(tmp_path):
    assert train(tmp_path / "run", "--minutes", "0.03", "--inject", "h0") == 0
    metrics = metrics_of(tmp_path / "run")
    assert metrics["finished"] and metrics["planned_steps"] == metrics["steps"] >= 5


@pytest.mark.slow
def test_fifty_pairs_are_learnt_by_heart(tmp_path):
    arguments = "--scenes 50 --captions 1 --word-threshold 1 --steps 250 --hidden 64 --channels 16"
    arguments += " --embedding 32 --batch 25 --lr 0.01 --eval-every 250 --eval-images 2 --beam 1"
    for inject in ("attend", "every"):
        out = tmp_path / inject
        assert train(out, *arguments.split(), "--inject", inject, "--image-width", 64) == 0
        assert metrics_of(out)["train_nats"] < 0.1 and metrics_of(out)["seconds"] < 60


def test_nan_stops_with_advice_and_keeps_the_last_good_checkpoint(tmp_path, capsys):
    out = tmp_path / "run"
    arguments = "--steps 50 --lr 1e38 --warmup 0 --save-every 0 --eval-every 99 --inject h0"
    assert train(out, *arguments.split()) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and error.startswith("stopped: ") and "--lr" in error
    weights = load(out / "checkpoint.pt")["model"]
    assert all(value.isfinite().all() for value in weights.values())


@pytest.mark.slow
def test_ctrl_c_saves_and_exits_with_0(tmp_path):
    out = tmp_path / "run"
    command = [
        sys.executable,
        "-m",
        "examples.captioning",
        "train",
        "--out",
        str(out),
        *SMALL,
        "--inject",
        "h0",
    ]
    process = subprocess.Popen(
        [*command, "--minutes", "5", "--eval-every", "5"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert any(line.startswith("step 5 ") for line in process.stdout)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert errors == "" and "interrupted" in output and "--resume" in output
    steps = metrics_of(out)["steps"]
    assert steps >= 5 and not metrics_of(out)["finished"]
    assert load(out / "checkpoint.pt")["progress"]["step"] == steps


# Captioning and scoring


def captioned(capsys, *arguments):
    capsys.readouterr()
    assert main(["caption", *map(str, arguments)]) == 0
    return capsys.readouterr().out


def test_caption_follows_its_options(run, tmp_path, capsys):
    text = captioned(capsys, run, "--count", 3)
    assert re.fullmatch("(unseen-0-[012]\t[a-z ]*\n){3}", text)
    assert text == captioned(capsys, run / "best.pt", "--count", 3, "--backend", "torch")
    drawn = [captioned(capsys, run, "--temperature", 2, "--seed", seed) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    short = captioned(capsys, run, "--temperature", 9, "--max-length", 2)
    assert max(len(line.partition("\t")[2].split()) for line in short.splitlines()) == 2
    found = json.loads(captioned(capsys, run, "--json", "--beam", 3, "--count", 2))
    assert [entry["name"] for entry in found] == ["unseen-0-0", "unseen-0-1"]
    page, picture = tmp_path / "page.html", tmp_path / "attention.png"
    # Drawn words, because so short a run may say nothing.
    options = ["--temperature", 3, "--html", page, "--attention", picture]
    captioned(capsys, run, "--count", 2, *options)
    assert page.read_text().count("<article>") == 2
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_eval_repeats_the_validation(run, capsys):
    capsys.readouterr()
    assert main(["eval", str(run), "--json"]) == 0
    result, metrics = json.loads(capsys.readouterr().out), metrics_of(run)
    assert result["nats"] == pytest.approx(metrics["val_nats"], rel=1e-6)
    for name in ("exact_match", "bleu4", "cider", "pointing"):
        assert result[name] == pytest.approx(metrics[name]), name
    assert result["beam"] == pytest.approx(metrics["beam"])


def test_eval_prints_greedy_and_beam(run, capsys):
    """The beam is the run's, unless another is asked for."""
    metrics = metrics_of(run)
    capsys.readouterr()
    assert main(["eval", str(run)]) == 0
    lines = capsys.readouterr().out.splitlines()
    for name, scores in (("greedy", metrics), ("beam 2", metrics["beam"])):
        (line,) = [line for line in lines if line.startswith(name)]
        assert f"exact_match {100 * scores['exact_match']:.1f}%" in line
        assert f"log_likelihood {scores['log_likelihood']:.3f}" in line
    assert metrics["beam"]["log_likelihood"] >= metrics["log_likelihood"]
    assert main(["eval", str(run), "--beam", "1"]) == 0
    assert "beam" not in capsys.readouterr().out


def test_compare_writes_a_table(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(compare, "SECONDS_A_TURN", 0.01)
    out = tmp_path / "all"
    arguments = ["compare", "--injects", "add", "attend", "--out", str(out), "--steps", "4", *SMALL]
    assert main(arguments) == 0
    table = (out / "compare.md").read_text()
    assert table.rstrip().endswith(capsys.readouterr().out.rstrip().splitlines()[-1])
    assert "| inject | steps | val nats | exact match | bleu4 | cider | pointing |" in table
    assert re.search(r"\| add \| 4 \|.*\| - \|", table) and "| attend | 4 |" in table
    rows = json.loads((out / "compare.json").read_text())["rows"]
    assert [row["inject"] for row in rows] == ["add", "attend"]
    assert metrics_of(out / "add")["config"]["inject"] == "add"
    assert_refused(capsys, out, arguments, "holds a run")


def test_compare_refuses_backends_that_disagree(tmp_path, capsys, monkeypatch):
    losses = iter([1.0, 1.001, 1.0])
    monkeypatch.setattr(compare._Stepper, "loss", lambda self: next(losses))
    assert train(tmp_path / "run", "--steps", 3, "--compare", "--inject", "h0") == 1
    assert "disagree" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_settings_go_through_a_checkpoint():
    config = Config(inject="every", minutes=3.0, data="x.json", alpha_c=0.5)
    assert Config.from_dict(config.to_dict()) == config
    assert config.encoder_kind == "small" and Config(features="f.npz").encoder_kind == "features"
