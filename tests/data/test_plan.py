from __future__ import annotations

import math
from collections import Counter

import pytest

from vpt.data.item import DataError, Files, Item
from vpt.data.plan import Draw, Plan, labels_in, plan


def source(**counts: list[int]) -> Files:
    """Splits with so many pictures of class 0, 1, ..."""
    parts = {
        split: [Item(f"{split}/{c}/{i}", c) for c, n in enumerate(sizes) for i in range(n)]
        for split, sizes in counts.items()
    }
    classes = max(len(sizes) for sizes in counts.values())
    return Files("made", tuple(f"class {c}" for c in range(classes)), False, parts)


def counts(parts: dict[str, list[Item]]) -> dict[str, list[int]]:
    return {
        split: [n for _, n in sorted(Counter(i.label for i in items).items())]
        for split, items in parts.items()
    }


def origins(parts: dict[str, list[Item]]) -> dict[str, set[str]]:
    return {split: {i.key.split("/")[0] for i in items} for split, items in parts.items()}


def test_without_splits_all_three_are_drawn():
    made = plan(source(all=[20, 10]), Draw(val=0.1, test=0.3))
    assert counts(made.parts) == {"train": [12, 6], "val": [2, 1], "test": [6, 3]}
    assert made.parts == plan(source(all=[20, 10]), Draw(val=0.1, test=0.3)).parts
    assert made.parts != plan(source(all=[20, 10]), Draw(val=0.1, test=0.3, seed=2)).parts
    assert made.origin == {"train": "the rest of all", "val": "0.1 of all", "test": "0.3 of all"}


def test_own_splits_are_kept():
    own = source(train=[6, 6], val=[2, 2], test=[3, 3])
    assert plan(own, Draw()).parts == own.splits()


def test_val_is_split_off_train_where_there_is_none():
    made = plan(source(train=[10, 5], test=[3, 3]), Draw(val=0.2))
    assert counts(made.parts) == {"train": [8, 4], "val": [2, 1], "test": [3, 3]}
    assert origins(made.parts) == {"train": {"train"}, "val": {"train"}, "test": {"test"}}


def test_no_val_at_all():
    made = plan(source(train=[10, 5], test=[3, 3]), Draw(val=0))
    assert counts(made.parts) == {"train": [10, 5], "val": [], "test": [3, 3]}
    assert made.origin["val"] == "none"


def test_val_without_test_is_the_test():
    made = plan(source(train=[10, 10], val=[4, 4]), Draw(val=0.2))
    assert origins(made.parts) == {"train": {"train"}, "val": {"train"}, "test": {"val"}}
    assert made.origin == {
        "train": "the rest of the source's own",
        "val": "0.2 of train",
        "test": "the source's val",
    }


def test_few_shot_with_and_without_own_val():
    made = plan(source(train=[30, 30], val=[9, 3], test=[5, 5]), Draw(shots=8))
    assert counts(made.parts) == {"train": [8, 8], "val": [4, 3], "test": [5, 5]}
    assert origins(made.parts)["val"] == {"val"}
    made = plan(source(all=[30, 30]), Draw(shots=2))
    assert counts(made.parts) == {"train": [2, 2], "val": [2, 2], "test": [6, 6]}
    assert len({i.key for items in made.parts.values() for i in items}) == 20
    made = plan(source(train=[30, 30], val=[9, 9], test=[5, 5]), Draw(shots=8, val_shots=6))
    assert counts(made.parts)["val"] == [6, 6]
    with pytest.raises(DataError, match=r"6 pictures a class.*class 1 \(3\)"):
        plan(source(train=[30, 30], val=[9, 3], test=[5, 5]), Draw(shots=8, val_shots=6))


def test_unreadable_are_left_out_before_sampling():
    bad = frozenset(f"train/0/{i}" for i in range(4))
    made = plan(source(train=[8, 8], test=[2, 2]), Draw(shots=4, val=0), bad)
    assert counts(made.parts)["train"] == [4, 4]
    assert not bad & {i.key for i in made.parts["train"]}


def test_split_file_is_written_once_and_reused(tmp_path):
    path = str(tmp_path / "s.json")
    first = plan(source(all=[10, 10]), Draw(shots=3, split_file=path))
    text = (tmp_path / "s.json").read_text()
    larger = source(all=[14, 10])  # drawn anew, this would come out otherwise
    assert plan(larger, Draw(shots=3)).parts != first.parts
    assert plan(larger, Draw(shots=3, split_file=path)).parts == first.parts
    assert (tmp_path / "s.json").read_text() == text
    with pytest.raises(DataError, match=r"seed 1 \(asked for: 2\)"):
        plan(larger, Draw(shots=3, seed=2, split_file=path))
    gone = frozenset([first.parts["test"][0].key])
    assert (
        len(plan(larger, Draw(shots=3, split_file=path), gone).parts["test"]) == len(first.parts["test"]) - 1
    )


