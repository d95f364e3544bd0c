"""A prompt set measured on a split, with the static part of each picture kept for the next one that asks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from vpt.data.module import ImageData
from vpt.data.order import process
from vpt.encode import advance
from vpt.objectives.captions import Captions
from vpt.objectives.retrieve import Retrieve
from vpt.tasks.device import autocast
from vpt.tasks.pairs import plainly
from vpt.tasks.shelf import Shelf
from vpt.tasks.store import Stored, fill, inputs_of
from vpt.tasks.task import Recipe
from vpt.tasks.tuned import Evaluation, Tuned
from vpt.towers.backbone import Backbone

__all__ = ["Numbers", "measure", "measure_pairs", "shelves_of"]

Track = Callable[[Iterable[Any]], Iterable[Any]]


def shelves_of(
    backbone: Backbone, folder: str | Path | None, precision: str, source: str
) -> Callable[[str], Shelf] | None:
    """Shelves by stage for pictures of a source; None without a folder."""
    frozen = backbone.fingerprints.get("image")
    if folder is None or frozen is None:
        return None
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


def measure_pairs(
    tuned: Tuned, data: ImageData, split: str, *, cache: str | Path | None = None, track: Track = iter
) -> dict[str, float]:
    """How well pictures and captions of the split "val" or "test" find each other (:mod:`vpt.objectives.recall`)."""
    stored = _stored(tuned, data, split, cache) if cache is not None else None
    batches: Iterable[Any]
    if stored is not None:
        batches = DataLoader(stored, max(1, data.batch_size))
    else:
        batches = data.val_dataloader() if split == "val" else data.test_dataloader()
    captions = Captions.gather(data.captions(split))
    objective = Retrieve(captions, captions)
    gallery = objective.metric()
    with torch.inference_mode(), autocast(tuned.device, tuned.precision):
        for batch in track(batches):
            inputs = inputs_of(batch, stored.frame if stored is not None else None).to(tuned.device)
            objective.observe(gallery, tuned.learner, inputs, batch)
        found = objective.result(gallery, tuned.learner)
    return {name: float(value) for name, value in found.items()}


class Numbers:
    """What a run measures: metrics by split, each with its count and seed.

    cache: see :func:`measure`.  bar: makes a progress bar of a name.
    """

    def __init__(
        self,
        data: ImageData,
        recipe: Recipe,
        cache: str | Path | None,
        bar: Callable[[str], Track],
        precision: str = "32-true",
    ) -> None:
        self.data, self.recipe, self.cache, self.bar, self.precision = data, recipe, cache, bar, precision

    def of(self, tuned: Tuned) -> dict[str, list[dict[str, Any]]]:
        """``metrics`` on val and test; of captions ``before`` too, those of the frozen model, and on general pairs."""
        if self.recipe.objective != "retrieve":
            return {"metrics": self._splits(tuned, ("val", "test"))}
        frozen = plainly(tuned.backbone, tuned.precision)
        metrics, before = self._splits(tuned, ("val", "test")), self._splits(frozen, ("test",))
        if self.recipe.general:
            data = ImageData(self.recipe.general, captions=True, batch_size=self.data.batch_size)
            data.bind(tuned.backbone.preprocessing)
            metrics += self._on(tuned, data, "test", "general")
            before += self._on(frozen, data, "test", "general")
        return {"metrics": metrics, "before": before}

    def _splits(self, tuned: Tuned, splits: Sequence[str]) -> list[dict[str, Any]]:
        counts = self.data.protocol()["counts"]
        there = [split for split in splits if counts.get(split)]
        return [number for split in there for number in self._on(tuned, self.data, split, split)]

    def _on(self, tuned: Tuned, data: ImageData, split: str, name: str) -> list[dict[str, Any]]:
        track = self.bar(f"measuring on {name}")
        if self.recipe.objective == "retrieve":
            found = measure_pairs(tuned, data, split, cache=self.cache, track=track)
        else:
            found = measure(tuned, data, split, cache=self.cache, track=track).metrics
        count, seed = data.protocol()["counts"][split], self.data.seed
        return [
            {"name": n, "value": v, "split": name, "count": count, "seed": seed} for n, v in found.items()
        ]


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
