"""Scenes with captions that only tell them apart together: near each other by relation and by size."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count, product

import numpy as np
from PIL import Image

from vpt.data.item import DataError, Item
from vpt.data.scene_source import held_out_pairs
from vpt.data.scenes import SIZES, Kind, Scene, captions, draw

__all__ = ["CaptionScenes", "open_caption_scenes"]

PICTURES = 800
SIZE = 96
SEED = 20_012  # of places, shades and sizes; the scenes with labels have others
SHARES = {"train": 0.6, "val": 0.1, "test": 0.3}


@dataclass(frozen=True)
class CaptionScenes:
    """Pictures drawn when they are read, each with its eight captions.

    They come in fours: a held-out kind in two combinations of sizes, and the same turned round, so that every
    picture has a neighbour that differs by the relation alone and one that differs by sizes alone. No kind, nor
    the turned one, is in two splits. Beyond 1,288 pictures descriptions recur, with other places and shades.
    """

    name: str
    scenes: dict[str, tuple[Scene, ...]]
    classes: tuple[str, ...] = field(default=(), init=False)
    multilabel: bool = field(default=False, init=False)

    def splits(self) -> dict[str, list[Item]]:
        number = count()
        return {
            split: [
                Item(f"{split}/{s.index:06d}", 0, offset=next(number), captions=tuple(captions(s)))
                for s in scenes
            ]
            for split, scenes in self.scenes.items()
        }

    def read(self, item: Item) -> Image.Image:
        every = [scene for scenes in self.scenes.values() for scene in scenes]
        return draw(every[item.offset], SIZE)


def open_caption_scenes(text: str) -> CaptionScenes:
    """``scenes``, or ``scenes:800`` for so many pictures, 60 % train, 10 % val and 30 % test. Raises DataError."""
    found = re.fullmatch(r"scenes(?::(\d+))?", text)
    pictures = int(found[1] or PICTURES) if found else 0
    if pictures < 40 or pictures % 4:
        raise DataError(
            f"no scenes with captions {text!r}. Wanted: scenes, or scenes:PICTURES such as scenes:{PICTURES}, with a "
            "multiple of 4, 40 or more. (scenes:CLASSESxPICTURES are scenes with labels.)"
        )
    pairs = held_out_pairs()
    fours = _shared(pictures // 4)
    owned = _shared(min(len(pairs), pictures // 4))
    scenes: dict[str, tuple[Scene, ...]] = {}
    start = index = 0
    for split in SHARES:
        mine = pairs[start : start + owned[split]]
        found_here = [s for i in range(fours[split]) for s in _four(mine, start, i, index + 4 * i)]
        scenes[split] = tuple(found_here)
        start, index = start + owned[split], index + len(found_here)
    return CaptionScenes(text, scenes)


def _shared(n: int) -> dict[str, int]:
    val, test = round(SHARES["val"] * n), round(SHARES["test"] * n)
    return {"train": n - val - test, "val": val, "test": test}


def _four(pairs: list[tuple[Kind, Kind]], start: int, i: int, index: int) -> Iterator[Scene]:
    """Four scenes number ``index`` and on, of the pair whose turn it is; its next turn has the other sizes."""
    turn, place = divmod(i, len(pairs))
    combinations = list(product(SIZES, repeat=2))
    order = np.random.default_rng([SEED, 4, start + place]).permutation(len(combinations)).tolist()
    first = 2 * turn % len(order)
    for kind in pairs[place]:
        for j in order[first : first + 2]:
            yield Scene(kind, combinations[j], SEED, index)
            index += 1
