"""Open a source of pictures with captions by the string that names it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vpt.data.captioned import Entry, gather, lines
from vpt.data.folder import split_folders
from vpt.data.item import DataError, Files, Source, is_picture, some
from vpt.data.shards import json_in, read_shards
from vpt.data.sources import as_shards, cache_folder

__all__ = ["open_captions"]

KINDS = (
    "WebDataset shards (DIR, 'train-{000000..000007}.tar', 'shards/*.tar.gz', URLs) with KEY.txt or KEY.json, "
    "a folder of pictures with a .txt beside each, a .csv or .parquet manifest with the columns path and caption, "
    "a caption file of COCO, Karpathy or Flickr (.json, .token, .txt), or scenes"
)
FILES = (".csv", ".parquet", ".json", ".txt", ".token")


def open_captions(data: str | Path, root: str | Path | None = None, *, bare: bool = False) -> Source:
    """Pictures with captions: label 0, no classes; blanks of captions are made single.

    root: for a manifest or caption file the folder of its pictures, else the folder for indexed shards.
    bare: keep pictures without captions, whose items have none, and drop empty captions.
    Shards of a folder whose names begin with no split's name (extra-000000.tar beside train-000000.tar) are a split
    of their own, which nothing trains on; those that a pattern names join train.
    Raises DataError where there is nothing of the kind, for a picture with two entries and, unless bare, for
    pictures without caption, with an empty one, or without a file.
    """
    text, path = str(data), Path(data)
    if (text == "scenes" and not path.exists()) or text.startswith("scenes:"):
        from vpt.data.captions_scenes import open_caption_scenes

        return open_caption_scenes(text)
    if path.suffix.lower() in FILES:
        from vpt.data.captions_files import open_caption_file

        return open_caption_file(path, root, bare)
    if shards := as_shards(data):
        return _shards(shards, cache_folder(root) / "shards", bare)
    if path.is_dir():
        return _folder(path, bare)
    raise DataError(f"no pictures with captions at {text!r}. Wanted: {KINDS}.")


def _shards(data: str | list[str], cache: Path, bare: bool) -> Files:
    found = read_shards(data, cache)
    named = isinstance(data, str)
    entries = []
    for sample in found.samples:
        item, split = found.item(sample), found.split(sample)
        if named and split not in ("train", "val", "test", "all"):
            split = "train"
        entries.append(Entry(item.key, said(sample), split, item.file, item.offset, item.size))
    wanted = 'KEY.txt with one caption a line, or KEY.json with {"captions": ["..."]} or {"caption": "..."}'
    return gather(found.name, some(found.urls, 2), entries, wanted, bare)


def said(sample: dict[str, Any]) -> list[str]:
    """The captions of a sample as written, those of its json before those of its txt."""
    content = json_in(sample)
    if "captions" in content or "caption" in content:
        found = content.get("captions", content.get("caption"))
        found = [found] if isinstance(found, str) else found
        if not isinstance(found, list) or not all(isinstance(text, str) for text in found):
            raise DataError(
                f'{sample["key"]}.json has the captions {found!r}. Wanted: {{"captions": ["..."]}} or '
                '{"caption": "..."}.'
            )
        return found
    if "\ufffd" in sample["txt"]:  # what the index writes for bytes that are none
        raise DataError(f"{sample['key']}.txt is not in UTF-8: {sample['txt'][:80]!r}. Write it anew.")
    return lines(sample["txt"])


def _folder(root: Path, bare: bool) -> Files:
    entries = [
        Entry(path.relative_to(root).as_posix(), sidecar(path), split, str(path))
        for split, folder in split_folders(root).items()
        for path in pictures_in(folder)
    ]
    inside = {entry.file for entry in entries}
    outside = [path.relative_to(root).as_posix() for path in pictures_in(root) if str(path) not in inside]
    if outside:
        raise DataError(
            f"{root} holds split folders, and {len(outside)} picture(s) outside them: {some(outside)}. Move these "
            "into a split, or name no folder after one."
        )
    beside = [path.name for path in sorted(root.iterdir()) if path.suffix.lower() in FILES]
    hint = f". Is it one of {some(beside)}? Then name that file" if beside else ""
    wanted = f"beside PICTURE.jpg a PICTURE.txt with one caption a line{hint}"
    return gather(root.resolve().name, str(root), entries, wanted, bare)


def pictures_in(root: Path) -> list[Path]:
    """Every picture under a folder, sorted, except those in folders whose names begin with . or __."""
    return sorted(
        path
        for path in root.rglob("*")
        if is_picture(path)
        and not any(part.startswith((".", "__")) for part in path.relative_to(root).parts[:-1])
        and path.is_file()
    )


def sidecar(picture: Path) -> list[str]:
    """The lines of the .txt beside a picture; none where there is none."""
    path = picture.with_suffix(".txt")
    try:
        return lines(path.read_text(encoding="utf-8")) if path.is_file() else []
    except (UnicodeDecodeError, OSError) as error:
        raise DataError(f"{path} cannot be read as UTF-8 ({error}). Write it anew.") from error
