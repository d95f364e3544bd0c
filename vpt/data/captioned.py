"""What every reader of captions makes of what it found: items with captions, checked in one place."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from vpt.data.item import DataError, Files, Item, some

SKIP = "or leave these pictures out with skip_unreadable"


class Entry(NamedTuple):
    """A picture and its captions as written. file, offset, size: as in Item."""

    key: str
    captions: Sequence[str]
    split: str = "all"
    file: str = ""
    offset: int = 0
    size: int = -1


def gather(name: str, where: str, entries: Sequence[Entry], wanted: str, bare: bool) -> Files:
    """A source of the entries, whose items have label 0.

    where: what errors call the data. wanted: how a caption is written there, for errors.
    bare: keep pictures without captions, drop empty captions, and leave lost files to who reads them.
    Raises DataError for no entries, for a picture that has two, and, unless bare, for a picture without captions,
    with an empty one, or without its file.
    """
    if not entries:
        raise DataError(f"{where} holds no pictures. Wanted: {wanted}.")
    twice = [key for key, n in Counter(entry.key for entry in entries).items() if n > 1]
    if twice:
        raise DataError(
            f"{where} has two entries for {len(twice)} picture(s): {some(twice)}. Keep one of each."
        )
    parts: dict[str, list[Item]] = {}
    for entry in entries:
        captions = tuple(said for text in entry.captions if (said := clean(text)))
        item = Item(entry.key, 0, entry.file, entry.offset, entry.size, captions)
        parts.setdefault(entry.split, []).append(item)
    if not bare:
        _refuse(where, entries, wanted)
    return Files(name, (), False, parts)


def _refuse(where: str, entries: Sequence[Entry], wanted: str) -> None:
    without = [entry.key for entry in entries if not any(map(clean, entry.captions))]
    if without:
        raise DataError(
            f"{where}: {len(without)} of {len(entries)} pictures have no caption: {some(without)}. "
            f"Wanted: {wanted}. Add captions, {SKIP}."
        )
    empty = [entry.key for entry in entries if not all(map(clean, entry.captions))]
    if empty:
        raise DataError(
            f"{where}: an empty caption stands with {len(empty)} of {len(entries)} pictures: {some(empty)}. "
            f"Fill or remove it, {SKIP}, which drops empty captions."
        )
    lost = [entry.key for entry in entries if entry.size < 0 and not os.path.isfile(entry.file)]
    if lost:
        folder = os.path.dirname(next(entry.file for entry in entries if entry.key == lost[0]))
        raise DataError(
            f"{where}: {len(lost)} of {len(entries)} pictures are not there: {some(lost)}. The first was looked for "
            f"in {folder}. Restore them, name the folder of the pictures with root, {SKIP}."
        )


def clean(text: str) -> str:
    """Without blanks at the ends, and with one for each run of blanks and line ends."""
    return " ".join(text.split())


def lines(text: str) -> list[str]:
    """The captions of a text that has one a line; blank lines are none."""
    return [line for line in re.split(r"\r\n|\r|\n", text.removeprefix("\ufeff")) if line.strip()]
