"""Every picture that a name stands for, with or without labels: what is to be searched."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from PIL import Image

from vpt.data.captioned import clean
from vpt.data.captions import FILES, open_captions, pictures_in, said, sidecar
from vpt.data.captions_files import open_caption_file
from vpt.data.item import DataError, Files, Item, Source, is_picture
from vpt.data.shards import read_shards
from vpt.data.sources import as_shards, cache_folder, open_source

__all__ = ["Collection", "open_collection"]

KINDS = (
    "a folder of pictures, however deep; a picture; a .csv or .parquet manifest with the column path; a caption file "
    "(.json, .token, .txt); WebDataset shards; torchvision:NAME, coop:NAME, digits, emoji or scenes"
)


@dataclass(frozen=True)
class Collection:
    """The pictures of another source in one list, without labels."""

    source: Source
    items: Sequence[Item]
    classes: tuple[str, ...] = field(default=(), init=False)
    multilabel: bool = field(default=False, init=False)

    @property
    def name(self) -> str:
        return self.source.name

    def splits(self) -> dict[str, list[Item]]:
        return {"all": list(self.items)}

    def read(self, item: Item) -> bytes | Image.Image:
        """Raises OSError when the file is gone."""
        return self.source.read(item)


def open_collection(data: str | Path, root: str | Path | None = None) -> Collection:
    """All pictures that can be found, of every split, with label 0, unique keys, and captions where there are any.

    root: as in ``open_source`` or, for a manifest or caption file, in ``open_captions``. Files are not looked at: one
    that is lost or no picture shows when it is read. Raises DataError where there is nothing.
    """
    source = _source(data, root)
    # a picture of the CoOp sets may be in two splits, under one key
    found = {item.key: replace(item, label=0) for part in source.splits().values() for item in part}
    if not found:
        raise DataError(f"there are no pictures in {str(data)!r}. Wanted: {KINDS}.")
    return Collection(source, tuple(found.values()))


def _source(data: str | Path, root: str | Path | None) -> Source:
    text, path = str(data), Path(data)
    if path.is_file() and is_picture(path):
        return Files(path.name, (), False, {"all": [Item(path.name, 0, str(path))]})
    if (text.startswith("scenes:") and "x" not in text) or (text == "scenes" and not path.exists()):
        return open_captions(text)
    if path.suffix.lower() in FILES:
        return open_caption_file(path, root, bare=True, needed=False)
    if shards := as_shards(data):
        return _shards(shards, cache_folder(root) / "shards")
    if path.is_dir():
        items = [
            Item(found.relative_to(path).as_posix(), 0, str(found), captions=_shown(partial(sidecar, found)))
            for found in pictures_in(path)
        ]
        return Files(path.resolve().name, (), False, {"all": items})
    if text in ("digits", "emoji") or text.startswith(("torchvision:", "coop:", "scenes:")):
        return open_source(text, root)
    raise DataError(f"no pictures at {text!r}. Wanted: {KINDS}.")


def _shards(data: str | list[str], cache: Path) -> Files:
    found = read_shards(data, cache)
    items = [replace(found.item(one), captions=_shown(partial(said, one))) for one in found.samples]
    return Files(found.name, (), False, {"all": items})


def _shown(read: Callable[[], list[str]]) -> tuple[str, ...]:
    """Captions to show beside a picture; what cannot be read as such is no reason not to find the picture."""
    try:
        return tuple(filter(None, map(clean, read())))
    except DataError:
        return ()
