"""Rows of tables: the same values from CSV and Parquet, and only the columns that were asked for."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vpt.data.item import DataError
from vpt.data.table import read_table, split_in, text_in


def test_columns_that_were_asked_for_in_both_formats(tmp_path):
    (tmp_path / "m.csv").write_bytes("\ufeff A ,b,C\r\n1,2,3\r\n\r\n4,5,6\r\n".encode())
    pq.write_table(
        pa.Table.from_pylist([{"a": "1", "b": "2", "c": "3"}, {"a": "4", "b": "5", "c": "6"}]),
        tmp_path / "m.parquet",
    )
    seen = []

    def ask(there: list[str]) -> list[str]:
        seen.append(there)
        return ["c", "a"]

    rows = [[values for _, values in read_table(tmp_path / name, ask)] for name in ("m.csv", "m.parquet")]
    assert rows[0] == rows[1] == [{"c": "3", "a": "1"}, {"c": "6", "a": "4"}]
    assert seen == [["a", "b", "c"]] * 2
    assert [place for place, _ in read_table(tmp_path / "m.csv", ask)] == ["line 2", "line 4"]


def test_text_and_whole_numbers_only():
    assert [text_in(Path("m"), "row 0", "x", value) for value in (None, " a ", 3)] == ["", "a", "3"]
    for value in (True, 0.5, b"x", ["a"]):
        with pytest.raises(DataError, match=r"m, row 0: x is .* Wanted: text or a whole number"):
            text_in(Path("m"), "row 0", "x", value)


def test_words_for_splits():
    assert split_in(Path("m"), {""}) == {"": "all"}
    assert split_in(Path("m"), {"TRAIN", "dev"}) == {"TRAIN": "train", "dev": "val"}
    for words in ({"train", ""}, {"other"}):
        with pytest.raises(DataError, match="Wanted in every row: train, val or test"):
            split_in(Path("m"), words)
