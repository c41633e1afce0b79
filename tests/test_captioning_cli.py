"""The program examples/captioning: train, caption, eval, compare, and what can go wrong with them."""

import json
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from captioning_runs import SMALL, metrics_of, train
from char_lm_runs import ROOT, assert_same_run, contents, load
from PIL import Image

from examples.captioning import compare, report, scenes
from examples.captioning.__main__ import main
from examples.captioning.checkpoint import RUN_FILES
from examples.captioning.config import Config
from examples.captioning.trainer import Trainer


@pytest.fixture(autouse=True)
def one_picture_with_attention(monkeypatch):
    """Drawing eight takes longer than everything else in these runs."""
    monkeypatch.setattr(report, "ATTENDED", 1)


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory):
    """Long enough to name shapes, or there would be nothing to point at."""
    folder = tmp_path_factory.mktemp("captioning") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "ATTENDED", 1)
        assert train(folder, "--steps", 60, "--lr", 0.01, "--eval-every", 6) == 0
    return folder


@pytest.fixture
def run(finished_run, tmp_path):
    """A run of 60 steps with attention, to do with as one likes."""
    return Path(shutil.copytree(finished_run, tmp_path / "run"))


def stop_at(monkeypatch, step):
    """From here on, a run stops the way it does on Ctrl-C once it has made ``step`` steps."""
    original = Trainer.run

    def stopped(self, out, should_stop):
        original(self, out, lambda: self.record.step >= step or should_stop())

    monkeypatch.setattr(Trainer, "run", stopped)


def write_data(folder, count=10, size=40, style="neuraltalk2"):
    """Pictures of scenes in ``folder`` with a caption file; its path."""
    examples = scenes.generate(count, 0, size)
    for number, example in enumerate(examples):
        Image.fromarray(example.image).save(folder / f"{number}.png")
    path = folder / "captions.json"
    if style == "neuraltalk2":
        entries = [
            {"file_path": f"{number}.png", "captions": example.captions}
            for number, example in enumerate(examples)
        ]
        path.write_text(json.dumps(entries))
        return path
    images = [{"id": 7 * n, "file_name": f"{n}.png"} for n in range(count)]
    annotations = [
        {"image_id": 7 * number, "caption": caption}
        for number, example in enumerate(examples)
        for caption in example.captions
    ]
    path.write_text(json.dumps({"images": images, "annotations": annotations}))
    return path


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
    for folder in (straight, parts):
        checkpoint = load(folder / "checkpoint.pt")
        for entry in checkpoint["progress"]["history"]:
            entry.pop("pictures_per_second")
        torch.save(checkpoint, folder / "checkpoint.pt")
    assert_same_run(straight, parts)


def test_a_time_budget_is_kept(tmp_path):
    assert train(tmp_path / "run", "--minutes", "0.03", "--inject", "h0") == 0
    metrics = metrics_of(tmp_path / "run")
    assert metrics["finished"] and metrics["planned_steps"] == metrics["steps"] >= 5


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


def test_changed_data_are_refused(tmp_path, capsys):
    path = write_data(tmp_path)
    run = tmp_path / "run"
    assert train(run, "--data", path, "--steps", 3, "--word-threshold", 1) == 0
    path.write_text(path.read_text().replace("red", "pink").replace("blue", "navy"))
    words = "have changed"
    assert_refused(capsys, tmp_path, ["train", "--resume", run, "--steps", 5], words)
    assert_refused(capsys, tmp_path, ["eval", run], words)


# The user's own pictures


