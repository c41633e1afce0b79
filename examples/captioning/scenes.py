"""Generated pictures of one or two coloured shapes, with captions and known boxes.

They need no download, there are as many as are asked for, and what is right is known: a caption is
right if it is one of the phrasings of its scene, attention is right if it looks into the box.
"""

from __future__ import annotations

import itertools
import math
import zlib
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from .example import Box, Example

COLOURS = {
    "red": (215, 40, 40),
    "green": (40, 170, 60),
    "blue": (50, 90, 230),
    "yellow": (235, 215, 50),
    "purple": (165, 60, 190),
    "white": (240, 240, 240),
}
SHAPES = ("circle", "square", "triangle", "cross", "star")
# Half the width of a thing as a share of the picture's side, from and to.
SIZES = {"small": (0.10, 0.12), "large": (0.18, 0.21)}
# The word from the first thing to the second and back; the first is the one above, or on the left.
RELATIONS = {"above": "below", "left of": "right of"}

SINGLE_PHRASINGS = ("{0}", "there is {0}", "one {1}", "only {0}", "nothing but {0}")
# All begin with the same thing, since nothing in a picture says with which: a model that may begin
# with either learns to look at both.
PAIR_PHRASINGS = (
    "{0} {relation} {1}",
    "{0} is {relation} {1}",
    "there is {0} {relation} {1}",
    "{inverse} {0} is {1}",
    "{inverse} {0} there is {1}",
)

SHARE_OF_SINGLES = 0.2
HELD_OUT = 5  # one combination in so many is kept for scenes that training never sees
GAP = 0.03  # between two things, and to the edge
SLANT = 0.5  # how far a thing "above" may be to the side, as a share of its height above
SUPERSAMPLING = 4


@dataclass(frozen=True)
class Thing:
    """What a caption can say of one shape."""

    size: str
    colour: str
    shape: str

    def __str__(self) -> str:
        return f"a {self.size} {self.colour} {self.shape}"


@dataclass(frozen=True)
class Scene:
    """One thing, or two and the relation of the first to the second."""

    things: tuple[Thing, ...]
    relation: str | None = None

    def captions(self) -> list[str]:
        """All right captions: the phrasings of its kind."""
        if self.relation is None:
            (thing,) = self.things
            name = str(thing)
            return [p.format(name, name.removeprefix("a ")) for p in SINGLE_PHRASINGS]
        words = {"relation": self.relation, "inverse": RELATIONS[self.relation]}
        return [phrasing.format(*self.things, **words) for phrasing in PAIR_PHRASINGS]

    def is_held_out(self) -> bool:
        """Whether this combination is kept for validation. Python's own hash varies by run."""
        return zlib.crc32(self.captions()[0].encode()) % HELD_OUT == 0


def generate(count: int, seed: int, size: int = 64, *, held_out: bool = False) -> list[Example]:
    """``count`` scenes of ``size`` pixels a side, the same for the same ``seed``.

    With ``held_out`` every scene is a combination of things and relation that never occurs without
    it: each of its words is known from other scenes, its captions are new. ValueError for a
    negative ``count`` or a ``size`` below 32, where the shapes cannot be told apart.
    """
    if count < 0:
        raise ValueError(f"count must be at least 0, got {count}")
    if size < 32:
        raise ValueError(f"size must be at least 32, got {size}")
    rng = np.random.default_rng([seed, held_out])
    kind = "unseen" if held_out else "scene"
    return [_example(f"{kind}-{seed}-{n}", rng, size, held_out) for n in range(count)]


def _example(name: str, rng: np.random.Generator, size: int, held_out: bool) -> Example:
    scene = _draw_scene(rng)
    while scene.is_held_out() != held_out:
        scene = _draw_scene(rng)
    radii = [rng.uniform(*SIZES[thing.size]) for thing in scene.things]
    centres = _place(rng, radii, scene.relation)
    image = _render(rng, scene, radii, centres, size)
    boxes: dict[str, Box] = {
        thing.shape: (x - r, y - r, x + r, y + r)
        for thing, r, (x, y) in zip(scene.things, radii, centres, strict=True)
    }
    return Example(name, image, None, scene.captions(), boxes)


