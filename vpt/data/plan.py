"""Which pictures train, choose and test: the source's own splits where it has them, else drawn by seed."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vpt.data.item import DataError, Item, Source, labels_of, some
from vpt.data.splits import few_shot, load_splits, save_splits, stratified

Parts = dict[str, list[Item]]


@dataclass(frozen=True)
class Draw:
    """How splits are drawn. val and test: the share split off where the source has none of its own."""

    shots: int | None = None
    val_shots: int | None = None
    seed: int = 1
    val: float = 0.2
    test: float = 0.2
    split_file: str | None = None

    def made(self) -> dict[str, Any]:
        """What a split file depends on besides its seed."""
        return {"shots": self.shots, "val_shots": self.val_shots, "val": self.val, "test": self.test}


@dataclass(frozen=True)
class Plan:
    """parts: train, val (may be empty) and test. origin: where each comes from, in words for the protocol."""

    parts: Parts
    origin: dict[str, str]


def plan(source: Source, draw: Draw, unreadable: frozenset[str] = frozenset()) -> Plan:
    """The splits of a source. unreadable: keys to leave out before anything is drawn. Raises DataError.

    A source with a val split but no test split (ImageNet) is tested on val, and chooses on a part of train.
    Few-shot as in CoOp: shots a class from train, then min(shots, 4) a class from val, of one random stream;
    a source without val gives up its share before train is sampled.
    """
    own = source.splits()
    every = [item for items in own.values() for item in items]
    if not every:
        raise DataError(f"{source.name} holds no pictures. Wanted: at least two classes of them.")
    if len(source.classes) < 2:
        raise DataError(
            f"{source.name} has one class only ({some(source.classes)}, {len(every)} pictures). "
            "Wanted: at least two."
        )
    good = {name: [item for item in items if item.key not in unreadable] for name, items in own.items()}
    made = _drawn(source, good, draw)
    if draw.split_file and Path(draw.split_file).exists():
        kept = load_splits(draw.split_file, source.name, draw.seed, every, draw.made())
        parts = {name: [item for item in items if item.key not in unreadable] for name, items in kept.items()}
        made = Plan({name: parts.get(name, []) for name in ("train", "val", "test")}, made.origin)
    _refuse(source, made.parts, draw)
    if draw.split_file and not Path(draw.split_file).exists():
        save_splits(draw.split_file, source.name, draw.seed, made.parts, draw.made())
    return made


def _drawn(source: Source, own: Mapping[str, Sequence[Item]], draw: Draw) -> Plan:
    parts: Parts = {name: list(own.get(name, [])) for name in ("train", "val", "test")}
    origin = {name: "the source's own" for name in parts}
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
        origin["train"] = "the rest of the source's own"
    if len(share) > 1 and parts["train"]:
        parts |= stratified(parts["train"], share, draw.seed)
    if draw.shots is not None:
        stream = random.Random(draw.seed)
        parts["train"] = few_shot(parts["train"], draw.shots, stream, source.classes)
        if parts["val"]:
            val_shots = min(draw.shots, 4) if draw.val_shots is None else draw.val_shots
            parts["val"] = few_shot(
                parts["val"], val_shots, stream, source.classes, fewer=draw.val_shots is None
            )
            origin["val"] += f", {val_shots} a class"
    return Plan(parts, origin)


def _refuse(source: Source, parts: Parts, draw: Draw) -> None:
    counts = ", ".join(f"{name} {len(items)}" for name, items in parts.items())
    wanted = ["train", "test"] + (["val"] if draw.val or "val" in source.splits() else [])
    empty = [name for name in wanted if not parts[name]]
    if empty:
        raise DataError(
            f"the split(s) {', '.join(empty)} of {source.name} are empty ({counts}). "
            "Add pictures, or set val=0 where only val is empty."
        )
    known = {label for item in parts["train"] for label in labels_of(item)}
    absent = [name for i, name in enumerate(source.classes) if i not in known]
    if absent:
        raise DataError(
            f"{len(absent)} of {len(source.classes)} classes of {source.name} have no training picture: "
            f"{some(absent)} ({counts}). Add pictures to train, or remove the classes."
        )
