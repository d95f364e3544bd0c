"""Coloured shapes in spatial relations, drawn and described: pictures whose words say all there is to say.

A **kind** is two coloured shapes and a relation ("a red circle left of a blue square"); a **scene** is one
picture of it, with sizes, places and shades of its own. Every function is deterministic in what it is given.
"""

import math
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

__all__ = [
    "CHARACTER",
    "Kind",
    "Scene",
    "captions",
    "draw",
    "draw_shape",
    "is_held_out",
    "kinds",
    "one_of",
    "scene",
    "shade",
    "vocabulary",
]

COLOURS = {
    "red": (214, 39, 40),
    "orange": (255, 140, 20),
    "yellow": (245, 215, 40),
    "green": (50, 150, 60),
    "blue": (40, 90, 215),
    "purple": (140, 60, 180),
    "brown": (125, 80, 50),
    "black": (30, 30, 30),
}
SHAPES = ("circle", "square", "triangle", "star", "cross", "heart")
MIRROR = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
PHRASES = {
    "left of": ("to the left of", "on its right"),  # how else it is said, and where the other one then is
    "right of": ("to the right of", "on its left"),
    "above": ("over", "underneath it"),
    "below": ("under", "above it"),
}
SIZES = {"small": (0.10, 0.13), "large": (0.17, 0.205)}  # half of a shape's height, of the picture's side
CHARACTER = "moko"  # a shape outside the vocabulary, for concepts that a model has yet to learn
SMOOTH = 4  # pictures are drawn this much larger and scaled down


class Kind(NamedTuple):
    """What the scenes of one class have in common. ``str`` gives its description in one sentence."""

    colour: str
    shape: str
    relation: str
    other_colour: str
    other_shape: str

    def mirrored(self) -> "Kind":
        """The same arrangement, told from the other shape."""
        return Kind(*self[3:], MIRROR[self.relation], *self[:2])

    def turned(self) -> "Kind":
        """The same two shapes the other way round."""
        return self._replace(relation=MIRROR[self.relation])

    def __str__(self) -> str:
        return (
            f"{one_of(self.colour, self.shape)} {self.relation} {one_of(self.other_colour, self.other_shape)}"
        )


@dataclass(frozen=True)
class Scene:
    """One picture: a kind, the size of each shape ("small" or "large"), and the seed of places and shades."""

    kind: Kind
    sizes: tuple[str, str]
    seed: int
    index: int


def vocabulary() -> dict[str, tuple[str, ...]]:
    """The words that tell scenes apart: colours, shapes, relations, sizes. ``CHARACTER`` is not among them."""
    return {"colours": tuple(COLOURS), "shapes": SHAPES, "relations": tuple(MIRROR), "sizes": tuple(SIZES)}


@cache
def _ranks(rule: int) -> tuple[dict[str, int], ...]:
    """A number for every colour, shape and relation, in an order that the rule gives."""
    rng = np.random.default_rng([rule, 0])
    words = (tuple(COLOURS), SHAPES, tuple(MIRROR))
    return tuple(
        {word: int(rank) for word, rank in zip(w, rng.permutation(len(w)), strict=True)} for w in words
    )


def is_held_out(kind: Kind, rule: int = 0) -> bool:
    """Whether one of the two shapes stands in a combination of colour, shape and relation that is held out.

    A fifth of the combinations is held out: those whose numbers add up to a multiple of 5. So each coloured
    shape keeps at least three of its four relations, and every word is met in training. A kind and its mirror
    image agree. Of all kinds, about a third is held out. rule: a seed; another one holds out others.
    """
    ranks = _ranks(rule)

    def held(told: Kind) -> bool:
        return sum(rank.get(word, 0) for rank, word in zip(ranks, told[:3], strict=True)) % 5 == 0

    return held(kind) or held(kind.mirrored())


@cache
def _all_kinds(rule: int) -> tuple[Kind, ...]:
    things = [(colour, shape) for colour in COLOURS for shape in SHAPES]
    rng = np.random.default_rng([rule, 1])
    found = [
        Kind(*one, relation, *other)
        for one in things
        for relation in ("left of", "above")
        for other in things
        if one != other
    ]
    told = [
        kind.mirrored() if mirror else kind
        for kind, mirror in zip(found, rng.random(len(found)) < 0.5, strict=True)
    ]
    return tuple(told[i] for i in rng.permutation(len(told)))


@cache
def kinds(*, held_out: bool | None = None, rule: int = 0) -> tuple[Kind, ...]:
    """Every arrangement once, in an order of the rule: 4,512, or those that are held out, or the others.

    The first n are a list of n classes: ``[str(kind) for kind in kinds(held_out=True)[:n]]`` are their names.
    """
    return tuple(k for k in _all_kinds(rule) if held_out is None or is_held_out(k, rule) == held_out)


def scene(
    seed: int, index: int, *, held_out: bool | None = False, rule: int = 0, kind: Kind | None = None
) -> Scene:
    """Scene number ``index`` of the stream ``seed``, by default one that shows nothing that is held out.

    held_out: True for scenes that do, None for either, by ``rule``. kind: for pictures of one class instead.
    """
    rng = np.random.default_rng([seed, 2, index])
    if kind is None:
        choice = kinds(held_out=held_out, rule=rule)
        kind = choice[rng.integers(len(choice))]
    one, other = (str(size) for size in rng.choice(list(SIZES), 2))
    return Scene(kind, (one, other), seed, index)


def one_of(*words: str) -> str:
    """The words behind "a" or "an"."""
    text = " ".join(words)
    return f"an {text}" if text[0] in "aeiou" else f"a {text}"


