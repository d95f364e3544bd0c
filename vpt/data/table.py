"""Rows of a CSV or Parquet file, read with care."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from vpt.data.item import DataError, some, split_name

Values = dict[str, object]


def read_table(path: Path, columns: Callable[[list[str]], Sequence[str]]) -> Iterator[tuple[str, Values]]:
    """("line 2" or "row 0", values by column) for every row of a .parquet file, or else of a CSV in UTF-8.

    columns: gives the columns to read of those that are there, or raises for what is missing. Those of a CSV are
    lower-cased. Raises DataError for a damaged file and for a line with too many or too few values.
    """
    return (_parquet if path.suffix.lower() == ".parquet" else _csv)(path, columns)


def _csv(path: Path, columns: Callable[[list[str]], Sequence[str]]) -> Iterator[tuple[str, Values]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, strict=True)
            names = [name.strip().lower() for name in next(reader, [])]
            wanted = columns(names)
            for values in reader:
                if len(values) not in (0, len(names)):
                    raise DataError(
                        f"{path}, line {reader.line_num}: {len(values)} values for {len(names)} columns. "
                        "Quote values that hold a comma."
                    )
                if values:
                    row = dict(zip(names, values, strict=True))
                    yield f"line {reader.line_num}", {name: row[name] for name in wanted}
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} is not a CSV file in UTF-8 ({error}). Save it as one.") from error


def _parquet(path: Path, columns: Callable[[list[str]], Sequence[str]]) -> Iterator[tuple[str, Values]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{path} is not a Parquet file ({error}). Write it anew.") from error
    table = table.select(list(columns(table.column_names)))
    for i, values in enumerate(table.to_pylist()):
        yield f"row {i}", values


def text_in(path: Path, place: str, name: str, value: object) -> str:
    """A value as text, "" for none. Raises DataError for anything but text and whole numbers."""
    if value is not None and (isinstance(value, bool) or not isinstance(value, str | int)):
        raise DataError(f"{path}, {place}: {name} is {value!r}. Wanted: text or a whole number.")
    return "" if value is None else str(value).strip()


def split_in(path: Path, words: set[str]) -> dict[str, str]:
    """The split that each word of a split column means; "all" where the column is empty throughout."""
    if words <= {""}:
        return {"": "all"}
    found = {word: split_name(word) for word in words}
    unknown = sorted(word for word, split in found.items() if split is None)
    if unknown:
        raise DataError(
            f"{path}: the split column holds {some(map(repr, unknown))}. Wanted in every row: train, "
            "val or test."
        )
    return {word: split for word, split in found.items() if split}
