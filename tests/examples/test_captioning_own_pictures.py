"""The program examples/captioning with the user's own pictures, captions and features."""

import json

import captioning_runs
import numpy as np
import pytest
from captioning_runs import SMALL, assert_refused, train
from example_runs import metrics_of
from PIL import Image

from examples.captioning import scenes
from examples.captioning.__main__ import main

run = captioning_runs.run
one_picture_with_attention = captioning_runs.one_picture_with_attention


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


def test_changed_data_are_refused(tmp_path, capsys):
    path = write_data(tmp_path)
    run = tmp_path / "run"
    assert train(run, "--data", path, "--steps", 3, "--word-threshold", 1) == 0
    path.write_text(path.read_text().replace("red", "pink").replace("blue", "navy"))
    words = "have changed"
    assert_refused(capsys, tmp_path, ["train", "--resume", run, "--steps", 5], words)
    assert_refused(capsys, tmp_path, ["eval", run], words)


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
