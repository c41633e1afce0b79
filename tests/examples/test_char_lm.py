"""examples/char_lm trains: what a run leaves, learns, and stops at; both backends side by side."""

import json

import char_lm_runs
import numpy as np
import pytest
import torch
from char_lm_runs import SMALL, backends, train
from example_runs import assert_same_run, load, metrics_of

from examples.char_lm import compare
from examples.char_lm.__main__ import main
from examples.char_lm.checkpoint import RUN_FILES

text, run = char_lm_runs.text, char_lm_runs.run


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


def test_dropout_and_seed_change_the_run(text, tmp_path):
    weights = []
    for number, settings in enumerate(["", "--dropout 0.3", "--seed 1"]):
        assert train(text, tmp_path / str(number), "--steps", 4, *settings.split()) == 0
        weights.append(load(tmp_path / str(number) / "checkpoint.pt")["model"]["head.weight"])
    assert not torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


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


def test_markov_chain_is_learned_down_to_its_entropy(tmp_path):
    """The loss of a first-order chain cannot be below its entropy rate, and should reach it."""
    generator = np.random.default_rng(0)
    chances = generator.dirichlet([0.4] * 6, size=6)
    tokens = [0]
    for draw in generator.random(40_000):
        row = chances[tokens[-1]].cumsum()
        tokens.append(min(5, int(np.searchsorted(row, draw))))
    stationary = np.linalg.matrix_power(chances, 200)[0]
    entropy = -(stationary[:, None] * chances * np.log(chances)).sum()
    path = tmp_path / "chain.txt"
    path.write_text("".join("abcdef"[token] for token in tokens))

    arguments = (
        f"train --text {path} --out {tmp_path / 'run'} --backend torch --threads 1 --steps 150 "
        "--hidden 24 --embedding 8 --seq 32 --batch 32 --lr 0.03 --ngram-chars 0"
    )
    assert main(arguments.split()) == 0
    nats = json.loads((tmp_path / "run" / "metrics.json").read_text())["val_nats"]
    assert entropy * 0.97 < nats < entropy * 1.03
