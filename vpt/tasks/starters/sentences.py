"""What clip-mini's text tower reads: names, definitions and captions, each with its teacher's vector."""

import json
import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterable
from importlib.resources import files
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
import webdataset as wds
from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES

from vpt.data.scenes import vocabulary
from vpt.tasks.starters.shards import find_shards

__all__ = ["Corpus", "class_names", "collect", "emoji_names", "flickr_captions", "keep_vectors", "wordnet"]

PHOTO = "a photo of a {}."


class Corpus(NamedTuple):
    """names: all lower case, once. groups: for every name the numbers of the definitions it stands for.
    weights: how often a name is drawn, [n]. sentences: definitions first, then captions."""

    names: list[str]
    groups: list[list[int]]
    weights: np.ndarray
    sentences: list[str]
    definitions: int


def wordnet() -> list[tuple[str, list[str], str]]:
    """WordNet id, names and definition of the 21,844 synsets of ImageNet that timm carries."""
    folder = files("timm.data") / "_info"

    def rows(file: str) -> dict[str, str]:
        text = (folder / file).read_text("utf-8")
        return dict(line.split("\t", 1) for line in text.splitlines() if line)

    definitions = rows("imagenet_synset_to_definition.txt")
    lemmas = rows("imagenet_synset_to_lemma.txt")
    return [(wnid, _split(names), definitions.get(wnid, "")) for wnid, names in lemmas.items()]


def _split(names: str) -> list[str]:
    return [name.strip().lower() for name in names.split(",") if name.strip()]


def _json(shards: Iterable[Path]) -> list[dict]:
    samples = wds.WebDataset([str(s) for s in shards], shardshuffle=False, empty_check=False)
    return [json.loads(sample["json"]) for sample in samples]


def emoji_names(data: str) -> list[list[str]]:
    """For every emoji of the shards in ``data``, in order: its name, then the keywords that are words."""
    found = []
    for entry in _json(find_shards(data, "emoji")):
        words = [entry["name"], *(k.replace("\xa0", " ") for k in entry["keywords"])]
        plain = [w.lower() for w in words if re.fullmatch(r"[^\W\d][^\d]{2,}", w)] or [entry["name"].lower()]
        found.append(list(dict.fromkeys(plain)))
    return found


def class_names(folder: Path) -> list[list[str]]:
    """For every class of a folder with ``classes.json``: its name, then its synonyms, lower case."""
    classes = json.loads((folder / "classes.json").read_text("utf-8"))
    return [list(dict.fromkeys(n.lower() for n in (c["name"], *c["names"]))) for c in classes]


def flickr_captions(data: str, split: str) -> list[list[str]]:
    """The five captions of every picture of a split, in order."""
    return [entry["captions"] for entry in _json(find_shards(data, split))]


def collect(data: Path, words: Iterable[str]) -> Corpus:
    """All that is read, without repetition, from the folders tiny-imagenet, emoji and flickr8k-mini of ``data``.

    words: those that the teacher knows by themselves; names among them are read anyway.
    """
    words = list(words)
    english = set(words)
    common = set((files("timm.data") / "_info" / "imagenet_synsets.txt").read_text().split())
    groups: dict[str, list[int]] = defaultdict(list)
    weights: dict[str, float] = {}
    definitions: list[str] = []

    def add(name: str, weight: float) -> None:
        weights[name] = max(weights.get(name, 0.0), weight)

    for wnid, names, definition in wordnet():
        for i, name in enumerate(names):
            if definition:
                groups[name].append(len(definitions))
            plain = set(re.findall(r"\w+", name)) <= english  # a name in Latin is seldom asked for
            weight = 4.0 if wnid in common else 1.0 if plain else 0.2
            add(name, weight / (1 + i))  # the first name is the usual one
        if definition:
            definitions.append(definition)
    for name, *keywords in emoji_names(f"{data}/emoji"):
        add(name, 3.0)
        for word in keywords:
            add(word, 1.0)
    known = vocabulary()
    for colour, shape, size in product(known["colours"], known["shapes"], ("", *known["sizes"])):
        add(f"{size} {colour} {shape}".strip(), 1.0)
    for name in IMAGENET_CLASSNAMES:
        add(name.lower(), 3.0)
    for names in class_names(data / "tiny-imagenet"):
        for i, name in enumerate(names):
            add(name, 4.0 / (1 + i))
    for word in words:
        add(word, 0.5)
    told = [
        c
        for split in ("train", "extra")
        for five in flickr_captions(f"{data}/flickr8k-mini", split)
        for c in five
    ]
    names = list(weights)
    shares = np.array([weights[name] for name in names])
    return Corpus(
        names, [groups.get(name, []) for name in names], shares, definitions + told, len(definitions)
    )


def keep_vectors(
    corpus: Corpus, entries: list[str], folder: Path, teacher: Callable[[list[str]], np.ndarray]
) -> None:
    """Write the teacher's vectors of names, of names in a template, of sentences and of the tokenizer's entries.

    Those that are kept already are left.
    """
    folder.mkdir(parents=True, exist_ok=True)
    texts = {
        "names": corpus.names,
        "photos": [PHOTO.format(name) for name in corpus.names],
        "sentences": corpus.sentences,
        "entries": entries,
    }
    for what, lines in texts.items():
        if (folder / f"{what}.npy").exists():
            continue
        part = folder / f"{what}.part"
        with part.open("wb") as stream:
            np.save(stream, teacher(lines))
        os.replace(part, folder / f"{what}.npy")
