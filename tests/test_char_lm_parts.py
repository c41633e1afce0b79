"""The parts of examples/char_lm: text, n-grams, evaluation, sampling, clipping, files."""

import collections
import io
import json
import math
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from examples.char_lm.__main__ import main
from examples.char_lm.config import Config
from examples.char_lm.data import (
    TrainingStreams,
    Vocabulary,
    fit_streams,
    load_corpus,
    split,
)
from examples.char_lm.evaluate import IGNORED, evaluate, evaluation_streams
from examples.char_lm.model import CharLM
from examples.char_lm.ngram import ngram_baseline, ngram_probabilities
from examples.char_lm.record import RunRecord
from examples.char_lm.sampling import Sampler, SamplingOptions, probabilities, sample
from examples.common import machine
from examples.common.errors import UserError
from examples.common.files import atomic_write, write_text
from examples.common.optimize import clip_gradients
from examples.common.progress import Progress
from examples.common.record import MAX_POINTS, Curve
from examples.common.schedule import learning_rate_factor

backends = pytest.mark.parametrize("backend", ["torch", "fastlstm"])


@pytest.fixture(autouse=True)
def one_thread():
    """Tiny shapes gain nothing from threads, and lose much where another program holds a core."""
    with machine.one_thread():
        yield


def tiny_model(vocab_size: int = 7, *, seed: int = 0, scale: float = 1.0, **settings) -> CharLM:
    torch.manual_seed(seed)
    config = Config(**{"backend": "torch", "hidden": 12, "embedding": 5, **settings})
    model = CharLM(vocab_size, config)
    with torch.no_grad():
        # Larger weights: a model whose output depends on more than the last character.
        for weight in (model.head.weight, *model.rnn.parameters()):
            weight.mul_(scale)
    return model.eval()


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


# Model and evaluation


@backends
@pytest.mark.parametrize("settings", [{}, {"embedding": 0}, {"layers": 2, "dropout": 0.5}])
def test_model_is_the_same_with_both_backends(backend, settings):
    ours = tiny_model(backend=backend, forget_bias=1.5, **settings)
    theirs = tiny_model(backend="torch", forget_bias=1.5, **settings)
    for name, value in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], value), name
    assert ours.rnn.bias_ih_l0[12:24].eq(1.5).all() and ours.rnn.bias_hh_l0[12:24].eq(0).all()
    tokens = torch.randint(7, (9, 3))
    state = (torch.randn(settings.get("layers", 1), 3, 12),) * 2
    for found, expected in zip(ours(tokens, state)[1], theirs(tokens, state)[1], strict=True):
        torch.testing.assert_close(found, expected)
    torch.testing.assert_close(ours(tokens, state)[0], theirs(tokens, state)[0])


def test_one_hot_input_is_one_hot():
    model = tiny_model(embedding=0)
    assert model.rnn.input_size == 7
    output, _ = model.rnn(F.one_hot(torch.tensor([[2], [6]]), 7).float())
    torch.testing.assert_close(model(torch.tensor([[2], [6]]))[0], model.head(output))


@pytest.mark.parametrize("length", [2, 3, 255, 700, 5000, 40_000])
@pytest.mark.parametrize("max_chars", [None, 1000])
def test_evaluation_scores_each_character_once(length, max_chars):
    ids = torch.arange(length, dtype=torch.int32)
    inputs, targets = evaluation_streams(ids, max_chars)
    scored = targets[targets != IGNORED]
    assert len(scored.unique()) == len(scored)
    assert torch.equal(inputs[targets != IGNORED] + 1, scored)
    if max_chars is None:
        assert torch.equal(scored.sort().values, torch.arange(1, length))
    else:
        assert len(scored) == pytest.approx(min(length - 1, max_chars), rel=0.1)


def test_evaluation_in_parallel_equals_one_long_reading():
    model = tiny_model(scale=2.0)
    ids = torch.randint(7, (3000,))
    with torch.no_grad():
        state, pieces = None, []
        for window in ids[:-1].unsqueeze(1).split(100):
            logits, state = model(window, state)
            pieces.append(logits[:, 0])
        expected = F.cross_entropy(torch.cat(pieces), ids[1:]).item()
    nats, chars = evaluate(model, ids)
    assert chars == 2999
    assert nats == pytest.approx(expected, rel=1e-4)


def test_evaluation_warms_up_its_streams():
    """A model that must remember the first character of the text is not scored on cold states."""
    model = tiny_model(scale=5.0)
    ids = torch.randint(7, (3000,))
    inputs, targets = evaluation_streams(ids)
    assert inputs.shape[1] > 4
    first_scored = (targets != IGNORED).float().argmax(0)
    assert first_scored[0] == 0 and (first_scored[1:] >= 128).all()
    assert model.training is False


