"""Files that hold the captions of pictures that lie elsewhere: manifests, COCO, Karpathy's splits, Flickr."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from vpt.data.captioned import Entry, gather
from vpt.data.item import DataError, Files, some, split_name
from vpt.data.table import Values, read_table, split_in, text_in

PATHS, CAPTIONS = ("path", "image", "filepath"), ("caption", "captions")
FOLDERS = (  # as the data sets are unpacked
    *("images", "Images", "flickr30k-images", "Flicker8k_Dataset"),
    *("train2017", "val2017", "train2014", "val2014"),
)
TABLE = "the columns path (or image, filepath), caption (or captions) and, if there are splits, split"


class Told(NamedTuple):
    """A picture as a file names it."""

    name: str
    captions: list[str]
    split: str = "all"


def open_caption_file(path: Path, root: str | Path | None, bare: bool, needed: bool = True) -> Files:
    """The pictures of a .csv, .parquet, .json, .token or .txt file.

    root: the folder that the names count from; by default, of the file's folder, the one above it and folders such
    as ``images`` in either, the one that holds the most. bare: as in ``open_captions``. needed: refuse a table without
    captions; else its splits are not looked at either. Raises DataError.
    """
    if not path.is_file():
        raise DataError(f"no caption file at {path}. Wanted: a .csv, .parquet, .json, .token or .txt file.")
    told, wanted = _told(path, needed)
    folder = _folder(path, root, [one.name for one in told]) if told else path.parent
    entries = [Entry(one.name, one.captions, one.split, str(folder / one.name)) for one in told]
    return gather(path.stem, str(path), entries, wanted, bare)


def _told(path: Path, needed: bool) -> tuple[list[Told], str]:
    """What the file says, and how its captions are written."""
    end = path.suffix.lower()
    if end == ".json":
        return _json(path)
    if end in (".csv", ".parquet") or "\t" not in _first_line(path):
        return _table(path, needed), TABLE
    return _tokens(path), "lines such as 1000268201_693b08cb0e.jpg#0<TAB>A child in a pink dress"


def _table(path: Path, needed: bool) -> list[Told]:
    """The pictures of a table; rows of one picture are joined."""
    found: dict[str, tuple[list[str], str]] = {}
    for place, values in read_table(path, partial(_columns, path, needed)):
        name, captions, split, listed = _row(path, place, values)
        if name in found and listed:
            raise DataError(f"{path}, {place}: {name} has two entries. Keep one list of captions a picture.")
        kept = found.setdefault(name, ([], split))
        if kept[1] != split:
            raise DataError(
                f"{path}, {place}: {name} is in the split {split!r}, and in {kept[1]!r} before. Keep it in one."
            )
        kept[0].extend(captions)
    meant = split_in(path, {split for _, split in found.values()})
    return [Told(name, captions, meant[split]) for name, (captions, split) in found.items()]


def _columns(path: Path, needed: bool, there: list[str]) -> list[str]:
    paths, captions = ([name for name in group if name in there] for group in (PATHS, CAPTIONS))
    if len(paths) != 1 or len(captions) > 1 or (needed and not captions):
        raise DataError(f"{path} has the columns {there}. Wanted: {TABLE}, one of each.")
    return [*paths, *captions, *(["split"] if needed and "split" in there else [])]


def _row(path: Path, place: str, values: Values) -> tuple[str, list[str], str, bool]:
    """Path, captions, split, and whether the table has the captions as a list."""
    name = next(text_in(path, place, column, values[column]) for column in PATHS if column in values)
    if not name:
        raise DataError(f"{path}, {place}: the path is empty. Fill or remove the row.")
    column = next((column for column in CAPTIONS if column in values), "")
    said = values[column] if column else []
    captions = [text_in(path, place, column, one) for one in (said if isinstance(said, list) else [said])]
    listed = bool(column) and isinstance(said, list)
    return name, captions, text_in(path, place, "split", values.get("split")), listed


def _first_line(path: Path) -> str:
    with path.open(encoding="utf-8", errors="replace") as file:
        return file.readline()


def _tokens(path: Path) -> list[Told]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not in UTF-8 ({error}). Save it so.") from error
    found: dict[str, dict[int, str]] = {}
    for n, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        read = re.fullmatch(r"([^\t]+)#(\d+)\t(.*)", line)
        if read is None:
            raise DataError(
                f"{path}, line {n}: {line[:80]!r}. Wanted: PICTURE#NUMBER<TAB>CAPTION, as in "
                "Flickr8k.token.txt."
            )
        said = found.setdefault(read[1], {})
        if int(read[2]) in said:
            raise DataError(f"{path}, line {n}: {read[1]}#{read[2]} has two entries. Keep one.")
        said[int(read[2])] = read[3]
    return [Told(name, list(said.values())) for name, said in found.items()]


def _json(path: Path) -> tuple[list[Told], str]:
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:  # ValueError: not JSON, not UTF-8
        raise DataError(f"{path} is not JSON ({error}). Fetch or write it anew.") from error
    images = content.get("images") if isinstance(content, dict) else None
    if not isinstance(images, list) or not all(isinstance(image, dict) for image in images):
        held = sorted(content) if isinstance(content, dict) else type(content).__name__
        raise DataError(
            f'{path} is no caption file: it holds {held}. Wanted: "images" and "annotations" as COCO has them, or '
            '"images" with "sentences" as in dataset_coco.json of Karpathy.'
        )
    if "annotations" in content:
        return _coco(path, images, content["annotations"]), 'an annotation with its "image_id" and "caption"'
    return [_karpathy(path, i, image) for i, image in enumerate(images)], 'sentences with "raw"'


def _coco(path: Path, images: Sequence[dict[str, Any]], annotations: object) -> list[Told]:
    told: dict[object, Told] = {}
    for i, image in enumerate(images):
        number = _value(path, f"images[{i}]", image, "id", int | str)
        if number in told:
            raise DataError(f"{path}: images[{i}]: the id {number!r} has two entries. Keep one.")
        told[number] = Told(_value(path, f"images[{i}]", image, "file_name", str), [])
    if not isinstance(annotations, list):
        raise DataError(f"{path}: annotations is {type(annotations).__name__}. Wanted: a list.")
    for i, note in enumerate(annotations):
        where = f"annotations[{i}]"
        number = _value(path, where, note, "image_id", int | str)
        if number not in told:
            raise DataError(
                f"{path}: {where} is of the image {number!r}, which is not among images. Correct it."
            )
        told[number].captions.append(_value(path, where, note, "caption", str))
    return list(told.values())


def _karpathy(path: Path, i: int, image: dict[str, Any]) -> Told:
    where = f"images[{i}]"
    name = _value(path, where, image, "filename", str)
    if image.get("filepath"):  # COCO's two folders
        name = f"{_value(path, where, image, 'filepath', str)}/{name}"
    written = _value(path, where, image, "split", str)
    split = "train" if written == "restval" else split_name(written)
    if split is None:
        raise DataError(f"{path}: {where}: split is {written!r}. Wanted: train, restval, val or test.")
    sentences = _value(path, where, image, "sentences", list)
    return Told(name, [_value(path, f"{where}.sentences", s, "raw", str) for s in sentences], split)


def _value(path: Path, where: str, entry: object, key: str, kind: Any) -> Any:
    """entry[key], of the kind. Raises DataError."""
    value = entry.get(key) if isinstance(entry, Mapping) else None
    if (
        not isinstance(value, kind)
        or isinstance(value, bool)
        or (kind is str and key != "caption" and not value)
    ):
        there = sorted(entry) if isinstance(entry, Mapping) else type(entry).__name__
        raise DataError(
            f"{path}: {where}: {key} is {value!r} (there is {there}). Wanted: {getattr(kind, '__name__', kind)}; a "
            "caption file has it in every entry."
        )
    return value


def _folder(path: Path, root: str | Path | None, names: Sequence[str]) -> Path:
    """Where the pictures lie: root, or of the places tried the one that holds the most of them."""
    if root is not None and not os.path.isdir(root):
        raise DataError(
            f"root is {str(root)!r}, which is no folder. Wanted: the folder of the pictures of {path}."
        )
    bases = (path.parent, path.parent.resolve().parent)
    tried = [Path(root)] if root is not None else [base / name for base in bases for name in (".", *FOLDERS)]
    tried = [folder for folder in tried if folder.is_dir()]
    sample = names[:: max(1, len(names) // 64)]
    held = [sum((folder / name).is_file() for name in sample) for folder in tried]
    if not any(held):
        also = "" if root is not None else f" There is no other folder called {', '.join(FOLDERS)} near it."
        raise DataError(
            f"{path} names {len(names)} pictures, but none was found: {some(sample, 3)}. Looked in "
            f"{', '.join(map(str, tried))}.{also} Give root, the folder that holds them."
        )
    return tried[held.index(max(held))]
