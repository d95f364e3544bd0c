"""What the folder of an index says of itself, who may write to it, and which vectors of its shards count."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from vpt.promptset import write_atomically
from vpt.search.shards import BadIndex, Label, read_label, read_vectors

__all__ = ["FORMAT", "IndexBusy", "Manifest", "labels", "live", "live_vectors", "shards_of", "writing"]

FORMAT = 1
NAME = "index.json"


class IndexBusy(OSError):
    """Somebody else writes to this index now."""


@dataclass(frozen=True)
class Manifest:
    """``index.json``: replaced last by whatever changes an index, so that a kill leaves the old one or the new.

    encoder: what :meth:`vpt.search.encoder.Encoder.about` said.  prompts: file of the rows written to pictures, or "".
    collection, root: as ``open_collection`` takes them.  kind: as it was asked for.  store: "faiss" or an address.
    shards: how many count; those behind them were left by a kill.  removed: ids, each with the number of the first
    shard that may hold it again.  left: the same of pictures that left the collection.  count: vectors that can be
    found.  skipped: id and reason of unreadable pictures.  vectors: folder of the FAISS index, "" for another store.
    filled: whether the store holds what the shards say.
    """

    encoder: dict[str, Any]
    collection: str
    root: str | None = None
    prompts: str = ""
    kind: str = "auto"
    store: str = "faiss"
    shards: int = 0
    removed: dict[str, int] = field(default_factory=dict)
    left: dict[str, int] = field(default_factory=dict)
    count: int = 0
    skipped: list[list[str]] = field(default_factory=list)
    vectors: str = ""
    generation: int = 0
    filled: bool = True
    format: int = FORMAT
    vpt: str = ""

    @property
    def dead(self) -> dict[str, int]:
        """Ids that are not found, whatever shards before that number hold."""
        return self.left | self.removed

    def without(self, there: Collection[str]) -> Manifest:
        """Without word of ids that are there again."""
        removed, left = (
            {i: n for i, n in ids.items() if i not in there} for ids in (self.removed, self.left)
        )
        return replace(self, removed=removed, left=left)

    def check(self, folder: Path, about: dict[str, Any]) -> None:
        """Raises ValueError, with both values and what to do, for vectors of pictures made in another way."""
        own, named = self.encoder, {"fingerprint": "image tower", "rows": "image rows", "width": "width"}
        wrong = [
            f"{n} {own[k] or 'none'}, not {about[k] or 'none'}"
            for k, n in named.items()
            if own[k] != about[k]
        ]
        if wrong:
            name = about["backbone"]["name"]
            rows = " --prompts FILE" if about["rows"] else ""
            raise ValueError(
                f"{folder} holds vectors of {own['backbone']['name']} ({'; '.join(wrong)}), so those of {name} cannot "
                "be compared with them. Search with what it was made with, or embed the pictures again: vpt index "
                f"build {self.collection} --out NEW --model {name}{rows}."
            )

    @property
    def valid(self) -> str:
        """Which prompt sets the vectors serve."""
        name, rows = self.encoder["backbone"]["name"], self.encoder["rows"]
        if "text" not in self.encoder["backbone"]["fingerprints"]:
            return f"{name} has no text tower: this index is searched by picture."
        if not rows:
            return (
                f"These are vectors of {name} without rows in its image tower. Any prompt set that writes to the text "
                "tower only keeps them valid, however often it is trained: no picture is embedded again. A set that "
                "writes to the image tower needs an index of its own."
            )
        return (
            f"These vectors were made with the image rows {rows} ({self.prompts}). A prompt set that writes the same "
            "rows to the image tower keeps them valid, whatever it writes to the text tower; one with other image "
            "rows, or with none, needs an index of its own."
        )

    def save(self, folder: Path) -> Manifest:
        """Write it as the folder's next one."""
        new = replace(self, generation=self.generation + 1, vpt=version("visual-prompt-tuning"))
        write_atomically(folder / NAME, json.dumps(asdict(new), indent=1).encode())
        return new

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Raises FileNotFoundError where there is no index, BadIndex for a damaged one or one of another format."""
        path = folder / NAME
        if not path.is_file():
            begun = (
                " A build was begun in it, and goes on with" if shards_of(folder).is_dir() else " Make one:"
            )
            raise FileNotFoundError(
                f"there is no index in {str(folder)!r}.{begun} vpt index build COLLECTION --out {folder}."
            )
        try:
            told = json.loads(path.read_bytes())
            if told["format"] != FORMAT:
                raise BadIndex(
                    f"{path} has format {told['format']}, this vpt reads format {FORMAT}. Build it again, or install "
                    "the vpt that made it."
                )
            made = cls(**told)
            _ = made.encoder["fingerprint"], made.encoder["rows"], int(made.encoder["width"])
            if not isinstance(made.removed, dict) or made.shards < 0:
                raise TypeError("its counts are impossible")
        except BadIndex:
            raise
        except (ValueError, TypeError, KeyError) as error:
            raise BadIndex(
                f"{path} is damaged ({type(error).__name__}: {error}). Copy the index again, or delete its folder and "
                "run vpt index build once more."
            ) from None
        return made


def shards_of(folder: Path) -> Path:
    """Where the shards lie."""
    return folder / "shards"


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """One writer at a time; readers do not ask. Raises IndexBusy at once where another one writes."""
    folder.mkdir(parents=True, exist_ok=True)
    lock, who = FileLock(folder / ".lock", timeout=0), folder / ".writer"
    try:
        lock.acquire()
    except Timeout:
        name = who.read_text() if who.is_file() else "another process"
        raise IndexBusy(
            f"{folder} is being written to by {name}. Wait until it is done, or stop it; nothing is lost by that. "
            "Searching goes on meanwhile."
        ) from None
    try:
        write_atomically(who, f"process {os.getpid()} on {socket.gethostname()}".encode())
        yield
    finally:
        who.unlink(missing_ok=True)
        lock.release()


def labels(folder: Path, manifest: Manifest) -> list[Label]:
    """Labels of the shards that count, in their order. Raises BadIndex."""
    found = [read_label(shards_of(folder), n) for n in range(manifest.shards)]
    width = manifest.encoder["width"]
    if wrong := [n for n, label in enumerate(found) if label.width != width]:
        raise BadIndex(
            f"shard {wrong[0]} of {folder} holds vectors of {found[wrong[0]].width}, the index is {width} wide. Delete "
            "the folder and build it again."
        )
    return found


def live(labels: Sequence[Label], removed: dict[str, int]) -> dict[str, tuple[int, int]]:
    """Shard and row of every id that counts: the last one that holds it, unless it was removed after that."""
    last = {i: (n, row) for n, label in enumerate(labels) for row, i in enumerate(label.ids)}
    return {i: at for i, at in last.items() if at[0] >= removed.get(i, 0)}


def live_vectors(
    folder: Path,
    labels: Sequence[Label],
    places: dict[str, tuple[int, int]],
    numbers: Sequence[int] | None = None,
) -> Iterator[tuple[list[str], np.ndarray]]:
    """Ids and float16 vectors shard by shard; numbers: of these shards only. Raises BadIndex."""
    for n in range(len(labels)) if numbers is None else numbers:
        label = labels[n]
        rows = [row for row, i in enumerate(label.ids) if places.get(i) == (n, row)]
        if rows:
            vectors = read_vectors(shards_of(folder), n, label)
            yield [label.ids[row] for row in rows], vectors[rows]
