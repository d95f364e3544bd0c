"""Which data sets a table is of: by name, by path, by task; what is missing is named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from vpt.data.item import DataError
from vpt.data.protocols import templates
from vpt.methods import METHODS
from vpt.workflow.sets import FGVC, VTAB, DataSet, coop, given, sentences_for, tasks, there

TASKS = {name: others for group in VTAB.values() for name, others in group.items()}


@pytest.mark.parametrize(
    ("text", "name", "path"),
    [
        ("photos/", "photos", "photos/"),
        ("data/caltech101", "caltech101", "data/caltech101"),
        ("birds=/data/x=y/train.csv", "birds", "/data/x=y/train.csv"),
        ("/data/x=y", "x=y", "/data/x=y"),
        ("lists/birds.parquet", "birds", "lists/birds.parquet"),
        ("scenes", "scenes", "scenes"),
        ("scenes:60x40", "scenes:60x40", "scenes:60x40"),
        ("torchvision:DTD", "torchvision:DTD", "torchvision:DTD"),
        ("coop:dtd", "dtd", "coop:dtd"),
    ],
)
def test_a_data_set_is_called_as_it_is_typed(text: str, name: str, path: str) -> None:
    found = given(text, "root")
    assert (found.name, found.data["path"]) == (name, path)
    assert found.data.get("root") == ("root" if path.startswith("coop:") else None)


def test_methods_take_the_sentences_of_the_data_set() -> None:
    pets, dtd = coop("oxford_pets", "data"), coop("dtd", "data")
    assert pets.options("zero-shot", {}) == {"template": "a photo of a {}, a type of pet."}
    assert pets.options("zero-shot", {"template": "my {}."}) == {"template": "my {}."}
    assert pets.options("coop", {"length": 4}) == {"length": 4}
    assert dtd.options("kgcoop", {}) == {"teacher": templates("dtd")["kgcoop"]}
    assert dtd.options("prograd", {}) == {"teacher": "a texture of {}.", "words": "a texture of"}
    assert sentences_for("zero-shot", {"templates": "imagenet-7"}, templates("dtd")) == {}
    assert given("scenes").options("zero-shot", {}) == {"template": "a {}"}
    assert given("photos").options("zero-shot", {}) == {"template": "a photo of a {}."}
    for name in METHODS:  # what a name fixes stays
        assert not dtd.options(name, {}).keys() & METHODS[name].options.keys()


def test_tasks_lie_below_the_root_under_one_of_their_names(tmp_path: Path) -> None:
    for name in ("dtd", "clevr_dist"):
        (tmp_path / name).mkdir()
    (tmp_path / "svhn.csv").touch()
    found = {
        d.name: d.data["path"]
        for d in tasks(TASKS, tmp_path, [DataSet("cifar", {"path": "torchvision:CIFAR100"})])
    }
    assert len(found) == 19
    assert found["dtd"] == str(tmp_path / "dtd")
    assert found["clevr_distance"] == str(tmp_path / "clevr_dist")
    assert found["svhn"] == str(tmp_path / "svhn.csv")
    assert found["cifar"] == "torchvision:CIFAR100"
    assert found["kitti"] == str(tmp_path / "kitti")  # is not there, and will be said to be
    with pytest.raises(ValueError, match=r"no task birds\. There are cub, nabirds"):
        tasks(FGVC, tmp_path, [DataSet("birds", {"path": "x"})])
    with pytest.raises(ValueError, match=r"Give --root, the folder that holds cub/"):
        tasks(FGVC, None)


def test_what_is_missing_is_named_or_left_out(tmp_path: Path, paint: Callable[..., Path]) -> None:
    sets = [
        given(str(paint(tmp_path / "here", {"train": 2}, 9))),
        given(str(tmp_path / "gone")),
        given("coop:dtd"),
    ]
    with pytest.raises(
        DataError, match=r"2 of 3 data sets cannot be opened:\n  gone: .*\n  dtd: .*\n.*--skip-missing"
    ):
        there(sets)
    found, missing = there(sets, skip_missing=True)
    assert [d.name for d in found] == ["here"]
    assert [line.partition(":")[0] for line in missing] == ["gone", "dtd"]
    with pytest.raises(DataError, match="2 of 2"):
        there(sets[1:], skip_missing=True)
    with pytest.raises(DataError, match="it has 3 classes, and this table needs 4"):
        there(sets[:1], least=4)
