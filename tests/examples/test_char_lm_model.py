"""The model of examples/char_lm, its evaluation, and sampling from it."""

import math

import pytest
import torch
import torch.nn.functional as F
from char_lm_runs import backends

from examples.char_lm.config import Config
from examples.char_lm.evaluate import IGNORED, evaluate, evaluation_streams
from examples.char_lm.model import CharLM
from examples.char_lm.sampling import Sampler, SamplingOptions, probabilities, sample
from examples.common.errors import UserError


def tiny_model(vocab_size: int = 7, *, seed: int = 0, scale: float = 1.0, **settings) -> CharLM:
    torch.manual_seed(seed)
    config = Config(**{"backend": "torch", "hidden": 12, "embedding": 5, **settings})
    model = CharLM(vocab_size, config)
    with torch.no_grad():
        # Larger weights: a model whose output depends on more than the last character.
        for weight in (model.head.weight, *model.rnn.parameters()):
            weight.mul_(scale)
    return model.eval()


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
