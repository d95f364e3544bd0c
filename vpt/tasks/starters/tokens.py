"""The pictures that clip-mini learns from, as what its frozen part makes of them: computed once, kept on disk.

A chunk of views is one float16 ``.npy`` file [n, 37, 192], written whole or not at all: a killed run goes on at
the next chunk.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from open_clip.model import CLIP
from PIL import Image
from rich.progress import track
from torch import Tensor, nn

from vpt.data.scenes import Scene, draw
from vpt.tasks.starters.shards import pictures, plain, tensors, view
from vpt.towers.starter.clip_mini import FROZEN_BLOCKS

__all__ = ["Chunk", "Front", "KeptTokens", "Rear", "captioned", "drawn", "labelled", "whole"]

BATCH = 128  # pictures a pass of the frozen part
SQUARE = 128  # pixels to which pictures of any shape are brought before a view is taken


class Chunk(NamedTuple):
    """name: of its file. views: makes the pictures, [b, 3, 96, 96] in [-1, 1]."""

    name: str
    views: Callable[[], Iterator[Tensor]]


class Front(nn.Module):
    """Pictures [B, 3, 96, 96] -> tokens [B, 37, 192] that the first trained block reads."""

    def __init__(self, model: CLIP):
        super().__init__()
        self.trunk: Any = model.visual.trunk

    def forward(self, x: Tensor) -> Tensor:
        x = self.trunk._pos_embed(self.trunk.patch_embed(x.to(memory_format=torch.channels_last)))
        return self.trunk.blocks[:FROZEN_BLOCKS](x)


class Rear(nn.Module):
    """Tokens [B, n, 192], the class token first -> image features [B, 384], not normalised."""

    def __init__(self, model: CLIP):
        super().__init__()
        self.visual: Any = model.visual

    def forward(self, x: Tensor) -> Tensor:
        trunk = self.visual.trunk
        return self.visual.head(trunk.forward_head(trunk.norm(trunk.blocks[FROZEN_BLOCKS:](x))))


class KeptTokens:
    """Kept chunks, read by the index of a picture in their concatenation."""

    def __init__(self, folder: Path, chunks: Iterable[Chunk]):
        self.folder, self.chunks = folder, list(chunks)
        self.arrays: list[np.ndarray] = []
        self.starts = np.zeros(1, int)

    def keep(self, front: Front, progress: bool = True) -> "KeptTokens":
        """Compute the chunks that are not there, and open all."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for chunk in track(self.chunks, self.folder.name, disable=not progress):
            file = self.folder / f"{chunk.name}.npy"
            if not file.exists():
                with torch.inference_mode():
                    rows = torch.cat([front(x).half() for x in chunk.views()])
                part = file.with_suffix(".part")
                with part.open("wb") as stream:
                    np.save(stream, rows.numpy())
                os.replace(part, file)
        self.arrays = [np.load(self.folder / f"{chunk.name}.npy", mmap_mode="r") for chunk in self.chunks]
        self.starts = np.cumsum([0, *map(len, self.arrays)])
        return self

    def __len__(self) -> int:
        return int(self.starts[-1])

    def read(self, index: np.ndarray) -> Tensor:
        """float32 [B, 37, 192] of the pictures at ``index`` [B]."""
        where = np.searchsorted(self.starts, index, "right") - 1
        rows = [self.arrays[a][i - self.starts[a]] for a, i in zip(where, index, strict=True)]
        return torch.from_numpy(np.stack(rows)).float()


def _generator(*seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(int(np.random.default_rng(seed).integers(2**63)))


def labelled(shards: list[Path], seed: int, views: int = 1) -> Iterator[Chunk]:
    """Random views of the pictures of shards whose pictures have one size."""

    def crops(shard: Path, *numbers: int) -> Iterator[Tensor]:
        generator = _generator(seed, *numbers)
        return (view(batch, generator) for batch in tensors(shard, BATCH))

    for v in range(views):
        for i, shard in enumerate(shards):
            yield Chunk(f"view-{v}-{i:04}", partial(crops, shard, v, i))


def captioned(shards: list[Path], seed: int, views: int) -> Iterator[Chunk]:
    """Random views of pictures of any shape: a square along the longer side, then as of labelled pictures."""

    def squares(shard: Path, *numbers: int) -> Iterator[Tensor]:
        generator, rng = _generator(seed, *numbers), np.random.default_rng([seed, *numbers])
        stream = (_square(picture, rng.random()) for picture in pictures(shard))
        while batch := list(islice(stream, BATCH)):
            yield view(torch.from_numpy(np.stack(batch)), generator)

    for v in range(views):
        for i, shard in enumerate(shards):
            yield Chunk(f"view-{v}-{i:04}", partial(squares, shard, v, i))


def _square(picture: Image.Image, place: float) -> np.ndarray:
    width, height = picture.size
    side = min(picture.size)
    x, y = place * (width - side), place * (height - side)
    return np.asarray(picture.resize((SQUARE, SQUARE), Image.Resampling.BICUBIC, (x, y, x + side, y + side)))


def drawn(scenes: list[Scene], chunk: int = 2000) -> Iterator[Chunk]:
    """Scenes, whole."""

    def drawings(part: list[Scene]) -> Iterator[Tensor]:
        stream = (np.asarray(draw(scene)) for scene in part)
        while batch := list(islice(stream, BATCH)):
            yield plain(torch.from_numpy(np.stack(batch)))

    for i in range(0, len(scenes), chunk):
        yield Chunk(f"scenes-{i:06}", partial(drawings, scenes[i : i + chunk]))


def whole(shards: list[Path], prepare: Callable[[Image.Image], Tensor]) -> Iterator[Chunk]:
    """Pictures as the model's configuration prepares them."""

    def prepared(shard: Path) -> Iterator[Tensor]:
        stream = map(prepare, pictures(shard))
        while batch := list(islice(stream, BATCH)):
            yield torch.stack(batch)

    for i, shard in enumerate(shards):
        yield Chunk(f"whole-{i:04}", partial(prepared, shard))
