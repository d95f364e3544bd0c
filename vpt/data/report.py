"""What is in the data: looked at once, before training, and shown to the person who trains."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from statistics import median
from typing import Literal

from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.markup import escape
from rich.table import Table

from vpt.data.images import UnreadableImage, size
from vpt.data.item import DataError, Item, Source, labels_of, some
from vpt.data.pictures import Decoded

DECODE_LIMIT = 50_000  # above it only headers are read: a look must not take longer than the training


@dataclass(frozen=True)
class Report:
    """counts: pictures by split and class name. sizes: (width, height), smallest, median, largest by side.
    unreadable: key and reason. doubles: pairs of "split/key" with the same content in two splits.
    captions: how many a picture has, smallest, median, largest by split; empty where pictures have labels."""

    name: str
    classes: tuple[str, ...]
    counts: dict[str, dict[str, int]]
    sizes: dict[str, tuple[float, float]]
    unreadable: list[tuple[str, str]]
    doubles: list[tuple[str, str]]
    checked: Literal["decoded", "headers"] = "decoded"
    totals: dict[str, int] = field(default_factory=dict)
    captions: dict[str, tuple[int, float, int]] = field(default_factory=dict)

    def refuse_unreadable(self) -> None:
        if self.unreadable:
            listed = "; ".join(f"{key}: {why}" for key, why in self.unreadable[:8])
            more = f" and {len(self.unreadable) - 8} more" if len(self.unreadable) > 8 else ""
            raise DataError(
                f"{len(self.unreadable)} picture(s) of {self.name} cannot be read: {listed}{more}. "
                "Repair or remove them, or leave them out with skip_unreadable."
            )

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        what = "pictures with captions" if self.captions else f"{len(self.classes)} classes"
        ends = [f"{word} captions" for word in ("fewest", "median", "most")] if self.captions else []
        table = Table(title=f"{escape(self.name)}: {what}", title_justify="left")
        for column in ("split", "pictures", *(ends or ["smallest class", "largest class"])):
            table.add_column(column, justify="left" if column == "split" else "right")
        for split in self.totals:
            cells = [f"{n:g}" for n in self.captions[split]] if self.captions else self._ends(split)
            table.add_row(split, str(self.totals[split]), *map(escape, cells))
        yield Group(table, *map(escape, self._lines()))

    def _ends(self, split: str) -> list[str]:
        ordered = sorted(self.counts[split].items(), key=lambda entry: entry[1])
        return [f"{n} ({name})" for name, n in (ordered[0], ordered[-1])]

    def _lines(self) -> Iterator[str]:
        if self.sizes:
            shown = ", ".join(f"{name} {w:g} x {h:g}" for name, (w, h) in self.sizes.items())
            yield f"picture sizes: {shown}" + (" (headers read only)" if self.checked == "headers" else "")
        for key, why in self.unreadable:
            yield f"unreadable: {key}: {why}"
        if self.doubles:
            pairs = some((f"{a} = {b}" for a, b in self.doubles), 5)
            yield f"warning: {len(self.doubles)} picture(s) occur in two splits: {pairs}"


def survey(
    source: Source,
    splits: Mapping[str, Sequence[Item]],
    decoded: Decoded | None = None,
    classes: tuple[str, ...] | None = None,
) -> Report:
    """Read every item once and tell what is there; nothing is refused here.

    decoded: keeps what was decoded on the way. classes: names of the labels, by default the source's.
    Above DECODE_LIMIT items only headers are read, and the same content in two splits is not looked for.
    """
    decoded = decoded or Decoded(source, budget=0)
    classes = classes or source.classes
    total = sum(len(items) for items in splits.values())
    checked: Literal["decoded", "headers"] = "decoded" if total <= DECODE_LIMIT else "headers"
    seen: dict[str, str] = {}
    doubles, unreadable, sizes = [], [], []
    with ThreadPoolExecutor(2) as pool:  # Pillow lets go of the interpreter while it decodes
        for split, items in splits.items():
            looks = pool.map(lambda item: _look(item, decoded, checked == "decoded"), items, chunksize=64)
            for item, (shape, digest, why) in zip(items, looks, strict=True):
                if why:
                    unreadable.append((item.key, why))
                    continue
                sizes.append(shape)
                first = seen.setdefault(digest, f"{split}/{item.key}") if digest else ""
                if first and not first.startswith(f"{split}/"):
                    doubles.append((first, f"{split}/{item.key}"))
    return Report(
        source.name,
        classes,
        {split: _count(items, classes) for split, items in splits.items()},
        _spread(sizes),
        unreadable,
        doubles,
        checked,
        {split: len(items) for split, items in splits.items()},
        _said(splits),
    )


def _said(splits: Mapping[str, Sequence[Item]]) -> dict[str, tuple[int, float, int]]:
    numbers = {split: [len(item.captions) for item in items] for split, items in splits.items() if items}
    if not any(map(any, numbers.values())):
        return {}
    return {split: (min(n), median(n), max(n)) for split, n in numbers.items()}


def _look(item: Item, decoded: Decoded, whole: bool) -> tuple[tuple[int, int], str, str]:
    """(width, height), hash of the content ("" when only the header was read), reason of failure."""
    try:
        encoded = decoded.encoded(item)
        if not whole:
            return size(encoded, item.key), "", ""
        content = (
            encoded
            if isinstance(encoded, bytes)
            else f"{encoded.mode}{encoded.size}".encode() + encoded.tobytes()
        )
        return decoded.get(item, encoded).size, hashlib.sha256(content).hexdigest(), ""
    except UnreadableImage as error:
        return (0, 0), "", error.reason


def _count(items: Sequence[Item], classes: Sequence[str]) -> dict[str, int]:
    counts = Counter(label for item in items for label in labels_of(item))
    return {name: counts[i] for i, name in enumerate(classes)}


def _spread(sizes: Sequence[tuple[int, int]]) -> dict[str, tuple[float, float]]:
    if not sizes:
        return {}
    widths, heights = zip(*sizes, strict=True)
    return {name: (f(widths), f(heights)) for name, f in (("min", min), ("median", median), ("max", max))}
