"""From pixels, or features computed elsewhere, to a grid of feature vectors.

N: images, S: side of an image, G: side of the grid, F: features of a location.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..common.errors import UserError

# Of ImageNet's pixels in [0, 1]: what torchvision's backbones were trained with.
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class SmallCNN(nn.Sequential):
    """Three convolutions, [N, 3, S, S] in [-1, 1] -> [N, channels, S / 4, S / 4].

    A location sees 18 pixels of a side: the object that is there, and not the whole picture, or
    attention would have no reason to go to the object. The kernels that halve the picture are even,
    so that what a location sees is centred on its place: with odd ones it was 1.5 pixels off.
    """

    def __init__(self, channels: int) -> None:
        half = channels // 2
        super().__init__(
            nn.Conv2d(3, half, 4, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(half),
            nn.ReLU(),
            nn.Conv2d(half, channels, 4, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
        )


class Backbone(nn.Module):
    """A torchvision classifier without its last layers, on images in [-1, 1]."""

    def __init__(self, name: str, weights: Path | None) -> None:
        super().__init__()
        self.layers = _torchvision_layers(name, weights)
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(((images + 1) / 2 - self.mean) / self.std)


class Encoder(nn.Module):
    """Images [N, 3, S, S], or features [N, C, h, w], -> grid [N, G * G, F], row by row.

    ``kind`` is small, features, or torchvision:NAME. The last two are brought to F channels by a
    1x1 convolution; a grid of another size is averaged to G x G.
    """

    def __init__(
        self,
        kind: str,
        *,
        grid: int,
        channels: int,
        input_channels: int | None = None,
        weights: Path | None = None,
        freeze: bool = False,
    ) -> None:
        """``channels``: F; ``input_channels``: C of the given features; ``weights``: a state dict for the torchvision
        model; ``freeze``: the CNN keeps its weights and statistics."""
        super().__init__()
        self.grid, self.frozen = grid, freeze
        self.project: nn.Module = nn.Identity()
        if kind == "small":
            self.cnn: nn.Module = SmallCNN(channels)
        elif kind == "features":
            self.cnn = nn.Identity()
            self.project = nn.Conv2d(input_channels, channels, 1)
        else:
            self.cnn = Backbone(kind.partition(":")[2], weights)
            self.project = nn.LazyConv2d(channels, 1)
        # Where a location is, in [-1, 1]: a weighted sum would not say it otherwise.
        line = torch.linspace(-1, 1, grid) if grid > 1 else torch.zeros(1)
        places = torch.stack(torch.meshgrid(line, line, indexing="ij"))
        self.register_buffer("places", places, persistent=False)
        self.place = nn.Conv2d(2, channels, 1, bias=False)
        self.cnn.requires_grad_(not freeze)
        if kind.startswith("torchvision"):
            with torch.no_grad():
                self(torch.zeros(2, 3, 64, 64))

    def forward(self, images: Tensor) -> Tensor:
        x = self.project(self.cnn(images))
        if x.shape[2:] != self.places.shape[1:]:
            x = F.adaptive_avg_pool2d(x, self.grid)
        return (x + self.place(self.places)).flatten(2).transpose(1, 2).contiguous()

    def train(self, mode: bool = True) -> Encoder:
        super().train(mode)
        if self.frozen:
            self.cnn.eval()
        return self


class ImageVector(nn.Module):
    """The whole grid [N, L, F] as one vector [N, width], for decoders that do not attend.

    A few learnt questions, the same for every picture, are each answered by a weighted sum of the
    grid (Lee et al. 2019, section 3.2, without its layers): what stands in a place is learnt for
    all places at once, where a fully connected layer learns it for each. The vector is normalised
    over the batch, or the decoder learns the words and does not look at the picture for the first
    1000 steps.
    """

    QUESTIONS = 16
    # Of the first questions' entries. With 8 questions and ``every``, 39 % of the captions were
    # right after 332 steps, and 12 % with 1.0 here.
    SPREAD = 0.3

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.questions = nn.Linear(channels, self.QUESTIONS, bias=False)
        nn.init.normal_(self.questions.weight, std=self.SPREAD)
        self.full = nn.Linear(self.QUESTIONS * channels, width, bias=False)
        self.norm = nn.BatchNorm1d(width)

    def forward(self, grid: Tensor) -> Tensor:
        weights = self.questions(grid).softmax(1)  # [N, L, questions]
        answers = torch.bmm(weights.transpose(1, 2), grid)
        return self.norm(self.full(answers.flatten(1)))


def _torchvision_layers(name: str, weights: Path | None) -> nn.Module:
    try:
        from torchvision import models
    except ImportError as error:
        raise UserError(f"--encoder torchvision:{name} needs torchvision") from error
    try:
        model = models.get_model(name, weights=None)
    except ValueError as error:
        raise UserError(f"torchvision has no model {name}") from error
    if weights is not None:
        try:
            state = torch.load(weights, map_location="cpu", weights_only=True)
            model.load_state_dict(state)
        except FileNotFoundError as error:
            raise UserError(f"no weights at {weights}") from error
        except Exception as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"{weights} does not fit torchvision's {name}: {reason}") from error
    if hasattr(model, "features"):
        return model.features
    # ResNets: all but the average over the image, and the classifier.
    return nn.Sequential(*list(model.children())[:-2])
