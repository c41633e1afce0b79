"""Captions from a model of examples/captioning: greedy, drawn, and the best of a beam."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from captioning_runs import V, images_of, make_model

from examples.captioning.config import INJECTS
from examples.captioning.decoding import DecodingOptions, caption
from examples.captioning.vocabulary import END, PAD, START, UNK
from examples.common.errors import UserError

injects = pytest.mark.parametrize("inject", INJECTS)


def probability_of(model, image, words):
    """Log probability of ``words`` and END after ``image`` [1, ...], UNK being impossible."""
    memory, total, tokens = model.start(image), 0.0, [START, *words, END]
    for word, following in itertools.pairwise(tokens):
        logits, memory, _ = model.decoder.step(torch.tensor([word]), memory)
        logits[:, UNK - END] = float("-inf")
        total += logits.log_softmax(1)[0, following - END].item()
    return total


def words_of(tokens):
    """The words of a row of tokens, checked to end with END and PAD."""
    row = tokens.tolist()
    end = row.index(END)
    assert set(row[end + 1 :]) <= {PAD} and UNK not in row and START not in row
    return row[:end]


@injects
def test_greedy_takes_the_best_word_each_time(inject):
    model, images = make_model(inject=inject, scale=3.0).eval(), images_of(4)
    found = caption(model, images, DecodingOptions(max_length=8))
    for n in range(4):
        words = words_of(found.tokens[n])
        with torch.no_grad():
            memory, written = model.start(images[n : n + 1]), []
            while len(written) < 8:
                token = torch.tensor([written[-1] if written else START])
                logits, memory, _ = model.decoder.step(token, memory)
                logits[0, UNK - END] = float("-inf")
                best = logits[0].argmax().item() + END
                if best == END:
                    break
                written.append(best)
            assert words == written
            expected = probability_of(model, images[n : n + 1], words)
        if len(words) < 8:
            assert found.log_probability[n].item() == pytest.approx(expected, rel=1e-4)


@injects
@pytest.mark.parametrize("length_penalty", [0.0, 0.7, 1.5])
def test_a_beam_that_holds_everything_finds_the_best(inject, length_penalty):
    """Three words and captions of at most three: brute force over all 40 of them."""
    model = make_model(inject=inject, vocab_size=7, scale=3.0).eval()
    images = images_of(3)
    options = DecodingOptions(max_length=3, beam=40, length_penalty=length_penalty)
    found = caption(model, images, options)
    every = [w for length in range(4) for w in itertools.product(range(UNK + 1, 7), repeat=length)]
    with torch.no_grad():
        for n in range(3):
            chances = {words: probability_of(model, images[n : n + 1], words) for words in every}
            best = max(every, key=lambda w: chances[w] / (len(w) + 1) ** length_penalty)
            assert tuple(words_of(found.tokens[n])) == best
            assert found.log_probability[n].item() == pytest.approx(chances[best], rel=1e-4)


@injects
def test_the_probability_of_a_beams_caption_is_the_models_own(inject):
    """A search that loses track of its states fails it at once."""
    model, images = make_model(inject=inject, scale=3.0).eval(), images_of(6)
    found = caption(model, images, DecodingOptions(max_length=6, beam=4))
    with torch.no_grad():
        for n in range(6):
            words = words_of(found.tokens[n])
            expected = probability_of(model, images[n : n + 1], words)
            assert found.log_probability[n].item() == pytest.approx(expected, rel=1e-4, abs=1e-5)


@injects
@pytest.mark.parametrize("scale", [1.0, 3.0, 10.0])
def test_a_beam_is_never_less_likely_than_greedy(inject, scale):
    model, images = make_model(inject=inject, scale=scale).eval(), images_of(16)
    greedy = caption(model, images, DecodingOptions(max_length=8))
    beam = caption(model, images, DecodingOptions(max_length=8, beam=3))
    assert (beam.log_probability >= greedy.log_probability).all()


def chain(monkeypatch, following):
    """A model whose next word depends on the last one only, as ``following`` says: word -> {word:
    probability}. It attends to the place of the last word's number."""
    table = torch.full((64, 64 - END), float("-inf"))
    for word, chances in following.items():
        for after, chance in chances.items():
            table[word, after - END] = math.log(chance)
    model = make_model(vocab_size=64).eval()

    def step(tokens, memory):
        return table[tokens], memory, F.one_hot(tokens, 64).float()

    monkeypatch.setattr(model.decoder, "step", step)
    return model


@pytest.mark.parametrize("beam", [2, 3])
def test_a_beam_keeps_the_greedy_caption(monkeypatch, beam):
    """Words 4, 10 are the likeliest caption; three that begin with 5 push them out of the beam and
    turn out unlikely."""
    certain = {END: 1.0}
    after_5, last = {20 + n: 1 / 3 for n in range(3)}, {30 + n: 1 / 4 for n in range(4)}
    following = {START: {4: 0.4, 5: 0.35, 6: 0.25}, 4: {10: 0.28, 11: 0.24, 12: 0.24, 13: 0.24}}
    following |= {5: after_5, 6: last, **dict.fromkeys(after_5, last)}
    following |= dict.fromkeys([10, 11, 12, 13, *last], certain)
    model = chain(monkeypatch, following)
    found = caption(model, images_of(2), DecodingOptions(beam=beam))
    for n in range(2):
        assert words_of(found.tokens[n]) == [4, 10]
        assert found.log_probability[n].item() == pytest.approx(math.log(0.4 * 0.28))
        assert found.attention[n].argmax(1).tolist()[:3] == [START, 4, 10]
    assert found.attention.shape == (*found.tokens.shape, 64)


