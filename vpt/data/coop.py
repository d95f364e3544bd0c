"""The data sets of the CoOp line of work (arXiv 2109.01134) as its users have them on disk.

Folders, split files and class names are those of KaiyangZhou/CoOp, DATASETS.md; ``protocols`` says which they are.
"""

from __future__ import annotations

import json
import os
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from vpt.data.item import SUFFIXES, DataError, Files, Item, some
from vpt.data.protocols import Card, card
from vpt.data.splits import few_shot
from vpt.importers.checkpoint import Record, read_pickle

Row = tuple[str, int, str]  # path, label, class name
Parts = dict[str, list[Item]]

# where the pickles of Dassl's versions say that their pictures' class is
_DATUM = ("dassl.data.datasets.base_dataset.Datum", "dassl.data.datasets.Datum")


@dataclass(frozen=True)
class CoOp(Files):
    """A source with the published splits and few-shot samples. folder: of the data set."""

    card: Card
    folder: Path

    @property
    def origin(self) -> dict[str, str]:
        """The file or folder behind each split, and the published count where the split has another."""
        published = self.card.counts
        return {
            split: self.card.folders.get(split, self.card.split.format(split))
            + ("" if len(items) == published[split] else f" (published with {published[split]} pictures)")
            for split, items in self.parts.items()
        }

    def sample(self, shots: int, seed: int, val_shots: int | None = None) -> tuple[Parts, dict[str, str]]:
        """``shots`` a class of train, then min(shots, 4) of val, drawn as CoOp draws them.

        A file split_fewshot/shot_SHOTS-seed_SEED.pkl of the authors' code is read instead, where there is one.
        Classes with fewer pictures are taken whole. Raises DataError.
        """
        ours = val_shots is not None and val_shots != min(shots, 4)
        file = self.folder / "split_fewshot" / f"shot_{shots}-seed_{seed}.pkl"
        if file.is_file() and not ours:
            drawn = self._read(file)
            return drawn, dict.fromkeys(drawn, f"split_fewshot/{file.name}")
        stream, origin = random.Random(seed), self.origin
        drawn = {"train": few_shot(self.parts["train"], shots, stream, fewer=True)}
        if "val" in self.parts:
            n = min(shots, 4) if val_shots is None else val_shots
            drawn["val"] = few_shot(self.parts["val"], n, stream, fewer=True)
            origin["val"] += f", {n} a class"
        return drawn, {name: origin[name] for name in drawn}

    def _read(self, file: Path) -> Parts:
        """Paths in it are absolute on the machine that wrote it; what they end with is a picture of ours."""
        try:
            found = read_pickle(file, _DATUM)
        except (ValueError, OSError) as error:
            raise DataError(f"{error} Delete it to have the sample drawn anew.") from None
        wanted = [name for name in ("train", "val") if name in self.parts]
        if not isinstance(found, dict) or not all(
            isinstance(found.get(name), list) and all(map(_is_datum, found[name])) for name in wanted
        ):
            raise DataError(
                f"{file} is no few-shot split: wanted lists of Dassl's Datum under {' and '.join(wanted)}. "
                "Delete it to have the sample drawn anew."
            )
        drawn: Parts = {}
        for name in wanted:
            ours = {item.key: item for item in self.parts[name]}
            items = [_known(datum["_impath"], ours) for datum in found[name]]
            strange = [
                datum["_impath"]
                for datum, item in zip(found[name], items, strict=True)
                if item is None or item.label != datum["_label"]
            ]
            if strange:
                raise DataError(
                    f"{file} does not belong to {self.card.split or self.folder}: {len(strange)} of its "
                    f"{len(items)} {name} pictures are not in {name} with that label: {some(strange, 3)}. "
                    "Delete it to have the sample drawn anew."
                )
            drawn[name] = [item for item in items if item is not None]
        return drawn


def open_coop(name: str, root: str | Path | None) -> CoOp:
    """The data set ``name`` (see ``protocols.datasets`` and ``shifts``) below ``root``. Raises DataError.

    Class names have blanks in place of underscores. Names may repeat, as two pairs of ImageNet's do.
    """
    found = card(name)
    if root is None:
        raise DataError(
            f"coop:{name} needs a root: the folder that holds {found.folder}/. Wanted below it: {found.layout}."
        )
    folder = Path(root).expanduser() / found.folder
    try:
        if found.folders:
            rows = _from_folders(found, folder)
        elif found.names:
            rows = _from_lists(found, folder)
        else:
            rows = _from_json(folder / found.split)
    except OSError as error:
        raise DataError(
            f"coop:{name}: {error.filename}: {error.strerror}. Wanted below {root}: {found.layout}."
        ) from None
    except UnicodeDecodeError as error:
        raise DataError(f"coop:{name}: a list in {folder} is no UTF-8 ({error}). Fetch it anew.") from None
    images = folder / found.images
    if not images.is_dir():
        raise DataError(f"coop:{name}: there is no {images}. Wanted below {root}: {found.layout}.")
    where = f"coop:{name}"
    classes = _classes(rows, where)
    _refuse_paths([row[0] for part in rows.values() for row in part], where)
    parts = {
        split: [Item(path, label, os.path.join(images, path)) for path, label, _ in part]
        for split, part in rows.items()
    }
    return CoOp(where, classes, False, parts, found, folder)