@pytest.mark.parametrize("style", ["neuraltalk2", "coco"])
def test_pictures_with_a_caption_file(tmp_path, capsys, style):
    path, run = write_data(tmp_path, style=style), tmp_path / "run"
    arguments = ["--data", path, "--steps", 4, "--word-threshold", 1, "--val-fraction", 0.3]
    assert train(run, *arguments) == 0
    data = metrics_of(run)["data"]
    assert (data["train"], data["val"], data["source"]) == (7, 3, "captions.json")
    assert metrics_of(run)["batch"] == 7 and "pointing" not in metrics_of(run)
    capsys.readouterr()
    assert main(["caption", str(run), str(tmp_path / "3.png"), str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 11 and lines[0].startswith(f"{tmp_path / '3.png'}\t")
    assert main(["eval", str(run), "--data", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["pictures"] == 10


def test_features_instead_of_pictures(tmp_path, capsys):
    path, run = write_data(tmp_path), tmp_path / "run"
    features = tmp_path / "features.npz"
    np.savez(features, np.random.default_rng(0).random((10, 20, 6, 6), dtype=np.float32))
    arguments = ["--data", path, "--features", features, "--steps", 4, "--grid", 6]
    assert train(run, *arguments, "--word-threshold", 1) == 0
    assert metrics_of(run)["config"]["encoder"] is None
    capsys.readouterr()
    assert main(["caption", str(run), "--features", str(features), "--beam", "2"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 10
    np.savez(tmp_path / "other.npz", np.zeros((4, 21, 6, 6), np.float32))
    command = ["caption", run, "--features", tmp_path / "other.npz"]
    assert_refused(capsys, tmp_path, command, "takes features [20, 6, 6]", "[21, 6, 6]")
    assert_refused(capsys, tmp_path, ["caption", run, tmp_path / "1.png"], "takes features")
    for encoder in ("small", "features"):
        command = ["train", *SMALL, "--encoder", encoder, "--out", tmp_path / "no"]
        command += ["--data", path, *(["--features", features] if encoder == "small" else [])]
        assert_refused(capsys, tmp_path, command, f"--encoder {encoder} does not go with")


def test_bad_pictures_and_captions_are_left_out_and_counted(tmp_path, capsys):
    path = write_data(tmp_path)
    (tmp_path / "2.png").write_bytes((tmp_path / "2.png").read_bytes()[:200])
    (tmp_path / "3.png").unlink()
    entries = json.loads(path.read_text())
    entries[4]["captions"][0] = " ?! "
    entries[5]["captions"][0] = "one two three " * 9
    path.write_text(json.dumps(entries))
    run = tmp_path / "run"
    arguments = ["--data", path, "--steps", 2, "--word-threshold", 1]
    assert train(run, *arguments) == 0
    output = capsys.readouterr().out
    assert output.count("warning: skipped 1 ") == 3
    data = metrics_of(run)["data"]
    counts = ("corrupt_images", "missing_images", "empty_captions", "cut_captions", "cut_words")
    assert [data[name] for name in counts] == [1, 1, 1, 1, 7] and data["examples"] == 8
    command = ["train", "--out", tmp_path / "strict", *SMALL, *arguments, "--strict"]
    assert_refused(capsys, tmp_path, command, "--strict")
    assert not (tmp_path / "strict").exists()


def test_bad_pictures_to_caption(run, tmp_path, capsys):
    good, bad, missing = tmp_path / "good.png", tmp_path / "bad.png", tmp_path / "missing.png"
    Image.fromarray(scenes.generate(1, 5, 50)[0].image).save(good)
    bad.write_text("not a picture")
    capsys.readouterr()
    assert main(["caption", str(run), str(good), str(bad), str(missing)]) == 0
    output, errors = capsys.readouterr()
    assert output.count("\n") == 1 and output.startswith(f"{good}\t")
    assert "bad.png is damaged" in errors and f"no picture at {missing}" in errors
    assert "skipped 2 of 3" in errors
    command = ["caption", run, good, bad, "--strict"]
    assert_refused(capsys, tmp_path, command, "bad.png is damaged")
    assert main(["caption", str(run), str(bad)]) == 2
    assert capsys.readouterr().err.endswith("error: there is no picture to caption\n")


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
    assert main(["eval", str(run), "--beam", "2"]) == 0
    assert f"cider {metrics['beam']['cider']:.3f}" in capsys.readouterr().out


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


def test_settings_go_through_a_checkpoint():
    config = Config(inject="every", minutes=3.0, data="x.json", alpha_c=0.5)
    assert Config.from_dict(config.to_dict()) == config
    assert config.encoder_kind == "small" and Config(features="f.npz").encoder_kind == "features"