def test_a_beam_takes_the_likelier_caption_not_the_longer(monkeypatch):
    """Two short ones share 0.8 between them, one of eight words has the rest to itself."""
    short, long = range(4, 6), range(10, 18)
    following = {START: {4: 0.4, 5: 0.4, 10: 0.2}}
    following |= dict.fromkeys(short, {END: 1.0})
    following |= {word: {after: 1.0} for word, after in itertools.pairwise([*long, END])}
    model = chain(monkeypatch, following)
    found = caption(model, images_of(1), DecodingOptions(beam=3))
    assert len(words_of(found.tokens[0])) == 1
    found = caption(model, images_of(1), DecodingOptions(beam=3, length_penalty=0.7))
    assert words_of(found.tokens[0]) == list(long)


@pytest.mark.parametrize("options", [{}, {"beam": 3}, {"temperature": 1.0}])
def test_attention_belongs_to_the_words(options):
    """What is returned is what the model attends to when it reads the caption that it wrote."""
    model, images = make_model(scale=3.0).eval(), images_of(3)
    found = caption(model, images, DecodingOptions(max_length=5, **options))
    assert found.attention.shape == (*found.tokens.shape, 64)
    with torch.no_grad():
        for n in range(3):
            memory = model.start(images[n : n + 1])
            words = words_of(found.tokens[n])
            for t, word in enumerate([START, *words]):
                _, memory, weights = model.decoder.step(torch.tensor([word]), memory)
                torch.testing.assert_close(found.attention[n, t], weights[0], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("options", [{}, {"beam": 3}])
def test_captions_do_not_depend_on_the_batch(options):
    model, images = make_model(inject="token", scale=3.0).eval(), images_of(5)
    options = DecodingOptions(max_length=6, **options)
    together = caption(model, images, options).tokens
    for n in range(5):
        alone = caption(model, images[n : n + 1], options).tokens[0]
        assert words_of(together[n]) == words_of(alone)


@pytest.mark.parametrize("options", [{}, {"beam": 3}, {"temperature": 1.0}])
def test_captions_end(options):
    """At once where END is the likeliest, at the limit where it is impossible."""
    model = make_model(inject="h0")
    with torch.no_grad():
        model.decoder.head.bias[0] = 1e4
    assert caption(model, images_of(2), DecodingOptions(**options)).tokens.tolist() == [[END]] * 2
    with torch.no_grad():
        model.decoder.head.bias[0] = -1e4
    found = caption(model, images_of(2), DecodingOptions(max_length=4, **options)).tokens
    assert [len(words_of(row)) for row in found] == [4, 4]


def test_temperature_draws_by_the_distribution_and_the_seed():
    model = make_model(inject="h0", scale=2.0).eval()
    image = images_of(1)
    with torch.no_grad():
        logits, _, _ = model.decoder.step(torch.tensor([START]), model.start(image))
        logits[:, UNK - END] = float("-inf")
        expected = F.softmax(logits[0] / 1.5, 0)
    many = image.expand(4000, -1, -1, -1)
    options = DecodingOptions(max_length=1, temperature=1.5, seed=3)
    drawn = caption(model, many, options).tokens[:, 0]
    counts = torch.bincount(drawn - END, minlength=V - END).double()
    assert counts[UNK - END] == 0
    possible = expected > 0
    wanted = 4000 * expected[possible].double()
    # Six outcomes: 5 degrees of freedom, the 0.1 % point.
    assert ((counts[possible] - wanted) ** 2 / wanted).sum() < 20.52
    assert torch.equal(drawn, caption(model, many, options).tokens[:, 0])
    other = DecodingOptions(max_length=1, temperature=1.5, seed=4)
    assert not torch.equal(drawn, caption(model, many, other).tokens[:, 0])
    cold = DecodingOptions(max_length=5, temperature=1e-6)
    greedy = DecodingOptions(max_length=5)
    images = images_of(3)
    assert torch.equal(caption(model, images, cold).tokens, caption(model, images, greedy).tokens)


def test_decoding_leaves_the_mode_as_it_was():
    model = make_model(inject="every")
    caption(model, images_of(2), DecodingOptions(max_length=2))
    assert model.training and model.encoder.training
    caption(model.eval(), images_of(2), DecodingOptions(max_length=2))
    assert not model.training


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"max_length": 0}, "--max-length must be at least 1, got 0"),
        ({"beam": 0}, "--beam must be at least 1, got 0"),
        ({"temperature": -0.5}, "--temperature must be at least 0, got -0.5"),
        ({"temperature": float("nan")}, "--temperature"),
        ({"length_penalty": float("inf")}, "--length-penalty must be a number, got inf"),
        ({"beam": 2, "temperature": 1.0}, "give only one"),
    ],
)
def test_decoding_options_are_checked(options, words):
    with pytest.raises(UserError, match=words):
        DecodingOptions(**options)
