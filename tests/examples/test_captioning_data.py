"""Data of examples/captioning: batches, caption files, pictures and features."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from examples.captioning import sources
from examples.captioning.data import CaptionData, load_data, read_image, to_pixels
from examples.captioning.example import Example
from examples.captioning.vocabulary import END, PAD, SPECIAL, START, Vocabulary
from examples.common.errors import UserError

# Batches


def test_batch_of_scenes():
    train, val, vocabulary, report = load_data("scenes", scenes=40, val_scenes=6, threshold=1)
    assert (len(train), len(val), report.train, report.val) == (40, 6, 40, 6)
    assert report.captions == 46 * 5 and report.skipped == report.unknown_words == 0
    batch = train.batch([3, 0, 7], torch.Generator().manual_seed(0))
    assert batch.images is batch.inputs and batch.features is None
    assert batch.images.shape == (3, *train.input_shape) == (3, 3, 64, 64)
    expected = torch.from_numpy(train.examples[3].image).permute(2, 0, 1) / 127.5 - 1
    assert torch.allclose(batch.images[0], expected, atol=1e-6)
    assert batch.images.min() >= -1 and batch.images.max() <= 1
    assert batch.tokens.dtype == batch.lengths.dtype == torch.int64
    for row, length, references, index in zip(
        batch.tokens.tolist(), batch.lengths.tolist(), batch.references, [3, 0, 7], strict=True
    ):
        assert references == train.examples[index].captions
        caption = vocabulary.decode(row)
        assert caption in references and length == len(caption.split()) + 1
        assert row[0] == START and row[length] == END and set(row[length + 1 :]) <= {PAD}
    assert batch.tokens.size(1) == batch.lengths.max() + 1


def test_batch_draws_every_caption_from_its_generator():
    train, _, vocabulary, _ = load_data("scenes", scenes=4, val_scenes=1, threshold=1)

    def draw(generator):
        return [vocabulary.decode(row) for row in train.batch(range(4), generator).tokens.tolist()]

    generator = torch.Generator().manual_seed(0)
    draws = [draw(generator) for _ in range(60)]
    assert draws[0] == draw(torch.Generator().manual_seed(0))
    assert {row[2] for row in draws} == set(train.examples[2].captions)
    assert draw(None) == draw(None) == [example.captions[0] for example in train.examples]


def test_examples_must_have_one_shape():
    examples = [
        Example(str(size), np.zeros((size, size, 3), np.uint8), None, ["a"]) for size in (8, 9)
    ]
    with pytest.raises(ValueError, match="one shape"):
        CaptionData(examples, Vocabulary.build(["a"], 1), 20)


# Files


def write_picture(path, colour=(200, 30, 30), size=(20, 10), **options):
    Image.new("RGB", size, colour).save(path, **options)


def write_neuraltalk(folder, entries):
    path = folder / "captions.json"
    rows = [{"file_path": name, "captions": captions, "id": 7} for name, captions in entries]
    path.write_text(json.dumps(rows), encoding="utf-8")
    return path


@pytest.fixture
def small_set(tmp_path):
    """A caption file of four pictures, beside it."""
    names = [f"{n}.png" for n in range(4)]
    for n, name in enumerate(names):
        write_picture(tmp_path / name, colour=(60 * n, 0, 0))
    return write_neuraltalk(tmp_path, [(name, ["A red one.", "red"]) for name in names])


OPTIONS = {"size": 32, "threshold": 1}


def test_neuraltalk_file(small_set):
    train, val, vocabulary, report = load_data(small_set, val_fraction=0.25, **OPTIONS)
    assert (len(train), len(val)) == (3, 1) and report.examples == 4 and report.skipped == 0
    assert vocabulary.words == [*SPECIAL, "red", "a", "one"]
    assert train.references[0] == ["a red one", "red"]
    reds = {int(e.image[0, 0, 0]): e.name for e in (*train.examples, *val.examples)}
    assert reds == {60 * n: f"{n}.png" for n in range(4)}
    again = load_data(small_set, val_fraction=0.25, **OPTIONS)[1]
    assert again.examples[0].name == val.examples[0].name
    names = {
        load_data(small_set, val_fraction=0.25, seed=s, **OPTIONS)[1].examples[0].name
        for s in range(8)
    }
    assert len(names) > 1
    assert len(load_data(small_set, val_fraction=0.001, **OPTIONS)[1]) == 1
    assert len(load_data(small_set, val_fraction=0.999, **OPTIONS)[0]) == 1


def test_a_byte_order_mark_is_no_part_of_a_caption_file(small_set):
    small_set.write_bytes(b"\xef\xbb\xbf" + small_set.read_bytes())
    assert load_data(small_set, **OPTIONS)[3].examples == 4


def test_coco_file_with_pictures_elsewhere(tmp_path):
    pictures = tmp_path / "val2014"
    pictures.mkdir()
    for n in (1, 2):
        write_picture(pictures / f"{n}.jpg", colour=(0, 100 * n, 0))
    content = {
        "images": [{"id": 10 * n, "file_name": f"{n}.jpg", "height": 10} for n in (1, 2)],
        "annotations": [
            {"image_id": 20, "id": 1, "caption": "two"},
            {"image_id": 10, "id": 2, "caption": "one"},
            {"image_id": 20, "id": 3, "caption": "both"},
        ],
    }
    path = tmp_path / "captions_val2014.json"
    path.write_text(json.dumps(content))
    train, val, _, report = load_data(path, images=pictures, **OPTIONS)
    captions = {e.name: e.captions for e in (*train.examples, *val.examples)}
    assert captions == {"1.jpg": ["one"], "2.jpg": ["two", "both"]}
    assert report.captions == 3 and report.source == path.name


def test_an_existing_vocabulary_is_kept(small_set):
    own = Vocabulary([*SPECIAL, "red"])
    train, _, vocabulary, report = load_data(small_set, vocabulary=own, **OPTIONS)
    assert vocabulary is own and report.vocabulary == 5
    assert report.unknown_words == 2 * len(train)
    assert "rare words" in report.lines()[-1]


def test_what_is_left_out_is_counted(tmp_path, small_set):
    (tmp_path / "text.png").write_text("no picture")
    whole = (tmp_path / "1.png").read_bytes()
    (tmp_path / "half.png").write_bytes(whole[: len(whole) // 2])
    entries = [(f"{n}.png", ["one two three" + n * " four"]) for n in range(1, 4)]
    entries.append(("0.png", ["one"]))
    entries += [("absent.png", ["a"]), ("text.png", ["a"]), ("half.png", ["a"])]
    entries += [("0.png", ["", " ?! ", None, "fine"]), ("1.png", []), ("2.png", [""])]
    path = write_neuraltalk(tmp_path, entries)
    train, val, _, report = load_data(path, max_length=3, **OPTIONS)
    assert report.missing_images == 1 and report.corrupt_images == 2
    assert report.empty_captions == 4 and report.without_captions == 2
    assert report.skipped == 5 and report.examples == len(train) + len(val) == 5
    assert (report.cut_captions, report.cut_words) == (3, 6)
    assert train.batch(range(len(train))).lengths.max() <= 4
    text = "\n".join(report.lines())
    for line in (
        "skipped 1 pictures missing",
        "skipped 2 pictures damaged",
        "skipped 4 empty captions",
        "skipped 2 pictures without a caption",
        "cut 3 captions to the longest allowed (6 words lost)",
        "absent.png",
    ):
        assert line in text
    assert len(report.problems) == sources.SHOWN_PROBLEMS
    assert json.loads(json.dumps(report.to_dict()))["skipped"] == 5


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (("absent.png", ["a"]), r"no picture at .*absent.png \(--strict\)"),
        (("text.png", ["a"]), r"text.png is damaged, or no picture: .*\(--strict\)"),
        (("half.png", ["a"]), r"half.png is damaged"),
        (("0.png", ["a", ""]), r"0.png has an empty caption: '' \(--strict\)"),
        (("0.png", []), r"0.png has no caption \(--strict\)"),
    ],
)
def test_strict_stops_at_the_first(tmp_path, small_set, entry, message):
    (tmp_path / "text.png").write_text("no picture")
    whole = (tmp_path / "1.png").read_bytes()
    (tmp_path / "half.png").write_bytes(whole[: len(whole) // 2])
    path = write_neuraltalk(tmp_path, [(f"{n}.png", ["a"]) for n in range(4)] + [entry])
    with pytest.raises(UserError, match=message):
        load_data(path, strict=True, **OPTIONS)
    assert load_data(path, **OPTIONS)[3].examples >= 4


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "is not JSON"),
        (b"\xff\xfe", "is not UTF-8 text"),
        (b'[{"file": "a"}]', "neither .* nor"),
        (b"[1, 2]", "neither .* nor"),
        (b'{"images": []}', "neither .* nor"),
        (b'{"images": [], "annotations": [{"image_id": 1, "caption": "a"}]}', "neither .* nor"),
        (b"7", "neither .* nor"),
        (b"[]", "has 0 usable pictures, 2 are needed"),
        (b'[{"file_path": "x", "captions": ["a"]}]', r"2 are needed \(1 skipped: no picture at"),
    ],
)
def test_bad_caption_files(tmp_path, content, message):
    path = tmp_path / "captions.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        load_data(path)


def test_missing_sources(tmp_path):
    with pytest.raises(UserError, match="cannot read .*none.json: No such file"):
        load_data(tmp_path / "none.json")
    with pytest.raises(UserError, match="cannot read"):
        load_data(tmp_path)
    with pytest.raises(UserError, match="go with a caption file, not with scenes"):
        load_data("scenes", images=tmp_path)


# Pictures


def test_read_image_takes_the_middle_square(tmp_path):
    picture = np.zeros((10, 30, 3), np.uint8)
    picture[:, :10], picture[:, 10:20], picture[:, 20:] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    Image.fromarray(picture).save(tmp_path / "wide.png")
    found = read_image(tmp_path / "wide.png", 10)
    assert found.shape == (10, 10, 3) and (found == (0, 255, 0)).all()
    assert read_image(tmp_path / "wide.png", 40).shape == (40, 40, 3)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "I;16", "1"])
def test_read_image_takes_every_kind(tmp_path, mode):
    path = tmp_path / ("picture.tif" if mode == "CMYK" else "picture.png")
    Image.new(mode, (12, 12)).save(path)
    found = read_image(path, 8)
    assert found.shape == (8, 8, 3) and found.dtype == np.uint8


def test_read_image_turns_photographs(tmp_path):
    picture = Image.new("RGB", (16, 16))
    picture.paste((255, 255, 255), (0, 0, 16, 8))
    exif = Image.Exif()
    exif[0x0112] = 3  # the camera was upside down
    picture.save(tmp_path / "p.jpg", exif=exif, quality=95)
    found = read_image(tmp_path / "p.jpg", 16)
    assert found[12].min() > 200 and found[3].max() < 50


def test_read_image_says_what_is_wrong(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="no picture at"):
        read_image(tmp_path / "absent.png", 8)
    with pytest.raises(UserError, match="no picture at"):
        read_image(tmp_path, 8)
    (tmp_path / "empty.jpg").touch()
    with pytest.raises(UserError, match="empty.jpg is damaged, or no picture"):
        read_image(tmp_path / "empty.jpg", 8)
    write_picture(tmp_path / "bomb.png", size=(100, 100))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(UserError, match="bomb.png is damaged"):
        read_image(tmp_path / "bomb.png", 8)


def test_to_pixels():
    picture = np.zeros((1, 2, 3), np.uint8)
    picture[0, 1] = (255, 0, 51)
    found = to_pixels([picture, picture])
    assert found.shape == (2, 3, 1, 2) and found.is_contiguous()
    assert found[1, :, 0, 1].tolist() == pytest.approx([1.0, -1.0, -0.6])


# Features


def test_features_instead_of_pictures(tmp_path, small_set):
    rows = np.random.default_rng(0).random((4, 5, 2, 3)).astype(np.float16)
    np.savez(tmp_path / "f.npz", anything=rows)
    train, val, _, report = load_data(small_set, features=tmp_path / "f.npz", **OPTIONS)
    assert train.has_features and train.input_shape == (5, 2, 3) and report.skipped == 0
    batch = train.batch(range(len(train)))
    assert batch.images is None and batch.inputs is batch.features
    assert batch.features.dtype == torch.float32
    for example in (*train.examples, *val.examples):
        assert example.image is None
        assert np.array_equal(example.features, rows[int(example.name[0])].astype(np.float32))


def test_features_by_name_and_pictures_to_show(tmp_path, small_set):
    rows = np.arange(3 * 4, dtype=np.float32).reshape(3, 1, 2, 2)
    np.savez_compressed(tmp_path / "f.npz", features=rows, names=["2.png", "0.png", "1.png"])
    train, val, _, report = load_data(
        small_set, features=tmp_path / "f.npz", images=tmp_path, **OPTIONS
    )
    examples = {example.name: example for example in (*train.examples, *val.examples)}
    assert report.corrupt_features == 1 and sorted(examples) == ["0.png", "1.png", "2.png"]
    assert examples["0.png"].features[0, 0, 0] == 4 and examples["2.png"].features[0, 0, 0] == 0
    assert examples["2.png"].image[0, 0, 0] == 120
    assert train.batch([0]).images is None


def test_features_with_a_nan_are_left_out(tmp_path, small_set):
    rows = np.zeros((4, 1, 2, 2), np.float32)
    rows[2, 0, 1, 1] = np.nan
    np.savez(tmp_path / "f.npz", rows)
    report = load_data(small_set, features=tmp_path / "f.npz", **OPTIONS)[3]
    assert report.corrupt_features == 1 and report.examples == 3
    assert "skipped 1 feature rows" in report.lines()[1]
    with pytest.raises(UserError, match=r"features of 2.png hold a NaN .*\(--strict\)"):
        load_data(small_set, features=tmp_path / "f.npz", strict=True, **OPTIONS)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"features": np.zeros((3, 1, 2, 2))}, r"has 3 rows for 4 pictures; add the file names"),
        ({"features": np.zeros((4, 7))}, r"one float array \[N, C, H, W\], it holds features"),
        ({"a": np.zeros((4, 1, 1, 1)), "b": np.zeros((4, 1, 1, 1))}, "one float array"),
        ({"features": np.zeros((4, 1, 2, 2), int)}, "one float array .* int64"),
        ({}, "it holds nothing"),
    ],
)
def test_bad_features(tmp_path, small_set, arrays, message):
    np.savez(tmp_path / "f.npz", **arrays)
    with pytest.raises(UserError, match=message):
        load_data(small_set, features=tmp_path / "f.npz")


def test_features_that_cannot_be_read(tmp_path, small_set):
    with pytest.raises(UserError, match="no features at"):
        load_data(small_set, features=tmp_path / "none.npz")
    for content in (b"", b"text", b"PK\x03\x04 but no more"):
        (tmp_path / "f.npz").write_bytes(content)
        with pytest.raises(UserError, match="f.npz is not an .npz file that can be read"):
            load_data(small_set, features=tmp_path / "f.npz")
    np.save(tmp_path / "one.npy", np.zeros((4, 1, 2, 2)))
    with pytest.raises(UserError, match="is not an .npz file"):
        load_data(small_set, features=tmp_path / "one.npy")
    # Pickled objects could run code.
    np.savez(tmp_path / "f.npz", features=np.array([{"a": 1}], dtype=object))
    with pytest.raises(UserError, match="is not an .npz file"):
        load_data(small_set, features=tmp_path / "f.npz")
