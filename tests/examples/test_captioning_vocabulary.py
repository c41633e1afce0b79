"""Words of examples/captioning: tokens, counts, and what a vocabulary makes of a caption."""

import pytest
import torch

from examples.captioning.vocabulary import (
    END,
    PAD,
    SPECIAL,
    START,
    UNK,
    Vocabulary,
    normalize,
    tokenize,
    words_cut,
)
from examples.common.errors import UserError


def test_tokenize_keeps_words_and_numbers():
    assert tokenize("A man's  T-shirt, no. 7: «naïve»!\n") == [
        *("a", "mans", "t", "shirt", "no", "7", "naïve")
    ]
    assert tokenize("man\u2019s") == ["mans"]
    assert tokenize(" ._-'") == []
    assert normalize("A  dog.") == "a dog"


def test_vocabulary_counts_and_orders_words():
    captions = ["b a", "a c.", "A c d"]
    vocabulary = Vocabulary.build(captions, 2)
    assert vocabulary.words == [*SPECIAL, "a", "c"]
    assert vocabulary.words == Vocabulary.build(captions[::-1], 2).words
    for order in (captions, captions[::-1], ["d c b a", "a c a"]):
        assert Vocabulary.build(order, 1).words == [*SPECIAL, "a", "c", "b", "d"]
    assert len(vocabulary) == 6 and "c" in vocabulary and "b" not in vocabulary


def test_encode_cuts_and_decode_stops():
    vocabulary = Vocabulary([*SPECIAL, "a", "dog"])
    assert vocabulary.encode("A dog, a cat.", 20) == [4, 5, 4, UNK]
    assert vocabulary.encode("a dog a cat", 2) == [4, 5]
    assert [words_cut("a dog a cat", n) for n in (2, 4, 9)] == [2, 0, 0]
    assert vocabulary.decode([START, 4, PAD, 5, UNK, END, 4]) == "a dog <unk>"
    assert vocabulary.decode(torch.tensor([4, 5])) == "a dog"
    # What looks like a special word in a caption is not one.
    assert vocabulary.encode("<end> <pad>", 20) == [UNK, UNK]


def test_vocabulary_goes_through_a_checkpoint():
    vocabulary = Vocabulary.build(["a dog"], 1)
    assert Vocabulary.from_state_dict(vocabulary.state_dict()).words == vocabulary.words
    for state in ({}, {"words": [1, 2]}, {"words": 7}, []):
        with pytest.raises(UserError, match="holds no vocabulary"):
            Vocabulary.from_state_dict(state)
    for words in (["a"], [*SPECIAL, "a", "a"]):
        with pytest.raises(UserError, match="vocabulary is damaged"):
            Vocabulary.from_state_dict({"words": words})
