"""The static part of training, kept: streams of fixed views, stopped below the first rows, in memory or on disk."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from vpt.encode import advance, encode
from vpt.tower import Stream, Tower

__all__ = ["Stored", "fill", "inputs_of"]

MEMORY = 2 * 2**30  # bytes that "auto" may keep in memory


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
    pooled: bool = False,
    around: Callable[[], AbstractContextManager[Any]] | None = None,
    track: Callable[[Iterable[int]], Iterable[int]] = iter,
) -> Stored | None:
    """Run every view of every picture to stage ``until``, in the order of the list, so that a resumed run computes
    the same bits. pooled: keep the un-prompted features too. around: a context for the passes (autocast). None when
    "auto" finds that it would not fit."""
    x: Tensor | None = None
    frozen: Tensor | None = None
    pooled = pooled and until != tower.stages[-1]
    frame: Stream | None = None
    facts: list[dict[str, Any]] = []
    starts = range(0, len(pictures), batch_size)
    for step in track(range(views * len(starts))):
        view, start = step // len(starts), starts[step % len(starts)]
        batch = [pictures[view, i] for i in range(start, min(start + batch_size, len(pictures)))]
        images = torch.stack([b["image"] for b in batch]).to(tower.device)
        with around() if around is not None else nullcontext():
            s = advance(tower, images, {}, until)
            features = encode(tower, s) if pooled else None
        if x is None:
            x = _room((views, len(pictures), *s.x.shape[1:]), s.x.dtype, where, folder, name)
            if x is None:
                return None
            frame = replace(s, x=s.x[:0])
        x[view, start : start + len(batch)] = s.x.cpu()
        if features is not None:
            if frozen is None:
                frozen = features.new_empty((views, len(pictures), features.shape[-1]), device="cpu")
            frozen[view, start : start + len(batch)] = features.cpu()
        if view == 0:
            facts += [{k: b[k] for k in ("label", "index", "key")} for b in batch]
    assert x is not None
    assert frame is not None
    return Stored(x, frame, facts, frozen)
