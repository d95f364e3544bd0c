"""Scenes as a source: every class another arrangement, the novel half held out, the same pictures every time."""

from collections import Counter

import numpy as np
import pytest

from vpt.data.item import DataError
from vpt.data.module import ImageData
from vpt.data.plan import labels_in
from vpt.data.scene_source import open_scenes, said
from vpt.data.scenes import Kind, captions, draw, is_held_out, scene
from vpt.data.sources import open_source


@pytest.mark.parametrize("text", ["scenes", "scenes:120x10"])
def test_the_novel_half_of_the_classes_is_held_out_and_the_base_half_is_not(text):
    source = open_scenes(text)
    n = len(source.classes)
    assert [is_held_out(k) for k in source.kinds] == [i in labels_in("novel", n) for i in range(n)]
    assert len({frozenset((k, k.mirrored())) for k in source.kinds}) == len(set(source.classes)) == n
    for one, turned in zip(source.kinds[::2], source.kinds[1::2], strict=True):
        assert turned == one.turned()
        assert {is_held_out(one), is_held_out(turned)} in ({True}, {False})


def test_names_are_what_an_article_stands_before():
    assert said(Kind("red", "star", "above", "orange", "heart")) == "red star above an orange heart"
    for kind, name in zip(open_scenes("scenes").kinds, open_scenes("scenes").classes, strict=True):
        assert f"a {name}" == str(kind)  # no "a orange"


def test_pictures_show_their_class_and_are_all_different():
    source = open_source("scenes:8x10")
    parts = source.splits()
    assert {split: Counter(i.label for i in items) for split, items in parts.items()} == {
        split: dict.fromkeys(range(8), n) for split, n in (("train", 5), ("val", 1), ("test", 4))
    }
    every = [item for items in parts.values() for item in items]
    assert len({item.key for item in every}) == 80
    shown = [np.asarray(source.read(item)) for item in every]
    assert {s.shape for s in shown} == {(96, 96, 3)}
    assert len({s.tobytes() for s in shown}) == 80
    assert np.array_equal(shown[-1], np.asarray(open_source("scenes:8x10").read(every[-1])))
    seen = scene(20_011, every[-1].offset, kind=source.kinds[every[-1].label])
    assert np.array_equal(shown[-1], np.asarray(draw(seen, 96)))
    assert captions(seen)[0] == str(source.kinds[-1])


def test_a_subset_is_a_half():
    data = ImageData("scenes:8x10", shots=2, subset="novel")
    assert data.classes == open_scenes("scenes:8x10").classes[4:]
    assert data.protocol()["counts"] == {"train": 8, "val": 4, "test": 16}


def test_the_pictures_of_the_novel_half_are_its_own():
    """A subset's labels begin at 0 again; its pictures are those of its classes."""
    whole, novel = ImageData("scenes:8x10"), ImageData("scenes:8x10", subset="novel")
    source = open_scenes("scenes:8x10")
    for data in (whole, novel):
        data.bind({"input_size": (3, 96, 96), "mean": (0, 0, 0), "std": (1, 1, 1), "crop_pct": 1.0})
    theirs = {p["key"]: p for p in whole.pictures("test")}
    for mine in novel.pictures("test"):
        assert source.kinds[theirs[mine["key"]]["label"]] == source.kinds[4 + mine["label"]]
        assert mine["image"].equal(theirs[mine["key"]]["image"])


@pytest.mark.parametrize(
    "text", ["scenes:10x20", "scenes:4x20", "scenes:8x9", "scenes:8", "scenes:many", "scenes:90000x10"]
)
def test_what_cannot_be_drawn_is_refused(text):
    with pytest.raises(DataError, match=r"Wanted: scenes|Ask for fewer"):
        open_source(text)


def test_a_folder_called_scenes_is_a_folder(tmp_path, plant, monkeypatch):
    monkeypatch.chdir(tmp_path)
    plant(tmp_path / "scenes", {"a": 1, "b": 1})
    assert open_source("scenes").classes == ("a", "b")
