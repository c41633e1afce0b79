"""A picture with its captions: what every source of data delivers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

Box = tuple[float, float, float, float]


@dataclass(frozen=True, eq=False)
class Example:
    """One picture. S: its side in pixels; C, H, W: channels and grid of its features."""

    name: str
    image: np.ndarray | None  # uint8 [S, S, 3]
    features: np.ndarray | None  # float32 [C, H, W]
    captions: list[str]
    # Where each shape named in the captions is: x0, y0, x1, y1 as shares of width and height.
    boxes: dict[str, Box] | None = None
