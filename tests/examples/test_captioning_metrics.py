"""Metrics of examples/captioning, against numbers from elsewhere and by hand."""

import math

import numpy as np
import pytest

from examples.captioning.metrics import pointing, score

CANDIDATES = [
    "a man riding a wave on top of a surfboard",
    "a cat sitting on a red chair",
    "two dogs play in the snow",
    "a plate of food with broccoli and rice",
    "a train train train",
]
REFERENCES = [
    [
        "a man on a surfboard rides a large wave",
        "a surfer riding a wave in the ocean",
        "man riding a wave on top of a surfboard",
    ],
    ["a cat sitting on a red chair", "the cat sleeps on a chair that is red"],
    [
        "two dogs are playing in the deep snow",
        "a pair of dogs in the snow",
        "dogs run through snow",
        "two dogs play in snow",
    ],
    ["a white plate topped with rice and broccoli"],
    ["a train on the tracks near a station", "a long train that is on a track"],
]
# Of pycocoevalcap 1.2 on these captions. Its BLEU adds 1e-9 to each denominator.
PYCOCOEVALCAP = {
    "bleu1": 0.8365209498619409,
    "bleu2": 0.7436678680937346,
    "bleu3": 0.6792518330043025,
    "bleu4": 0.6351986695582581,
    "rouge_l": 0.7390242813929009,
    "cider": 3.1690837240423164,
}


def test_equals_the_numbers_of_the_coco_evaluation():
    found = score(CANDIDATES, REFERENCES)
    assert found.keys() == {*PYCOCOEVALCAP, "exact_match"}
    for name, value in PYCOCOEVALCAP.items():
        assert found[name] == pytest.approx(value, abs=1e-9), name
    assert found["exact_match"] == 1 / 5


def test_bleu_clips_repeated_words():
    # The example of Papineni et al. 2002, section 2.1: 2 of the 7 words count.
    references = ["The cat is on the mat.", "There is a cat on the mat."]
    found = score(["the the the the the the the"], [references])
    assert found["bleu1"] == pytest.approx(2 / 7)
    assert found["bleu2"] == found["bleu4"] == 0.0


def test_bleu_punishes_short_captions():
    found = score(["a red circle"], [["a red circle above a blue square"]])
    assert found["bleu3"] == pytest.approx(math.exp(1 - 7 / 3))


@pytest.mark.parametrize(
    ("candidate", "value"), [("police kill the gunman", 3 / 4), ("the gunman kill police", 2 / 4)]
)
def test_rouge_l_rewards_order(candidate, value):
    # The example of Lin 2004, section 3.1.
    found = score([candidate], [["police killed the gunman"]])
    assert found["rouge_l"] == pytest.approx(value)


def test_perfect_captions_have_the_largest_scores():
    captions = ["a small red circle", "one large blue square"]
    found = score(captions, [[caption] for caption in captions])
    assert found.pop("cider") == pytest.approx(10.0)
    assert all(value == pytest.approx(1.0) for value in found.values())


def test_cider_is_nothing_where_every_picture_has_the_same_words():
    assert score(["a cat"], [["a cat"]])["cider"] == 0.0


def test_exact_match_takes_any_reference_and_no_punctuation():
    references = [["one dog", "A dog runs."], ["a cat"], ["a bird"]]
    assert score(["a dog runs", "A cat!", "a birds"], references)["exact_match"] == 2 / 3


def test_empty_captions_score_nothing():
    found = score(["", "..."], [["a cat", "one cat"], ["a dog"]])
    assert set(found.values()) == {0.0}


@pytest.mark.parametrize(
    ("candidates", "references", "message"),
    [
        (["a"], [], "1 candidates need as many lists of references, got 0"),
        ([], [], "candidates must not be empty"),
        (["a", "b"], [["a"], []], "at least one reference"),
    ],
)
def test_bad_input_of_score(candidates, references, message):
    with pytest.raises(ValueError, match=message):
        score(candidates, references)


def looks_at(*cells: tuple[int, int]) -> np.ndarray:
    attention = np.full((len(cells), 4, 8), 0.1)
    for weights, cell in zip(attention, cells, strict=True):
        weights[cell] = 0.5
    return attention


def test_pointing_counts_cells_whose_middle_is_in_the_box():
    boxes = {"circle": (0.05, 0.05, 0.25, 0.3), "square": (0.5, 0.5, 1.0, 1.0)}
    words = ["red", "circle", "above", "square", "circle", "square"]
    # Middles (x, y): (1/16, 1/8) in the circle; (9/16, 5/8) in the square; (1/16, 3/8) below the
    # circle, though its cell begins in it; (7/16, 7/8) left of the square.
    attention = looks_at((3, 7), (0, 0), (0, 0), (2, 4), (1, 0), (3, 3))
    assert pointing(attention, words, boxes) == (2, 4)
    assert pointing(attention, ["star"] * 6, boxes) == (0, 0)


def test_bad_input_of_pointing():
    with pytest.raises(ValueError, match=r"attention must be \[2, H, W\], got \[1, 4, 8\]"):
        pointing(looks_at((0, 0)), ["a", "circle"], {})
