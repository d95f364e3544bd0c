from __future__ import annotations

import csv
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vpt.data.item import DataError, labels_of
from vpt.data.manifest import open_manifest


def write(path: Path, rows: list[dict[str, object]]) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    return path


words = st.text(
    st.characters(codec="utf-8", exclude_characters="|\x00", exclude_categories=("C", "Z")), min_size=1
)
names = words.map(lambda word: f"n{word}")  # never all digits
splits = st.sampled_from(["train", "VAL", "test"])


@pytest.mark.parametrize("kind", ["csv", "parquet"])
@given(
    st.dictionaries(words, st.tuples(st.sets(names, min_size=1, max_size=3), splits), min_size=1, max_size=8),
    st.booleans(),
)
@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_round_trip(tmp_path, kind, table, with_splits):
    rows: list[dict[str, object]] = []
    for path, (labels, split) in table.items():
        rows.append(
            {"path": path, "label": "|".join(sorted(labels))} | ({"split": split} if with_splits else {})
        )
    source = open_manifest(write(tmp_path / f"m.{kind}", rows))
    assert source.classes == tuple(sorted({name for labels, _ in table.values() for name in labels}))
    assert source.multilabel == any(len(labels) > 1 for labels, _ in table.values())
    read = {
        item.key: ({source.classes[i] for i in labels_of(item)}, split)
        for split, items in source.splits().items()
        for item in items
    }
    assert read == {
        p: (labels, split.lower() if with_splits else "all") for p, (labels, split) in table.items()
    }
    assert all(Path(i.file) == tmp_path / i.key for items in source.splits().values() for i in items)


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_numbers_take_names_from_classes_json(tmp_path, kind):
    path = write(tmp_path / f"m.{kind}", [{"path": "a", "label": 1}, {"path": "b", "label": 0}])
    assert open_manifest(path).classes == ("0", "1")
    (tmp_path / "classes.json").write_text(json.dumps([{"index": i, "name": n} for i, n in enumerate("xyz")]))
    source = open_manifest(path)
    assert (source.classes, [i.label for i in source.splits()["all"]]) == (("x", "y", "z"), [1, 0])


def test_multilabel_may_have_none(tmp_path):
    rows: list[dict[str, object]] = [
        {"path": "a", "label": "x|y"},
        {"path": "b", "label": ""},
        {"path": "c", "label": "y"},
    ]
    source = open_manifest(write(tmp_path / "m.csv", rows))
    assert [i.label for i in source.splits()["all"]] == [(0, 1), (), (1,)]


def test_reads_what_it_names(tmp_path, png):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.png").write_bytes(png(0))
    source = open_manifest(write(tmp_path / "m.csv", [{"path": "sub/a.png", "label": "x"}]))
    assert source.read(source.splits()["all"][0]) == png(0)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "has the columns"),
        ("file,label\na,b\n", r"has the columns \['file', 'label'\]. Wanted: path, label"),
        ("path,label\n", "no rows"),
        ("path,label\na,x\na,y\n", r"more than once: a\."),
        ("path,label\na,x,y\n", "line 2: 3 values for 2 columns"),
        ("path,label\n,x\n", "line 2: the path is empty"),
        ("path,label\na,\nb,x\n", r"1 row\(s\) without a label: a"),
        ("path,label,split\na,x,trian\n", "'trian'.*Wanted in every row"),
        ("path,label,split\na,x,train\nb,x,\n", "''.*Wanted in every row"),
        ("path,label\na,0\nb,7\n", "integer labels 0..7 for 2 pictures"),
        ("path,label\na,-1\nb,0\n", "integer labels -1..0"),
        ('path,label\n"a,b\n', "is not a CSV file"),
    ],
)
def test_refusals_of_csv(tmp_path, text, match):
    path = tmp_path / "m.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=match):
        open_manifest(path)


def test_label_outside_classes_json_is_refused(tmp_path):
    (tmp_path / "classes.json").write_text('[{"index": 0, "name": "x"}, {"index": 1, "name": "y"}]')
    path = write(tmp_path / "m.csv", [{"path": "a", "label": 0}, {"path": "b", "label": 2}])
    with pytest.raises(DataError, match=r"outside the range 0..1 .*b has 2"):
        open_manifest(path)


def test_refusals_of_files(tmp_path):
    with pytest.raises(DataError, match="no manifest at"):
        open_manifest(tmp_path / "none.csv")
    (tmp_path / "m.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(DataError, match="is not a Parquet file"):
        open_manifest(tmp_path / "m.parquet")
    (tmp_path / "m.csv").write_bytes(b"path,label\n\xff\xfe,x\n")
    with pytest.raises(DataError, match="UTF-8"):
        open_manifest(tmp_path / "m.csv")
    path = write(tmp_path / "f.parquet", [{"path": "a", "label": 0.5}])
    with pytest.raises(DataError, match=r"row 0: label is 0.5"):
        open_manifest(path)
