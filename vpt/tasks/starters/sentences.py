"""What clip-mini's text tower reads: names, definitions and captions, each with its teacher's vector."""

import json
import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterable
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

import numpy as np
import webdataset as wds

from vpt.data.scenes import vocabulary
from vpt.tasks.starters.shards import find_shards

__all__ = ["Corpus", "collect", "emoji_names", "flickr_captions", "keep_vectors", "wordnet"]

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


def flickr_captions(data: str, split: str) -> list[list[str]]:
    """The five captions of every picture of a split, in order."""
    return [entry["captions"] for entry in _json(find_shards(data, split))]


def collect(emoji: str, flickr: str) -> Corpus:
    """All that is read, without repetition. emoji, flickr: data as ``find_shards`` takes it."""
    common = set((files("timm.data") / "_info" / "imagenet_synsets.txt").read_text().split())
    groups: dict[str, list[int]] = defaultdict(list)
    weights: dict[str, float] = {}
    definitions = []
    for wnid, names, definition in wordnet():
        for i, name in enumerate(names):
            if definition:
                groups[name].append(len(definitions))
            weight = (4.0 if wnid in common else 1.0) / (1 + i)  # the first name is the usual one
            weights[name] = max(weights.get(name, 0), weight)
        if definition:
            definitions.append(definition)
    for name, *keywords in emoji_names(emoji):
        weights[name] = max(weights.get(name, 0), 3.0)
        for word in keywords:
            weights[word] = max(weights.get(word, 0), 1.0)
    words = vocabulary()
    for colour in words["colours"]:
        for shape in words["shapes"]:
            for size in ("", "small ", "large "):
                weights[f"{size}{colour} {shape}"] = 1.0
    captions = [c for split in ("train", "extra") for five in flickr_captions(flickr, split) for c in five]
    names = list(weights)
    return Corpus(
        names,
        [groups.get(name, []) for name in names],
        np.array([weights[name] for name in names]),
        definitions + captions,
        len(definitions),
    )


def keep_vectors(corpus: Corpus, folder: Path, teacher: Callable[[list[str]], np.ndarray]) -> None:
    """Write the teacher's vectors of names, of names in a template and of sentences, except those kept."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = {
        "names": corpus.names,
        "photos": [PHOTO.format(name) for name in corpus.names],
        "sentences": corpus.sentences,
    }
    for what, lines in texts.items():
        file = folder / f"{what}.npy"
        if not file.exists():
            part = file.with_suffix(".part")
            with part.open("wb") as stream:
                np.save(stream, teacher(lines))
            os.replace(part, file)
