"""What every source of pictures speaks: items, split names, and one class of error."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from PIL import Image

SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".avif", ".jp2"),
    *(".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pnm"),
)
_ALIASES = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}


class DataError(ValueError):
    """Data that cannot be used as they are; the message says what was found and what to do."""


@dataclass(frozen=True)
class Item:
    """One picture with a label or captions, not yet read.

    key: unique in its source. label: class index, or the indices of all its classes (multi-label).
    file: the file that holds it; offset and size: where it lies there, size -1 for the whole file.
    A source without files (torchvision, digits) numbers its pictures in ``offset``.
    captions: what is said of it; () where nothing is, or where the source has labels.
    """

    key: str
    label: int | tuple[int, ...]
    file: str = ""
    offset: int = 0
    size: int = -1
    captions: tuple[str, ...] = ()


class Source(Protocol):
    """Labelled pictures with random access."""

    @property
    def name(self) -> str: ...

    @property
    def classes(self) -> tuple[str, ...]: ...

    @property
    def multilabel(self) -> bool: ...

    def splits(self) -> dict[str, list[Item]]:
        """Items by the source's own split, or {"all": items} when it has none."""

    def read(self, item: Item) -> bytes | Image.Image:
        """Encoded bytes, or a picture where the source keeps no encoded files."""


@runtime_checkable
class Published(Source, Protocol):
    """A source whose splits and few-shot samples are published."""

    @property
    def origin(self) -> Mapping[str, str]:
        """Where each split comes from, in words for the protocol."""

    def sample(
        self, shots: int, seed: int, val_shots: int | None = None
    ) -> tuple[dict[str, list[Item]], dict[str, str]]:
        """Train, and val where the source has one, with the words for each."""


@dataclass(frozen=True)
class Files:
    """A source whose items are files, or pieces of files."""

    name: str
    classes: tuple[str, ...]
    multilabel: bool
    parts: dict[str, list[Item]]

    def splits(self) -> dict[str, list[Item]]:
        return self.parts

    def read(self, item: Item) -> bytes:
        """Raises OSError when the file is gone."""
        with open(item.file, "rb", buffering=0 if item.size >= 0 else -1) as file:
            if item.size < 0:
                return file.read()
            return os.pread(file.fileno(), item.size, item.offset)


def split_name(name: str) -> str | None:
    """train, val or test for the usual spellings in any case, else None."""
    return next((split for split, names in _ALIASES.items() if name.lower() in names), None)


def is_picture(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")


def some(names: Iterable[object], limit: int = 8) -> str:
    """Up to ``limit`` names for a message, and how many more there are."""
    words = [str(name) for name in names]
    more = f" and {len(words) - limit} more" if len(words) > limit else ""
    return ", ".join(words[:limit]) + more


def labels_of(item: Item) -> tuple[int, ...]:
    return item.label if isinstance(item.label, tuple) else (item.label,)
