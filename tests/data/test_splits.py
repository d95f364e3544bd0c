from __future__ import annotations

import json
import os
import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vpt.data.item import DataError, Item
from vpt.data.splits import few_shot, load_splits, save_splits, split_hash, stratified


def items_of(labels: list[int]) -> list[Item]:
    return [Item(f"k{i}", label) for i, label in enumerate(labels)]


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("shots", [1, 4, 8])
def test_few_shot_is_coops(seed, shots, coop):
    # one class of val has fewer than 4, and those after it are drawn as if it had not been there
    train, val = items_of([2, 0, 1] * 9), items_of([0, 1, 1, 2] * 6 + [3, 4, 3, 4, 3, 4, 4, 4])
    stream = random.Random(seed)
    ours = few_shot(train, shots, stream), few_shot(val, min(shots, 4), stream, fewer=True)
    assert ours == coop(train, val, shots, seed)
    assert ours[0] == few_shot(train, shots, seed)  # the same again, from the seed
    assert ours[0] != few_shot(train, shots, seed + 10)


def test_more_shots_than_the_smallest_class_has():
    items = items_of([0] * 5 + [1] * 2 + [2] * 3)
    with pytest.raises(
        DataError, match=r"4 pictures a class.* 2 of 3 classes .*: dog \(2\), ant \(3\)\. .*at most 2"
    ):
        few_shot(items, 4, 1, classes=("cat", "dog", "ant"))
    assert Counter(i.label for i in few_shot(items, 4, 1, fewer=True)) == {0: 4, 1: 2, 2: 3}


def test_few_shot_refuses_nonsense():
    with pytest.raises(DataError, match="shots is 0"):
        few_shot(items_of([0]), 0, 1)
    with pytest.raises(DataError, match="multi-label"):
        few_shot([Item("a", (0, 1))], 1, 1)


@given(
    st.lists(st.integers(0, 3), min_size=1, max_size=60),
    st.floats(0, 0.45),
    st.floats(0, 0.45),
    st.integers(0, 9),
)
@settings(max_examples=100, deadline=None)
def test_stratified_parts(labels, val, test, seed):
    items = items_of(labels)
    parts = stratified(items, {"train": 1.0, "val": val, "test": test}, seed)
    assert sorted((i for part in parts.values() for i in part), key=items.index) == items  # each once
    assert all(part == sorted(part, key=items.index) for part in parts.values())
    for label, n in Counter(labels).items():
        count = {name: sum(i.label == label for i in part) for name, part in parts.items()}
        assert count["train"] >= 1
        if n >= 12:
            for name, fraction in (("val", val), ("test", test)):
                assert count[name] == (max(1, round(fraction * n)) if fraction else 0)
    assert parts == stratified(items, {"train": 1.0, "val": val, "test": test}, seed)


def test_stratified_takes_the_rarest_of_many_labels():
    items = [Item(f"k{i}", (0, 1) if i < 4 else (0,)) for i in range(24)]
    parts = stratified(items, {"train": 1.0, "test": 0.25}, 0)
    assert Counter(i.label for i in parts["test"]) == {(0, 1): 1, (0,): 5}


def test_fractions_must_leave_something():
    for wrong in ({"train": 1.0, "val": 0.5, "test": 0.5}, {"train": 1.0, "val": -0.1}):
        with pytest.raises(DataError, match="must lie in"):
            stratified(items_of([0, 1]), wrong, 0)


def test_hash_names_the_keys_of_each_split():
    a, b, c = items_of([0, 1, 2])
    hashed = split_hash({"train": [a, b], "test": [c]})
    assert len(hashed) == 12
    assert int(hashed, 16) >= 0
    assert hashed == split_hash({"test": [c], "train": [b, a]})
    assert hashed != split_hash({"train": [a], "test": [c, b]})


def test_file_round_trip_keeps_order(tmp_path):
    items = items_of([0, 1, 0, 1])
    parts = {"train": [items[3], items[0]], "val": [], "test": [items[2]]}
    path = tmp_path / "splits" / "a.json"
    save_splits(path, "pets", 3, parts, {"shots": 2})
    assert json.loads(path.read_text()) == {
        "name": "pets",
        "seed": 3,
        "made": {"shots": 2},
        "splits": {"train": ["k3", "k0"], "val": [], "test": ["k2"]},
    }
    assert load_splits(path, "pets", 3, items, {"shots": 2}) == parts
    assert os.listdir(path.parent) == ["a.json"]


def test_interrupted_writing_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    save_splits(path, "pets", 3, {"train": items_of([0])}, {})
    before = path.read_text()

    def full(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="disk full"):
        save_splits(path, "pets", 4, {"train": []}, {})
    assert path.read_text() == before
    assert os.listdir(tmp_path) == ["a.json"]


def test_other_files_are_refused(tmp_path):
    items, path = items_of([0, 1]), tmp_path / "a.json"
    save_splits(path, "pets", 3, {"train": items[:1], "test": items[1:]}, {"shots": 2})
    for name, seed, shots, match in [
        ("cars", 3, 2, r"name 'pets' \(asked for: 'cars'\)"),
        ("pets", 4, 2, r"seed 3 \(asked for: 4\)"),
        ("pets", 3, None, r"shots 2 \(asked for: None\)"),
    ]:
        with pytest.raises(DataError, match=match):
            load_splits(path, name, seed, items, {"shots": shots})
    with pytest.raises(DataError, match=r"1 picture\(s\) that the data pets do not have: k1"):
        load_splits(path, "pets", 3, items[:1], {"shots": 2})
    save_splits(path, "pets", 3, {"train": items, "test": items[1:]}, {})
    with pytest.raises(DataError, match="more than once: k1"):
        load_splits(path, "pets", 3, items, {})
    for text in ("{", "[]", '{"splits": 3, "name": "", "seed": 1}'):
        path.write_text(text)
        with pytest.raises(DataError, match="is no split file"):
            load_splits(path, "pets", 3, items, {})
