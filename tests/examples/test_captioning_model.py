"""The parts of examples/captioning that learn: encoder, attention, decoders."""

import itertools
import sys
import types

import pytest
import torch
from captioning_runs import V, images_of, main, make_model, train

from examples.captioning.attention import (
    AdditiveAttention,
    DotAttention,
    doubly_stochastic_penalty,
)
from examples.captioning.config import INJECTS
from examples.captioning.encoder import Encoder
from examples.captioning.record import CaptionRecord
from examples.captioning.vocabulary import END, PAD, START, UNK
from examples.common.errors import UserError

injects = pytest.mark.parametrize("inject", INJECTS)
cells = pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])


def batch_of(lengths: list[int], seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Captions of so many words: tokens [N, L] with START, END and PAD, and decoder steps [N]."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.full((len(lengths), max(lengths) + 2), PAD)
    for row, length in enumerate(lengths):
        words = torch.randint(UNK, V, (length,), generator=generator)
        tokens[row, : length + 2] = torch.tensor([START, *words.tolist(), END])
    return tokens, torch.tensor(lengths) + 1


# Attention


@pytest.mark.parametrize("kind", [DotAttention, AdditiveAttention])
def test_attention_is_a_weighted_mean_of_the_grid(kind):
    torch.manual_seed(0)
    grid, h = torch.randn(3, 16, 5), torch.randn(3, 7)
    attention = kind(5, 7)
    seen, weights = attention(attention.prepare(grid), h)
    assert seen.shape == (3, 5) and weights.shape == (3, 16) and (weights >= 0).all()
    torch.testing.assert_close(weights.sum(1), torch.ones(3))
    torch.testing.assert_close(seen, (weights.unsqueeze(2) * grid).sum(1))
    expected = torch.empty(3, 16)
    for n, place in itertools.product(range(3), range(16)):
        a = grid[n, place]
        if kind is DotAttention:
            expected[n, place] = a @ attention.key(h[n])
        else:
            inner = torch.tanh(attention.of_grid(a) + attention.of_state(h[n]))
            expected[n, place] = attention.score(inner)
    torch.testing.assert_close(weights, expected.softmax(1))


def test_the_doubly_stochastic_penalty():
    """Two steps over three locations; of the second caption only the first step counts."""
    weights = torch.tensor([[[0.5, 0.5, 0.0]] * 2, [[0.0, 0.5, 0.5]] * 2])
    counted = torch.tensor([[True, True], [True, False]])
    # 1 - (0.5, 1, 0.5) and 1 - (0.5, 0.5, 0).
    expected = ((0.25 + 0.0 + 0.25) + (0.25 + 0.25 + 1.0)) / 2
    assert doubly_stochastic_penalty(weights, counted).item() == pytest.approx(expected)
    model, (tokens, lengths), images = make_model(alpha_c=2.0), batch_of([3, 1]), images_of(2)
    loss = model.loss(images, tokens, lengths)
    assert loss.total > loss.nats
    model.penalty = 0.0
    assert model.loss(images, tokens, lengths).total == model.loss(images, tokens, lengths).nats


def test_the_attending_decoder_is_the_plain_loop():
    """Cell on word and what was seen, attention on its state, head on both: with torch.nn's cell."""
    decoder = make_model(inject="attend").decoder
    cell = torch.nn.LSTMCell(10 + 8, 16)
    cell.load_state_dict(decoder.cell.state_dict())
    grid, tokens = torch.randn(3, 64, 8), torch.randint(V, (5, 3))
    hidden, attention = decoder(grid, tokens, torch.full((3,), 5))
    seen, h, c = torch.zeros(3, 8), torch.zeros(3, 16), torch.zeros(3, 16)
    for t in range(5):
        h, c = cell(torch.cat([decoder.embedding(tokens[t]), seen], 1), (h, c))
        weights = torch.einsum("nlf,nf->nl", grid, decoder.attention.key(h)).softmax(1)
        seen = torch.einsum("nl,nlf->nf", weights, grid)
        torch.testing.assert_close(attention[t], weights, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(hidden[t], torch.cat([h, seen], 1), rtol=1e-5, atol=1e-5)


# Decoders


@injects
@cells
def test_both_backends_have_the_same_parameters_and_loss(inject, cell):
    ours, theirs = (
        make_model(inject=inject, cell=cell, backend=backend, forget_bias=1.5)
        for backend in ("fastlstm", "torch")
    )
    of_decoder = "cell" if inject == "attend" else "rnn"
    assert type(getattr(ours.decoder, of_decoder)).__module__.startswith("fastlstm")
    assert type(getattr(theirs.decoder, of_decoder)).__module__.startswith("torch.nn")
    for name, value in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], value), name
    images, (tokens, lengths) = images_of(4), batch_of([5, 1, 3, 7])
    gradients = []
    for model in (ours, theirs):
        loss = model.loss(images, tokens, lengths)
        loss.total.backward()
        gradients.append((loss.nats.detach(), [p.grad for p in model.parameters()]))
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-6)
    if inject != "attend":
        theirs.decoder.packed = True
        torch.testing.assert_close(theirs.loss(images, tokens, lengths).nats, gradients[1][0])


