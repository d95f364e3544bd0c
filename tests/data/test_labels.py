from __future__ import annotations

import json

import pytest

from vpt.data.item import DataError, Item
from vpt.data.labels import check_labels, distinct, encode, numbered, read_class_names


def names_file(folder, entries) -> None:
    (folder / "classes.json").write_text(json.dumps(entries), encoding="utf-8")


def test_names_are_sorted_and_numbers_are_kept(tmp_path):
    assert encode([["b"], ["a", "c"], []], None, "x") == (("a", "b", "c"), [(1,), (0, 2), ()])
    assert encode([["2"], ["0"], ["1"]], tmp_path, "x") == (("0", "1", "2"), [(2,), (0,), (1,)])
    assert encode([["2"], ["two"]], tmp_path, "x") == (("2", "two"), [(0,), (1,)])


def test_classes_json_names_the_numbers(tmp_path):
    names_file(tmp_path, [{"index": 1, "name": "dög", "more": 0}, {"index": 0, "name": "cat"}])
    assert encode([["1"]], tmp_path, "x") == (("cat", "dög"), [(1,)])
    assert read_class_names(tmp_path / "nowhere") is None


@pytest.mark.parametrize(
    ("entries", "match"),
    [
        ({"0": "cat"}, "is not a list of"),
        ([{"name": "cat"}], "is not a list of"),
        ([{"index": 0, "name": "a"}, {"index": 2, "name": "b"}], "without gaps; found 0, 2"),
        ([{"index": 0, "name": "a"}, {"index": 1, "name": "a"}], "'a' does not"),
    ],
)
def test_bad_classes_json_is_refused(tmp_path, entries, match):
    names_file(tmp_path, entries)
    with pytest.raises(DataError, match=match):
        read_class_names(tmp_path)


def test_numbers_that_cannot_be_indices_are_refused():
    assert numbered([0, 2, 1], 3, "x") == ("0", "1", "2")
    for wrong in ([-1, 0], [0, 10**9]):
        with pytest.raises(DataError, match=rf"x: integer labels {wrong[0]}..{wrong[1]} for 2 pictures"):
            numbered(wrong, 2, "x")


def test_label_outside_the_classes_names_the_item():
    items = [Item("a.png", 0), Item("b.png", 2), Item("c.png", (0, -1))]
    with pytest.raises(
        DataError, match=r"2 label\(s\) outside the range 0..1 .*b.png has 2, c.png has \(0, -1\)"
    ):
        check_labels(items, ("x", "y"), "here")
    check_labels(items[:1], ("x", "y"), "here")


def test_names_must_be_there_and_differ():
    assert distinct(("a", "b"), "x") == ("a", "b")
    for wrong in (("a", "a"), ("a", " ")):
        with pytest.raises(DataError, match="must be there and differ"):
            distinct(wrong, "x")
