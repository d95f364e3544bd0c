"""The static part of training, kept: streams of fixed views, stopped below the first rows, in memory or on disk."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from vpt.encode import advance
from vpt.tower import Stream, Tower

__all__ = ["Stored", "fill", "inputs_of"]

MEMORY = 2 * 2**30  # bytes that "auto" may keep in memory


@dataclass(frozen=True)
class Stored(Dataset[dict[str, Any]]):
    """A data set of streams in place of pictures; asked by (epoch, index) as the pictures are.

    x: [views, pictures, ...], what the first written stage reads.  frame: the rest of the stream, shared.
    facts: label, index and key of each picture.
    """

    x: Tensor
    frame: Stream
    facts: Sequence[dict[str, Any]]

    def __len__(self) -> int:
        return len(self.facts)

    def __getitem__(self, place: int | tuple[int, int]) -> dict[str, Any]:
        epoch, index = place if isinstance(place, tuple) else (0, place)
        view = epoch % len(self.x)
        return {**self.facts[index], "x": self.x[view, index], "view": view}


def inputs_of(batch: dict[str, Any], frame: Stream | None) -> Tensor | Stream:
    """What the loop starts from: the batch's pictures, or its stored streams."""
    return replace(frame, x=batch["x"]) if frame is not None and "x" in batch else batch["image"]


def _room(
    shape: tuple[int, ...], dtype: torch.dtype, where: str, folder: Path | None, name: str
) -> Tensor | None:
    """An empty tensor in memory, or on a memory map in ``folder``; None when "auto" finds it too large."""
    size = int(np.prod(shape)) * dtype.itemsize
    if where == "disk":
        if folder is None:
            raise ValueError("store='disk' needs a folder: give out=DIR.")
        folder.mkdir(parents=True, exist_ok=True)
        return torch.from_file(
            str(folder / f"{name}.static"), shared=True, size=int(np.prod(shape)), dtype=dtype
        ).view(shape)
    return torch.empty(shape, dtype=dtype) if where == "memory" or size <= MEMORY else None


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
    around: Callable[[], AbstractContextManager[Any]] | None = None,
    track: Callable[[Iterable[int]], Iterable[int]] = iter,
) -> Stored | None:
    """Run every view of every picture to stage ``until``, in the order of the list, so that a resumed run computes
    the same bits. around: a context for the passes (autocast). None when "auto" finds that it would not fit."""
    x: Tensor | None = None
    frame: Stream | None = None
    facts: list[dict[str, Any]] = []
    starts = range(0, len(pictures), batch_size)
    for step in track(range(views * len(starts))):
        view, start = step // len(starts), starts[step % len(starts)]
        batch = [pictures[view, i] for i in range(start, min(start + batch_size, len(pictures)))]
        images = torch.stack([b["image"] for b in batch]).to(tower.device)
        if around is None:
            s = advance(tower, images, {}, until)
        else:
            with around():
                s = advance(tower, images, {}, until)
        if x is None:
            x = _room((views, len(pictures), *s.x.shape[1:]), s.x.dtype, where, folder, name)
            if x is None:
                return None
            frame = replace(s, x=s.x[:0])
        x[view, start : start + len(batch)] = s.x.cpu()
        if view == 0:
            facts += [{k: b[k] for k in ("label", "index", "key")} for b in batch]
    assert x is not None
    assert frame is not None
    return Stored(x, frame, facts)
