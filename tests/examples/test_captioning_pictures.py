"""gallery.html and attention.png of examples/captioning."""

import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from examples.captioning.gallery import Row, write_gallery
from examples.captioning.pictures import COLUMNS, Attended, save_attention
from examples.captioning.scenes import generate

VOID = {"meta", "img", "br"}


class Page(HTMLParser):
    """Balanced tags, and what a page loads."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open, self.links, self.text = [], [], ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        if tag not in VOID:
            self.open.append(tag)
        self.links += [value for name, value in attributes if name in ("src", "href")]
        assert tag not in ("script", "link", "iframe")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def rows(scores) -> list[Row]:
    return [
        Row(f"row {n}", scene.image, scene.captions[0], "a wrong one", scene.captions, score)
        for n, (scene, score) in enumerate(zip(generate(len(scores), 0), scores, strict=True))
    ]


def names(text: str) -> list[str]:
    return re.findall(r"row \d+", text)


def test_gallery_is_one_whole_file(tmp_path):
    path = tmp_path / "gallery.html"
    write_gallery(path, rows([0.5, 1.0]), title="Captions", facts={"exact match": "98 %"})
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert "exact match" in page.text and "98 %" in page.text
    assert len(page.links) == 2 and "url(" not in text and "@import" not in text
    for link, scene in zip(page.links, generate(2, 0)[::-1], strict=True):
        header, data = link.split(",")
        assert header == "data:image/png;base64"
        picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))
        assert np.array_equal(picture, scene.image)
    assert text.count('class="right"') == 2 and text.count('class="wrong"') == 2
    assert [path.name for path in tmp_path.iterdir()] == ["gallery.html"]


def test_gallery_shows_the_best_and_the_worst(tmp_path):
    path = tmp_path / "gallery.html"
    scores = [0.3, 0.9, 0.1, 0.8, 0.5, 0.6]
    write_gallery(path, rows(scores), title="t", each=2)
    best, worst = path.read_text().split("<h2>Worst</h2>")
    assert names(best) == ["row 1", "row 3"] and names(worst) == ["row 2", "row 0"]
    write_gallery(path, rows(scores[:3]), title="t", each=9)
    best, worst = path.read_text().split("<h2>Worst</h2>")
    assert names(best) == ["row 1", "row 0"] and names(worst) == ["row 2"]


def test_gallery_without_scores_shows_all_in_order(tmp_path):
    path = tmp_path / "gallery.html"
    write_gallery(path, rows([None] * 5), title="t", each=1)
    assert names(path.read_text()) == [f"row {n}" for n in range(5)]
    write_gallery(path, [], title="t")
    assert "<h2>Captions</h2>" in path.read_text()


def test_gallery_escapes_what_it_is_given(tmp_path):
    path = tmp_path / "gallery.html"
    evil = '<script>"&'
    row = Row(evil, None, evil, references=[evil])
    write_gallery(path, [row], title=evil, facts={evil: evil})
    page = Page(path.read_text())
    assert page.text.count(evil) == 7 and "no picture" in page.text


def attended(words: list[str], **settings) -> Attended:
    scene = generate(1, 0)[0]
    attention = np.random.default_rng(0).random((len(words), 14, 14))
    values = {"image": scene.image, "boxes": scene.boxes, **settings}
    return Attended(values["image"], words, attention, values["boxes"])


def test_attention_has_a_panel_for_the_picture_and_each_word(tmp_path):
    path = tmp_path / "attention.png"
    words = generate(1, 0)[0].captions[2].split()
    assert COLUMNS < 1 + len(words) <= 2 * COLUMNS
    save_attention(path, [attended(words)])
    two_lines = Image.open(path)
    save_attention(path, [attended(words), attended(words[:1], image=None)])
    three_lines = Image.open(path)
    assert two_lines.width == three_lines.width
    assert three_lines.height == pytest.approx(1.5 * two_lines.height, abs=1)
    assert [path.name for path in tmp_path.iterdir()] == ["attention.png"]


def test_attention_lights_up_where_it_is_and_boxes_are_drawn_where_they_are(tmp_path):
    path = tmp_path / "attention.png"
    attention = np.zeros((1, 4, 4))
    attention[0, :, 3] = 1.0
    black = np.zeros((32, 32, 3), np.uint8)
    save_attention(path, [Attended(black, ["dog"], attention, {"dog": (0.1, 0.6, 0.3, 0.8)})])
    with Image.open(path) as picture:
        pixels = np.asarray(picture.convert("RGB"), dtype=float)
    # The second panel, below its title.
    height, width = pixels.shape[:2]
    panel = pixels[height // 4 : 9 * height // 10, width // COLUMNS : 2 * width // COLUMNS]
    panel = panel[:, 10:-10]
    cyan = (panel[..., 0] < 100) & (panel[..., 1:] > 200).all(2)
    rows, columns = (
        places.mean() / size for places, size in zip(cyan.nonzero(), cyan.shape, strict=True)
    )
    assert rows > 0.5 and columns < 0.35
    brightness = panel[: len(panel) // 3].mean((0, 2))
    assert brightness[-15:].mean() > 100 > 20 > brightness[:40].mean()


@pytest.mark.parametrize("shape", [(2, 4, 4), (3, 16)])
def test_bad_attention(tmp_path, shape):
    with pytest.raises(ValueError, match=r"attention must be \[3, H, W\]"):
        save_attention(tmp_path / "a.png", [Attended(None, ["a"] * 3, np.ones(shape))])
    with pytest.raises(ValueError, match="must not be empty"):
        save_attention(tmp_path / "a.png", [])
    assert not list(tmp_path.iterdir())
