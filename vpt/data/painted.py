"""One coloured shape before a background, drawn and described: what a small text-to-image model learns words from.

A **look** is a colour, a shape and a background; a **painting** is one picture of it in a **setting** that says, or
leaves open, the background, how large the thing is and where. Every function is deterministic in what it is given.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from vpt.data.scenes import COLOURS, SHAPES, SMOOTH, draw_shape, one_of, shade

__all__ = [
    "BACKGROUNDS",
    "PLACES",
    "SIZES",
    "Look",
    "Painting",
    "Setting",
    "captions",
    "check_word",
    "draw",
    "ground",
    "is_held_out",
    "looks",
    "painting",
    "sentences",
    "some_setting",
    "spot",
]

BACKGROUNDS = {**COLOURS, "white": (246, 246, 246)}
PALE = (225, 225, 225)  # of pictures whose background is not said
PLACES = {  # steps to the right and downwards from the middle
    "in the middle": (0, 0),
    "at the top": (0, -1),
    "at the bottom": (0, 1),
    "on the left": (-1, 0),
    "on the right": (1, 0),
    "at the top left": (-1, -1),
    "at the top right": (1, -1),
    "at the bottom left": (-1, 1),
    "at the bottom right": (1, 1),
}
SIZES = {"small": (0.12, 0.16), "large": (0.27, 0.36)}  # half of a thing's height, of the picture's side
BETWEEN = (0.14, 0.33)  # where the size is not said
ASIDE = 0.25  # the largest half height of a thing that is not in the middle: else it could not be told
EDGE = 0.03  # between a thing and the picture's edge
TEMPLATES = ("a picture of {}", "a photo of {}", "an image of {}", "a drawing of {}", "there is {}")


class Setting(NamedTuple):
    """What surrounds a thing, by the words of BACKGROUNDS, SIZES and PLACES; None is not said."""

    background: str | None = None
    size: str | None = None
    place: str | None = None


class Look(NamedTuple):
    """What a held-out rule speaks of. ``str`` gives its description in one sentence."""

    colour: str
    shape: str
    background: str | None = None

    def __str__(self) -> str:
        return sentences(f"{self.colour} {self.shape}", Setting(self.background))[0]


@dataclass(frozen=True)
class Painting:
    """One picture: a coloured shape, its setting, and the seed of what the words leave open."""

    colour: str
    shape: str
    setting: Setting
    seed: int
    index: int


@cache
def _ranks(rule: int) -> tuple[dict[str | None, int], ...]:
    rng = np.random.default_rng([rule, 10])
    words: tuple[Sequence[str | None], ...] = (tuple(COLOURS), SHAPES, (None, *BACKGROUNDS))
    return tuple(dict(zip(w, rng.permutation(len(w)).tolist(), strict=True)) for w in words)


def is_held_out(look: Look, rule: int = 0) -> bool:
    """Whether this combination of colour, shape and background is held out: a fifth of them is.

    Those whose numbers, in an order of ``rule``, add up to a multiple of 5: so every coloured shape is met before
    at least seven of its nine backgrounds (one of which is not said), and every word is met.
    """
    return sum(rank[word] for rank, word in zip(_ranks(rule), look, strict=True)) % 5 == 0


@cache
def looks(*, held_out: bool | None = None, rule: int = 0) -> tuple[Look, ...]:
    """Every look once, in an order of the rule: 432, or those that are held out, or the others."""
    found = [Look(*words) for words in product(COLOURS, SHAPES, (None, *BACKGROUNDS)) if words[0] != words[2]]
    told = [found[i] for i in np.random.default_rng([rule, 11]).permutation(len(found))]
    return tuple(look for look in told if held_out is None or is_held_out(look, rule) == held_out)


def some_setting(rng: np.random.Generator, background: str | None) -> Setting:
    """A setting before this background; sizes and places are said in half of them."""
    size = str(rng.choice(list(SIZES))) if rng.random() < 0.5 else None
    place = str(rng.choice(list(PLACES))) if rng.random() < 0.5 else None
    return Setting(background, size, place)


def painting(
    seed: int, index: int, *, held_out: bool | None = False, rule: int = 0, look: Look | None = None
) -> Painting:
    """Painting number ``index`` of the stream ``seed``, by default one that shows nothing that is held out.

    held_out: True for those that do, None for either, by ``rule``. look: for pictures of one look instead.
    """
    rng = np.random.default_rng([seed, 12, index])
    choice = looks(held_out=held_out, rule=rule)
    look = look or choice[rng.integers(len(choice))]
    return Painting(look.colour, look.shape, some_setting(rng, look.background), seed, index)


def sentences(thing: str, setting: Setting) -> list[str]:
    """Ways to say "a THING" in its setting, the plainest first; all say all that the setting says."""
    whole = one_of(*filter(None, (setting.size, thing)))
    place = f" {setting.place}" if setting.place else ""
    told = [f"{whole}{place}"]
    if setting.background:
        ground = f"{one_of(setting.background)} background"
        told = [f"{whole}{place} on {ground}", f"{whole} on {ground}{place}", f"{ground} with {whole}{place}"]
    return [*told, *(template.format(told[0]) for template in TEMPLATES)]


def captions(painting: Painting) -> list[str]:
    """Ways to describe the painting, the plainest first: "a small red circle at the top on a blue background"."""
    return sentences(f"{painting.colour} {painting.shape}", painting.setting)


def draw(painting: Painting, size: int = 64) -> Image.Image:
    """The painting as an RGB picture of ``size`` by ``size`` pixels. Raises ValueError for an unknown word."""
    check_word("colour", painting.colour, COLOURS)
    check_word("shape", painting.shape, SHAPES)
    rng = np.random.default_rng([painting.seed, 13, painting.index])
    side = size * SMOOTH
    canvas = ground(painting.setting, side, rng)
    x, y, radius = spot(painting.setting, rng)
    colour = shade(COLOURS[painting.colour], rng, 14)
    draw_shape(ImageDraw.Draw(canvas), painting.shape, (x * side, y * side), radius * side, colour)
    return canvas.resize((size, size), Image.Resampling.BOX)


def ground(setting: Setting, side: int, rng: np.random.Generator) -> Image.Image:
    """A picture of ``side`` by ``side`` pixels of nothing but the setting's background, in a shade of its own."""
    if setting.background is None:
        return Image.new("RGB", (side, side), shade(PALE, rng, 25))
    check_word("background", setting.background, BACKGROUNDS)
    return Image.new("RGB", (side, side), shade(BACKGROUNDS[setting.background], rng, 9))


