"""Which pictures train, choose and test: the source's own splits where it has them, else drawn by seed."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from vpt.data.item import DataError, Item, Published, Source, labels_of, some
from vpt.data.splits import few_shot, load_splits, save_splits, stratified

Parts = dict[str, list[Item]]
Subset = Literal["all", "base", "novel"]


@dataclass(frozen=True)
class Draw:
    """How splits are drawn. val and test: the share split off where the source has none of its own; 0: none.

    subset: the classes that are kept of what was drawn over all, see ``labels_in``.
    join_val: val trains too, after everything is drawn.
    captions: the pictures have captions and no classes; shots and val_shots then count pictures in all.
    """

    shots: int | None = None
    val_shots: int | None = None
    seed: int = 1
    val: float = 0.2
    test: float = 0.2
    split_file: str | None = None
    subset: Subset = "all"
    join_val: bool = False
    captions: bool = False

    def made(self) -> dict[str, Any]:
        """What a split file depends on besides its seed; it holds all classes whatever the subset."""
        return {"shots": self.shots, "val_shots": self.val_shots, "val": self.val, "test": self.test}


@dataclass(frozen=True)
class Plan:
    """parts: train, val (may be empty) and test. origin: where each comes from, in words for the protocol.
    classes: names of the labels."""

    parts: Parts
    origin: dict[str, str]
    classes: tuple[str, ...]


def labels_in(subset: Subset, classes: int) -> range:
    """The labels of a subset among 0..classes-1: base is the first ceil(classes / 2), novel the others.

    As in CoCoOp (arXiv 2203.05557). A subset's labels are numbered from 0, so that label i of it is
    ``labels_in(subset, classes)[i]`` among all.
    """
    half = (classes + 1) // 2
    return {"all": range(classes), "base": range(half), "novel": range(half, classes)}[subset]


def plan(source: Source, draw: Draw, unreadable: frozenset[str] = frozenset()) -> Plan:
    """The splits of a source. unreadable: keys to leave out before anything is drawn. Raises DataError.

    A source with a val split but no test split (ImageNet) is tested on val, and chooses on a part of train.
    Few-shot as in CoOp: shots a class from train, then min(shots, 4) a class from val, of one random stream;
    a source without val gives up its share before train is sampled. A source with published samples gives
    these. One with a test split only can be measured on. The subset of classes is cut out last, and val joins train
    after that. Pictures with captions are drawn alike, as if of one class; their val is by default as many as shots.
    """
    own = source.splits()
    every = [item for items in own.values() for item in items]
    if not every:
        raise DataError(f"{source.name} holds no pictures. Wanted: at least two classes of them.")
    if len(source.classes) < 2 and not draw.captions:
        raise DataError(
            f"{source.name} has one class only ({some(source.classes)}, {len(every)} pictures). "
            "Wanted: at least two."
        )
    good = {name: [item for item in items if item.key not in unreadable] for name, items in own.items()}
    made = _drawn(source, good, draw)
    if draw.split_file and Path(draw.split_file).exists():
        kept = load_splits(draw.split_file, source.name, draw.seed, every, draw.made())
        parts = {name: [item for item in items if item.key not in unreadable] for name, items in kept.items()}
        made = replace(made, parts={name: parts.get(name, []) for name in ("train", "val", "test")})
    _refuse(source, made, draw)
    cut = _cut(source, made, draw)
    if draw.split_file and not Path(draw.split_file).exists():
        save_splits(draw.split_file, source.name, draw.seed, made.parts, draw.made())
    return _joined(cut) if draw.join_val else cut


def _joined(made: Plan) -> Plan:
    """Train with val's pictures behind its own."""
    parts = {**made.parts, "train": [*made.parts["train"], *made.parts["val"]], "val": []}
    origin = {**made.origin, "train": f"{made.origin['train']}, and val", "val": "none: it joined train"}
    return Plan(parts, origin, made.classes)


def _cut(source: Source, made: Plan, draw: Draw) -> Plan:
    """The items of a subset's classes, numbered from 0."""
    if draw.subset == "all":
        return made
    if source.multilabel:
        raise DataError(f"subset={draw.subset} needs one label a picture, but {source.name} is multi-label.")
    kept = labels_in(draw.subset, len(source.classes))
    if len(kept) < 2:
        raise DataError(
            f"the {draw.subset} half of the {len(source.classes)} classes of {source.name} has {len(kept)} only. "
            "Wanted: at least two, so at least four classes for both halves."
        )
    parts = {
        name: [
            replace(item, label=kept.index(item.label))
            for item in items
            if isinstance(item.label, int) and item.label in kept
        ]
        for name, items in made.parts.items()
    }
    cut = Plan(parts, made.origin, tuple(source.classes[i] for i in kept))
    _refuse(source, cut, draw)
    return cut