def captions(scene: Scene) -> list[str]:
    """Eight ways to describe the scene in full; the first is ``str(scene.kind)``, four name the sizes."""
    told, mirror = scene.kind, scene.kind.mirrored()
    one, other = one_of(*told[:2]), one_of(*mirror[:2])
    sized, other_sized = one_of(scene.sizes[0], *told[:2]), one_of(scene.sizes[1], *mirror[:2])
    phrase, place = PHRASES[told.relation]
    mirror_phrase, mirror_place = PHRASES[mirror.relation]
    return [
        str(told),
        str(mirror),
        f"{one} {phrase} {other}",
        f"there is {one} with {other} {place}",
        f"{sized} {told.relation} {other_sized}",
        f"{other_sized} {mirror.relation} {sized}",
        f"a picture of {other_sized} {mirror_phrase} {sized}",
        f"{other_sized} with {sized} {mirror_place}",
    ]


def _polygon(shape: str) -> list[tuple[float, float]]:
    """Corners in [-1, 1], y downwards."""
    if shape == "square":
        return [(-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)]
    if shape == "triangle":
        return [(0, -0.95), (1, 0.8), (-1, 0.8)]
    if shape == "star":
        spikes = [(0.42 if i % 2 else 1, math.pi * (i / 5 - 0.5)) for i in range(10)]
        return [(r * math.cos(t), r * math.sin(t)) for r, t in spikes]
    if shape == "cross":
        xs = (-1, -1, -0.32, -0.32, 0.32, 0.32, 1, 1, 0.32, 0.32, -0.32, -0.32)
        return [(x, y) for x, y in zip(xs, xs[3:] + xs[:3], strict=True)]
    turns = [math.pi * i / 30 for i in range(60)]  # the heart curve, scaled to the box
    waves = (13, -5, -2, -1)
    return [
        (math.sin(t) ** 3, -sum(w * math.cos((i + 1) * t) for i, w in enumerate(waves)) / 16) for t in turns
    ]


def _places(relation: str, radii: tuple[float, float], rng: np.random.Generator) -> list[tuple[float, float]]:
    """Centres of both shapes, in sides of the picture: apart along the relation, nearly level across it."""
    edge, gap = 0.04, 0.03
    free = 1 - 2 * edge - 2 * sum(radii) - gap
    before, between, _ = free * rng.dirichlet((1, 1, 1))
    first = edge + before + radii[0]
    along = [first, first + radii[0] + gap + between + radii[1]]
    level, reach = rng.uniform(0.35, 0.65), 0.1
    across = [float(np.clip(level + rng.uniform(-reach, reach), r + edge, 1 - r - edge)) for r in radii]
    horizontal = relation in ("left of", "right of")
    return [(a, c) if horizontal else (c, a) for a, c in zip(along, across, strict=True)]


def draw(scene: Scene, size: int = 96) -> Image.Image:
    """The scene as an RGB picture of ``size`` by ``size`` pixels. Raises ValueError for an unknown word."""
    kind, rng = scene.kind, np.random.default_rng([scene.seed, 3, scene.index])
    told, sizes = kind, scene.sizes
    _check(kind)
    if kind.relation in ("right of", "below"):  # the mirror image has its first shape first
        told, sizes = kind.mirrored(), (sizes[1], sizes[0])
    side = size * SMOOTH
    canvas = Image.new("RGB", (side, side), shade((225, 225, 225), rng, 25))
    pen = ImageDraw.Draw(canvas)
    radii = tuple(float(rng.uniform(*SIZES[name])) for name in sizes)
    places = _places(told.relation, (radii[0], radii[1]), rng)
    for (colour, shape), (x, y), radius in zip((told[:2], told[3:]), places, radii, strict=True):
        draw_shape(pen, shape, (x * side, y * side), radius * side, shade(COLOURS[colour], rng, 14))
    return canvas.resize((size, size), Image.Resampling.BOX)


def _check(kind: Kind) -> None:
    known = {"colour": tuple(COLOURS), "shape": (*SHAPES, CHARACTER), "relation": tuple(MIRROR)}
    for field, word in kind._asdict().items():
        words = known[field.removeprefix("other_")]
        if word not in words:
            raise ValueError(
                f"a scene has no {field.replace('_', ' ')} {word!r}. There is {', '.join(words)}."
            )


def shade(colour: tuple[int, int, int], rng: np.random.Generator, reach: int) -> tuple[int, ...]:
    """The colour, lighter or darker by at most ``reach`` and tinted by half of it."""
    light, tint = rng.integers(-reach, reach + 1), rng.integers(-reach // 2, reach // 2 + 1, 3)
    return tuple(int(np.clip(c + light + t, 0, 255)) for c, t in zip(colour, tint, strict=True))


def draw_shape(
    pen: ImageDraw.ImageDraw, shape: str, at: tuple[float, float], radius: float, colour: tuple[int, ...]
) -> None:
    """Draw a shape whose box is ``radius`` pixels to each side of ``at``."""

    def disc(x: float, y: float, r: float, fill: tuple[int, ...]) -> None:
        centre = at[0] + x * radius, at[1] + y * radius
        pen.ellipse([c - r * radius for c in centre] + [c + r * radius for c in centre], fill=fill)

    if shape == "circle":
        disc(0, 0, 0.95, colour)
    elif shape == CHARACTER:  # a round head with two ears, two eyes and a nose
        for x in (-0.6, 0.6):
            disc(x, -0.62, 0.36, colour)
        disc(0, 0.1, 0.85, colour)
        for x in (-0.33, 0.33):
            disc(x, -0.05, 0.26, (255, 255, 255))
            disc(x, -0.02, 0.13, (0, 0, 0))
        disc(0, 0.42, 0.17, (240, 130, 150))
    else:
        pen.polygon([(at[0] + x * radius, at[1] + y * radius) for x, y in _polygon(shape)], fill=colour)