@injects
def test_forget_bias_is_set(inject):
    decoder = make_model(inject=inject, forget_bias=2.5).decoder
    biases = (
        (decoder.cell.bias_ih, decoder.cell.bias_hh)
        if inject == "attend"
        else (decoder.rnn.bias_ih_l0, decoder.rnn.bias_hh_l0)
    )
    assert biases[0][16:32].eq(2.5).all() and biases[1][16:32].eq(0).all()


@injects
@cells
def test_writing_step_by_step_is_reading_at_once(inject, cell):
    """The probability that decoding gives a caption is the one that training maximises."""
    model = make_model(inject=inject, cell=cell, scale=2.0).eval()
    images, (tokens, lengths) = images_of(1), batch_of([6])
    with torch.no_grad():
        expected = model.loss(images, tokens, lengths)
        memory, total = model.start(images), 0.0
        for word, following in itertools.pairwise(tokens[0].tolist()):
            logits, memory, _ = model.decoder.step(torch.tensor([word]), memory)
            total -= logits.log_softmax(1)[0, following - END].item()
    assert expected.words == 7
    assert total / 7 == pytest.approx(expected.nats.item(), rel=1e-5)


@injects
def test_the_image_reaches_the_words_as_the_mode_says(inject):
    """Another image changes the first word; with ``every``, each step by itself sees it."""
    model = make_model(inject=inject).eval()
    with torch.no_grad():
        first, second = model.start(images_of(1)), model.start(images_of(1))
        token = torch.tensor([START])
        one, other = model.decoder.step(token, first), model.decoder.step(token, second)
        assert not torch.allclose(one[0], other[0], atol=1e-6)
        assert bool(one[1].image) == (inject in ("every", "attend"))


@injects
def test_a_row_does_not_depend_on_what_stands_beside_it(inject):
    model = make_model(inject=inject).eval()
    images, (tokens, lengths) = images_of(3), batch_of([2, 6, 4])
    with torch.no_grad():
        seen = model.see(images)
        together, _ = model.decoder(seen, tokens[:, :-1].t(), lengths)
        for row, steps in enumerate(lengths.tolist()):
            alone, _ = model.decoder(
                seen[row : row + 1], tokens[row : row + 1, :steps].t(), lengths[row : row + 1]
            )
            torch.testing.assert_close(together[:steps, row], alone[:, 0], rtol=1e-5, atol=1e-6)


def test_padding_is_not_learnt():
    model = make_model(inject="h0")
    images, (tokens, lengths) = images_of(2), batch_of([1, 5])
    model.loss(images, tokens, lengths).total.backward()
    assert model.decoder.embedding.weight.grad[PAD].eq(0).all()
    assert model.decoder.embedding.weight.grad[START].ne(0).any()


# Encoder


@injects
def test_gradients_reach_the_cnn(inject):
    model = make_model(inject=inject)
    tokens, lengths = batch_of([4, 4])
    model.loss(images_of(2), tokens, lengths).total.backward()
    for name, parameter in model.encoder.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_a_frozen_cnn_stays_as_it_is():
    model = make_model(freeze_cnn=True)
    before = {name: value.clone() for name, value in model.encoder.cnn.state_dict().items()}
    model.train()
    tokens, lengths = batch_of([4, 4])
    model.loss(images_of(2), tokens, lengths).total.backward()
    for name, value in model.encoder.cnn.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert all(parameter.grad is None for parameter in model.encoder.cnn.parameters())
    assert model.encoder.place.weight.grad is not None


