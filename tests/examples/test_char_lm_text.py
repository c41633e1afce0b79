"""The text of examples/char_lm: vocabulary, streams, sources, and the n-grams to compare with."""

import collections
import math

import numpy as np
import pytest
import torch

from examples.char_lm.config import Config
from examples.char_lm.data import TrainingStreams, Vocabulary, fit_streams, load_corpus, split
from examples.char_lm.ngram import ngram_baseline, ngram_probabilities
from examples.common.errors import UserError

# Text


def test_vocabulary_round_trip_and_unknown_characters():
    text = "naïve 日本 \U0001f600\n"
    vocabulary = Vocabulary.of(text)
    ids = vocabulary.encode(text)
    assert vocabulary.decode(ids.tolist()) == text
    assert ids.dtype == torch.uint8 and len(vocabulary) == len(set(text))
    with pytest.raises(UserError, match=r"'q' \(U\+0071\), 'z' \(U\+007A\)"):
        vocabulary.encode("nazq")
    with pytest.raises(UserError, match="and 1 more"):
        vocabulary.encode("ABCD")


def test_vocabulary_beyond_a_byte_and_of_bytes():
    text = "".join(map(chr, range(100, 700)))
    large = Vocabulary.of(text)
    assert large.encode(text).tolist() == list(range(600))
    raw = bytes(range(256))
    assert Vocabulary.of(raw).encode(raw).tolist() == list(range(256))
    assert Vocabulary.of(raw).decode([0, 255]) == b"\x00\xff"


def test_split_takes_the_end_and_streams_shrink_on_short_text():
    train, val = split(torch.arange(1000), 0.1)
    assert train.tolist() == list(range(900)) and val.tolist() == list(range(900, 1000))
    assert fit_streams(1_000_000, 16, 64) == (16, 64)
    batch, seq = fit_streams(300, 16, 64)
    assert batch == 1 and seq == 64
    assert fit_streams(50, 16, 64) == (1, 12)


def test_training_streams_read_on_where_they_stopped():
    ids = torch.arange(1003)
    streams = TrainingStreams(ids, 4, 10, reset=0.0, seed=3)
    previous = None
    for step in range(3 * streams.steps_per_epoch):
        inputs, targets, carry = streams.window(step)
        assert inputs.shape == targets.shape == (10, 4)
        assert torch.equal(targets, inputs + 1)
        begins = step % streams.steps_per_epoch == 0
        assert carry.tolist() == [not begins] * 4
        if not begins:
            assert torch.equal(inputs[0], previous[-1] + 1)
        previous = inputs
    starts = [streams.window(e * streams.steps_per_epoch)[0][0, 0].item() for e in range(6)]
    assert starts[0] == 0 and len(set(starts)) > 2


def test_training_streams_forget_as_often_as_asked():
    streams = TrainingStreams(torch.zeros(64_000), 8, 10, reset=0.25, seed=0)
    carried = torch.stack([streams.window(step)[2] for step in range(1, 700)]).float()
    assert abs(carried.mean().item() - 0.75) < 0.03
    again = TrainingStreams(torch.zeros(64_000), 8, 10, reset=0.25, seed=0)
    assert torch.equal(streams.window(55)[2], again.window(55)[2])


def test_standard_library_is_capped_ordered_and_without_tests():
    corpus = load_corpus(Config(corpus_mb=0.3))
    assert 299_000 < len(corpus.data.encode()) <= 300_000 and corpus.data.endswith("\n")
    assert corpus == load_corpus(Config(corpus_mb=0.3))
    assert "Python" in corpus.name and len(corpus.sha256) == 64


def test_files_are_joined_in_the_order_given(tmp_path):
    for name, text in (("a", "a" * 50), ("b", "b" * 50)):
        (tmp_path / name).write_text(text)
    paths = (str(tmp_path / "b"), str(tmp_path / "a"))
    assert load_corpus(Config(text=paths)).data == "b" * 50 + "a" * 50


# n-grams


def brute_force_probability(train, history, token, vocab_size, order):
    if order == 0:
        return 1.0 / vocab_size
    lower = brute_force_probability(train, history[1:], token, vocab_size, order - 1)
    followers = collections.Counter(
        train[i]
        for i in range(order - 1, len(train))
        if train[i - order + 1 : i] == history
    )  # fmt: skip
    total, kinds = sum(followers.values()), len(followers)
    return (followers[token] + kinds * lower) / (total + kinds) if total else lower


@pytest.mark.parametrize("seed", [0, 1])
def test_ngram_equals_brute_force(seed):
    generator = np.random.default_rng(seed)
    tokens = generator.choice(5, size=160, p=[0.4, 0.3, 0.2, 0.05, 0.05])
    train, val = tokens[:120], tokens[120:]
    found = ngram_probabilities(train, val, 6, max_order=6)
    assert sorted(found) == [1, 2, 3, 4, 5, 6]
    everything, known = tokens.tolist(), train.tolist()
    for order, values in found.items():
        for i, value in enumerate(values):
            at = len(train) + i
            history = everything[at - order + 1 : at]
            expected = brute_force_probability(known, history, everything[at], 6, order)
            assert value == pytest.approx(expected, rel=1e-12)


def test_ngram_baseline_finds_the_order_and_sums_to_one():
    tokens = np.array([0, 1, 2, 0, 2, 1] * 200)
    baseline = ngram_baseline(tokens[:1000], tokens[1000:], 3, max_order=3)
    assert baseline.uniform == pytest.approx(math.log(3))
    assert baseline.best_order == 3 and baseline.best < 0.05 < baseline.orders[2]
    for order in (1, 2, 4):
        chances = [
            ngram_probabilities(tokens[:50], np.array([token]), 3, order)[order][0]
            for token in range(3)
        ]
        assert sum(chances) == pytest.approx(1.0)
