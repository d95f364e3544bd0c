"""The pictures that sd-mini learns from, each with a caption: drawn or read afresh for every number."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from vpt.data import characters, painted, scenes
from vpt.data.painted import BACKGROUNDS, sentences, some_setting
from vpt.data.scenes import one_of
from vpt.tasks.starters.clip_mini import held_out_emoji
from vpt.tasks.starters.sentences import class_names, emoji_names
from vpt.tasks.starters.shards import find_shards, labels_of, pictures
from vpt.towers.starter.vit_mini import CLASSES

__all__ = ["LEARN", "SEE", "Captioned", "Pictures", "Shares"]

SIZE = 64
NO_GROUND = 0.35  # of characters: whose background is not said
EMOJI = ("an emoji of {}", "{}", "a picture of {}", "an image of {}", "a drawing of {}")


class Shares(NamedTuple):
    """What part of the pictures is of which sort; the parts add up to 1."""

    painted: float
    characters: float
    scenes: float
    emoji: float
    tiny: float


SEE = Shares(0.15, 0.35, 0.10, 0.25, 0.15)  # of the autoencoder, which must draw anything
LEARN = Shares(
    0.52, 0.38, 0.05, 0.05, 0.0
)  # of the U-Net: what must be drawn well; emoji cost more than it can afford


class Captioned(NamedTuple):
    """picture: uint8 [64, 64, 3]."""

    picture: np.ndarray
    caption: str


class Pictures:
    """Picture number ``index`` of the stream ``seed``, the same whenever it is asked for.

    Nothing that is held out is in it: no look, kind or character that ``is_held_out``, no test emoji.
    data: holds the folders tiny-imagenet and emoji. tiny: how many of the shards of photographs are read.
    """

    def __init__(self, data: Path, shares: Shares, tiny: int = 1):
        found = find_shards(f"{data}/emoji", "emoji")
        held = held_out_emoji(found)
        shown = [picture for shard in found for picture in pictures(shard)]
        self.emoji = [p for p, out in zip(shown, held, strict=True) if not out]
        self.names = [n for n, out in zip(emoji_names(f"{data}/emoji"), held, strict=True) if not out]
        photos = find_shards(f"{data}/tiny-imagenet", "train")[:tiny]
        self.photos = [np.asarray(picture) for shard in photos for picture in pictures(shard)]
        self.labels = np.concatenate([labels_of(shard, len(CLASSES)) for shard in photos])
        self.classes = class_names(data / "tiny-imagenet")
        self.ends = np.cumsum(shares)

    def __call__(self, seed: int, index: int) -> Captioned:
        rng = np.random.default_rng([seed, 30, index])
        kinds: tuple[Callable[[int, int, np.random.Generator], tuple[Image.Image | np.ndarray, str]], ...]
        kinds = (_painting, _character, _scene, self._emoji, self._photo)
        kind = kinds[min(int(np.searchsorted(self.ends, rng.random(), "right")), len(kinds) - 1)]
        picture, caption = kind(seed, index, rng)
        return Captioned(np.asarray(picture), caption)

    def _emoji(self, seed: int, index: int, rng: np.random.Generator) -> tuple[Image.Image, str]:
        """On white, moved and shrunk a little; told by its name or, seldom, by a keyword."""
        number = int(rng.integers(len(self.emoji)))
        name, *keywords = self.names[number]
        word = str(rng.choice(keywords)) if keywords and rng.random() < 0.2 else name
        said = word if rng.random() < 0.3 else one_of(word)
        side = int(rng.integers(50, SIZE + 1))
        x, y = (int(v) for v in rng.integers(0, SIZE - side + 1, 2))
        canvas = Image.new("RGB", (SIZE, SIZE), (255, 255, 255))
        canvas.paste(self.emoji[number].resize((side, side), Image.Resampling.BICUBIC), (x, y))
        return canvas, str(rng.choice(EMOJI, p=(0.6, 0.1, 0.1, 0.1, 0.1))).format(said)

    def _photo(self, seed: int, index: int, rng: np.random.Generator) -> tuple[np.ndarray, str]:
        number = int(rng.integers(len(self.photos)))
        name = self.classes[self.labels[number]][0]
        return self.photos[number], f"a real photo of {one_of(name)}"


def _one(said: list[str], rng: np.random.Generator) -> str:
    """One of the ways to say it, the plainest most often."""
    return said[0] if rng.random() < 0.4 else said[rng.integers(len(said))]


def _painting(seed: int, index: int, rng: np.random.Generator) -> tuple[Image.Image, str]:
    one = painted.painting(seed, index)
    return painted.draw(one, SIZE), _one(painted.captions(one), rng)


def _character(seed: int, index: int, rng: np.random.Generator) -> tuple[Image.Image, str]:
    one = characters.character(seed, index)
    grounds = [word for word in BACKGROUNDS if word != one.colour]
    setting = some_setting(rng, None if rng.random() < NO_GROUND else str(rng.choice(grounds)))
    picture = characters.draw_character(one, setting, seed, index, SIZE)
    return picture, _one(sentences(characters.described(one, rng), setting), rng)


def _scene(seed: int, index: int, rng: np.random.Generator) -> tuple[Image.Image, str]:
    one = scenes.scene(seed, index)
    return scenes.draw(one, SIZE), _one(scenes.captions(one), rng)
