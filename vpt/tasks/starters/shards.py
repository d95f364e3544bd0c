"""Labelled pictures out of WebDataset shards, and the views that pretraining takes of them."""

import io
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import webdataset as wds
from PIL import Image
from torch import Tensor

__all__ = ["find_shards", "labels_of", "pictures", "plain", "tensors", "view"]

SIZE = 96  # of vit-mini's input, pixels
PICTURE = ("webp", "png", "jpg", "jpeg")


def find_shards(data: str, split: str) -> list[Path]:
    """The shards of ``split``, sorted by name.

    data: a folder of ``SPLIT-*.tar`` or ``SPLIT-*.tar.gz``, or a path in whose file name ``{split}`` stands
        for the split and ``*`` for anything: ``"data/tiny-{split}-*.tar"``. Raises FileNotFoundError.
    """
    named = f"{data}/{{split}}-*.tar*" if Path(data).is_dir() else data
    pattern = Path(named.replace("{split}", split))
    shards = sorted(pattern.parent.glob(pattern.name)) if "{split}" in named else []
    if not shards:
        raise FileNotFoundError(
            f"found no shards of split {split!r} as {pattern}. Give --data a folder that holds {split}-*.tar "
            "or .tar.gz, or a pattern such as 'folder/name-{split}-*.tar'."
        )
    return shards


def _samples(shard: Path) -> Iterator[dict[str, Any]]:
    yield from wds.WebDataset(str(shard), shardshuffle=False, empty_check=False)


def labels_of(shard: Path, classes: int) -> np.ndarray:
    """int64 [n]: the class of every picture, in order. Raises ValueError with the key that is wrong."""
    labels = []
    for sample in _samples(shard):
        text = sample.get("cls", b"").decode("ascii", "replace").strip()
        if not text.isdigit() or int(text) >= classes or not any(kind in sample for kind in PICTURE):
            raise ValueError(
                f"{shard}: sample {sample['__key__']} has class {text!r} and members "
                f"{sorted(k for k in sample if not k.startswith('__'))}. Wanted: a class number from 0 to "
                f"{classes - 1} in .cls and a picture in one of {', '.join('.' + k for k in PICTURE)}."
            )
        labels.append(int(text))
    if not labels:
        raise ValueError(f"{shard} holds no samples. Wanted: members KEY.cls and KEY.webp (or png, jpg).")
    return np.array(labels, dtype=np.int64)


def pictures(shard: Path) -> Iterator[Image.Image]:
    """The shard's pictures in order, decoded to RGB. Raises ValueError that names the one that cannot be."""
    for sample in _samples(shard):
        data = next(sample[kind] for kind in PICTURE if kind in sample)
        try:
            yield Image.open(io.BytesIO(data)).convert("RGB")
        except (OSError, Image.DecompressionBombError) as error:
            raise ValueError(
                f"{shard}: picture {sample['__key__']} cannot be decoded ({error}). "
                "Write the shard again without it."
            ) from error


def tensors(shard: Path, batch: int) -> Iterator[Tensor]:
    """The pictures of a shard in order, ``batch`` at a time: uint8 [b, H, W, 3], all of one size."""
    waiting: list[np.ndarray] = []
    size = None
    for number, picture in enumerate(pictures(shard)):
        if picture.size != (size := size or picture.size):
            raise ValueError(
                f"{shard}: picture {number} has {picture.size} pixels, those before it {size}. "
                "Pretraining reads pictures of one size: resize them before you write the shards."
            )
        waiting.append(np.asarray(picture))
        if len(waiting) == batch:
            yield torch.from_numpy(np.stack(waiting))
            waiting = []
    if waiting:
        yield torch.from_numpy(np.stack(waiting))


def _signed(x: Tensor) -> Tensor:
    return x.permute(0, 3, 1, 2).float().div_(127.5).sub_(1)


def plain(x: Tensor) -> Tensor:
    """uint8 [B, H, W, 3] -> [B, 3, 96, 96] in [-1, 1]: the whole picture."""
    return F.interpolate(_signed(x), size=(SIZE, SIZE), mode="bicubic", align_corners=False).clamp_(-1, 1)


def view(x: Tensor, generator: torch.Generator) -> Tensor:
    """uint8 [B, H, W, 3] -> [B, 3, 96, 96] in [-1, 1]: a crop, perhaps flipped, of slightly other colours.

    The crop has 0.35 to 1 of the area and sides in 3:4 to 4:3; brightness, contrast and saturation move by up
    to 0.2, 0.2 and 0.3.
    """
    b = len(x)

    def around(middle: float, reach: float) -> Tensor:
        return torch.empty(b).uniform_(middle - reach, middle + reach, generator=generator)

    area, ratio = around(0.675, 0.325), around(0, math.log(4 / 3)).exp()
    width, height = (area * ratio).sqrt().clamp(max=1), (area / ratio).sqrt().clamp(max=1)
    affine = torch.zeros(b, 2, 3)
    affine[:, 0, 0] = width * torch.where(around(0, 1) < 0, -1.0, 1.0)
    affine[:, 0, 2] = around(0, 1) * (1 - width)
    affine[:, 1, 1] = height
    affine[:, 1, 2] = around(0, 1) * (1 - height)
    grid = F.affine_grid(affine, [b, 3, SIZE, SIZE], align_corners=False)
    x = F.grid_sample(_signed(x), grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    contrast, brightness, saturation = (around(0, s)[:, None, None, None] for s in (0.2, 0.2, 0.3))
    x = x * (1 + contrast) + brightness
    grey = x.mean(1, keepdim=True)
    return (grey + (x - grey) * (1 + saturation)).clamp_(-1, 1)