# Sampling


def test_temperature_sharpens_until_greedy():
    logits = torch.tensor([1.0, 3.0, 2.0, -4.0])
    for temperature in (0.5, 1.0, 2.0):
        found = probabilities(logits, SamplingOptions(temperature=temperature))
        torch.testing.assert_close(found, torch.softmax(logits / temperature, 0))
    cold = probabilities(logits, SamplingOptions(temperature=1e-30))
    assert cold.tolist() == [0.0, 1.0, 0.0, 0.0]
    assert SamplingOptions(temperature=0.0).takes_best and SamplingOptions(greedy=True).takes_best


def test_top_k_keeps_the_k_most_likely():
    logits = torch.tensor([1.0, 3.0, 2.0, -4.0, 3.0])
    found = probabilities(logits, SamplingOptions(temperature=1.0, top_k=3))
    expected = torch.softmax(logits[[1, 2, 4]], 0)
    torch.testing.assert_close(found[[1, 2, 4]], expected)
    assert found[[0, 3]].tolist() == [0.0, 0.0]
    ties = probabilities(torch.zeros(6), SamplingOptions(temperature=1.0, top_k=2))
    assert (ties > 0).sum() == 2
    full = probabilities(logits, SamplingOptions(temperature=1.0, top_k=99))
    torch.testing.assert_close(full, torch.softmax(logits, 0))


@pytest.mark.parametrize(
    ("p", "kept"), [(0.1, 1), (0.49, 1), (0.51, 2), (0.79, 2), (0.81, 3), (1.0, 4)]
)
def test_top_p_keeps_the_fewest_that_hold_p(p, kept):
    chances = torch.tensor([0.05, 0.5, 0.15, 0.3])
    found = probabilities(chances.log(), SamplingOptions(temperature=1.0, top_p=p))
    best = chances.sort(descending=True).indices[:kept]
    expected = torch.zeros(4)
    expected[best] = chances[best] / chances[best].sum()
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("options", [{}, {"top_k": 3}, {"top_p": 0.7}])
def test_draws_follow_the_distribution(options):
    """Chi-square of 20,000 draws against the distribution, at the 0.1 % point."""
    model = tiny_model()
    sampler = Sampler(
        model, SamplingOptions(temperature=1.3, **options), torch.Generator().manual_seed(1)
    )
    logits = torch.tensor([0.3, 1.0, -0.5, 0.0, 2.0, 0.7, -1.0])
    expected = probabilities(logits, sampler.options)
    draws = torch.stack([sampler._draw(logits) for _ in range(20_000)]).flatten()
    counts = torch.bincount(draws, minlength=7).double()
    possible = expected > 0
    assert counts[~possible].sum() == 0
    wanted = expected[possible].double() * 20_000
    chi_square = ((counts[possible] - wanted) ** 2 / wanted).sum().item()
    limit = {2: 10.83, 3: 13.82, 4: 16.27, 7: 22.46}[int(possible.sum())]
    assert chi_square < limit


@backends
def test_two_times_a_hundred_is_two_hundred(backend):
    model = tiny_model(scale=2.0, backend=backend, layers=2)
    whole, halves = (
        Sampler(model, SamplingOptions(), torch.Generator().manual_seed(5)) for _ in range(2)
    )
    for sampler in (whole, halves):
        sampler.read(torch.tensor([1, 2, 3]))
    expected = list(whole.generate(200))
    assert list(halves.generate(100)) + list(halves.generate(100)) == expected
    with torch.no_grad():
        logits, _ = model(torch.tensor([1, 2, 3, *expected]).unsqueeze(1))
    torch.testing.assert_close(whole._logits.clone(), logits[-1, 0], rtol=1e-3, atol=1e-3)
    assert len(set(expected)) > 3
    prime = torch.tensor([1, 2, 3])
    assert sample(model, prime, 200, SamplingOptions(), seed=5) == expected
    assert sample(model, prime, 200, SamplingOptions(), seed=6) != expected


def test_greedy_takes_the_most_likely():
    model = tiny_model(scale=3.0)
    tokens = sample(model, torch.tensor([4]), 30, SamplingOptions(greedy=True), seed=0)
    text = [4]
    with torch.no_grad():
        for _ in range(30):
            logits, _ = model(torch.tensor(text).unsqueeze(1))
            text.append(logits[-1, 0].argmax().item())
    assert tokens == text[1:]


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": -1.0},
        {"temperature": math.nan},
        {"top_k": -1},
        {"top_p": 0.0},
        {"top_p": 1.1},
    ],
)
def test_sampling_options_are_checked(options):
    with pytest.raises(UserError, match="must be"):
        SamplingOptions(**options)


