"""Scenes as labelled pictures: classes that differ in colour, shape and relation; the second half is held out."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice

from PIL import Image

from vpt.data.item import DataError, Item
from vpt.data.scenes import Kind, draw, kinds, scene

__all__ = ["SceneSource", "held_out_pairs", "open_scenes", "said"]

CLASSES, PICTURES = 40, 60  # of them 30 for train, 6 for val and 24 for test
SIZE = 96
SEED = 20_011  # of places and shades; the starter's own scenes have others
SHARES = {"train": 0.5, "val": 0.1, "test": 0.4}


@dataclass(frozen=True)
class SceneSource:
    """``pictures`` a class, drawn when they are read.

    kinds: half of them show nothing that ``scenes.is_held_out``, and the others do, so that the halves of
    ``plan.labels_in`` are base and novel in more than name. Every kind is followed by the one turned round, which
    only the relation tells apart.
    """

    name: str
    kinds: tuple[Kind, ...]
    pictures: int
    multilabel: bool = field(default=False, init=False)

    @property
    def classes(self) -> tuple[str, ...]:
        """Descriptions without the first article: "red circle left of a blue square"."""
        return tuple(map(said, self.kinds))

    def splits(self) -> dict[str, list[Item]]:
        ends = [round(self.pictures * share) for share in (SHARES["train"], SHARES["train"] + SHARES["val"])]
        bounds = dict(zip(SHARES, zip([0, *ends], [*ends, self.pictures], strict=True), strict=True))
        return {
            split: [
                Item(f"{split}/{label:04d}-{i:04d}", label, offset=label * self.pictures + i)
                for label in range(len(self.kinds))
                for i in range(*bounds[split])
            ]
            for split in SHARES
        }

    def read(self, item: Item) -> Image.Image:
        kind = self.kinds[item.offset // self.pictures]  # a subset's labels are numbered from 0 again
        return draw(scene(SEED, item.offset, kind=kind), SIZE)


def said(kind: Kind) -> str:
    """The kind as a class name, which sentences such as "a photo of a {}." put an article before."""
    return str(kind).partition(" ")[2]


def open_scenes(text: str) -> SceneSource:
    """``scenes``, or ``scenes:60x40`` for 60 classes with 40 pictures each. Raises DataError."""
    found = re.fullmatch(r"scenes(?::(\d+)x(\d+))?", text)
    asked = found.groups() if found else ("0", "0")
    classes, pictures = int(asked[0] or CLASSES), int(asked[1] or PICTURES)
    if classes < 8 or classes % 4 or pictures < 10:
        raise DataError(
            f"no scenes {text!r}. Wanted: scenes, or scenes:CLASSESxPICTURES such as scenes:60x40, with a multiple of "
            "4 classes, 8 or more, and 10 pictures a class or more."
        )
    chosen = [kind for held_out in (False, True) for kind in islice(_pairs(held_out), classes // 2)]
    if len(chosen) < classes:
        raise DataError(f"{text}: there are not so many scenes. Ask for fewer classes.")
    return SceneSource(text, tuple(chosen), pictures)


def held_out_pairs() -> list[tuple[Kind, Kind]]:
    """Every kind that is held out beside the same turned round, where that is held out too; none occurs twice,
    nor told from its other shape."""
    found = list(_pairs(held_out=True))
    return list(zip(found[::2], found[1::2], strict=True))


def _pairs(held_out: bool) -> Iterator[Kind]:
    """Kinds, each followed by the same turned round, of which both are held out or neither is."""
    every = set(kinds(held_out=held_out))
    taken: set[Kind] = set()
    for kind in kinds(held_out=held_out):
        told = kind.mirrored() if kind.colour == "orange" else kind  # "a photo of a orange" would be wrong
        turned = told.turned()
        there = turned in every or turned.mirrored() in every
        if told.colour != "orange" and there and told not in taken:
            taken |= {told, told.mirrored(), turned, turned.mirrored()}
            yield from (told, turned)
