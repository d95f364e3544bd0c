"""Static parts of pictures on disk, by picture and view: what one run has computed, others read.

A picture's un-prompted features, or its tokens below the first prompted stage, follow from the frozen weights, the
preprocessing and the view. Tables of methods, seeds and halves of classes ask for the same pictures again and again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vpt.promptset import write_atomically

__all__ = ["WORTH", "Shelf"]

WORTH = 64 * 1024  # bytes of a picture's static part: above it, patches are read faster than they are kept


class Shelf:
    """One tensor a picture and view, all of one shape.

    folder: of all shelves.  about: what the tensors follow from besides picture and view (fingerprint, stage,
    precision, source); a shelf of its own for each.
    """

    def __init__(self, folder: str | Path, about: Sequence[object]) -> None:
        name = hashlib.sha256(json.dumps([str(a) for a in about]).encode()).hexdigest()[:16]
        self.data, self.index = Path(folder) / f"{name}.bin", Path(folder) / f"{name}.jsonl"
        self.keys: dict[str, int] = {}
        self.shape: tuple[int, ...] = ()
        self.dtype = torch.float32
        if self.index.is_file():
            kind, *lines = self.index.read_text().split("\n")[:-1]  # what follows the last line's end is torn
            kept = json.loads(kind)
            self.shape, self.dtype = tuple(kept["shape"]), getattr(torch, kept["dtype"])
            self.keys = {json.loads(line): i for i, line in enumerate(lines)}

    @property
    def size(self) -> int:
        """Bytes of one tensor."""
        return self.dtype.itemsize * torch.Size(self.shape).numel()

    def takes(self, one: Tensor) -> bool:
        """Whether tensors of this kind are worth keeping."""
        return one.numel() * one.dtype.itemsize <= WORTH

    def missing(self, keys: Sequence[str]) -> list[int]:
        """Which of these are not here."""
        return [i for i, key in enumerate(keys) if key not in self.keys]

    def read(self, keys: Sequence[str]) -> Tensor:
        """[n, ...] of keys that are all here."""
        every = torch.from_file(
            str(self.data),
            shared=False,
            size=len(self.keys) * torch.Size(self.shape).numel(),
            dtype=self.dtype,
        )
        return every.view(len(self.keys), *self.shape)[[self.keys[key] for key in keys]]

    def add(self, keys: Sequence[str], tensors: Tensor) -> None:
        """Append tensors [n, ...]; their keys are written last, so what a kill leaves half written is not read."""
        self.data.parent.mkdir(parents=True, exist_ok=True)
        if not self.keys:
            self.shape, self.dtype = tuple(tensors.shape[1:]), tensors.dtype
            kind = {"shape": self.shape, "dtype": str(self.dtype).removeprefix("torch.")}
            write_atomically(self.index, (json.dumps(kind) + "\n").encode())
        with self.data.open("r+b" if self.data.exists() else "w+b") as file:
            file.truncate(len(self.keys) * self.size)
            file.seek(0, 2)
            file.write(tensors.contiguous().view(torch.uint8).numpy().tobytes())
        torn = len(self.index.read_bytes().rpartition(b"\n")[2])
        with self.index.open("r+b") as file:
            file.truncate(self.index.stat().st_size - torn)
            file.seek(0, 2)
            file.write("".join(json.dumps(key) + "\n" for key in keys).encode())
        for key in keys:
            self.keys[key] = len(self.keys)


def name_of(pictures: Any, index: int, view: int) -> str:
    """What a picture and view are called on a shelf: other bytes under the same name are another picture."""
    item = pictures.items[index]
    stat = Path(item.file).stat() if item.file else None
    of_file = f"{stat.st_size}-{stat.st_mtime_ns}" if stat else ""
    return f"{item.key}|{item.offset}|{of_file}|{pictures.view_name(view)}"
