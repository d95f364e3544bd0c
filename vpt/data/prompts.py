"""Prompts to draw pictures of, each with the seeds of its pictures: what a reward is trained and measured on."""

from __future__ import annotations

import hashlib
import json
import os
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset
from torchdata.stateful_dataloader import StatefulDataLoader

from vpt.data.item import DataError
from vpt.data.order import BatchOrder, Place, seed_of

__all__ = ["PromptData", "Prompts", "read_prompts"]


class Prompts(Dataset[dict[str, Any]]):
    """Prompts with seeds, asked by (epoch, index) as pictures are; a batch has a seed in a picture's place.

    seed: training draws a fresh seed each epoch, a function of (seed, epoch, index).
    fixed: seeds 0 to fixed - 1 of every prompt instead, those that measure.
    """

    def __init__(self, prompts: Sequence[str], seed: int, fixed: int = 0) -> None:
        self.prompts, self.seed, self.fixed = tuple(prompts), seed, fixed

    def __len__(self) -> int:
        return len(self.prompts) * max(1, self.fixed)

    def __getitem__(self, place: int | Place) -> dict[str, Any]:
        epoch, index = place if isinstance(place, tuple) else (0, place)
        number, drawn = divmod(index, max(1, self.fixed))
        if not self.fixed:
            drawn = seed_of("drawn", self.seed, epoch, index)
        return {"image": torch.tensor(drawn), "index": number, "view": epoch, "key": self.prompts[number]}


class PromptData:
    """Prompts to train on, and others to measure on; every step is a function of the seed.

    A batch is a dictionary: image int64 [B], the seeds of pictures that are yet to be drawn; index int64 [B], the
    prompt's place in its list; key, B prompts.

    Args:
        path: a text file with a prompt a line, or a list of prompts. A prompt may say a placeholder.
        held: a file of prompts to measure on.
        val: without it, the share of the prompts that is split off to measure on; 0: those that are trained on.
        seeds: pictures of each prompt to measure on, drawn with the seeds 0, 1, ..; training never draws these.
        seed: of the split, the order and the seeds of training.
        batch_size: pictures a step.

    Raises DataError, from ``setup``, for prompts that cannot be used.
    """

    captioned, multilabel, augment, fixed_views = True, False, "none", 0
    classes: tuple[str, ...] = ()

    def __init__(
        self,
        path: str | Sequence[str],
        *,
        held: str | None = None,
        val: float = 0.2,
        seeds: int = 4,
        seed: int = 1,
        batch_size: int = 4,
    ) -> None:
        if batch_size < 1 or seeds < 1 or not 0 <= val < 1:
            raise ValueError(
                f"batch_size {batch_size}, seeds {seeds}, val {val}: wanted >= 1, >= 1, and from 0 to less than 1."
            )
        self.path, self.held_path, self.val, self.seeds = path, held, val, seeds
        self.seed, self.batch_size = seed, batch_size
        self.name = Path(path).stem if isinstance(path, str) else "a list of prompts"
        self.parts: dict[str, tuple[str, ...]] = {}

    def bind(self, preprocess: Mapping[str, Any]) -> None:
        """Nothing of a network's preprocessing is needed."""

    def setup(self) -> None:
        """Read the prompts and split them. Later calls do nothing."""
        if self.parts:
            return
        prompts = read_prompts(self.path) if isinstance(self.path, str) else _checked(self.path, "the list")
        if self.held_path is not None:
            held = read_prompts(self.held_path)
            if both := [prompt for prompt in held if prompt in prompts]:
                raise DataError(
                    f"{both[0]!r} is in {self.held_path} and is trained on too. Keep it in one, or leave held out and "
                    "set val=0 to measure with other seeds alone."
                )
        else:
            shuffled = list(prompts)
            random.Random(self.seed).shuffle(shuffled)
            chosen = set(shuffled[: round(self.val * len(prompts))])
            held = tuple(prompt for prompt in prompts if prompt in chosen)
            prompts = tuple(prompt for prompt in prompts if prompt not in chosen)
        self.parts = {"train": prompts, "val": held or prompts}

    def captions(self, split: str) -> list[str]:
        """The prompts of train or val."""
        self.setup()
        return list(self.parts[split])

    def pictures(self, split: str, augmented: bool = False) -> Prompts:
        """Prompts with their seeds: of train fresh ones each epoch, of val the fixed ones."""
        return Prompts(self.captions(split), self.seed, self.seeds if split == "val" else 0)

    def train_dataloader(self) -> StatefulDataLoader:
        """Batches of an epoch, in an order that resumes."""
        prompts = self.pictures("train")
        return StatefulDataLoader(prompts, batch_sampler=BatchOrder(len(prompts), self.batch_size, self.seed))

    def val_dataloader(self) -> DataLoader[dict[str, Any]]:
        """Every prompt to measure on with every seed, in order."""
        return DataLoader(self.pictures("val"), self.batch_size)

    def summary(self) -> str:
        """What was found, in a line."""
        train, held = len(self.captions("train")), len(self.captions("val"))
        which = "the same" if self.parts["train"] == self.parts["val"] else f"{held:,} other"
        return f"{self.name}: {train:,} prompts to train on; measured on {which}, {self.seeds} pictures each"

    def protocol(self) -> dict[str, Any]:
        """How the prompts were used, for the label that every number carries; plain JSON values."""
        self.setup()
        parts = {name: sorted(prompts) for name, prompts in self.parts.items()}
        same = self.parts["train"] == self.parts["val"]
        return {
            "data": self.name,
            "prompts": {name: len(prompts) for name, prompts in parts.items()},
            "held": "the same prompts, other seeds" if same else "other prompts, other seeds",
            "seeds": self.seeds,
            "val": self.val,
            "seed": self.seed,
            "split": hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12],
            "counts": {"train": len(parts["train"]), "val": len(parts["val"]) * self.seeds},
        }


def read_prompts(path: str | os.PathLike[str]) -> tuple[str, ...]:
    """The lines of a text file that are not blank, each once. Raises DataError for a file without any."""
    if not Path(path).is_file():
        raise DataError(
            f"there is no file of prompts at {str(path)!r}. Wanted: a text file with a prompt a line."
        )
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is not in UTF-8 ({error}). Wanted: a text file with a prompt a line."
        ) from error
    return _checked(text.splitlines(), str(path))


def _checked(prompts: Sequence[str], where: str) -> tuple[str, ...]:
    found = tuple(dict.fromkeys(" ".join(prompt.split()) for prompt in prompts if prompt.strip()))
    if not found:
        raise DataError(f"{where} holds no prompts. Wanted: one a line, such as a photo of a mug.")
    return found
