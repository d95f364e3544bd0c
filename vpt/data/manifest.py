"""A table of pictures: CSV or Parquet with the columns path, label and, if there are splits, split."""

from __future__ import annotations

from collections import Counter
from functools import partial
from pathlib import Path

from vpt.data.item import DataError, Files, Item, some
from vpt.data.labels import check_labels, encode
from vpt.data.table import Values, read_table, split_in, text_in

Row = dict[str, str]


def open_manifest(path: Path) -> Files:
    """Paths are relative to the manifest. A label is a name, an index (named by a classes.json beside the
    manifest), or several joined by "|" (multi-label; empty then means none). Raises DataError."""
    if not path.is_file():
        raise DataError(
            f"no manifest at {path}. Wanted: a .csv or .parquet file with the columns path,label[,split]."
        )
    rows = [_row(path, place, values) for place, values in read_table(path, partial(_columns, path))]
    if not rows:
        raise DataError(f"the manifest {path} has no rows. Wanted: one row a picture.")
    keys = [row["path"] for row in rows]
    if len(set(keys)) < len(keys):
        twice = sorted(key for key, n in Counter(keys).items() if n > 1)
        raise DataError(
            f"{path} names {len(twice)} picture(s) more than once: {some(twice)}. Keep one row a picture; "
            "several labels go into one row as a|b."
        )
    multilabel = any("|" in row["label"] for row in rows)
    bare = [row["path"] for row in rows if not row["label"]]
    if bare and not multilabel:
        raise DataError(f"{path}: {len(bare)} row(s) without a label: {some(bare)}. Fill or remove them.")
    written = [sorted({word.strip() for word in row["label"].split("|")} - {""}) for row in rows]
    classes, numbers = encode(written, path.parent, str(path))
    items = [
        Item(row["path"], labels if multilabel else labels[0], str(path.parent / row["path"]))
        for row, labels in zip(rows, numbers, strict=True)
    ]
    check_labels(items, classes, str(path))
    meant = split_in(path, {row["split"] for row in rows})
    parts: dict[str, list[Item]] = {}
    for row, item in zip(rows, items, strict=True):
        parts.setdefault(meant[row["split"]], []).append(item)
    return Files(path.stem, classes, multilabel, parts)


def _columns(path: Path, there: list[str]) -> list[str]:
    if not {"path", "label"} <= set(there):
        raise DataError(
            f"{path} has the columns {there}. Wanted: path, label and, if there are splits, split."
        )
    return [name for name in ("path", "label", "split") if name in there]


def _row(path: Path, place: str, values: Values) -> Row:
    row = {name: text_in(path, place, name, values.get(name)) for name in ("path", "label", "split")}
    if not row["path"]:
        raise DataError(f"{path}, {place}: the path is empty. Fill or remove the row.")
    return row
