from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

import vpt.data.report as report
from vpt.data.folder import open_folder
from vpt.data.item import DataError, Item
from vpt.data.pictures import Decoded
from vpt.data.report import survey


@pytest.fixture
def made(tmp_path, plant, png):
    plant(tmp_path / "d" / "train", {"cat": 3, "dog": 2})
    plant(tmp_path / "d" / "test", {"cat": 1, "dog": 1}, start=50)
    (tmp_path / "d" / "train" / "cat" / "wide.png").write_bytes(png(90, width=60, height=10))
    (tmp_path / "d" / "test" / "dog" / "copy.png").write_bytes(png(0))  # the first training cat
    (tmp_path / "d" / "train" / "cat" / "twin.png").write_bytes(png(1))  # twice on one side is no leak
    return tmp_path / "d"


def text(shown: object) -> str:
    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(shown)
    return console.export_text()


def test_counts_sizes_and_doubles(made):
    source = open_folder(made)
    found = survey(source, source.splits())
    assert found.counts == {"train": {"cat": 5, "dog": 2}, "test": {"cat": 1, "dog": 2}}
    assert found.sizes == {"min": (20, 10), "median": (20, 24), "max": (60, 24)}
    assert [set(pair) for pair in found.doubles] == [{"train/train/cat/0.png", "test/test/dog/copy.png"}]
    assert found.unreadable == []
    shown = text(found)
    for words in (
        "d: 2 classes",
        "train",
        "5 (cat)",
        "2 (dog)",
        "max 60 x 24",
        "1 picture(s) occur in two splits",
    ):
        assert words in shown


def test_unreadable_are_named_with_the_reason_and_refused(made):
    (made / "train" / "cat" / "bad.png").write_bytes(b"")
    (made / "test" / "dog" / "cut.png").write_bytes((made / "train" / "cat" / "0.png").read_bytes()[:500])
    source = open_folder(made)
    (made / "train" / "dog" / "0.png").unlink()  # gone since it was listed
    found = survey(source, source.splits())
    assert {key for key, _ in found.unreadable} == {
        "train/cat/bad.png",
        "test/dog/cut.png",
        "train/dog/0.png",
    }
    with pytest.raises(
        DataError, match=r"3 picture\(s\) of d .*train/cat/bad.png: it is empty .*skip_unreadable"
    ):
        found.refuse_unreadable()
    assert "unreadable: train/cat/bad.png: it is empty (0 bytes)" in text(found)


def test_many_pictures_are_looked_at_by_their_headers(made, monkeypatch):
    monkeypatch.setattr(report, "DECODE_LIMIT", 3)
    (made / "train" / "cat" / "bad.png").write_bytes(b"not a picture")
    source = open_folder(made)
    decoded = Decoded(source, 2**20)
    monkeypatch.setattr(decoded, "get", None)  # decoding would fail
    found = survey(source, source.splits(), decoded)
    assert (found.checked, found.doubles) == ("headers", [])
    assert [key for key, _ in found.unreadable] == ["train/cat/bad.png"]
    assert found.sizes["max"] == (60, 24)
    assert "headers read only" in text(found)


def test_doubles_of_pictures_without_files():
    class Pair:
        name, classes, multilabel = "pair", ("a", "b"), False

        def splits(self) -> dict[str, list[Item]]:
            return {"train": [Item("0", 0), Item("1", 1)], "test": [Item("2", 0), Item("3", 1)]}

        def read(self, item: Item) -> Image.Image:
            shape = (
                (2, 3) if item.key == "3" else (3, 2)
            )  # the same bytes in another shape are another picture
            return Image.fromarray(np.full(shape, 7 if item.key in "13" else int(item.key) % 2, np.uint8))

    assert survey(Pair(), Pair().splits()).doubles == [("train/0", "test/2")]
