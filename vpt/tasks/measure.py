"""A prompt set measured on a split, with the static part of each picture kept for the next one that asks."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from vpt.data.module import ImageData
from vpt.data.order import process
from vpt.encode import advance
from vpt.promptset import fingerprint
from vpt.tasks.device import autocast
from vpt.tasks.shelf import Shelf
from vpt.tasks.store import Stored, fill
from vpt.tasks.tuned import Evaluation, Tuned
from vpt.towers.backbone import Backbone

__all__ = ["measure", "shelves_of"]

Track = Callable[[Iterable[Any]], Iterable[Any]]


def shelves_of(
    backbone: Backbone, folder: str | Path | None, precision: str, source: str
) -> Callable[[str], Shelf] | None:
    """Shelves by stage for pictures of a source; None without a folder."""
    if folder is None:
        return None
    frozen = fingerprint(backbone.image, backbone.preprocessing)
    kept: dict[str, Shelf] = {}

    def shelf(stage: str) -> Shelf:
        return kept.setdefault(stage, Shelf(folder, (frozen, stage, precision, source)))

    return shelf


def measure(
    tuned: Tuned, data: ImageData, split: str, *, cache: str | Path | None = None, track: Track = iter
) -> Evaluation:
    """What a prompt set says of the split "val" or "test" of bound data.

    cache: folder of static parts that runs share (:mod:`vpt.tasks.shelf`).  track: a progress bar over batches.
    """
    stored = _stored(tuned, data, split, cache) if cache is not None else None
    if stored is None:
        loader = data.val_dataloader() if split == "val" else data.test_dataloader()
        return tuned.evaluate(track(loader))
    return tuned.evaluate(track(DataLoader(stored, max(1, data.batch_size))), stored.frame)


def _stored(tuned: Tuned, data: ImageData, split: str, cache: str | Path) -> Stored | None:
    """The static part of the split; None where keeping it is not worth it."""
    learner, pictures = tuned.learner, data.pictures(split)
    low = learner.low
    if low == "input" or process()[1] > 1 or not len(pictures):
        return None
    shelves = shelves_of(tuned.backbone, cache, tuned.precision, pictures.source)
    assert shelves is not None
    around = partial(autocast, tuned.device, tuned.precision)
    with torch.no_grad(), around():
        one = advance(learner.tower, pictures[0, 0]["image"][None].to(tuned.device), {}, low)
    if not shelves(low).takes(one.x[0]):
        return None
    return fill(learner.tower, low, pictures, 1, name=split, shelves=shelves, around=around)
