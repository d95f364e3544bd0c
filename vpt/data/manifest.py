"""A table of pictures: CSV or Parquet with the columns path, label and, if there are splits, split."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

from vpt.data.item import DataError, Files, Item, some, split_name
from vpt.data.labels import check_labels, encode

Row = dict[str, str]


def open_manifest(path: Path) -> Files:
    """Paths are relative to the manifest. A label is a name, an index (named by a classes.json beside the
    manifest), or several joined by "|" (multi-label; empty then means none). Raises DataError."""
    if not path.is_file():
        raise DataError(
            f"no manifest at {path}. Wanted: a .csv or .parquet file with the columns path,label[,split]."
        )
    rows = _parquet(path) if path.suffix.lower() == ".parquet" else _csv(path)
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
    return Files(path.stem, classes, multilabel, _parts(path, rows, items))


def _parts(path: Path, rows: list[Row], items: list[Item]) -> dict[str, list[Item]]:
    words = {row["split"] for row in rows}
    if words == {""}:
        return {"all": items}
    unknown = sorted(word for word in words if split_name(word) is None)
    if unknown:
        raise DataError(
            f"{path}: the split column holds {some(map(repr, unknown))}. Wanted in every row: train, "
            "val or test."
        )
    parts: dict[str, list[Item]] = {}
    for row, item in zip(rows, items, strict=True):
        parts.setdefault(split_name(row["split"]) or "", []).append(item)
    return parts


def _csv(path: Path) -> list[Row]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, strict=True)
            columns = [name.strip().lower() for name in next(reader, [])]
            _refuse_columns(path, columns)
            rows = []
            for values in reader:
                if len(values) not in (0, len(columns)):
                    raise DataError(
                        f"{path}, line {reader.line_num}: {len(values)} values for {len(columns)} columns. "
                        "Quote values that hold a comma."
                    )
                if values:
                    rows.append(
                        _row(path, f"line {reader.line_num}", dict(zip(columns, values, strict=True)))
                    )
            return rows
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} is not a CSV file in UTF-8 ({error}). Save it as one.") from error


def _parquet(path: Path) -> list[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{path} is not a Parquet file ({error}). Write it anew.") from error
    _refuse_columns(path, table.column_names)
    table = table.select([name for name in ("path", "label", "split") if name in table.column_names])
    return [_row(path, f"row {i}", values) for i, values in enumerate(table.to_pylist())]


def _refuse_columns(path: Path, columns: list[str]) -> None:
    if not {"path", "label"} <= set(columns):
        raise DataError(
            f"{path} has the columns {columns}. Wanted: path, label and, if there are splits, split."
        )


def _row(path: Path, place: str, values: dict[str, object]) -> Row:
    row = {}
    for name in ("path", "label", "split"):
        value = values.get(name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, str | int)):
            raise DataError(f"{path}, {place}: {name} is {value!r}. Wanted: text or a whole number.")
        row[name] = "" if value is None else str(value).strip()
    if not row["path"]:
        raise DataError(f"{path}, {place}: the path is empty. Fill or remove the row.")
    return row