def _draw_scene(rng: np.random.Generator) -> Scene:
    count = 1 if rng.random() < SHARE_OF_SINGLES else 2
    # Different shapes, so that a shape's word means one box.
    shapes = rng.permutation(len(SHAPES))[:count]
    things = tuple(
        Thing(_pick(rng, tuple(SIZES)), _pick(rng, tuple(COLOURS)), SHAPES[shape])
        for shape in shapes
    )
    return Scene(things, None if count == 1 else _pick(rng, tuple(RELATIONS)))


def _pick(rng: np.random.Generator, values: tuple[str, ...]) -> str:
    return values[rng.integers(len(values))]


def _place(
    rng: np.random.Generator, radii: list[float], relation: str | None
) -> list[tuple[float, float]]:
    """Centres (x, y) that make ``relation`` true beyond doubt and keep things apart."""
    low = [r + GAP for r in radii]
    high = [1 - r - GAP for r in radii]
    if relation is None:
        return [(rng.uniform(low[0], high[0]), rng.uniform(low[0], high[0]))]
    distance = rng.uniform(radii[0] + radii[1] + GAP, high[1] - low[0])
    along = rng.uniform(max(low[0], low[1] - distance), min(high[0], high[1] - distance))
    across = rng.uniform(low[0], high[0])
    slant = SLANT * distance
    other = rng.uniform(max(low[1], across - slant), min(high[1], across + slant))
    centres = [(across, along), (other, along + distance)]
    return centres if relation == "above" else [(y, x) for x, y in centres]


def _render(
    rng: np.random.Generator,
    scene: Scene,
    radii: list[float],
    centres: list[tuple[float, float]],
    size: int,
) -> np.ndarray:
    """The picture, uint8 [size, size, 3]: shapes on a dark ground, with noise over all."""
    ground = int(rng.integers(20, 70))
    picture = Image.new("RGB", (size, size), (ground, ground, ground))
    for thing, radius, (x, y) in zip(scene.things, radii, centres, strict=True):
        colour = np.clip(COLOURS[thing.colour] + rng.integers(-15, 16, 3), 0, 255)
        left, top = math.floor((x - radius) * size), math.floor((y - radius) * size)
        side = math.ceil(2 * radius * size) + 1
        mask = _mask(thing.shape, x * size - left, y * size - top, radius * size, side)
        picture.paste(tuple(int(c) for c in colour), (left, top), mask)
    noise = rng.integers(-10, 11, (size, size, 3), dtype=np.int16)
    return np.clip(np.asarray(picture) + noise, 0, 255).astype(np.uint8)


def _mask(shape: str, x: float, y: float, radius: float, side: int) -> Image.Image:
    """How much of each of ``side`` x ``side`` pixels the shape around (x, y) covers."""
    mask = Image.new("L", (side * SUPERSAMPLING, side * SUPERSAMPLING))
    draw = ImageDraw.Draw(mask)
    points = [
        ((x + radius * u) * SUPERSAMPLING, (y + radius * v) * SUPERSAMPLING)
        for u, v in _OUTLINES[shape]
    ]
    if shape == "circle":
        draw.ellipse(points, fill=255)
    else:
        draw.polygon(points, fill=255)
    return mask.reduce(SUPERSAMPLING)


def _star() -> list[tuple[float, float]]:
    """Five points, as wide as its box, and in the middle of its height."""
    angles = [math.pi * k / 5 - math.pi / 2 for k in range(10)]
    lengths = itertools.cycle((1.0, 0.45))
    points = [(r * math.cos(a), r * math.sin(a)) for a, r in zip(angles, lengths, strict=False)]
    half = math.cos(math.pi / 10)
    lift = (1 - math.cos(math.pi / 5)) / 2
    return [(x / half, (y + lift) / half) for x, y in points]


_ARM = 1 / 3
# Corners in units of the radius around the centre; of the circle, those of its box. All of them
# fill the box, so that the box is where the thing is.
_OUTLINES = {
    "circle": [(-1, -1), (1, 1)],
    "square": [(-1, -1), (1, -1), (1, 1), (-1, 1)],
    "triangle": [(0, -1), (1, 1), (-1, 1)],
    "cross": [
        *((-_ARM, -1), (_ARM, -1), (_ARM, -_ARM), (1, -_ARM), (1, _ARM), (_ARM, _ARM)),
        *((_ARM, 1), (-_ARM, 1), (-_ARM, _ARM), (-1, _ARM), (-1, -_ARM), (-_ARM, -_ARM)),
    ],
    "star": _star(),
}
