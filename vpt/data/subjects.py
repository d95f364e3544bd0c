"""Things to teach words for, each with a few pictures, its kind, and sentences to draw it in.

DreamBooth's protocol (arXiv 2208.12242, section 4.1; data: github.com/google/dreambooth): 30 subjects, 25 sentences
each, of two sorts. The drawn characters have the same form, and more that can be checked: a description in words, and
the backgrounds that sentences ask for.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from vpt.data.characters import NOUNS, Character, draw_character, new_characters
from vpt.data.images import decode
from vpt.data.item import SUFFIXES, DataError
from vpt.data.painted import BACKGROUNDS, Setting, sentences

__all__ = ["CHARACTERS", "Subject", "drawn_characters", "dreambooth", "pictures_in"]

TOLD = "prompts_and_classes.txt"
LIVE = ("cat", "dog")  # kinds that take the sentences for live subjects
CHARACTERS = ("moko", "tavi", "luma", "pikk", "zuzu", "bram", "nilo", "orra", "fenn", "gusk")
SHOWN, REAL, ASKED = 5, 10, 5  # pictures that teach, pictures to compare with, backgrounds that are asked for
LAYOUT = (
    f"Wanted the layout of github.com/google/dreambooth: {TOLD} with the kinds of the subjects and two lists of "
    "sentences, beside a folder of pictures for each subject."
)


@dataclass(frozen=True)
class Subject:
    """One thing.

    word: what kind of thing it is.  folder: pictures that teach it.  real: pictures to compare with what is drawn.
    sentences: with {} in place of the thing.  grounds: the background that each sentence asks for, "" for none; empty
    where nothing checks it.  told: the thing in words, where it can be said.
    """

    name: str
    word: str
    folder: Path
    real: Path
    sentences: tuple[str, ...]
    grounds: tuple[str, ...] = ()
    told: str = ""


def pictures_in(folder: Path) -> list[Image.Image]:
    """The pictures of a folder in order of their names, RGB. Raises DataError for none."""
    files = sorted(f for f in folder.iterdir() if f.suffix.lower() in SUFFIXES) if folder.is_dir() else []
    if not files:
        raise DataError(f"there are no pictures in {folder}. {LAYOUT}")
    return [decode(str(file)) for file in files]


def dreambooth(root: str | Path) -> list[Subject]:
    """The subjects below ``root``, or below its folder ``dataset``.

    Raises DataError where the file with kinds and sentences is not there or says something else, and for a subject
    without pictures.
    """
    places = [Path(root), Path(root) / "dataset"]
    folder = next((place for place in places if (place / TOLD).is_file()), None)
    if folder is None:
        raise DataError(f"there is no {TOLD} in {root}. {LAYOUT}")
    told = (folder / TOLD).read_text(encoding="utf-8")
    kinds = re.findall(r"^([\w-]+),([^,\n]+?)\s*$", told.partition("subject_name,class")[2], re.MULTILINE)
    lists = [
        tuple(s.replace("{0} {1}", "{}") for s in re.findall(r"'([^'\n]*\{0\} \{1\}[^'\n]*)'", part))
        for part in told.split("prompt_list")[1:]
    ]
    if not kinds or len(lists) != 2 or not all(lists):
        raise DataError(
            f"{folder / TOLD} names {len(kinds)} subjects and {sum(map(bool, lists))} lists of sentences with "
            f"'{{0}} {{1}}'. {LAYOUT}"
        )
    found = [Subject(name, word, folder / name, folder / name, lists[word in LIVE]) for name, word in kinds]
    for subject in found:
        pictures_in(subject.folder)
    return found


def drawn_characters(folder: str | Path, count: int = 10, seed: int = 0) -> list[Subject]:
    """Characters that no starter has met, their pictures drawn below ``folder``: five that teach, ten to compare with.

    count: at most ten.  seed: of which characters there are, and of their pictures.
    Every picture has a background, a size and a place of its own. The sentences ask for the thing alone and before
    five backgrounds that are not of its colours.
    """
    found = []
    for i, one in enumerate(new_characters(count, seed)):
        place = Path(folder) / CHARACTERS[i]
        _draw(one, place / "taught", seed, 1000 * i, SHOWN)
        _draw(one, place / "real", seed, 1000 * i + SHOWN, REAL)
        rng = np.random.default_rng([seed, 23, i])
        free = [word for word in BACKGROUNDS if word not in (one.colour, one.accent)]
        grounds = ("", *(str(word) for word in rng.choice(free, ASKED, replace=False)))
        asked = tuple(sentences("{}", Setting(ground or None))[0] for ground in grounds)
        found.append(
            Subject(CHARACTERS[i], NOUNS[0], place / "taught", place / "real", asked, grounds, str(one))
        )
    return found


def _draw(one: Character, folder: Path, seed: int, first: int, count: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    free = [None, *(word for word in BACKGROUNDS if word != one.colour)]
    for i in range(first, first + count):
        rng = np.random.default_rng([seed, 24, i])
        setting = Setting(free[int(rng.integers(len(free)))])
        draw_character(one, setting, seed, i).save(folder / f"{i - first:02}.png")