def spot(setting: Setting, rng: np.random.Generator, grown: float = 1.0) -> tuple[float, float, float]:
    """Centre (right, down) and half height of a thing in its setting, in sides of the picture.

    grown: how much larger things of this sort are than shapes.
    """
    if setting.size is not None:
        check_word("size", setting.size, SIZES)
    if setting.place is not None:
        check_word("place", setting.place, PLACES)
    radius = grown * rng.uniform(*(SIZES[setting.size] if setting.size else BETWEEN))
    steps = PLACES[setting.place] if setting.place else (0, 0)
    radius = min(radius, grown * ASIDE if any(steps) else 0.46)
    least = radius + EDGE
    free = 0.5 - least  # from the middle to where the thing meets the edge
    if setting.place is None:
        across = rng.uniform(-free, free, 2)
    else:
        across = np.array(
            [
                rng.uniform(max(0.0, free - 0.1), free) * s if s else rng.uniform(-1, 1) * min(free, 0.05)
                for s in steps
            ]
        )
    x, y = (0.5 + across).tolist()
    return x, y, float(radius)


def check_word(what: str, word: str, known: Collection[str]) -> None:
    """Raises ValueError, with the words that there are, for another."""
    if word not in known:
        raise ValueError(f"there is no {what} {word!r}. Known are {', '.join(known)}.")