def _drawn(source: Source, own: Mapping[str, Sequence[Item]], draw: Draw) -> Plan:
    parts: Parts = {name: list(own.get(name, [])) for name in ("train", "val", "test")}
    said = source.origin if isinstance(source, Published) else {}
    origin = {name: said.get(name, "the source's own") for name in parts}
    if own.keys() == {"test"}:
        return Plan(parts, {**origin, "train": "none", "val": "none"}, source.classes)
    if draw.shots is not None and isinstance(source, Published):
        return _sampled(source, parts, origin, draw)
    share = {"train": 1.0}
    if "all" in own:
        parts["train"] = list(own["all"])
        origin["train"] = "the rest of all"
    if "test" not in own:
        if "val" in own:
            parts["test"], parts["val"] = parts["val"], []
            origin["test"] = "the source's val"
        else:
            share["test"] = draw.test
            origin["test"] = f"{draw.test:g} of {'all' if 'all' in own else 'train'}"
    if not parts["val"]:
        share["val"] = draw.val
        origin["val"] = f"{draw.val:g} of {'all' if 'all' in own else 'train'}" if draw.val else "none"
    if "all" not in own and len(share) > 1:
        origin["train"] = f"the rest of {origin['train']}"
    if len(share) > 1 and parts["train"]:
        parts |= stratified(parts["train"], share, draw.seed)
    if draw.shots is not None and draw.captions:
        return _of_all(source, parts, origin, draw)
    if draw.shots is not None:
        stream = random.Random(draw.seed)
        parts["train"] = few_shot(parts["train"], draw.shots, stream, source.classes)
        if parts["val"]:
            val_shots = min(draw.shots, 4) if draw.val_shots is None else draw.val_shots
            parts["val"] = few_shot(
                parts["val"], val_shots, stream, source.classes, fewer=draw.val_shots is None
            )
            origin["val"] += f", {val_shots} a class"
    return Plan(parts, origin, source.classes)


def _of_all(source: Source, parts: Parts, origin: dict[str, str], draw: Draw) -> Plan:
    """Samples of pictures without classes."""
    assert draw.shots is not None
    stream = random.Random(draw.seed)
    usual = min(draw.shots, len(parts["val"]))
    asked = {"train": draw.shots, "val": usual if draw.val_shots is None else draw.val_shots}
    for name in [name for name in asked if parts[name]]:
        word, there = "shots" if name == "train" else "val_shots", len(parts[name])
        if not 1 <= asked[name] <= there:
            raise DataError(
                f"{word} is {asked[name]}, but {source.name} has {there} pictures to draw {name} from. Wanted: "
                f"1..{there}; with captions it counts pictures in all, not a class."
            )
        parts[name] = stream.sample(parts[name], asked[name])
        origin[name] += f", {asked[name]} pictures" if name == "val" else ""
    return Plan(parts, origin, source.classes)


def _sampled(source: Published, parts: Parts, origin: dict[str, str], draw: Draw) -> Plan:
    """Published samples, less what is unreadable; a val that the source lacks comes from what train leaves."""
    assert draw.shots is not None
    drawn, words = source.sample(draw.shots, draw.seed, draw.val_shots)
    readable = {item.key for items in parts.values() for item in items}
    sampled = {name: [item for item in items if item.key in readable] for name, items in drawn.items()}
    if not parts["val"]:
        origin["val"] = "none"
        if draw.val:
            taken = {item.key for item in drawn["train"]}
            rest = [item for item in parts["train"] if item.key not in taken]
            n = min(draw.shots, 4) if draw.val_shots is None else draw.val_shots
            sampled["val"] = few_shot(rest, n, draw.seed, fewer=True)
            origin["val"] = f"the rest of train, {n} a class"
    return Plan({**parts, **sampled}, {**origin, **words}, source.classes)


def _refuse(source: Source, made: Plan, draw: Draw) -> None:
    parts, classes = made.parts, made.classes
    counts = ", ".join(f"{name} {len(items)}" for name, items in parts.items())
    own = source.splits()
    asked = {"val": draw.val, "test": draw.test}
    wanted = ["train", *(name for name, share in asked.items() if share or name in own)]
    wanted = ["test"] if own.keys() == {"test"} else wanted
    empty = [name for name in wanted if not parts[name]]
    if empty:
        raise DataError(
            f"the split(s) {', '.join(empty)} of {source.name} are empty ({counts}). "
            "Add pictures, or set val=0 where only val is empty."
        )
    known = {label for item in parts["train"] for label in labels_of(item)}
    absent = [name for i, name in enumerate(classes) if i not in known]
    if absent and "train" in wanted:
        raise DataError(
            f"{len(absent)} of {len(classes)} classes of {source.name} have no training picture: "
            f"{some(absent)} ({counts}). Add pictures to train, or remove the classes."
        )