def _from_json(path: Path) -> dict[str, list[Row]]:
    """split_zhou_*.json: {"train", "val", "test": [[path, label, class name], ..]}."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not JSON ({error}). Fetch it anew.") from None
    if not isinstance(found, dict) or not all(
        isinstance(found.get(k), list) for k in ("train", "val", "test")
    ):
        raise DataError(f"{path} is no split: wanted lists under train, val and test. Fetch it anew.")
    rows: dict[str, list[Row]] = {}
    for split in ("train", "val", "test"):
        odd = [row for row in found[split] if not _is_row(row)]
        if odd:
            raise DataError(
                f"{path}: {len(odd)} of {len(found[split])} entries of {split} are not [path, label, class name]: "
                f"{some(map(repr, odd), 3)}. Fetch it anew."
            )
        rows[split] = [(path_, label, name) for path_, label, name in found[split]]
    return rows


def _is_row(row: Any) -> bool:
    return isinstance(row, list) and [type(x) for x in row] == [str, int, str]


def _from_lists(found: Card, folder: Path) -> dict[str, list[Row]]:
    """FGVC-Aircraft: a file of class names, and for each split lines of a picture's number and its class."""
    names = [line.strip() for line in _lines(folder / found.names)]
    label = {name: i for i, name in enumerate(names)}
    rows: dict[str, list[Row]] = {}
    for split in ("train", "val", "test"):
        path = folder / found.split.format(split)
        pairs = [line.strip().partition(" ")[::2] for line in _lines(path)]
        unknown = [name for _, name in pairs if name not in label]
        if unknown:
            raise DataError(
                f"{path} names {len(unknown)} class(es) that {found.names} does not: {some(map(repr, unknown))}."
            )
        rows[split] = [(f"{number}.jpg", label[name], name) for number, name in pairs]
    return rows


def _from_folders(found: Card, folder: Path) -> dict[str, list[Row]]:
    """ImageNet and its variants: class folders by WordNet id, or numbered (ImageNetV2), named by a file."""
    names = dict(line.strip().partition(" ")[::2] for line in _lines(folder / found.names))
    order = list(names)
    trees = {split: sorted(_entries(folder / place, True)) for split, place in found.folders.items()}
    words = {word for tree in trees.values() for word in tree}
    numbered = bool(words) and all(word.isdecimal() for word in words)
    ids = {word: order[int(word)] if numbered and int(word) < len(order) else word for word in words}
    unknown = sorted(word for word in words if ids[word] not in names)
    if unknown or not words:
        what = f"{len(unknown)} class folder(s) without a name in {found.names}: {some(unknown)}"
        raise DataError(
            f"coop:{found.name}: {folder} has {what if words else 'no class folders'}. Wanted: {found.layout}."
        )
    label = {word: i for i, word in enumerate(sorted(words, key=int if numbered else str))}
    return {
        split: [
            (f"{place}/{word}/{file}", label[word], names[ids[word]])
            for word in sorted(trees[split], key=label.__getitem__)
            for file in sorted(_entries(folder / place / word, False))
        ]
        for split, place in found.folders.items()
    }


def _entries(folder: Path, folders: bool) -> Iterator[str]:
    """Names of the folders or of the pictures in a folder, hidden ones left out."""
    with os.scandir(folder) as found:
        for entry in found:
            if entry.name.startswith("."):
                continue
            if entry.is_dir() if folders else os.path.splitext(entry.name)[1].lower() in SUFFIXES:
                yield entry.name


def _lines(path: Path) -> list[str]:
    return [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def _classes(rows: Mapping[str, Iterable[Row]], where: str) -> tuple[str, ...]:
    """Names by label; labels must be 0..K-1, each with one name."""
    said: dict[int, set[str]] = {}
    for part in rows.values():
        for _, label, name in part:
            said.setdefault(label, set()).add(name.replace("_", " ").strip())
    if sorted(said) != list(range(len(said))):
        raise DataError(f"{where}: labels must be 0..K-1 without gaps; found {some(sorted(said), 20)}.")
    wrong = [
        f"{label} is {' and '.join(sorted(map(repr, names)))}"
        for label, names in said.items()
        if len(names) > 1 or "" in names
    ]
    if wrong:
        raise DataError(f"{where}: each label must have one name; {some(wrong)}.")
    return tuple(said[label].pop() for label in range(len(said)))


def _refuse_paths(paths: list[str], where: str) -> None:
    """A split file names pictures below its folder, each once."""
    outside = [
        p
        for p in paths
        if p.startswith("/") or not p or not p.isprintable() or ".." in PurePosixPath(p).parts
    ]
    if outside:
        raise DataError(
            f"{where}: the split names {len(outside)} picture(s) outside its folder: {some(outside)}."
        )
    if len(set(paths)) < len(paths):
        twice = sorted(path for path, n in Counter(paths).items() if n > 1)
        raise DataError(
            f"{where}: the split names {len(twice)} picture(s) more than once: {some(twice)}. Keep each in one split."
        )


def _is_datum(value: Any) -> bool:
    return (
        type(value) is Record
        and isinstance(value.get("_impath"), str)
        and isinstance(value.get("_label"), int)
    )


def _known(path: str, ours: Mapping[str, Item]) -> Item | None:
    """The picture of ours that a foreign path ends with, by the longest such end."""
    words = path.replace("\\", "/").split("/")
    return next((ours[end] for i in range(len(words)) if (end := "/".join(words[i:])) in ours), None)
