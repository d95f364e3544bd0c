"""A few pictures of one thing beside a background set: what teaches a new word, and what measures it."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import count, product
from pathlib import Path

from PIL import Image

from vpt.data.captions_scenes import SIZE
from vpt.data.item import DataError, Item, Source
from vpt.data.scenes import CHARACTER, COLOURS, MIRROR, SHAPES, Kind, Scene, captions, draw, kinds

__all__ = ["TEMPLATES", "ConceptPairs", "ConceptPictures", "ConceptScenes", "concept_scenes", "templates_of"]

TEMPLATES = (
    *("a photo of {}", "a picture of {}", "an image of {}", "there is {}", "{}"),
    *("a close-up of {}", "a photo of the whole of {}", "{} in a picture"),
)
STYLE = (
    "a picture in the style of {}",
    "a drawing in the style of {}",
    "{} style",
    "a scene in the style of {}",
)
FEW = (3, 10)  # pictures of a concept; more are a class, which vpt fit learns


@dataclass(frozen=True)
class ConceptPairs:
    """Pictures of a concept, whose captions say its word, and background pictures with captions of their own.

    word: what stands for the concept in ``templates``, such as <my-mug>.
    background: its training pictures are told from the concept; its test pictures measure what general search lost.
    limit: background pictures that are trained beside the concept, drawn by ``seed``.
    Raises DataError for a background without captions, or without test pictures.
    """

    word: str
    pictures: Source
    background: Source
    templates: Sequence[str] = TEMPLATES
    limit: int = 1000
    seed: int = 1
    classes: tuple[str, ...] = field(default=(), init=False)
    multilabel: bool = field(default=False, init=False)

    @property
    def name(self) -> str:
        return f"{self.pictures.name} beside {self.background.name}"

    def splits(self) -> dict[str, list[Item]]:
        said = tuple(template.replace("{}", self.word) for template in self.templates)
        own = [replace(t, key=f"concept/{t.key}", captions=said) for t in _all(self.pictures)]
        parts = self.background.splits()
        train, test = list(parts.get("train", parts.get("all", []))), list(parts.get("test", []))
        random.Random(self.seed).shuffle(train)
        if not test:
            test, train = train[: len(train) // 5], train[len(train) // 5 :]
        if (self.limit and not train) or not test or not all(item.captions for item in train):
            raise DataError(
                f"{self.background.name} is no background: it needs pictures with captions to train beside the concept "
                "and others to measure on. Give a set with captions and a test split."
            )
        beside = [replace(t, key=f"background/{t.key}") for t in train[: self.limit]]
        return {"train": [*own, *beside], "test": [replace(t, key=f"background/{t.key}") for t in test]}

    def read(self, item: Item) -> bytes | Image.Image:
        room, _, key = item.key.partition("/")
        return (self.pictures if room == "concept" else self.background).read(replace(item, key=key))


@dataclass(frozen=True)
class ConceptPictures:
    """Pictures of one thing, or in one style, whose captions say its placeholder: what text to image learns it from.

    slot: such as <my-mug>.  beside: pictures of the class, with captions of their own, for DreamBooth's prior.
    """

    slot: str
    pictures: Source
    templates: Sequence[str] = TEMPLATES
    beside: Source | None = None
    classes: tuple[str, ...] = field(default=(), init=False)
    multilabel: bool = field(default=False, init=False)

    @property
    def name(self) -> str:
        return self.pictures.name + (f" beside {self.beside.name}" if self.beside else "")

    def splits(self) -> dict[str, list[Item]]:
        said = tuple(template.replace("{}", self.slot) for template in self.templates)
        own = [replace(t, key=f"concept/{t.key}", captions=said) for t in _all(self.pictures)]
        if not own:
            raise DataError(
                f"{self.pictures.name} has no pictures. Give 3 to 10 of the thing that {self.slot} is."
            )
        beside = _all(self.beside) if self.beside else []
        if bare := [t.key for t in beside if not t.captions]:
            raise DataError(
                f"{bare[0]} of the class pictures has no caption, such as a photo of a mug. Give them some."
            )
        return {"train": [*own, *(replace(t, key=f"class/{t.key}") for t in beside)]}

    def read(self, item: Item) -> bytes | Image.Image:
        room, _, key = item.key.partition("/")
        source = self.pictures if room == "concept" else self.beside
        assert source is not None
        return source.read(replace(item, key=key))


def templates_of(which: str) -> tuple[str, ...]:
    """Sentences with {} for a concept: those for an "object", for a "style", or the lines of a file.

    Raises DataError for a file without them.
    """
    if which in ("object", "style"):
        return TEMPLATES if which == "object" else STYLE
    path = Path(which)
    lines = [line.strip() for line in path.read_text().splitlines()] if path.is_file() else []
    if not any(lines) or any("{}" not in line for line in lines if line):
        raise DataError(
            f"sentences={which!r}: wanted object, style, or a file with a sentence a line that has {{}} in it."
        )
    return tuple(line for line in lines if line)


def _all(source: Source) -> list[Item]:
    return [item for items in source.splits().values() for item in items]


@dataclass(frozen=True)
class ConceptScenes:
    """Scenes with a character that no starter has met, for search in context.

    shown: pictures of the character that teach it.
    gallery: pictures to search: the character in ``contexts``, other things in the same, and scenes without it.
    contexts: what is said behind the character, such as "left of a blue square", with the places in the gallery of
        the pictures that show it there.
    """

    shown: tuple[Scene, ...]
    gallery: tuple[Scene, ...]
    contexts: dict[str, tuple[int, ...]]
    name: str = "character scenes"
    classes: tuple[str, ...] = ()
    multilabel: bool = False

    @property
    def everywhere(self) -> tuple[int, ...]:
        """Places in the gallery of all pictures of the character."""
        return tuple(sorted(place for places in self.contexts.values() for place in places))

    def splits(self) -> dict[str, list[Item]]:
        """The pictures that teach, as ``all``."""
        return {"all": [Item(f"{i:02d}", 0, offset=i) for i in range(len(self.shown))]}

    def read(self, item: Item) -> Image.Image:
        return draw(self.shown[item.offset], SIZE)

    def pictures(self) -> list[Image.Image]:
        """The gallery."""
        return [draw(scene, SIZE) for scene in self.gallery]


def concept_scenes(
    seed: int, *, shown: int = 5, contexts: int = 32, each: int = 2, others: int = 200
) -> ConceptScenes:
    """Of a character of one colour: pictures that teach it in contexts of their own, and a gallery.

    each: pictures of the character in a context, beside twice as many of other things in it.
    others: scenes that do not show it.
    """
    chance = random.Random(f"concept/{seed}")
    colour = chance.choice(list(COLOURS))
    around = chance.sample(list(product(MIRROR, COLOURS, SHAPES)), shown + contexts)
    number = count(1_000_000 * seed)

    def scene(kind: Kind) -> Scene:
        return Scene(
            kind, (chance.choice(("small", "large")), chance.choice(("small", "large"))), seed, next(number)
        )

    def thing() -> tuple[str, str]:
        return chance.choice(list(COLOURS)), chance.choice(SHAPES)

    taught = tuple(scene(Kind(colour, CHARACTER, *context)) for context in around[:shown])
    gallery: list[Scene] = []
    places: dict[str, tuple[int, ...]] = {}
    for relation, other_colour, other_shape in around[shown:]:
        kind = Kind(colour, CHARACTER, relation, other_colour, other_shape)
        said = str(kind).split(f"{colour} {CHARACTER} ")[1]
        places[said] = tuple(range(len(gallery), len(gallery) + each))
        gallery += [scene(kind) for _ in range(each)]
        gallery += [scene(Kind(*thing(), *kind[2:])) for _ in range(2 * each)]
    gallery += [scene(chance.choice(kinds())) for _ in range(others)]
    assert all(CHARACTER not in caption for s in gallery[-others:] for caption in captions(s))
    return ConceptScenes(taught, tuple(gallery), places)
