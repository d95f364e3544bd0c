"""Drawn creatures of many parts: faces to teach a word for, whose likes a small text-to-image model has met.

A character is a choice of parts; its pictures differ in setting, shade, size and a slight turn of the parts. Those
that ``is_held_out`` are shown to no starter: ``new_characters`` are ten of them.
"""

from functools import cache
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from vpt.data.painted import Setting, check_word, ground, spot
from vpt.data.scenes import COLOURS, SMOOTH, one_of, shade

__all__ = [
    "NOUNS",
    "PARTS",
    "Character",
    "character",
    "described",
    "draw_character",
    "is_held_out",
    "new_characters",
]

HUES = {**COLOURS, "pink": (245, 150, 180), "grey": (140, 140, 145)}
PARTS: dict[str, tuple[str, ...]] = {
    "colour": tuple(HUES),
    "accent": tuple(HUES),
    "head": ("round", "square", "tall", "wide"),
    "top": ("round ears", "pointed ears", "long ears", "horns", "antennae", "nothing"),
    "eyes": ("one eye", "two eyes", "three eyes"),
    "mouth": ("smile", "open mouth", "teeth"),
    "pattern": ("plain", "spotted", "striped"),
}
NOUNS = ("creature", "monster", "character")
HEADS = {
    "round": (0.78, 0.74),
    "square": (0.72, 0.68),
    "tall": (0.58, 0.78),
    "wide": (0.95, 0.6),
}  # half sides
GROWN = 1.6  # a character is this much larger than a shape: it has parts to show
WHITE, BLACK = (250, 250, 250), (20, 20, 20)

Colour = tuple[int, ...]


class Character(NamedTuple):
    """Parts by the words of PARTS. ``str`` says them all: "round green creature with two red horns, ..."."""

    colour: str
    accent: str  # of ears' insides, horns, antennae's tips, spots, stripes and the nose
    head: str
    top: str
    eyes: str
    mouth: str
    pattern: str

    def __str__(self) -> str:
        return described(self)


def is_held_out(one: Character, rule: int = 0) -> bool:
    """Whether no starter has met this combination of colour, head and top: a fifth of them."""
    words = (one.colour, one.head, one.top)
    return sum(rank[word] for rank, word in zip(_ranks(rule), words, strict=True)) % 5 == 0


@cache
def _ranks(rule: int) -> tuple[dict[str, int], ...]:
    rng = np.random.default_rng([rule, 20])
    return tuple(
        dict(zip(PARTS[part], rng.permutation(len(PARTS[part])).tolist(), strict=True))
        for part in ("colour", "head", "top")
    )


def character(seed: int, index: int, *, held_out: bool = False) -> Character:
    """Character number ``index`` of the stream ``seed``, by default one that is not held out."""
    rng = np.random.default_rng([seed, 21, index])
    while True:
        colour, accent = (str(c) for c in rng.choice(list(HUES), 2, replace=False))
        rest = [str(rng.choice(PARTS[part])) for part in ("head", "top", "eyes", "mouth", "pattern")]
        found = Character(colour, accent, *rest)
        if is_held_out(found) == held_out:
            return found


def new_characters(count: int = 10, seed: int = 0) -> tuple[Character, ...]:
    """Held-out characters, no two of one colour and one top."""
    found: dict[tuple[str, str], Character] = {}
    index = 0
    while len(found) < count:
        one = character(seed, index, held_out=True)
        found.setdefault((one.colour, one.top), one)
        index += 1
    return tuple(found.values())


def described(one: Character, rng: np.random.Generator | None = None) -> str:
    """The character in words, without an article: all parts, or with ``rng`` some of them."""
    chance = (lambda: True) if rng is None else (lambda: bool(rng.random() < 0.55))
    noun = NOUNS[0] if rng is None else str(rng.choice(NOUNS))
    adjectives = [one.head] if chance() else []
    adjectives += [one.pattern] if one.pattern != "plain" and chance() else []
    adjectives += [one.colour] if rng is None or rng.random() < 0.9 else []
    parts = []
    if one.top != "nothing" and chance():
        parts.append(f"{one.accent} {one.top}" if chance() else f"two {one.top}")
    parts += [one.eyes] if chance() else []
    parts += [one.mouth if one.mouth == "teeth" else one_of(one.mouth)] if chance() else []
    parts += [one_of(one.accent, "nose")] if chance() else []
    told = " ".join([*adjectives, noun])
    if not parts:
        return told
    return f"{told} with {', '.join(parts[:-1])} and {parts[-1]}" if parts[1:] else f"{told} with {parts[0]}"


def draw_character(one: Character, setting: Setting, seed: int, index: int, size: int = 64) -> Image.Image:
    """Picture number ``index`` of the stream ``seed``: RGB, ``size`` by ``size`` pixels.

    Raises ValueError for an unknown word.
    """
    for part, word in one._asdict().items():
        check_word(part, word, PARTS[part])
    rng = np.random.default_rng([seed, 22, index])
    side = size * SMOOTH
    canvas = ground(setting, side, rng)
    x, y, radius = spot(setting, rng, GROWN)
    pen = _Pen(ImageDraw.Draw(canvas), x * side, y * side, radius * side)
    main, accent = shade(HUES[one.colour], rng, 10), shade(HUES[one.accent], rng, 10)
    lean = float(rng.uniform(-0.06, 0.06))
    width, height = HEADS[one.head]
    middle = 0.98 - height  # the head stands at the bottom of its box, what it wears at the top
    _draw_top(pen, one.top, main, accent, width, middle - height, lean)
    head = _head(pen, one.head, width, height, middle)
    pen.shape(head, main)
    _draw_pattern(canvas, pen, one.pattern, head, accent, width, height, middle)
    _draw_face(pen, one, accent, width, height, middle, lean)
    return canvas.resize((size, size), Image.Resampling.BOX)


