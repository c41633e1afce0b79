"""``attention.png``: where a model looked while it wrote each word."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..common.files import atomic_write
from .example import Box

COLUMNS = 7
PANEL_INCHES = 1.5


@dataclass(frozen=True, eq=False)
class Attended:
    """One picture with a written caption. T: words, S: side of the picture."""

    image: np.ndarray | None  # uint8 [S, S, 3]
    words: Sequence[str]  # T of them
    attention: np.ndarray  # [T, H, W], not negative
    boxes: Mapping[str, Box] = field(default_factory=dict)  # drawn where their word is written


def save_attention(path: Path, pictures: Sequence[Attended]) -> None:
    """Draws each picture, then once more for each word with attention laid over it, as a PNG.

    The colours of a panel go from 0 to its own largest weight. ValueError for no pictures, or
    attention that is not [T, H, W].
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    if not pictures:
        raise ValueError("pictures must not be empty")
    for picture in pictures:
        if picture.attention.ndim != 3 or len(picture.attention) != len(picture.words):
            raise ValueError(
                f"attention must be [{len(picture.words)}, H, W], "
                f"got {list(picture.attention.shape)}"
            )
    lines = [math.ceil((1 + len(picture.words)) / COLUMNS) for picture in pictures]
    figure = Figure(
        figsize=(COLUMNS * PANEL_INCHES, sum(lines) * (PANEL_INCHES + 0.2)),
        dpi=100,
        layout="constrained",
    )
    grid = figure.subplots(sum(lines), COLUMNS, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    line = 0
    for picture, height in zip(pictures, lines, strict=True):
        _draw(grid[line : line + height].ravel(), picture)
        line += height
    with atomic_write(path) as file:
        FigureCanvasAgg(figure).print_png(file)


def _draw(panels: Sequence[Any], picture: Attended) -> None:
    from matplotlib.patches import Rectangle

    # Unit coordinates, because picture, attention and boxes have different resolutions.
    extent = (0.0, 1.0, 1.0, 0.0)
    image = np.zeros((1, 1, 3), np.uint8) if picture.image is None else picture.image
    panels[0].imshow(image, extent=extent)
    steps = zip(panels[1:], picture.words, picture.attention, strict=False)
    for axes, word, weights in steps:
        axes.set_title(word, fontsize=9, pad=2)
        axes.imshow(image, extent=extent)
        axes.imshow(
            weights,
            extent=extent,
            cmap="inferno",
            alpha=0.65,
            vmin=0.0,
            vmax=max(float(weights.max()), 1e-12),
            interpolation="bilinear",
        )
        if word in picture.boxes:
            x0, y0, x1, y1 = picture.boxes[word]
            axes.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, color="cyan", lw=1))
