"""Deterministic samples and splits, and the files that hold them."""

from __future__ import annotations

import hashlib
import json
import os
import random
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vpt.data.item import DataError, Item, some

Splits = Mapping[str, Sequence[Item]]


def few_shot(
    items: Sequence[Item],
    shots: int,
    seed: int | random.Random,
    classes: Sequence[str] | None = None,
    fewer: bool = False,
) -> list[Item]:
    """``shots`` items of every class, as in CoOp (arXiv 2109.01134).

    Order: classes as they first appear in ``items``; of each, ``random.Random(seed).sample`` over its items
    in file order, one stream for all. Pass a Random to go on with a stream (CoOp draws val after train).
    A class with fewer items is refused, or with ``fewer`` taken whole, in file order, and the stream not used.
    """
    if shots < 1:
        raise DataError(f"shots is {shots}, but at least 1 picture a class is needed.")
    stream = seed if isinstance(seed, random.Random) else random.Random(seed)
    groups: dict[int, list[Item]] = {}
    for item in items:
        if isinstance(item.label, tuple):
            raise DataError(
                "few-shot sampling needs one label a picture, but these are multi-label. Leave shots out."
            )
        groups.setdefault(item.label, []).append(item)
    short = {label: len(group) for label, group in groups.items() if len(group) < shots}
    if short and not fewer:
        named = some(
            f"{classes[i] if classes else i} ({n})" for i, n in sorted(short.items(), key=lambda x: x[1])
        )
        raise DataError(
            f"{shots} pictures a class asked for, but {len(short)} of {len(groups)} classes have fewer to "
            f"draw from: {named}. Ask for at most {min(short.values())} shots, or add pictures."
        )
    drawn = (stream.sample(group, shots) if len(group) >= shots else group for group in groups.values())
    return [item for group in drawn for item in group]


def stratified(items: Sequence[Item], fractions: Mapping[str, float], seed: int) -> dict[str, list[Item]]:
    """Parts of each class by fraction; the first name takes what the others leave. Items keep their order.

    Each part gets ``round(fraction * n)`` of a class of n items, but at least one where n allows and the
    fraction is not 0, and the first part keeps at least one. A multi-label item counts for its rarest label.
    """
    first, *others = fractions
    if any(not 0 <= fractions[name] < 1 for name in others) or sum(fractions[name] for name in others) >= 1:
        raise DataError(f"the fractions {dict(fractions)} must lie in 0..1 and leave something for {first}.")
    stream = random.Random(seed)
    where: dict[str, str] = {}
    for group in _strata(items).values():
        shuffled = stream.sample(group, len(group))
        for name in others:
            share = fractions[name] and max(1, round(fractions[name] * len(group)))
            take = min(share, len(shuffled) - 1)
            where |= {shuffled.pop().key: name for _ in range(int(take))}
    parts: dict[str, list[Item]] = {name: [] for name in fractions}
    for item in items:
        parts[where.get(item.key, first)].append(item)
    return parts


def _strata(items: Sequence[Item]) -> dict[int, list[Item]]:
    counts = Counter(
        x for item in items for x in (item.label if isinstance(item.label, tuple) else (item.label,))
    )
    groups: dict[int, list[Item]] = {}
    for item in items:
        many = item.label if isinstance(item.label, tuple) else (item.label,)
        groups.setdefault(min(many, key=lambda x: (counts[x], x), default=-1), []).append(item)
    return dict(sorted(groups.items()))


def split_hash(splits: Splits) -> str:
    """12 hex digits that name which keys lie in which split, whatever their order."""
    keys = {name: sorted(item.key for item in items) for name, items in splits.items()}
    return hashlib.sha256(json.dumps(keys, sort_keys=True).encode()).hexdigest()[:12]


def save_splits(path: str | Path, name: str, seed: int, splits: Splits, made: Mapping[str, Any]) -> None:
    """Write a split file whole or not at all. made: the settings it was drawn with."""
    path = Path(path)
    text = json.dumps(
        {
            "name": name,
            "seed": seed,
            "made": dict(made),
            "splits": {split: [item.key for item in items] for split, items in splits.items()},
        },
        indent=1,
        ensure_ascii=False,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def load_splits(
    path: str | Path, name: str, seed: int, items: Sequence[Item], made: Mapping[str, Any]
) -> dict[str, list[Item]]:
    """The splits of a file, as items. Raises DataError when it was made with other settings or other data."""
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
        keys: dict[str, list[str]] = found["splits"]
        was = {"name": found["name"], "seed": found["seed"], **found.get("made", {})}
        flat = [key for part in keys.values() for key in part]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} is no split file ({error}). Delete it to have it written anew.") from error
    asked = {"name": name, "seed": seed, **made}
    differs = [f"{k} {was[k]!r} (asked for: {asked[k]!r})" for k in asked if k in was and was[k] != asked[k]]
    if differs:
        raise DataError(
            f"{path} was made with {', '.join(differs)}. Give another split file, or delete this one."
        )
    if len(set(flat)) < len(flat):
        twice = [key for key, n in Counter(flat).items() if n > 1]
        raise DataError(
            f"{path} lists {len(twice)} picture(s) more than once: {some(twice)}. Keep each in one split."
        )
    by_key = {item.key: item for item in items}
    gone = [key for key in flat if key not in by_key]
    if gone:
        raise DataError(
            f"{path} names {len(gone)} picture(s) that the data {name} do not have: {some(gone)}. "
            "Restore them, or delete the split file to have it written anew."
        )
    return {split: [by_key[key] for key in part] for split, part in keys.items()}
