"""Mistakes in the use of examples/char_lm: one line, exit code 2, nothing overwritten."""

import os

import char_lm_runs
import pytest
import torch
from char_lm_runs import assert_refused, train
from example_runs import load

text, run = char_lm_runs.text, char_lm_runs.run


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
