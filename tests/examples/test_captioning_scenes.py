"""Scenes of examples/captioning: drawn shapes, and captions that are true of them."""

import numpy as np
import pytest

from examples.captioning.scenes import COLOURS, RELATIONS, SHAPES, SIZES, generate
from examples.captioning.vocabulary import normalize, tokenize


def test_scenes_are_the_same_for_the_same_seed():
    first, again, longer = generate(8, 3), generate(8, 3), generate(12, 3)
    other = generate(8, 4)
    for scene, same, prefix in zip(first, again, longer, strict=False):
        assert np.array_equal(scene.image, same.image)
        assert scene.captions == same.captions == prefix.captions and scene.boxes == same.boxes
    assert [s.captions for s in first] != [s.captions for s in other]
    assert len({scene.name for scene in (*longer, *other)}) == 20


def test_unseen_scenes_are_new_combinations_of_known_words():
    seen, unseen = generate(1200, 0), generate(300, 1, held_out=True)
    seen_captions = {caption for scene in seen for caption in scene.captions}
    assert not seen_captions & {caption for scene in unseen for caption in scene.captions}
    words, new_words = (
        {word for scene in scenes for caption in scene.captions for word in tokenize(caption)}
        for scenes in (seen, unseen)
    )
    assert new_words == words
    assert words >= {*COLOURS, *SIZES, *SHAPES, "above", "below", "left", "right"}


def test_scene_captions_are_distinct_phrasings():
    for scene in generate(50, 0):
        assert len(scene.captions) == len(set(scene.captions)) == 5
        assert all(normalize(caption) == caption for caption in scene.captions)
        assert all(shape in caption for shape in scene.boxes for caption in scene.captions)


@pytest.mark.parametrize("size", [32, 56, 64])
def test_things_are_in_their_boxes_in_their_colours(size):
    for scene in generate(60, 0, size):
        assert scene.image.shape == (size, size, 3) and scene.image.dtype == np.uint8
        ground = np.ones((size, size), bool)
        phrases = scene.captions[0].replace("left of", "above").split(" above ")
        assert len(phrases) == len(scene.boxes)
        for phrase, (shape, box) in zip(phrases, scene.boxes.items(), strict=True):
            x0, y0, x1, y1 = box
            assert 0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1
            _, size_word, colour, shape_word = phrase.split()
            assert shape_word == shape
            low, high = SIZES[size_word]
            assert 2 * low - 1e-9 <= x1 - x0 <= 2 * high + 1e-9
            assert nearest_colour(scene.image, (x0 + x1) / 2, (y0 + y1) / 2) == colour
            left, top = int(x0 * size), int(y0 * size)
            right, bottom = int(x1 * size) + 1, int(y1 * size) + 1
            # The thing fills its box, but for the pixels of its tips.
            bright = scene.image[top:bottom, left:right].max(2) > 95
            assert bright.any(0).sum() > (x1 - x0) * size - 3
            assert bright.any(1).sum() > (y1 - y0) * size - 3
            ground[top:bottom, left:right] = False
        assert scene.image[ground].max() < 85


def nearest_colour(image, x, y):
    size = len(image)
    pixel = image[int(y * size), int(x * size)].astype(int)
    return min(COLOURS, key=lambda name: np.abs(pixel - COLOURS[name]).sum())


def test_relations_are_as_the_captions_say():
    found = set()
    for scene in generate(300, 1):
        if len(scene.boxes) == 1:
            continue
        first, second = ([(b[0] + b[2]) / 2, (b[1] + b[3]) / 2] for b in scene.boxes.values())
        dx, dy = second[0] - first[0], second[1] - first[1]
        relation = next(name for name in RELATIONS if f" {name} " in scene.captions[0])
        along, across = (dy, dx) if relation == "above" else (dx, dy)
        assert along > 0.2 and abs(across) <= 0.5 * along + 1e-9
        inverse = RELATIONS[relation]
        assert scene.captions[3].startswith(inverse) and relation not in scene.captions[3]
        found.add(relation)
        boxes = list(scene.boxes.values())
        axis = 1 if relation == "above" else 0
        assert boxes[0][axis + 2] < boxes[1][axis]
    assert found == set(RELATIONS)


def test_bad_scenes():
    with pytest.raises(ValueError, match="count must be at least 0, got -1"):
        generate(-1, 0)
    with pytest.raises(ValueError, match="size must be at least 32, got 16"):
        generate(1, 0, 16)