def test_the_grid_of_the_defaults_and_of_features():
    assert Encoder("small", grid=14, channels=16)(torch.zeros(2, 3, 56, 56)).shape == (2, 196, 16)
    assert Encoder("small", grid=5, channels=16)(torch.zeros(2, 3, 64, 64)).shape == (2, 25, 16)
    features = Encoder("features", grid=7, channels=6, input_channels=20)
    assert features(torch.randn(2, 20, 14, 14)).shape == (2, 49, 6)


def test_the_grid_goes_row_by_row():
    """A white spot changes the locations around it, counted as attention's pictures are."""
    encoder = Encoder("small", grid=14, channels=8).eval()
    dark, spot = torch.full((1, 3, 56, 56), -1.0), torch.full((1, 3, 56, 56), -1.0)
    spot[:, :, 8:12, 40:44] = 1.0
    with torch.no_grad():
        changed = (encoder(spot) - encoder(dark)).abs().sum(2).view(14, 14) > 1e-6
    rows, columns = changed.nonzero().unbind(1)
    assert rows.float().mean().round() == 2 and columns.float().mean().round() == 10
    assert changed.sum() <= 49, "a location sees its surroundings, not the whole picture"


@pytest.fixture
def torchvision(monkeypatch):
    """A module in the place of torchvision, which the tests must do without."""

    class Classifier(torch.nn.Sequential):
        def __init__(self):
            convolution = torch.nn.Conv2d(3, 12, 4, stride=4)
            super().__init__(convolution, torch.nn.AdaptiveAvgPool2d(1), torch.nn.Linear(12, 5))

    def get_model(name, weights):
        if name != "tiny":
            raise ValueError(f"Unknown model {name}")
        return Classifier()

    module = types.ModuleType("torchvision")
    module.models = types.SimpleNamespace(get_model=get_model)
    monkeypatch.setitem(sys.modules, "torchvision", module)
    return Classifier


def test_a_torchvision_backbone(torchvision, tmp_path):
    trained = torchvision()
    torch.save(trained.state_dict(), tmp_path / "tiny.pth")
    settings = {"encoder": "torchvision:tiny", "weights": str(tmp_path / "tiny.pth")}
    model = make_model(freeze_cnn=True, **settings)
    assert model.see(images_of(2)).shape == (2, 64, 8)
    assert torch.equal(model.encoder.cnn.layers[0].weight, trained[0].weight)
    image = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1).expand(1, 3, 8, 8) * 2 - 1
    features = model.encoder.cnn(image)
    expected = trained[0].bias.view(12, 1, 1).expand_as(features[0])
    torch.testing.assert_close(features[0], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_a_run_does_not_need_the_file_its_backbone_began_from(torchvision, tmp_path):
    weights, run = tmp_path / "tiny.pth", tmp_path / "run"
    torch.save(torchvision().state_dict(), weights)
    assert train(run, "--encoder", "torchvision:tiny", "--weights", weights, "--steps", 2) == 0
    weights.unlink()
    assert main(["eval", str(run)]) == 0
    assert main(["train", "--resume", str(run), "--steps", "3"]) == 0


@pytest.mark.parametrize(
    ("name", "file", "words"),
    [
        ("huge", None, "torchvision has no model huge"),
        ("tiny", "missing.pth", "no weights at"),
        ("tiny", "other.pth", "does not fit torchvision's tiny"),
        ("tiny", "text.pth", "does not fit torchvision's tiny"),
    ],
)
def test_a_backbone_that_cannot_be(torchvision, tmp_path, name, file, words):
    torch.save({"0.weight": torch.zeros(3)}, tmp_path / "other.pth")
    (tmp_path / "text.pth").write_text("not a state dict")
    weights = None if file is None else str(tmp_path / file)
    with pytest.raises(UserError, match=words):
        make_model(encoder=f"torchvision:{name}", weights=weights)


def test_without_torchvision(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(UserError, match="needs torchvision"):
        make_model(encoder="torchvision:resnet18")


def test_the_best_weights_have_the_largest_cider_then_the_lowest_loss():
    record = CaptionRecord()
    assert record.is_best(0.0, 3.0)
    record.best_cider, record.best_nats = 0.5, 2.0
    assert record.is_best(0.6, 9.0) and record.is_best(0.5, 1.9)
    assert not record.is_best(0.5, 2.0) and not record.is_best(0.4, 1.0)
