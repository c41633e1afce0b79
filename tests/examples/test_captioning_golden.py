"""The recurrent loss on the vectors of CS231n's third assignment, to nine digits.

There every parameter is ``linspace(-1.4, 1.3)`` in its own shape, weights are stored as
[inputs, outputs], the LSTM's gates are in the order i, f, o, g, the image goes through a projection
into h0, and the loss is the sum over the words of a caption, averaged over the captions, without
token 0. The gradients are checked against a float64 run of torch.nn and against differences.
"""

import numpy as np
import pytest
import torch
from torch import Tensor

from examples.captioning.config import Config
from examples.captioning.decoder import VectorDecoder
from examples.captioning.model import decoder_loss
from examples.captioning.vocabulary import END, PAD

N, D, W, H, V, T = 10, 20, 30, 40, 3, 13
GATES = {"lstm": 4, "rnn": 1}
FEATURES = {"rnn": (-1.5, 0.3), "lstm": (-0.5, 1.7)}
LOSS = {"rnn": 9.83235591003, "lstm": 9.82445935443}


def line(*shape: int, low: float = -1.4, high: float = 1.3) -> Tensor:
    return torch.from_numpy(np.linspace(low, high, num=int(np.prod(shape))).reshape(shape))


def in_our_order(weight: Tensor, cell: str) -> Tensor:
    """Columns of the assignment's weight as rows, with gates in torch's order i, f, g, o."""
    if cell == "rnn":
        return weight.t() if weight.dim() == 2 else weight
    i, f, o, g = weight.chunk(4, dim=-1)
    joined = torch.cat([i, f, g, o], dim=-1)
    return joined.t() if weight.dim() == 2 else joined


def decoder_of(cell: str, backend: str) -> VectorDecoder:
    """The assignment's model. Its three words are the numbers END, END + 1 and END + 2 here: those
    that can be predicted."""
    config = Config(cell=cell, backend=backend, inject="h0", hidden=H, embedding=W)
    decoder = VectorDecoder(V + END, D, config).double()
    gates = GATES[cell] * H
    with torch.no_grad():
        decoder.image.weight.copy_(line(D, H).t())
        decoder.image.bias.copy_(line(H))
        decoder.embedding.weight[END:] = line(V, W)
        decoder.rnn.weight_ih_l0.copy_(in_our_order(line(W, gates), cell))
        decoder.rnn.weight_hh_l0.copy_(in_our_order(line(H, gates), cell))
        decoder.rnn.bias_ih_l0.copy_(in_our_order(line(gates), cell))
        decoder.rnn.bias_hh_l0.zero_()
        decoder.head.weight.copy_(line(H, V).t())
        decoder.head.bias.copy_(line(V))
    return decoder


def loss_of(decoder: VectorDecoder, features: Tensor) -> Tensor:
    """As the assignment defines it: the sum over counted words, over the number of captions."""
    captions = (torch.arange(N * T) % V).view(N, T)
    # Token 0 does not count as a target, which for decoder_loss is what PAD says; it is read all
    # the same, and so goes in as the word END.
    inputs, wanted = captions[:, :-1] + END, captions[:, 1:]
    targets = torch.where(wanted == 0, PAD, wanted + END)
    lengths = torch.full((N,), T - 1)
    hidden, _ = decoder(features, inputs.t(), lengths)
    counted = targets.t() != PAD
    logits = decoder.head(hidden[counted])
    total = torch.nn.functional.cross_entropy(logits, targets.t()[counted] - END, reduction="sum")
    return total / N


@pytest.mark.parametrize("backend", ["fastlstm", "torch"])
@pytest.mark.parametrize("cell", ["rnn", "lstm"])
def test_the_captioning_loss_of_cs231n(cell: str, backend: str) -> None:
    low, high = FEATURES[cell]
    loss = loss_of(decoder_of(cell, backend), line(N, D, low=low, high=high))
    assert abs(loss.item() - LOSS[cell]) <= 1e-9


@pytest.mark.parametrize("cell", ["rnn", "lstm"])
def test_its_gradients(cell: str) -> None:
    """Of every parameter and of the image: torch.nn's to rounding, and, for the largest entry of
    each, central differences of the loss."""
    low, high = FEATURES[cell]
    gradients = {}
    for backend in ("fastlstm", "torch"):
        decoder = decoder_of(cell, backend)
        features = line(N, D, low=low, high=high).requires_grad_()
        tensors = {"features": features, **dict(decoder.named_parameters())}
        found = torch.autograd.grad(loss_of(decoder, features), list(tensors.values()))
        gradients[backend] = dict(zip(tensors, found, strict=True))
    for name, expected in gradients["torch"].items():
        torch.testing.assert_close(gradients["fastlstm"][name], expected, rtol=1e-9, atol=1e-11)

    decoder, delta = decoder_of(cell, "fastlstm"), 1e-5
    features = line(N, D, low=low, high=high)
    tensors = {"features": features, **{n: p.data for n, p in decoder.named_parameters()}}
    for name, tensor in tensors.items():
        gradient = gradients["fastlstm"][name].flatten()
        place = int(gradient.abs().argmax())
        flat = tensor.view(-1)
        value, losses = flat[place].item(), []
        for sign in (1, -1):
            flat[place] = value + sign * delta
            with torch.no_grad():
                losses.append(loss_of(decoder, features).item())
        flat[place] = value
        numeric = (losses[0] - losses[1]) / (2 * delta)
        assert gradient[place].item() == pytest.approx(numeric, rel=1e-6, abs=1e-8), name


def test_decoder_loss_is_the_mean_over_the_words() -> None:
    """The loss that is trained, from the same parts: captions with an end and padding."""
    decoder = decoder_of("lstm", "fastlstm")
    features = line(N, D, low=-0.5, high=1.7)
    tokens = torch.full((N, 6), END + 1)
    tokens[:, 4], tokens[:, 5] = END, PAD
    tokens[0, 2:] = torch.tensor([END, PAD, PAD, PAD])
    lengths = (tokens != PAD).sum(1) - 1
    loss = decoder_loss(decoder, features, tokens, lengths)
    hidden, _ = decoder(features, tokens[:, :-1].t(), lengths)
    log_probs = decoder.head(hidden).log_softmax(2)
    total = sum(
        -log_probs[t, n, tokens[n, t + 1] - END] for n in range(N) for t in range(lengths[n])
    )
    assert loss.words == int(lengths.sum())
    torch.testing.assert_close(loss.nats, total / loss.words)
