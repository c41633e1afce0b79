"""The captioner: an encoder and a decoder, trained together."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attention import doubly_stochastic_penalty
from .config import Config
from .decoder import AttendingDecoder, Memory, VectorDecoder
from .encoder import Encoder, ImageVector
from .vocabulary import END, PAD


@dataclass(frozen=True)
class Loss:
    """``total`` is what to minimise; ``nats`` the mean cross entropy of the ``words`` scored."""

    total: Tensor
    nats: Tensor
    words: int


class Captioner(nn.Module):
    """N images to captions. Parameters and ``state_dict`` are the same with both backends.

    ``input_channels``: of the features, for the encoder that takes features instead of images.
    """

    def __init__(self, vocab_size: int, config: Config, input_channels: int | None = None) -> None:
        super().__init__()
        self.penalty = config.alpha_c
        self.encoder = Encoder(
            config.encoder_kind,
            grid=config.grid,
            channels=config.channels,
            input_channels=input_channels,
            weights=Path(config.weights) if config.weights else None,
            freeze=config.freeze_cnn,
        )
        if config.inject == "attend":
            self.vector: nn.Module = nn.Identity()
            self.decoder: nn.Module = AttendingDecoder(vocab_size, config.channels, config)
        else:
            self.vector = ImageVector(config.channels, config.image_width)
            self.decoder = VectorDecoder(vocab_size, config.image_width, config)

    @property
    def device(self) -> torch.device:
        return self.decoder.head.weight.device

    def see(self, images: Tensor) -> Tensor:
        """What the decoder gets of the images: a vector [N, W], or the grid [N, L, F]."""
        return self.vector(self.encoder(images))

    def start(self, images: Tensor) -> Memory:
        """The decoder's memory before START."""
        return self.decoder.start(self.see(images))

    def loss(self, images: Tensor, tokens: Tensor, lengths: Tensor) -> Loss:
        """Of the captions ``tokens`` (int64 [N, L]: START, words, END, then PAD); lengths[n] counts
        the words of row n that have one after them."""
        return decoder_loss(self.decoder, self.see(images), tokens, lengths, self.penalty)


def decoder_loss(
    decoder: nn.Module, image: Tensor, tokens: Tensor, lengths: Tensor, penalty: float = 0.0
) -> Loss:
    """As ``Captioner.loss``, from what the decoder gets of the images."""
    inputs, targets = tokens[:, :-1].t(), tokens[:, 1:].t()
    hidden, weights = decoder(image, inputs, lengths)
    counted = targets != PAD
    # The head is the largest product of a large vocabulary: padding goes no further than here.
    logits = decoder.head(decoder.dropout(hidden[counted]))
    nats = F.cross_entropy(logits, targets[counted] - END)
    total = nats
    if penalty and weights is not None:
        total = nats + penalty * doubly_stochastic_penalty(weights, counted)
    return Loss(total, nats, len(logits))