def subsampled(made: Plan, subset: str) -> dict[str, list[tuple[str, int]]]:
    """Keys and labels of a half of the classes as CoCoOp's code cuts it out (arXiv 2203.05557)."""
    labels = sorted({item.label for item in made.parts["train"]})
    middle = math.ceil(len(labels) / 2)
    selected = labels[:middle] if subset == "base" else labels[middle:]
    new = {label: i for i, label in enumerate(selected)}
    return {
        split: [(item.key, new[item.label]) for item in items if item.label in new]
        for split, items in made.parts.items()
    }


@pytest.mark.parametrize("classes", [4, 5, 7])
@pytest.mark.parametrize("shots", [None, 2, 8])
def test_halves_of_the_classes_are_cut_out_of_what_was_drawn_over_all(classes, shots):
    own = source(train=[9] * classes, val=[5] * classes, test=list(range(2, classes + 2)))
    whole = plan(own, Draw(shots=shots))
    assert whole.classes == own.classes
    assert plan(own, Draw(shots=shots, subset="all")) == whole
    names: tuple[str, ...] = ()
    for subset in ("base", "novel"):
        made = plan(own, Draw(shots=shots, subset=subset))
        wanted = subsampled(whole, subset)
        assert {s: [(i.key, i.label) for i in items] for s, items in made.parts.items()} == wanted
        assert made.classes == tuple(own.classes[i] for i in labels_in(subset, classes))
        names += made.classes
    assert names == own.classes
    assert [*labels_in("base", classes), *labels_in("novel", classes)] == list(labels_in("all", classes))


def test_both_halves_share_a_split_file(tmp_path):
    own, path = source(all=[12] * 5), str(tmp_path / "s.json")
    made = {s: plan(own, Draw(shots=2, split_file=path, subset=s)) for s in ("novel", "base", "all")}
    assert made["base"] == plan(own, Draw(shots=2, subset="base"))
    assert sum(len(made[s].parts["test"]) for s in ("base", "novel")) == len(made["all"].parts["test"])


def test_a_source_with_test_pictures_only_is_for_measuring():
    own = source(test=[3, 0, 4, 2])
    made = plan(own, Draw(shots=4))
    assert made.parts == {"train": [], "val": [], "test": own.splits()["test"]}
    assert made.origin == {"train": "none", "val": "none", "test": "the source's own"}
    assert counts(plan(own, Draw(subset="novel")).parts)["test"] == [4, 2]


@pytest.mark.parametrize(
    ("own", "draw", "match"),
    [
        (source(all=[0, 0]), Draw(), "holds no pictures"),
        (source(all=[5]), Draw(), r"one class only \(class 0, 5 pictures\)"),
        (
            source(train=[5, 5], test=[0, 0]),
            Draw(),
            r"split\(s\) test of made are empty \(train 8, val 2, test 0\)",
        ),
        (source(val=[5, 5], test=[5, 5]), Draw(), r"split\(s\) train"),
        (source(train=[1, 1], test=[5, 5]), Draw(), "set val=0 where only val is empty"),
        (
            source(train=[5, 0], test=[5, 5]),
            Draw(),
            r"1 of 2 classes of made have no training picture: class 1",
        ),
        (source(train=[9, 5], test=[5, 5]), Draw(shots=5), r"5 pictures a class.*class 1 \(4\)"),
        (source(all=[9, 5]), Draw(val=0.5, test=0.5), "must lie in"),
        (source(all=[9, 9, 9]), Draw(subset="novel"), "novel half of the 3 classes of made has 1 only"),
        (
            source(train=[9] * 4, test=[9, 9, 0, 0]),
            Draw(subset="novel"),
            r"split\(s\) test of made are empty \(train 14, val 4, test 0\)",
        ),
        (
            Files("many", ("a", "b", "c", "d"), True, {"all": [Item(f"{i}", (i % 4,)) for i in range(40)]}),
            Draw(subset="base"),
            "needs one label a picture, but many is multi-label",
        ),
    ],
)
def test_refusals_write_no_split_file(tmp_path, own, draw, match):
    with pytest.raises(DataError, match=match):
        plan(own, Draw(**{**vars(draw), "split_file": str(tmp_path / "s.json")}))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("own", [{"train": [8, 4]}, {"train": [6, 3], "val": [2, 1]}])
def test_val_trains_too_after_the_choice(own):
    """Whether val was drawn or is the source's own: the same test, and all other pictures."""
    data = source(**own, test=[3, 3])
    apart, joined = (plan(data, Draw(val=0.25, join_val=join)) for join in (False, True))
    assert joined.parts["train"] == apart.parts["train"] + apart.parts["val"]
    assert counts(joined.parts) == {"train": [8, 4], "val": [], "test": [3, 3]}
    assert joined.origin["train"] == f"{apart.origin['train']}, and val"
    assert joined.origin["val"] == "none: it joined train"
    assert joined.parts["test"] == apart.parts["test"]
