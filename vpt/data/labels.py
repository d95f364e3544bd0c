"""Labels as written (names or numbers) to class indices and class names."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from vpt.data.item import DataError, Item, labels_of, some

_NUMBER = re.compile(r"[+-]?\d+")


def check_labels(items: Sequence[Item], classes: Sequence[str], where: str) -> None:
    """Raises DataError for a label outside 0..K-1, naming up to eight of the items."""
    bad = [item for item in items if any(not 0 <= label < len(classes) for label in labels_of(item))]
    if bad:
        raise DataError(
            f"{where}: {len(bad)} label(s) outside the range 0..{len(classes) - 1} of its {len(classes)} "
            f"classes: {some(f'{item.key} has {item.label}' for item in bad)}. Correct them, or "
            "name every class."
        )


def read_class_names(folder: Path) -> tuple[str, ...] | None:
    """Names from FOLDER/classes.json, a list of {"index", "name"}; None when there is no such file."""
    path = folder / "classes.json"
    if not path.is_file():
        return None
    try:
        named = {
            int(entry["index"]): str(entry["name"]) for entry in json.loads(path.read_text(encoding="utf-8"))
        }
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f'{path} is not a list of {{"index": 0, "name": "..."}} ({error!r}). Correct or remove it.'
        ) from error
    if sorted(named) != list(range(len(named))):
        raise DataError(
            f"{path}: the indices must be 0..{len(named) - 1} without gaps; found {some(sorted(named))}."
        )
    return distinct(tuple(named[i] for i in range(len(named))), str(path))


def distinct(classes: tuple[str, ...], where: str) -> tuple[str, ...]:
    """The same names; raises DataError when one is empty or occurs twice."""
    twice = (
        sorted({name for name in classes if classes.count(name) > 1})
        if len(set(classes)) < len(classes)
        else []
    )
    if twice or not all(name.strip() for name in classes):
        raise DataError(
            f"{where}: class names must be there and differ; {some(map(repr, twice or ['']))} does not."
        )
    return classes


def numbered(labels: Iterable[int], count: int, where: str) -> tuple[str, ...]:
    """The names "0".."K-1" for integer labels without a list of names."""
    found = set(labels)
    low, high = min(found, default=0), max(found, default=-1)
    if low < 0 or high >= count:
        raise DataError(
            f"{where}: integer labels {low}..{high} for {count} pictures. Without names they must be "
            "0..K-1, with pictures of every class. Correct them, write names instead, or add a classes.json "
            "with all names."
        )
    return tuple(str(i) for i in range(high + 1))


def encode(
    written: Sequence[Sequence[str]], folder: Path | None, where: str
) -> tuple[tuple[str, ...], list[tuple[int, ...]]]:
    """Class names and indices of labels as written: all numbers (indices), or names (sorted).

    folder: where a classes.json may name the numbers.
    """
    words = sorted({word for labels in written for word in labels})
    if words and all(_NUMBER.fullmatch(word) for word in words):
        numbers = [tuple(int(word) for word in labels) for labels in written]
        names = read_class_names(folder) if folder else None
        return names or numbered((i for labels in numbers for i in labels), len(written), where), numbers
    index = {word: i for i, word in enumerate(words)}
    return tuple(words), [tuple(index[word] for word in labels) for labels in written]
