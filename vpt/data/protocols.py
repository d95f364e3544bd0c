"""The data sets of the CoOp line of work (arXiv 2109.01134): where their files lie, their splits, their sentences.

The facts are in configs/datasets/NAME.yaml; an installed package has these files beside this one.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import yaml

from vpt.data.item import DataError

__all__ = ["Card", "card", "datasets", "shifts", "templates"]

# in the order of the papers' tables
_DATASETS = (
    *("imagenet", "caltech101", "oxford_pets", "stanford_cars", "oxford_flowers", "food101"),
    *("fgvc_aircraft", "sun397", "dtd", "eurosat", "ucf101"),
)
_SHIFTS = ("imagenetv2", "imagenet_sketch", "imagenet_a", "imagenet_r")
# whose sentences may differ from those of zero-shot
_METHODS = ("zero-shot", "prograd", "kgcoop")


@dataclass(frozen=True)
class Card:
    """What is published of one data set.

    title: its name in Dassl. layout: the files that must be there, in words. folder: its folder under the root.
    images: below it, what the paths of the split are relative to. split: the file that holds the split, or
    one file a split with {} for its name. folders: of class folders, by split, where no file says it.
    names: the file of class names. classes, counts: how many classes, and pictures by split.
    templates: sentences by "zero-shot", "prograd", "kgcoop", as far as they differ.
    """

    name: str
    title: str
    layout: str
    folder: str
    classes: int
    counts: Mapping[str, int]
    templates: Mapping[str, str]
    images: str = "."
    split: str = ""
    names: str = ""
    folders: Mapping[str, str] = field(default_factory=dict)


def datasets() -> dict[str, Card]:
    """The eleven data sets for few-shot, base-to-novel and cross-dataset numbers, in the papers' order."""
    return {name: card(name) for name in _DATASETS}


def shifts() -> dict[str, Card]:
    """The four variants of ImageNet for numbers under domain shift; they have test pictures only."""
    return {name: card(name) for name in _SHIFTS}


def templates(name: str) -> dict[str, str]:
    """The sentences of a data set by "zero-shot", "prograd" and "kgcoop"; {} stands for the class name.

    KgCoOp's are its teacher's, ProGrad's its teacher's and its start (arXiv 2303.13283, 2205.14865).
    """
    found = card(name).templates
    return {method: found.get(method, found["zero-shot"]) for method in _METHODS}


@cache
def card(name: str) -> Card:
    """Raises DataError for a name that is none, with those that are near."""
    if name not in (*_DATASETS, *_SHIFTS):
        near = difflib.get_close_matches(name, (*_DATASETS, *_SHIFTS), 3, 0.4)
        raise DataError(
            f"there is no data set {name!r} in the CoOp line of work. "
            + (f"Close names: {', '.join(near)}." if near else f"Names: {', '.join((*_DATASETS, *_SHIFTS))}.")
        )
    text = (_folder() / f"{name}.yaml").read_text(encoding="utf-8")
    return Card(name, **yaml.safe_load(text))


def _folder() -> Path:
    here = Path(__file__).parent / "datasets"
    return here if here.is_dir() else Path(__file__).parents[2] / "configs" / "datasets"
