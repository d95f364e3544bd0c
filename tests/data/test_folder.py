from __future__ import annotations

import pytest

from vpt.data.folder import open_folder
from vpt.data.item import DataError


def test_classes_without_splits(tmp_path, plant, png):
    root = plant(tmp_path / "pets", {"dog": 2, "cat": 3, "a bird": 1})
    (root / "dog" / "deep").mkdir()
    (root / "dog" / "deep" / "x.PNG").write_bytes(png(99))
    (root / "dog" / "notes.txt").write_text("not a picture")
    (root / "dog" / "._0.png").write_text("left by another system")
    (root / ".cache").mkdir()
    source = open_folder(root)
    assert (source.name, source.classes, source.multilabel) == ("pets", ("a bird", "cat", "dog"), False)
    items = source.splits()["all"]
    assert [(i.key, i.label) for i in items] == [
        ("a bird/0.png", 0),
        *((f"cat/{n}.png", 1) for n in range(3)),
        *((f"dog/{n}", 2) for n in ("0.png", "1.png", "deep/x.PNG")),
    ]
    assert all(source.read(i) == (root / i.key).read_bytes() for i in items)


@pytest.mark.parametrize(
    "names", [("train", "val", "test"), ("Train", "VALID", "Testing"), ("training", "validation", "test")]
)
def test_split_folders_in_any_case(tmp_path, plant, names):
    for i, name in enumerate(names):
        plant(tmp_path / name, {"a": 1 + i, "b": 2}, start=10 * i)
    parts = open_folder(tmp_path).splits()
    assert {split: len(items) for split, items in parts.items()} == {"train": 3, "val": 4, "test": 5}
    assert parts["train"][0].key == f"{names[0]}/a/0.png"


def test_class_that_only_one_split_has_keeps_its_place(tmp_path, plant):
    plant(tmp_path / "train", {"b": 1, "c": 1})
    plant(tmp_path / "test", {"a": 1, "c": 1}, start=5)
    source = open_folder(tmp_path)
    assert source.classes == ("a", "b", "c")
    assert [i.label for i in source.splits()["test"]] == [0, 2]


def test_refusals(tmp_path, plant, png):
    def refused(match: str) -> None:
        with pytest.raises(DataError, match=match):
            open_folder(tmp_path)

    refused("no pictures in class folders")
    (tmp_path / "loose.png").write_bytes(png(0))
    refused("1 lie directly in it")
    plant(tmp_path, {"dog": 1, "cat": 0})
    refused(r"1 class folder\(s\) .* hold no pictures: cat")
    plant(tmp_path, {"cat": 1})
    (tmp_path / "train").mkdir()
    refused(r"split folders \(train\) beside others \(cat, dog\)")


def test_empty_or_doubled_split_is_refused(tmp_path, plant):
    plant(tmp_path / "train", {"a": 1, "b": 1})
    (tmp_path / "val").mkdir()
    with pytest.raises(DataError, match=r"'val' .* holds no pictures"):
        open_folder(tmp_path)
    (tmp_path / "valid").mkdir()
    with pytest.raises(DataError, match="two folders for the split 'val': val and valid"):
        open_folder(tmp_path)
