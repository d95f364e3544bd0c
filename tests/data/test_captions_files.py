"""Manifests, COCO's, Karpathy's and Flickr's files: written here as they are published, and read back."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vpt.data.captions import open_captions
from vpt.data.item import DataError

texts = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), min_size=1, max_size=20).filter(
    str.strip
)
names = st.text("abcXYZ019_- .é", min_size=1, max_size=8).map(lambda name: f"p{name}.jpg")
splits = st.sampled_from(["train", "val", "test"])
tables = st.dictionaries(
    names, st.tuples(st.lists(texts, min_size=1, max_size=4), splits), min_size=1, max_size=6
)
Table = dict[str, tuple[list[str], str]]


def touch(folder: Path, files: object) -> Path:
    for name in files:  # type: ignore[attr-defined]
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(f"bytes of {name}".encode())
    return folder


def check(source: object, table: Table, split: bool = True) -> None:
    found = {
        item.key: (list(item.captions), part)
        for part, items in source.splits().items()  # type: ignore[attr-defined]
        for item in items
    }
    assert found == {
        name: ([" ".join(text.split()) for text in said], part if split else "all")
        for name, (said, part) in table.items()
    }
    for items in source.splits().values():  # type: ignore[attr-defined]
        assert all(source.read(item) == f"bytes of {item.key}".encode() for item in items)  # type: ignore[attr-defined]


@given(
    tables,
    st.sampled_from(["csv", "strings", "lists"]),
    st.sampled_from(["path", "image", "filepath"]),
    st.booleans(),
)
@settings(max_examples=50, deadline=None)
def test_manifests_round_trip(tmp_path_factory, table, kind, column, with_splits):
    folder = touch(tmp_path_factory.mktemp("manifest"), table)
    rows = [
        {column: name, "caption": text} | ({"split": split} if with_splits else {})
        for name, (said, split) in table.items()
        for text in said
    ]
    rows = sorted(rows, key=lambda row: len(row["caption"])) if kind == "strings" else rows  # pictures mix
    path = folder / ("m.csv" if kind == "csv" else "m.parquet")
    if kind == "csv":
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    elif kind == "strings":
        table = {name: (sorted(said, key=len), split) for name, (said, split) in table.items()}
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        lists = [
            {column: n, "captions": said, "split": s if with_splits else None}
            for n, (said, s) in table.items()
        ]
        pq.write_table(pa.Table.from_pylist(lists), path)
    check(open_captions(path), table, with_splits)


@given(tables)
@settings(max_examples=30, deadline=None)
def test_coco_round_trip(tmp_path_factory, table):
    root = tmp_path_factory.mktemp("coco")
    touch(root / "val2017", table)
    (root / "annotations").mkdir()
    numbers = {name: 7 * i for i, name in enumerate(table)}
    notes = [
        {"image_id": numbers[n], "id": 1, "caption": text} for n, (said, _) in table.items() for text in said
    ]
    images = [{"id": i, "file_name": name, "height": 2} for name, i in numbers.items()]
    path = root / "annotations" / "captions_val2017.json"
    path.write_text(json.dumps({"info": {}, "images": images, "annotations": notes}))
    check(open_captions(path), table, split=False)
    check(open_captions(path, root / "val2017"), table, split=False)


@pytest.mark.parametrize("coco", [True, False])
def test_karpathys_splits(tmp_path, coco):
    rows = [("1.jpg", "train"), ("2.jpg", "restval"), ("3.jpg", "val"), ("4.jpg", "test")]
    where = "val2014" if coco else "flickr30k-images"
    touch(tmp_path / ("" if coco else where), [f"{where}/{name}" if coco else name for name, _ in rows])
    images = [
        {
            "filename": name,
            "split": split,
            "sentences": [{"raw": f" said of\n{name}", "tokens": []}, {"raw": "more"}],
        }
        | ({"filepath": where} if coco else {})
        for name, split in rows
    ]
    path = tmp_path / "dataset.json"
    path.write_text(json.dumps({"dataset": "x", "images": images}))
    prefix = f"{where}/" if coco else ""
    meant = {"restval": "train"}
    check(
        open_captions(path),
        {f"{prefix}{name}": ([f"said of {name}", "more"], meant.get(split, split)) for name, split in rows},
    )


@given(
    st.dictionaries(
        names,
        st.lists(texts.filter(lambda t: "\n" not in t and "\r" not in t), min_size=1, max_size=4),
        min_size=1,
        max_size=5,
    )
)
@settings(max_examples=40, deadline=None)
def test_flickr_tokens_round_trip(tmp_path_factory, table):
    root = tmp_path_factory.mktemp("flickr")
    touch(root / "Flicker8k_Dataset", table)
    lines = [f"{name}#{i}\t{text}" for name, said in table.items() for i, text in enumerate(said)]
    for file in ("Flickr8k.token.txt", "results_20130124.token"):
        (root / file).write_bytes(("\n".join(lines) + "\n").encode())
        check(open_captions(root / file), {name: (said, "") for name, said in table.items()}, split=False)


def test_kaggles_captions(tmp_path):
    touch(tmp_path / "Images", ["1.jpg", "2.jpg"])
    path = tmp_path / "captions.txt"
    path.write_text('image,caption\n1.jpg,A child .\n1.jpg,"A girl , ""alone"" ."\n2.jpg,Dogs .\n')
    check(
        open_captions(path),
        {"1.jpg": (["A child .", 'A girl , "alone" .'], ""), "2.jpg": (["Dogs ."], "")},
        split=False,
    )


def test_the_folder_with_the_most_pictures_is_taken(tmp_path):
    touch(tmp_path / "annotations" / "images", ["1.jpg"])
    touch(tmp_path / "train2017", ["1.jpg", "2.jpg", "3.jpg"])
    path = tmp_path / "annotations" / "m.csv"
    path.write_text("path,caption\n1.jpg,one\n2.jpg,two\n3.jpg,three\n")
    assert {Path(i.file).parent.name for i in open_captions(path).splits()["all"]} == {"train2017"}
    with pytest.raises(
        DataError,
        match=r"2 of 3 pictures are not there: 2.jpg, 3.jpg. The first was looked for in .*annotations/images",
    ):
        open_captions(path, tmp_path / "annotations" / "images")
    assert len(open_captions(path, tmp_path / "annotations" / "images", bare=True).splits()["all"]) == 3


def test_no_picture_at_all_says_where_it_was_looked(tmp_path):
    (tmp_path / "x" / "Images").mkdir(parents=True)
    path = tmp_path / "x" / "m.csv"
    path.write_text("path,caption\n1.jpg,one\n2.jpg,two\n")
    with pytest.raises(
        DataError,
        match=r"names 2 pictures, but none was found: 1.jpg, 2.jpg. Looked in .*x, .*Images.*train2017.*Give root",
    ):
        open_captions(path)
    with pytest.raises(DataError, match="root is 'nowhere', which is no folder"):
        open_captions(path, "nowhere")


COCO = {
    "images": [{"id": 1, "file_name": "1.jpg"}, {"id": 2, "file_name": "2.jpg"}],
    "annotations": [{"image_id": 1, "caption": "x"}, {"image_id": 2, "caption": "y"}],
}
KARPATHY = {"filename": "1.jpg", "split": "train", "sentences": [{"raw": "x"}]}


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ("{", "is not JSON"),
        ([1], "is no caption file: it holds list"),
        ({"info": 1}, r"it holds \['info'\]"),
        ({"images": []}, "holds no pictures"),
        ({"images": [3]}, "is no caption file"),
        ({**COCO, "annotations": COCO["annotations"][:1]}, r"1 of 2 pictures have no caption: 2.jpg"),
        (
            {**COCO, "annotations": [*COCO["annotations"], {"image_id": 2, "caption": " "}]},
            "an empty caption stands with 1 of 2",
        ),
        (
            {**COCO, "annotations": [{"image_id": 1, "bbox": []}]},
            r"annotations\[0\]: caption is None \(there is \['bbox', 'image_id'\]",
        ),
        (
            {**COCO, "annotations": [{"image_id": 9, "caption": "x"}]},
            "of the image 9, which is not among images",
        ),
        ({**COCO, "annotations": {}}, "annotations is dict"),
        ({**COCO, "annotations": ["x"]}, r"annotations\[0\]: image_id is None"),
        ({**COCO, "images": COCO["images"] * 2}, "the id 1 has two entries"),
        (
            {**COCO, "images": [{"id": 1, "file_name": "1.jpg"}, {"id": 2, "file_name": "1.jpg"}]},
            r"two entries for 1 picture\(s\): 1.jpg",
        ),
        ({**COCO, "images": [{"id": True, "file_name": "1.jpg"}]}, r"images\[0\]: id is True"),
        ({**COCO, "images": [{"id": 1, "file_name": ""}]}, r"images\[0\]: file_name is ''"),
        (
            {"images": [{**KARPATHY, "split": "dev 2"}]},
            "split is 'dev 2'. Wanted: train, restval, val or test",
        ),
        ({"images": [{**KARPATHY, "sentences": []}]}, "no caption: 1.jpg"),
        ({"images": [{**KARPATHY, "sentences": ["x"]}]}, r"images\[0\].sentences: raw is None"),
        ({"images": [KARPATHY, KARPATHY]}, "two entries for 1 picture"),
        ({"images": [{"file_name": "1.jpg"}]}, r"images\[0\]: filename is None"),
    ],
)
def test_json_that_is_refused(tmp_path, content, match):
    touch(tmp_path, ["1.jpg", "2.jpg"])
    (tmp_path / "c.json").write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(DataError, match=match):
        open_captions(tmp_path / "c.json")


@pytest.mark.parametrize(
    ("name", "text", "match"),
    [
        ("m.csv", "path,label\n1.jpg,x\n", r"has the columns \['path', 'label'\]. Wanted: the columns path"),
        ("m.csv", "path,image,caption\n1.jpg,1.jpg,x\n", "one of each"),
        ("m.csv", "path,caption\n", "holds no pictures"),
        ("m.csv", "path,caption\n,x\n", "line 2: the path is empty"),
        ("m.csv", "path,caption\n1.jpg,x\n2.jpg,\n", "1 of 2 pictures have no caption: 2.jpg"),
        ("m.csv", "path,caption\n1.jpg,x\n1.jpg,\n", "an empty caption stands with 1 of 1 pictures: 1.jpg"),
        ("m.csv", "path,caption\n1.jpg,x,y\n", "line 2: 3 values for 2 columns"),
        (
            "m.csv",
            "path,caption,split\n1.jpg,x,train\n1.jpg,y,test\n",
            "1.jpg is in the split 'test', and in 'train' before",
        ),
        ("m.csv", "path,caption,split\n1.jpg,x,trian\n", "'trian'.*Wanted in every row"),
        ("m.csv", "path,caption\n1.jpg,x\n3.jpg,y\n", "1 of 2 pictures are not there: 3.jpg"),
        ("captions.txt", "1.jpg 0 said\n", "has the columns"),
        ("f.token", "1.jpg#0\tx\n1.jpg\ty\n", r"line 2: '1.jpg\\ty'. Wanted: PICTURE#NUMBER"),
        ("f.token", "1.jpg#0\tx\n1.jpg#0\ty\n", "1.jpg#0 has two entries"),
        ("f.token", "1.jpg#0\t \n", "no caption: 1.jpg"),
    ],
)
def test_tables_and_tokens_that_are_refused(tmp_path, name, text, match):
    touch(tmp_path, ["1.jpg", "2.jpg"])
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=match):
        open_captions(tmp_path / name)


def test_files_that_are_refused(tmp_path):
    touch(tmp_path, ["1.jpg"])
    for name in ("none.json", "none.csv", "none.txt"):
        with pytest.raises(DataError, match="no caption file at"):
            open_captions(tmp_path / name)
    for name, match in (
        ("a.json", "is not JSON"),
        ("a.csv", "UTF-8"),
        ("a.token", "UTF-8"),
        ("a.parquet", "not a Parquet"),
    ):
        (tmp_path / name).write_bytes(b"1.jpg#0\t\xff\xfe")
        with pytest.raises(DataError, match=match):
            open_captions(tmp_path / name)
    pq.write_table(pa.Table.from_pylist([{"path": "1.jpg", "captions": ["x"]}] * 2), tmp_path / "m.parquet")
    with pytest.raises(DataError, match=r"row 1: 1\.jpg has two entries. Keep one list"):
        open_captions(tmp_path / "m.parquet")
    pq.write_table(pa.Table.from_pylist([{"path": "1.jpg", "captions": [1.5]}]), tmp_path / "m.parquet")
    with pytest.raises(DataError, match=r"row 0: captions is 1\.5"):
        open_captions(tmp_path / "m.parquet")
