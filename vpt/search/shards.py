"""Vectors on disk: numbered float16 shards, each with a label that says which pictures they are of."""

from __future__ import annotations

import io
import json
import os
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from vpt.data.item import Item
from vpt.promptset import write_atomically

__all__ = ["SHARD", "BadIndex", "Label", "read_label", "read_vectors", "stamp", "whole", "write_shard"]

SHARD = 8192  # vectors: 8 MB of 512 channels, so a kill costs little and a million makes 123 files


class BadIndex(ValueError):
    """This folder is no index, or not a whole one."""


@dataclass(frozen=True)
class Label:
    """What a shard holds, picture by picture.

    places: file, offset and size as :class:`vpt.data.item.Item` has them.  stamps: :func:`stamp` when it was read.
    added: the pictures were named one by one, and are in no collection.  check: CRC-32 of the bytes of the vectors.
    """

    ids: list[str]
    captions: list[list[str]]
    places: list[tuple[str, int, int]]
    stamps: list[str]
    width: int
    added: bool
    check: int

    def item(self, row: int) -> Item:
        """The picture of a row, to be read again."""
        return Item(self.ids[row], 0, *self.places[row], captions=tuple(self.captions[row]))


def stamp(item: Item) -> str:
    """Size and time of the file of a picture: another picture under the same id has another. "" without a file."""
    try:
        stat = os.stat(item.file) if item.file else None
    except OSError:
        return ""
    return f"{stat.st_size}-{stat.st_mtime_ns}-{item.offset}-{item.size}" if stat else ""


def _files(folder: Path, number: int) -> tuple[Path, Path]:
    return folder / f"{number:06d}.npy", folder / f"{number:06d}.json"


def write_shard(
    folder: Path, number: int, items: Sequence[Item], vectors: np.ndarray, *, added: bool = False
) -> None:
    """Write unit vectors [n, width] of n pictures as float16, and then their label: without one there is no shard.

    Raises ValueError for vectors that are not finite, or not one a picture.
    """
    if vectors.ndim != 2 or len(vectors) != len(items):
        raise ValueError(f"a shard of {len(items)} pictures takes as many vectors, not {vectors.shape}.")
    half = np.ascontiguousarray(vectors, np.float16)
    if not np.isfinite(half).all():
        bad = items[int(np.flatnonzero(~np.isfinite(half).all(1))[0])].key
        raise ValueError(f"the vector of {bad} holds NaN or infinity, so nothing is kept of this shard.")
    data, label = _files(folder, number)
    label.unlink(missing_ok=True)  # of a killed write, whose vectors are about to be replaced
    buffer = io.BytesIO()
    np.save(buffer, half)
    write_atomically(data, buffer.getvalue())
    told = Label(
        [i.key for i in items],
        [list(i.captions) for i in items],
        [(os.path.abspath(i.file) if i.file else "", i.offset, i.size) for i in items],
        [stamp(i) for i in items],
        half.shape[1],
        added,
        zlib.crc32(half.data),
    )
    write_atomically(label, json.dumps(asdict(told)).encode())


def whole(folder: Path, number: int) -> bool:
    """Whether a shard was written to its end."""
    return all(path.is_file() for path in _files(folder, number))


def read_label(folder: Path, number: int) -> Label:
    """Raises BadIndex for a label that is missing or damaged."""
    path = _files(folder, number)[1]
    try:
        label = Label(**json.loads(path.read_bytes()))
        rows = {len(x) for x in (label.ids, label.captions, label.places, label.stamps)}
        if len(rows) != 1 or not all(isinstance(i, str) for i in label.ids):
            raise TypeError("its lists are of different lengths")
    except FileNotFoundError:
        raise _damaged(path, "it is missing") from None
    except (ValueError, TypeError) as error:
        raise _damaged(path, str(error)) from None
    return label


def read_vectors(folder: Path, number: int, label: Label) -> np.ndarray:
    """float16 [n, width]. Raises BadIndex for vectors that are missing, of another shape, or altered."""
    path = _files(folder, number)[0]
    try:
        vectors = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise _damaged(path, "it is missing") from None
    except Exception as error:  # numpy parses the header as Python, which fails in many ways on damaged bytes
        raise _damaged(path, str(error)) from None
    want = (len(label.ids), label.width)
    if vectors.shape != want or vectors.dtype != np.float16:
        raise _damaged(path, f"it holds {vectors.dtype} {vectors.shape}, its label says float16 {want}")
    if zlib.crc32(np.ascontiguousarray(vectors).data) != label.check:
        raise _damaged(path, "its numbers are not those that were written")
    return vectors


def _damaged(path: Path, why: str) -> BadIndex:
    return BadIndex(
        f"{path} is damaged: {why}. Copy the index again, or delete its folder and run vpt index build once more."
    )
