"""Collections: every picture there is, whatever holds it."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vpt.data.collection import open_collection
from vpt.data.item import DataError, Item
from vpt.data.sources import open_source


def items_of(data: object, **options: object) -> list[Item]:
    source = open_collection(data, **options)  # type: ignore[arg-type]
    parts = source.splits()
    assert (parts.keys(), source.classes, source.multilabel) == ({"all"}, (), False)
    items = parts["all"]
    assert len({item.key for item in items}) == len(items)
    assert {item.label for item in items} == {0}
    for item in items[:3]:
        source.read(item)
    return items


paths = st.from_regex(r"([a-c ]/){0,3}[a-z0-9]{1,4}\.(jpg|PNG|webp|txt|md)", fullmatch=True)


@given(st.dictionaries(paths, st.binary(min_size=1, max_size=20), min_size=1, max_size=8))
@settings(max_examples=40, deadline=None)
def test_every_picture_of_a_folder(tmp_path_factory, files):
    root = tmp_path_factory.mktemp("folder")
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    pictures = {name: data for name, data in files.items() if not name.endswith(("txt", "md"))}
    if not pictures:
        with pytest.raises(DataError, match="there are no pictures in"):
            open_collection(root)
        return
    source = open_collection(root)
    assert {item.key: source.read(item) for item in items_of(root)} == pictures


def test_folders_of_classes_and_of_splits_and_loose_pictures(tmp_path, plant):
    plant(tmp_path, {"train/cat": 2, "test/dog": 1, "other": 1, ".": 1})
    (tmp_path / "other" / "0.txt").write_text("one\n\n two  words\n")
    (tmp_path / "0.txt").write_bytes(b"\xff")  # no caption, and no reason to lose the picture
    assert {item.key: item.captions for item in items_of(tmp_path)} == {
        "0.png": (),
        "other/0.png": ("one", "two words"),
        "test/dog/0.png": (),
        "train/cat/0.png": (),
        "train/cat/1.png": (),
    }
    assert [item.key for item in items_of(tmp_path / "0.png")] == ["0.png"]


@pytest.mark.parametrize("end", ["csv", "parquet"])
def test_manifests_need_a_path_only(tmp_path, plant, end):
    plant(tmp_path, {"images": 3})
    rows = [{"path": f"{i}.png", "label": "a|b", "split": "no split"} for i in range(3)]
    path = tmp_path / f"m.{end}"
    if end == "csv":
        path.write_text("path,label,split\n" + "".join(f"{','.join(row.values())}\n" for row in rows))
    else:
        pq.write_table(pa.Table.from_pylist(rows), path)
    assert [item.key for item in items_of(path)] == ["0.png", "1.png", "2.png"]
    assert [item.key for item in items_of(path, root=tmp_path / "images")] == ["0.png", "1.png", "2.png"]
    with_captions = tmp_path / "c.csv"
    with_captions.write_text("image,caption\n0.png,x\n0.png,\n1.png,\n")
    assert {item.key: item.captions for item in items_of(with_captions)} == {"0.png": ("x",), "1.png": ()}


def test_a_caption_file_keeps_its_captions(tmp_path, plant):
    plant(tmp_path, {"images": 2})
    images = [{"id": i, "file_name": f"{i}.png"} for i in range(2)]
    notes = [{"image_id": 0, "caption": "said"}]
    (tmp_path / "c.json").write_text(json.dumps({"images": images, "annotations": notes}))
    assert {item.key: item.captions for item in items_of(tmp_path / "c.json")} == {
        "0.png": ("said",),
        "1.png": (),
    }


def test_shards_with_any_members(tmp_path):
    for name, members in (
        ("train-000000.tar", {"0.jpg": b"x", "0.cls": b"1", "1.jpg": b"y", "1.json": b"{"}),
        ("extra-000000.tar", {"0.jpg": b"z", "0.json": b'{"captions": ["said", ""]}'}),
    ):
        with tarfile.open(tmp_path / name, "w") as tar:
            for member, data in members.items():
                info = tarfile.TarInfo(member)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    source = open_collection(tmp_path)
    assert {i.key: (source.read(i), i.captions) for i in items_of(tmp_path)} == {
        "extra-000000/0": (b"z", ("said",)),
        "train-000000/0": (b"x", ()),
        "train-000000/1": (b"y", ()),
    }
    assert len(items_of(f"{tmp_path}/*.tar")) == 3


@pytest.mark.parametrize(("text", "count"), [("digits", 1797), ("emoji", None), ("scenes:8x10", 80)])
def test_sources_with_labels_lose_them_and_keep_their_pictures(text, count):
    theirs = [item for part in open_source(text).splits().values() for item in part]
    found = items_of(text)
    assert len(found) == (count or len(theirs))
    if text != "emoji":  # which is a folder of its own
        assert [item.key for item in found] == [item.key for item in theirs]
        mine, other = open_collection(text).read(found[-1]), open_source(text).read(theirs[-1])
        assert np.array_equal(np.asarray(mine), np.asarray(other))


def test_scenes_bring_their_captions():
    found = items_of("scenes:40")
    assert (len(found), {len(item.captions) for item in found}) == (40, {8})
    assert len(items_of("scenes")) == 800


def test_torchvision(tmp_path, monkeypatch):
    import torchvision.datasets as sets

    folder = tmp_path / "torchvision"
    made = sets.FakeData(6, (3, 8, 8), 2)

    class Fake:
        def __init__(self, root: str, train: bool = True, download: bool = False):
            assert Path(root) == folder
            self.targets = [0, 1, 1] if train else [1]

        def __len__(self) -> int:
            return len(self.targets)

        def __getitem__(self, i: int) -> object:
            return made[i + len(self)]

    monkeypatch.setattr(sets, "CIFAR10", Fake)
    found = items_of("torchvision:CIFAR10", root=tmp_path)
    assert [item.key for item in found] == ["train/000000", "train/000001", "train/000002", "test/000000"]


def test_nothing_there(tmp_path):
    for data, match in (
        (tmp_path, "there are no pictures in"),
        ("nowhere", r"no pictures at 'nowhere'. Wanted: a folder of pictures"),
        (tmp_path / "none.jpg", r"no pictures at .*none\.jpg"),
        (tmp_path / "none.csv", "no caption file at"),
    ):
        with pytest.raises(DataError, match=match):
            open_collection(data)
