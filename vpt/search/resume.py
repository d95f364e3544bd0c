"""Which pictures a build has still to embed: those of no shard that counts, nor of one that a killed build finished."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from vpt.data.item import DataError, Item, Source, some
from vpt.promptset import write_atomically
from vpt.search.encoder import Encoder
from vpt.search.manifest import Manifest, live, shards_of
from vpt.search.shards import Label, read_label, stamp, whole

__all__ = ["BEGUN", "clear", "every", "previous", "resumed", "wanted"]

BEGUN = "building.json"  # what a build is of, until its manifest is written


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


def clear(folder: Path, first: int) -> None:
    """Forget what a killed writer left behind the shards that count."""
    (folder / BEGUN).unlink(missing_ok=True)
    number = first
    while (path := shards_of(folder) / f"{number:06d}.json").is_file():
        path.unlink()
        number += 1


def resumed(folder: Path, encoder: Encoder, new: Manifest) -> list[Label]:
    """Shards that a killed build of the same pictures has finished; where there was none, a build is begun."""
    about = encoder.about()
    told = {k: about[k] for k in ("fingerprint", "rows", "width")} | {"collection": new.collection}
    path, first = folder / BEGUN, new.shards
    begun = json.loads(path.read_bytes()) if path.is_file() else None
    if begun is not None and begun.pop("first") == first:
        if begun == told:
            found = []
            while whole(shards_of(folder), first + len(found)):
                found.append(read_label(shards_of(folder), first + len(found)))
            return found
        raise ValueError(
            f"a build of {begun['collection']} was begun in {folder} with image tower {begun['fingerprint']} and image "
            f"rows {begun['rows'] or 'none'}; this one is of {told['collection']} with {told['fingerprint']} and "
            f"{told['rows'] or 'none'}. Give what it was begun with to go on, or delete the folder."
        )
    clear(folder, first)
    write_atomically(path, json.dumps({**told, "first": first}).encode())
    return []


def wanted(items: Sequence[Item], known: Sequence[Label], m: Manifest) -> list[Item]:
    """Items to embed: new ones, and those whose file is another now. What was removed by hand stays away."""
    places = live(known, m.dead)
    stamps = {i: known[n].stamps[row] for i, (n, row) in places.items()}
    return [
        i for i in items if (i.key in places and stamps[i.key] != stamp(i)) or i.key not in places | m.removed
    ]