class _Pen:
    """Draws in a box of [-1, 1], right and down."""

    def __init__(self, pen: ImageDraw.ImageDraw, x: float, y: float, scale: float):
        self.pen, self.x, self.y, self.scale = pen, x, y, scale

    def at(self, x: float, y: float) -> tuple[float, float]:
        return self.x + x * self.scale, self.y + y * self.scale

    def shape(self, points: list[tuple[float, float]], colour: Colour) -> None:
        self.pen.polygon([self.at(*p) for p in points], fill=colour)

    def disc(self, x: float, y: float, rx: float, colour: Colour, ry: float | None = None) -> None:
        ry = rx if ry is None else ry
        self.pen.ellipse([*self.at(x - rx, y - ry), *self.at(x + rx, y + ry)], fill=colour)

    def line(self, points: list[tuple[float, float]], width: float, colour: Colour) -> None:
        self.pen.line(
            [self.at(*p) for p in points], fill=colour, width=max(1, round(width * self.scale)), joint="curve"
        )


def _head(pen: _Pen, head: str, width: float, height: float, middle: float) -> list[tuple[float, float]]:
    """The outline: an ellipse, or a square whose corners are rounded (a superellipse)."""
    power = 0.45 if head == "square" else 1.0
    turns = np.linspace(0, 2 * np.pi, 72, endpoint=False)
    c, s = np.cos(turns), np.sin(turns)
    xs, ys = np.sign(c) * np.abs(c) ** power, np.sign(s) * np.abs(s) ** power
    return [(float(x) * width, middle + float(y) * height) for x, y in zip(xs, ys, strict=True)]


def _draw_top(
    pen: _Pen, top: str, main: Colour, accent: Colour, width: float, crown: float, lean: float
) -> None:
    """What stands on the head, whose highest point is ``crown``; drawn before the head, which covers its foot."""
    for way in (-1, 1):
        x = way * width * 0.62
        tip = x + way * 0.12 + lean
        if top == "round ears":
            pen.disc(x + way * 0.08, crown + 0.12, 0.34, main)
            pen.disc(x + way * 0.08, crown + 0.12, 0.19, accent)
        elif top == "pointed ears":
            pen.shape([(x - 0.34, crown + 0.42), (tip, crown - 0.42), (x + 0.34, crown + 0.42)], main)
            pen.shape([(x - 0.15, crown + 0.3), (tip, crown - 0.18), (x + 0.15, crown + 0.3)], accent)
        elif top == "long ears":
            pen.disc(x * 0.75 + lean, crown - 0.05, 0.19, main, 0.5)
            pen.disc(x * 0.75 + lean, crown - 0.08, 0.09, accent, 0.36)
        elif top == "horns":
            pen.shape(
                [(x - 0.17, crown + 0.36), (tip + way * 0.1, crown - 0.42), (x + 0.17, crown + 0.36)], accent
            )
        elif top == "antennae":
            pen.line([(x * 0.6, crown + 0.3), (x * 0.8 + lean, crown - 0.28)], 0.1, main)
            pen.disc(x * 0.8 + lean, crown - 0.3, 0.15, accent)


def _draw_pattern(
    canvas: Image.Image,
    pen: _Pen,
    pattern: str,
    head: list[tuple[float, float]],
    accent: Colour,
    width: float,
    height: float,
    middle: float,
) -> None:
    if pattern == "plain":
        return
    within = Image.new("L", canvas.size)
    ImageDraw.Draw(within).polygon([pen.at(*p) for p in head], fill=255)
    layer = canvas.copy()
    on = _Pen(ImageDraw.Draw(layer), pen.x, pen.y, pen.scale)
    if pattern == "spotted":
        for x, y in ((-0.8, -0.2), (0.8, 0.05), (-0.65, 0.6), (0.55, 0.75), (0.05, -0.85), (0.75, -0.6)):
            on.disc(x * width, middle + y * height, 0.13, accent)
    else:
        for y in (-0.85, 0.35, 0.85):
            on.line([(-1.1, middle + y * height), (1.1, middle + y * height)], 0.14, accent)
    canvas.paste(layer, mask=within)


def _draw_face(
    pen: _Pen, one: Character, accent: Colour, width: float, height: float, middle: float, lean: float
) -> None:
    brow = middle - 0.22 * height
    places = {"one eye": (0.0,), "two eyes": (-0.38, 0.38), "three eyes": (-0.6, 0.0, 0.6)}[one.eyes]
    size = {"one eye": 0.32, "two eyes": 0.22, "three eyes": 0.18}[one.eyes]
    for x in places:
        pen.disc(x * width, brow, size, WHITE)
        pen.disc(x * width + lean, brow + 0.03, size * 0.52, BLACK)
    pen.disc(0, middle + 0.2 * height, 0.11, accent)
    low, wide = middle + 0.55 * height, 0.36 * width
    if one.mouth == "smile":
        bow = [(wide * t, low + 0.14 * (1 - t * t)) for t in np.linspace(-1, 1, 15).tolist()]
        pen.line(bow, 0.09, BLACK)
    elif one.mouth == "open mouth":
        pen.disc(0, low + 0.05, 0.17, BLACK, 0.2)
    else:
        pen.shape([(-wide, low - 0.06), (wide, low - 0.06), (wide, low + 0.16), (-wide, low + 0.16)], BLACK)
        for x in (-0.6, 0.0, 0.6):
            pen.shape(
                [((x + d) * wide, low + y) for d, y in ((-0.25, -0.06), (0.25, -0.06), (0, 0.1))], WHITE
            )
