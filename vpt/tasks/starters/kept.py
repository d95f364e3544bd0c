"""What the frozen stem and the teacher say of every view: computed once, kept on disk, read by index.

A shard's view is two float16 ``.npy`` files, each written whole or not at all: a killed run goes on at
the next shard.
"""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from rich.progress import Progress
from timm.models.efficientnet import EfficientNet
from torch import Tensor

from vpt.tasks.starters.lite0 import stem_and_logits
from vpt.tasks.starters.shards import labels_of, plain, tensors, view

__all__ = ["WHOLE", "Kept"]

BATCH = 256  # pictures a pass of the stem
MAP, LOGITS = (112, 6, 6), 1000  # a picture's map at 96 px and stride 16, and the teacher's classes
WHOLE = -1  # the view that is the whole picture


class Kept:
    """The kept views of one split.

    folder: where they lie. shards: of the split, in order. seed: of the views.
    Raises ValueError if a label does not fit ``classes``, OSError if ``views`` of them do not fit the disk.
    """

    def __init__(self, folder: Path, shards: list[Path], *, classes: int, views: int, seed: int):
        self.folder, self.shards, self.seed = folder, shards, seed
        labels = [labels_of(shard, classes) for shard in shards]
        self.labels = torch.from_numpy(np.concatenate(labels))
        self.starts = np.cumsum([0, *map(len, labels)])
        self._open: dict[tuple[int, str], list[np.ndarray]] = {}
        folder.mkdir(parents=True, exist_ok=True)
        wanted = 2 * views * len(self.labels) * (int(np.prod(MAP)) + LOGITS)
        held = sum(file.stat().st_size for file in folder.glob("*.npy"))
        if (free := shutil.disk_usage(folder).free) < wanted - held:
            raise OSError(
                f"{views} kept views of {len(self.labels)} pictures take {wanted / 1e9:.2f} GB and "
                f"{folder} has {free / 1e9:.2f} GB free. Take fewer --views or another --out."
            )

    def __len__(self) -> int:
        return len(self.labels)

    def keep(self, number: int, teacher: EfficientNet, progress: bool = True) -> None:
        """Compute view ``number`` of every picture, except of the shards that are done."""
        with Progress(disable=not progress) as bar:
            task = bar.add_task(f"{self.folder.name}: {_name(number)}", total=len(self))
            for i, stop in enumerate(self.starts[1:]):
                if not self._file(number, i, "maps").exists():
                    self._keep_shard(number, i, teacher, lambda n: bar.advance(task, n))
                bar.update(task, completed=int(stop))

    @torch.inference_mode()
    def _keep_shard(self, number: int, i: int, teacher: EfficientNet, advance: Callable[[int], None]) -> None:
        seed = np.random.default_rng([self.seed, 2, number + 1, i]).integers(2**63)  # WHOLE is -1
        generator = torch.Generator().manual_seed(int(seed))
        device = next(teacher.parameters()).device
        maps, logits = [], []
        for pictures in tensors(self.shards[i], BATCH):
            x = plain(pictures) if number == WHOLE else view(pictures, generator)
            stem, soft = stem_and_logits(teacher, x.to(device, memory_format=torch.channels_last))
            maps.append(stem.half().contiguous().cpu())
            logits.append(soft.half().cpu())
            advance(len(x))
        _write(self._file(number, i, "logits"), torch.cat(logits))
        _write(self._file(number, i, "maps"), torch.cat(maps))  # last: this file says that the shard is done

    def read(self, number: int, index: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
        """Of the pictures at ``index`` [B]: maps [B, 112, 6, 6], teacher's logits [B, 1000], labels [B]."""
        return self._rows(number, "maps", index), self._rows(number, "logits", index), self.labels[index]

    def _rows(self, number: int, what: str, index: np.ndarray) -> Tensor:
        if (number, what) not in self._open:
            files = [self._file(number, i, what) for i in range(len(self.shards))]
            self._open[number, what] = [np.load(file, mmap_mode="r") for file in files]
        arrays = self._open[number, what]
        rows = np.empty((len(index), *arrays[0].shape[1:]), np.float32)
        shard = np.searchsorted(self.starts, index, "right") - 1
        for i in np.unique(shard):
            rows[shard == i] = arrays[i][index[shard == i] - self.starts[i]]
        return torch.from_numpy(rows)

    def _file(self, number: int, shard: int, what: str) -> Path:
        return self.folder / f"{_name(number)}-{shard:04}-{what}.npy"


def _name(number: int) -> str:
    return "whole" if number == WHOLE else f"view-{number}"


def _write(file: Path, rows: Tensor) -> None:
    part = file.with_suffix(".part")
    with part.open("wb") as stream:
        np.save(stream, rows.numpy())
    os.replace(part, file)