# Training parts


def gradients_of(*values):
    layer = torch.nn.Linear(len(values), 1, bias=False)
    layer.weight.grad = torch.tensor([values])
    return layer


def test_clip_by_norm_and_by_value():
    layer = gradients_of(3.0, 4.0)
    assert clip_gradients(layer, 10.0, 0.0) == (5.0, False)
    assert layer.weight.grad.tolist() == [[3.0, 4.0]]
    assert clip_gradients(layer, 1.0, 0.0) == (5.0, True)
    torch.testing.assert_close(layer.weight.grad, torch.tensor([[0.6, 0.8]]))
    layer = gradients_of(3.0, 4.0)
    assert clip_gradients(layer, 0.0, 3.5) == (5.0, True)
    assert layer.weight.grad.tolist() == [[3.0, 3.5]]
    layer = gradients_of(30.0, -40.0)
    assert clip_gradients(layer, 1.0, 3.0) == (50.0, True)
    torch.testing.assert_close(layer.weight.grad, torch.tensor([[0.5**0.5, -(0.5**0.5)]]))
    assert clip_gradients(gradients_of(math.nan, 1.0), 1.0, 1.0)[1] is False


def test_learning_rate_warms_up_and_decays():
    def factors(schedule, total=110, **options):
        return [
            learning_rate_factor(
                step, schedule=schedule, total_steps=total, warmup_steps=10, final=0.1, **options
            )
            for step in range(111)
        ]

    for schedule in ("cosine", "linear"):
        values = factors(schedule)
        assert values[0] == pytest.approx(1 / 11) and values[10] == 1.0
        assert values[60] == pytest.approx(0.55) and values[110] == pytest.approx(0.1)
        assert values[10:] == sorted(values[10:], reverse=True)
        assert factors(schedule, total=None)[10:] == [1.0] * 101
    assert factors("constant")[10:] == [1.0] * 101
    late = factors("exponential", epoch=12.0, decay_rate=0.5, decay_after=10.0)
    assert late[50] == 0.25


def test_curve_stays_small_and_keeps_its_mean():
    curve = Curve()
    for value in range(1600):
        curve.add(float(value))
    x, y = curve.xy(1.0)
    assert len(y) < MAX_POINTS and curve.every == 8
    assert x[0] == 4.0 and y[0] == 3.5
    record = RunRecord(curve=curve)
    assert RunRecord.from_dict(record.to_dict()) == record


def test_atomic_write_is_whole_or_absent(tmp_path):
    path = tmp_path / "file"
    write_text(path, "old")
    with pytest.raises(KeyboardInterrupt), atomic_write(path) as file:
        file.write(b"half of the n")
        file.flush()
        raise KeyboardInterrupt
    assert path.read_text() == "old"
    write_text(path, "new")
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"] and path.read_text() == "new"
    with pytest.raises(UserError, match="cannot write"):
        write_text(tmp_path / "no" / "file", "x")


def test_progress_is_live_on_a_terminal_and_silent_in_a_log(monkeypatch, capsys):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    display = Progress(10)
    for _ in range(10):
        display.step("train 1.234")
    display.log("not shown")
    display.print("shown")
    display.close()
    assert "train 1.234" in terminal.getvalue()
    assert "not shown" not in capsys.readouterr().out

    log = io.StringIO()
    monkeypatch.setattr(sys, "stderr", log)
    display = Progress(10)
    display.step("train 1.234")
    display.log("a line")
    display.close()
    assert log.getvalue() == "" and capsys.readouterr().out == "a line\n"


def test_markov_chain_is_learned_down_to_its_entropy(tmp_path):
    """The loss of a first-order chain cannot be below its entropy rate, and should reach it."""
    generator = np.random.default_rng(0)
    chances = generator.dirichlet([0.4] * 6, size=6)
    tokens = [0]
    for draw in generator.random(40_000):
        row = chances[tokens[-1]].cumsum()
        tokens.append(min(5, int(np.searchsorted(row, draw))))
    stationary = np.linalg.matrix_power(chances, 200)[0]
    entropy = -(stationary[:, None] * chances * np.log(chances)).sum()
    path = tmp_path / "chain.txt"
    path.write_text("".join("abcdef"[token] for token in tokens))

    arguments = (
        f"train --text {path} --out {tmp_path / 'run'} --backend torch --threads 1 --steps 150 "
        "--hidden 24 --embedding 8 --seq 32 --batch 32 --lr 0.03 --ngram-chars 0"
    )
    assert main(arguments.split()) == 0
    nats = json.loads((tmp_path / "run" / "metrics.json").read_text())["val_nats"]
    assert entropy * 0.97 < nats < entropy * 1.03
