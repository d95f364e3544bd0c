"""The LightningDataModule for pictures with labels or captions."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, get_args

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Subset as Share
from torchdata.stateful_dataloader import StatefulDataLoader

from vpt.data.captions import open_captions
from vpt.data.collection import open_collection
from vpt.data.concept import ConceptPictures, templates_of
from vpt.data.item import DataError, Item, Source
from vpt.data.order import BatchOrder, process, seed_of
from vpt.data.pictures import Augment, Decoded, Pictures, eval_transform, train_transform
from vpt.data.plan import Draw, Plan, Subset, plan
from vpt.data.report import Report, survey
from vpt.data.sources import open_source
from vpt.data.splits import split_hash

MEMORY = 2**30  # bytes of decoded pictures to keep


class ImageData(L.LightningDataModule):
    """Pictures with labels, or captions, split, checked, augmented and batched; every step is a function of the seed.

    A batch is a dictionary: image float32 [B, 3, H, W], normalised; label int64 [B] (0 with captions), or float32
    [B, K] multi-hot; index int64 [B], the place in the split's list; view int64 [B]; key, B strings.

    Args:
        path: folder, manifest, shards, "torchvision:NAME", "coop:NAME", "digits", "emoji" or "scenes"
            (see ``open_source``).
        shots: pictures a class for training, sampled as in CoOp; None takes all.
        seed: of splits, samples, order and views.
        batch_size: of one global batch; W processes get a W-th each.
        val, test: share split off, by class, where the source has no such split of its own; val 0 means none.
        split_file: where the splits are written once, and read when they are there.
        augment: random view of training pictures (see ``train_transform``).
        views: 0 for a fresh view every epoch; V for V fixed views, epoch e shows view e % V.
        weighted: draw training pictures so that classes weigh alike.
        workers: loader processes. skip_unreadable: leave damaged pictures out instead of refusing.
        root: folder for downloads and indexed shards; for "coop:NAME" the one that holds the data sets.
        val_shots: pictures a class for val, by default min(shots, 4).
        subset: all classes, the first half of them (base, the larger where their number is odd) or the rest (novel),
            numbered from 0; splits and samples are drawn over all classes first.
        join_val: train on the pictures of val too, for a last run after a choice was made on val, as VTAB-1k does.
        captions: the pictures have captions and no labels (see ``open_captions``): classes is (), shots and val_shots
            count pictures in all (val_shots is by default at most shots), root names the folder of the pictures of a
            caption file, and skip_unreadable leaves out those without a caption too. Every augment but none flips:
            leave it out where captions say left and right.

        concept: the pictures are of one thing, or in one style, and their captions are ``sentences`` with this
            placeholder in them, such as <my-mug>. All are trained on, whatever val and test say.
        sentences: "object", "style", or a file of sentences with {}.
        beside: pictures of the thing's class, with captions of their own.

    Raises DataError, from ``setup``, for data that cannot be trained on.
    """

    def __init__(
        self,
        path: str | Source,
        *,
        shots: int | None = None,
        seed: int = 1,
        batch_size: int = 32,
        val: float = 0.2,
        test: float = 0.2,
        split_file: str | None = None,
        augment: Augment = "none",
        views: int = 0,
        weighted: bool = False,
        workers: int = 0,
        skip_unreadable: bool = False,
        root: str | None = None,
        val_shots: int | None = None,
        subset: Subset = "all",
        join_val: bool = False,
        captions: bool = False,
        concept: str = "",
        sentences: str = "object",
        beside: str = "",
    ):
        super().__init__()
        if batch_size < 1 or views < 0 or workers < 0:
            raise ValueError(
                f"batch_size {batch_size}, views {views}, workers {workers}: wanted >= 1, >= 0, >= 0."
            )
        if subset not in get_args(Subset):
            raise ValueError(f"subset is {subset!r}, wanted one of {', '.join(get_args(Subset))}.")
        if captions and (weighted or subset != "all"):
            raise ValueError(
                f"weighted={weighted} and subset={subset!r}: with captions there are no classes to weigh or choose. "
                "Leave both out."
            )
        self.path, self.root, self.seed, self.batch_size = path, root, seed, batch_size
        self.captioned = captions or bool(concept)
        self.concept, self.sentences, self.beside = concept, sentences, beside
        if concept:  # too few to hold any back: what is held out are noises
            val = test = 0.0
        self.draw = Draw(shots, val_shots, seed, val, test, split_file, subset, join_val, self.captioned)
        self.augment, self.views, self.weighted = augment, views, weighted
        self.workers, self.skip_unreadable = workers, skip_unreadable
        self._preprocess: dict[str, Any] | None = None
        self._plan: Plan | None = None

    def bind(self, preprocess: Mapping[str, Any]) -> None:
        """Take a timm data config: input_size (3, H, W), mean, std, interpolation, crop_pct, crop_mode."""
        eval_transform(preprocess)  # refuses a config that cannot be used
        self._preprocess = dict(preprocess)

    def setup(self, stage: str | None = None) -> None:
        """Open the source, draw the splits, read every picture once. Later calls do nothing."""
        if self._plan is not None:
            return
        source = self._open()
        decoded = Decoded(source, MEMORY // max(1, self.workers))  # each worker may come to hold its own
        unreadable: list[tuple[str, str]] = []
        if self.skip_unreadable:
            unreadable = survey(source, source.splits(), decoded).unreadable
            unreadable += self._without_captions(source, {key for key, _ in unreadable})
        drawn = plan(source, self.draw, frozenset(key for key, _ in unreadable))
        found = {name: items for name, items in drawn.parts.items() if items}
        report = survey(source, found, decoded, drawn.classes)
        report.refuse_unreadable()
        report.unreadable.extend(unreadable)
        if self.weighted and source.multilabel:
            raise DataError(
                "weighted sampling needs one label a picture, but these are multi-label. Leave it out."
            )
        self._source, self._decoded, self._report, self._plan = source, decoded, report, drawn

    def _open(self) -> Source:
        if self.concept:
            pictures = open_collection(self.path) if isinstance(self.path, str) else self.path
            beside = open_captions(self.beside, self.root) if self.beside else None
            return ConceptPictures(
                f"<{self.concept.strip('<>')}>", pictures, templates_of(self.sentences), beside
            )
        if not isinstance(self.path, str):
            return self.path
        if self.captioned:
            return open_captions(self.path, self.root, bare=self.skip_unreadable)
        return open_source(self.path, self.root)

    def _without_captions(self, source: Source, known: set[str]) -> list[tuple[str, str]]:
        items = [item for part in source.splits().values() for item in part] if self.captioned else []
        return [
            (item.key, "it has no caption") for item in items if not item.captions and item.key not in known
        ]

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the labels; with a subset, of its classes only; () with captions."""
        self.setup()
        assert self._plan is not None
        return self._plan.classes

    @property
    def multilabel(self) -> bool:
        self.setup()
        return self._source.multilabel

    @property
    def fixed_views(self) -> int:
        """How many different views a training picture has; 0 when every epoch brings a fresh one."""
        return 1 if self.augment == "none" else self.views

    def pictures(self, split: str, augmented: bool = False) -> Pictures:
        """The data set of train, val or test, with training views or as for evaluation."""
        items = self._items(split)
        if self._preprocess is None:
            raise RuntimeError(
                "the data do not know the network's preprocessing yet: call bind(config) first."
            )
        make = partial(train_transform, augment=self.augment) if augmented else eval_transform
        return Pictures(
            items,
            self._decoded,
            make(self._preprocess),
            len(self.classes) if self.multilabel else None,
            augmented=augmented and self.augment != "none",
            augment=self.augment,
            views=self.views,
            seed=self.seed,
        )

    def captions(self, split: str) -> list[tuple[str, ...]]:
        """The captions of every picture of a split, in the order of ``pictures(split)``; none is without."""
        if not self.captioned:
            raise ValueError(
                f"{self.path} was opened for its labels. For its captions, open it with captions=True."
            )
        return [item.captions for item in self._items(split)]

    def _items(self, split: str) -> list[Item]:
        self.setup()
        assert self._plan is not None
        if not self._plan.parts[split]:
            there = ", ".join(name for name, items in self._plan.parts.items() if items)
            raise DataError(
                f"{self._source.name} has no {split} pictures, only {there}. Take data that have them, or measure on "
                "these what was trained on others."
            )
        return self._plan.parts[split]

    def train_dataloader(self) -> StatefulDataLoader:
        pictures = self.pictures("train", augmented=True)
        weights = None
        if self.weighted:
            counts = Counter(item.label for item in pictures.items)
            weights = [1 / counts[item.label] for item in pictures.items]
        order = BatchOrder(len(pictures), self.batch_size, self.seed, weights)
        if self.trainer is not None:
            # Lightning calls set_epoch only after it has made the iterator, when workers already fetch
            order.set_epoch(self.trainer.fit_loop.epoch_progress.current.processed)  # type: ignore[attr-defined]
        with warnings.catch_warnings():  # torchdata 0.11 calls a torch function that is deprecated
            warnings.filterwarnings("ignore", "'set_vital' is deprecated")
            return StatefulDataLoader(
                pictures, batch_sampler=order, num_workers=self.workers, persistent_workers=self.workers > 0
            )

    def _in_order(self, split: str) -> DataLoader[dict[str, Any]]:
        """Every picture once; process r of W takes every W-th, from the r-th on."""
        rank, world = process()
        pictures = self.pictures(split)
        share = Share(pictures, range(rank, len(pictures), world))
        # by keyword, because Lightning makes the loader anew for predict
        return DataLoader(share, batch_size=max(1, self.batch_size // world), num_workers=self.workers)

    def val_dataloader(self) -> DataLoader[dict[str, Any]] | list[Any]:
        """Batches of val; an empty list, which Lightning skips, when val is 0."""
        self.setup()
        assert self._plan is not None
        return self._in_order("val") if self._plan.parts["val"] else []

    def test_dataloader(self) -> DataLoader[dict[str, Any]]:
        return self._in_order("test")

    def predict_dataloader(self) -> DataLoader[dict[str, Any]]:
        """The pictures of the test split."""
        return self._in_order("test")

    def train_images(self, n: int) -> Iterator[Tensor]:
        """Batches of n training pictures [b, 3, H, W] as for evaluation, drawn by the seed at random."""
        pictures = self.pictures("train")
        stream = torch.Generator().manual_seed(seed_of("train_images", self.seed))
        chosen = torch.randperm(len(pictures), generator=stream)[:n]
        for batch in chosen.split(self.batch_size):
            yield torch.stack([pictures[int(i)]["image"] for i in batch])

    def summary(self) -> Report:
        """What was found; prints with rich."""
        self.setup()
        return self._report

    def protocol(self) -> dict[str, Any]:
        """How the data were used, for the label that every number carries; plain JSON values."""
        self.setup()
        assert self._plan is not None
        parts = self._plan.parts
        classes = {"classes": len(self.classes), "subset": self.draw.subset}
        captions = {name: sum(len(item.captions) for item in items) for name, items in parts.items()}
        return {
            "data": self._source.name,
            **({"captions": captions} if self.captioned else classes),
            "shots": self.draw.shots,
            "val": self.draw.val,
            "test": self.draw.test,
            "seed": self.seed,
            "split": split_hash(parts),
            "counts": {name: len(items) for name, items in parts.items()},
            "origin": dict(self._plan.origin),
            "augment": self.augment,
            "views": self.views,
            **({} if self.captioned else {"weighted": self.weighted}),
        }
