"""Which pictures a build has still to embed: those of no shard that counts, nor of one that a killed build finished."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vpt.data.item import DataError, Item, Source, some
from vpt.promptset import write_atomically
from vpt.search.encoder import Encoder
from vpt.search.manifest import Manifest, live, shards_of
from vpt.search.shards import Label, read_label, stamp, whole

__all__ = ["BEGUN", "claim", "clear", "every", "previous", "resumed", "wanted"]

BEGUN = "building.json"  # beside the shards: what is being written there, and with what


def every(source: Source) -> list[Item]:
    items = [item for part in source.splits().values() for item in part]
    if twice := [key for key, n in Counter(item.key for item in items).items() if n > 1]:
        raise DataError(f"{source.name} names pictures twice: {some(twice)}. Give each a name of its own.")
    if not items:
        raise DataError(f"{source.name} holds no pictures, so there is nothing to index.")
    return items


def previous(folder: Path, encoder: Encoder, collection: str) -> Manifest | None:
    """The index that is in the folder already. Raises ValueError for one of other vectors or pictures."""
    try:
        old = Manifest.read(folder)
    except FileNotFoundError:
        return None
    old.check(folder, encoder.about())
    if old.collection != collection:
        raise ValueError(
            f"{folder} is an index of {old.collection}, not of {collection}. Choose another folder, or add picture "
            f"files: vpt index add {folder} PICTURES."
        )
    return old


def claim(shards: Path, encoder: Encoder, **more: Any) -> None:
    """Say whose vectors are written to a folder of shards, and what more there is to say, unless that was said.

    Raises ValueError where something else was.
    """
    about, path = encoder.about(), shards / BEGUN
    own = {"backbone": about["backbone"]["name"], **{k: about[k] for k in ("fingerprint", "rows", "width")}}
    own |= more
    if (there := _begun(shards)) is None:
        shards.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(own).encode())
    elif any(there.get(k) != v for k, v in own.items() if k != "backbone"):  # a network may have two names
        raise ValueError(
            f"what was begun in {shards} holds vectors of {_told(there)}, and these are of {_told(own)}. Give what it "
            "was begun with to go on, or delete the folder, or choose another one."
        )


def _begun(shards: Path) -> dict[str, Any] | None:
    path = shards / BEGUN
    return json.loads(path.read_bytes()) if path.is_file() else None


def _told(begun: dict[str, Any]) -> str:
    pictures = f", pictures of {begun['collection']}" if "collection" in begun else ""
    rows = begun["rows"] or "none"
    return f"{begun['backbone']} (image tower {begun['fingerprint']}, image rows {rows}{pictures})"


def clear(folder: Path, first: int) -> None:
    """Forget what a killed writer left behind the shards that count, gaps among them or not."""
    shards = shards_of(folder)
    (shards / BEGUN).unlink(missing_ok=True)
    for suffix in (".json", ".npy"):  # without its label a shard is none
        for path in shards.glob(f"*{suffix}"):
            if path.stem.isdecimal() and int(path.stem) >= first:
                path.unlink()


def resumed(folder: Path, encoder: Encoder, new: Manifest) -> list[Label]:
    """Shards that a killed build of the same pictures has finished, up to the first that it has not; where there was
    none, a build is begun. Raises ValueError for a build of something else."""
    shards, first = shards_of(folder), new.shards
    begun = _begun(shards)
    if begun is None or begun.get("first") != first:
        clear(folder, first)
    claim(shards, encoder, collection=new.collection, first=first)
    found: list[Label] = []
    while whole(shards, first + len(found)):
        found.append(read_label(shards, first + len(found)))
    return found


def wanted(items: Sequence[Item], known: Sequence[Label], m: Manifest) -> list[Item]:
    """Items to embed: new ones, and those whose file is another now. What was removed by hand stays away."""
    places = live(known, m.dead)
    stamps = {i: known[n].stamps[row] for i, (n, row) in places.items()}
    return [
        i for i in items if (i.key in places and stamps[i.key] != stamp(i)) or i.key not in places | m.removed
    ]
