"""Mistakes in the use of examples/captioning: one line, exit code 2, nothing overwritten."""

import captioning_runs
import pytest
import torch
from captioning_runs import SMALL, assert_refused, train
from example_runs import load, metrics_of

from examples.captioning.__main__ import main

run = captioning_runs.run
one_picture_with_attention = captioning_runs.one_picture_with_attention


def test_resume_refuses_another_run(run, tmp_path, capsys):
    for arguments, word in [
        ("--hidden 32", "--hidden 32 cannot be changed on --resume: the run has 16"),
        ("--inject h0", "--inject h0 cannot be changed"),
        ("--scenes 41", "--scenes"),
        ("--overwrite", "--overwrite"),
        ("--out elsewhere", "--out"),
        ("--steps 30", "is finished (60 steps"),
    ]:
        assert_refused(capsys, tmp_path, ["train", "--resume", run, *arguments.split()], word)
    assert main(["train", "--resume", str(run), "--steps", "62", "--lr", "0.001"]) == 0
    assert metrics_of(run)["steps"] == 62


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("--data missing.json", ["cannot read", "missing.json"]),
        ("--images somewhere", ["--images and --features go with a caption file"]),
        ("--inject twice", ["--inject"]),
        ("--encoder large", ["--encoder must be small, features or torchvision:NAME, got large"]),
        ("--encoder torchvision:", ["--encoder must be"]),
        ("--encoder features", ["--encoder features does not go with pictures"]),
        ("--image-size 8", ["--image-size must be at least 32, got 8"]),
        ("--grid 0", ["--grid"]),
        ("--alpha-c -1", ["--alpha-c"]),
        ("--word-threshold 0", ["--word-threshold"]),
        ("--beam 0", ["--beam"]),
        ("--lr nan", ["--lr must be above 0"]),
        ("--steps 5 --minutes 5", ["not allowed"]),
        ("--device abacus", ["--device abacus is not available"]),
        ("--no-such-option", ["--no-such-option"]),
    ],
)
def test_bad_options_are_refused(tmp_path, capsys, arguments, words):
    command = ["train", "--out", tmp_path / "run", *SMALL, *arguments.split()]
    assert_refused(capsys, tmp_path, command, *words)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("caption --beam 0", ["--beam"]),
        ("caption --beam 2 --temperature 1", ["give only one"]),
        ("caption --max-length 0", ["--max-length must be at least 1, got 0"]),
        ("caption --count 0", ["--count"]),
        ("caption --features f.npz", ["takes pictures"]),
        ("eval --images x", ["go with --data"]),
        ("eval --data missing.json", ["cannot read"]),
    ],
)
def test_bad_use_of_a_model_is_refused(run, tmp_path, capsys, arguments, words):
    command, *options = arguments.split()
    assert_refused(capsys, tmp_path, [command, run, *options], *words)


def test_attention_of_a_model_without_is_refused(tmp_path, capsys):
    assert train(tmp_path / "run", "--steps", 2, "--inject", "add", "--beam", 1) == 0
    command = ["caption", tmp_path / "run", "--attention", tmp_path / "a.png"]
    assert_refused(capsys, tmp_path, command, "needs a model with attention; this one has add")


def test_a_used_directory_is_refused(run, tmp_path, capsys):
    command = ["train", *SMALL, "--out"]
    assert_refused(capsys, tmp_path, [*command, run], "holds a run", "--resume", "--overwrite")
    assert_refused(capsys, tmp_path, [*command, run / "best.pt"], "is not a directory")


def damage(path, how):
    checkpoint = load(path)
    if how == "truncated":
        path.write_bytes(path.read_bytes()[:1000])
        return
    if how == "other program":
        checkpoint["program"] = "fastlstm.examples.char_lm"
    elif how == "other shape":
        checkpoint["model"]["decoder.head.weight"] = torch.zeros(3, 4)
    elif how == "no settings":
        checkpoint["config"] = {"hidden": 16, "depth": 3}
    elif how == "no vocabulary":
        checkpoint["vocabulary"] = {"words": ["a", "b"]}
    elif how == "no input":
        del checkpoint["input_shape"]
    torch.save(checkpoint, path)


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("truncated", ["is damaged"]),
        ("other program", ["not a checkpoint of"]),
        ("other shape", ["another shape", "decoder.head.weight", "(3, 4)"]),
        ("no settings", ["settings"]),
        ("no vocabulary", ["vocabulary"]),
        ("no input", ["does not say what its model takes"]),
    ],
)
def test_bad_checkpoints_are_refused(run, tmp_path, capsys, how, words):
    damage(run / "best.pt", how)
    for command in ("caption", "eval"):
        assert_refused(capsys, tmp_path, [command, run], *words)
