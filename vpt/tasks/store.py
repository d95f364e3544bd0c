"""The static part of training, kept: streams of fixed views, stopped below the first rows, in memory or on disk."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from vpt.encode import advance, encode
from vpt.tasks.shelf import WORTH, Shelf, name_of
from vpt.tower import Stream, Tower

__all__ = ["Stored", "fill", "inputs_of"]

MEMORY = 2 * 2**30  # bytes that "auto" keeps in memory


@dataclass(frozen=True)
class Stored(Dataset[dict[str, Any]]):
    """A data set of streams in place of pictures; asked by (epoch, index) as the pictures are.

    x: [views, pictures, ...], what the first written stage reads.  frame: the rest of the stream, shared.
    facts: label, index and key of each picture.
    frozen: un-prompted features [views, pictures, out], for methods that compare with them.
    """

    x: Tensor
    frame: Stream
    facts: Sequence[dict[str, Any]]
    frozen: Tensor | None = None

    def __len__(self) -> int:
        return len(self.facts)

    def __getitem__(self, place: int | tuple[int, int]) -> dict[str, Any]:
        epoch, index = place if isinstance(place, tuple) else (0, place)
        view = epoch % len(self.x)
        item = {**self.facts[index], "x": self.x[view, index], "view": view}
        return item if self.frozen is None else {**item, "frozen": self.frozen[view, index]}


def inputs_of(batch: Mapping[str, Any], frame: Stream | None) -> Tensor | Stream:
    """What the loop starts from: the batch's pictures, or its stored streams."""
    return replace(frame, x=batch["x"]) if frame is not None and "x" in batch else batch["image"]


def _room(
    shape: tuple[int, ...], dtype: torch.dtype, where: str, folder: Path | None, name: str
) -> Tensor | None:
    """An empty tensor [views, pictures, ...] in memory, or on a memory map in ``folder``.

    "auto" takes memory up to 2 GiB, then the folder for what is read from there faster than computed; None where it
    finds no place.
    """
    size, each = int(np.prod(shape)) * dtype.itemsize, int(np.prod(shape[2:])) * dtype.itemsize
    if where == "disk" and folder is None:
        raise ValueError("store='disk' needs a folder: give out=DIR.")
    if folder is not None and (where == "disk" or (where == "auto" and size > MEMORY and each <= WORTH)):
        folder.mkdir(parents=True, exist_ok=True)
        return torch.from_file(
            str(folder / f"{name}.static"), shared=True, size=int(np.prod(shape)), dtype=dtype
        ).view(shape)
    return torch.empty(shape, dtype=dtype) if where == "memory" or size <= MEMORY else None


@dataclass(frozen=True)
class Part:
    """One kind of static part on its way into memory: up to ``stage``, from a shelf where it lies there."""

    stage: str
    where: str
    folder: Path | None
    name: str
    shelf: Shelf | None = None
    rooms: list[Tensor] = field(default_factory=list)  # the one tensor, made when its shape is known

    def put(self, at: tuple[int, slice], values: Tensor, shape: tuple[int, int]) -> bool:
        """Keep values of some pictures of one view; False when "auto" finds no room."""
        if not self.rooms:
            room = _room((*shape, *values.shape[1:]), values.dtype, self.where, self.folder, self.name)
            if room is None:
                return False
            self.rooms.append(room)
        self.rooms[0][at] = values
        return True


@torch.no_grad()
def fill(
    tower: Tower,
    until: str,
    pictures: Any,
    views: int,
    *,
    where: str = "auto",
    folder: Path | None = None,
    name: str = "train",
    batch_size: int = 64,
    pooled: bool = False,
    shelves: Callable[[str], Shelf] | None = None,
    around: Callable[[], AbstractContextManager[Any]] | None = None,
    track: Callable[[Iterable[int]], Iterable[int]] = iter,
) -> Stored | None:
    """Run every view of every picture to stage ``until``, in the order of the list, so that a resumed run computes
    the same bits. pooled: keep the un-prompted features too. shelves: by stage, where other runs keep theirs and look
    for them. around: a context for the passes (autocast). None when "auto" finds that it would not fit."""
    stages = [until, tower.stages[-1]] if pooled and until != tower.stages[-1] else [until]
    parts = [
        Part(stage, where if i == 0 else "memory", folder, name, shelves(stage) if shelves else None)
        for i, stage in enumerate(stages)
    ]
    frame: Stream | None = None
    starts = range(0, len(pictures), batch_size)
    for step in track(range(views * len(starts))):
        view, start = step // len(starts), starts[step % len(starts)]
        places = range(start, min(start + batch_size, len(pictures)))
        names = [name_of(pictures, i, view) for i in places] if shelves else []
        known = all(p.shelf is not None and not p.shelf.missing(names) for p in parts)
        if frame is None or not known:
            some = [0] if known else [i for i, _ in enumerate(places)]
            images = torch.stack([pictures[view, places[i]]["image"] for i in some]).to(tower.device)
            with around() if around is not None else nullcontext():
                s = advance(tower, images, {}, until)
                frame = frame or replace(s, x=s.x[:0])
                found = [s.x.cpu(), *([encode(tower, s).cpu()] if len(parts) > 1 else [])]
        for part, values in zip(parts, found, strict=True):
            if known:
                assert part.shelf is not None
                values = part.shelf.read(names)
            elif part.shelf is not None and part.shelf.takes(values[0]):
                new = part.shelf.missing(names)
                part.shelf.add([names[i] for i in new], values[new])
            if not part.put((view, slice(places[0], places[-1] + 1)), values, (views, len(pictures))):
                return None
    assert frame is not None
    facts = pictures.facts()
    return Stored(parts[0].rooms[0], frame, facts, parts[1].rooms[0] if len(parts) > 1 else None)
