"""Scenes with captions: every picture has near neighbours, and no split shows what another does."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from vpt.data.captions import open_captions
from vpt.data.captions_scenes import open_caption_scenes
from vpt.data.item import DataError
from vpt.data.scenes import Kind, Scene, captions, draw, is_held_out


def arrangement(kind: Kind) -> frozenset[Kind]:
    """The kind however it is told."""
    return frozenset((kind, kind.mirrored()))


def true_of(text: str) -> tuple[frozenset[Kind], frozenset[tuple[object, ...]]]:
    """What a caption says, read word by word: the arrangement, and who has which size where it says so."""
    sizes, things, words = {}, [], text.replace(",", "").split()
    shapes = ("circle", "square", "triangle", "star", "cross", "heart")
    for i, word in enumerate(words):
        if word in shapes:
            things.append((words[i - 1], word))
            if words[i - 2] in ("small", "large"):
                sizes[things[-1]] = words[i - 2]
    one, other = things
    relations = {"left": "left of", "right": "right of", "above": "above", "over": "above"}
    relations |= dict.fromkeys(("below", "under", "underneath"), "below")
    relation = next(relations[word] for word in words if word in relations)
    if text.endswith(
        ("it", "on its right", "on its left")
    ):  # there "it" is the first, which the other is placed by
        one, other = other, one
    return arrangement(Kind(*one, relation, *other)), frozenset(sizes.items())


@pytest.mark.parametrize("pictures", [40, 800, 2000])
def test_shares_and_no_kind_in_two_splits(pictures):
    source = open_caption_scenes(f"scenes:{pictures}")
    parts = source.splits()
    assert {split: len(items) for split, items in parts.items()} == {
        "train": pictures * 6 // 10,
        "val": pictures // 10,
        "test": pictures * 3 // 10,
    }
    shown = {split: {arrangement(s.kind) for s in scenes} for split, scenes in source.scenes.items()}
    assert sum(map(len, shown.values())) == len(set.union(*shown.values()))
    told = {split: {text for item in items for text in item.captions} for split, items in parts.items()}
    assert sum(map(len, told.values())) == len(set.union(*told.values()))
    every = [s for scenes in source.scenes.values() for s in scenes]
    assert all(is_held_out(s.kind) for s in every)
    assert len({item.key for items in parts.values() for item in items}) == pictures
    assert len({(s.seed, s.index) for s in every}) == pictures


@pytest.mark.parametrize("pictures", [40, 800])
def test_every_picture_has_a_neighbour_by_relation_and_one_by_size(pictures):
    for scenes in open_caption_scenes(f"scenes:{pictures}").scenes.values():
        here = {(s.kind, s.sizes) for s in scenes}
        assert len(here) == len(scenes)  # nothing twice while there are combinations left
        for s in scenes:
            assert (s.kind.turned(), s.sizes) in here
            assert any(kind == s.kind and sizes != s.sizes for kind, sizes in here)


def test_a_caption_is_true_of_the_pictures_that_have_it_and_of_no_other():
    """Read back word by word: equal words for equal pictures, and what one picture's captions say is so."""
    source = open_caption_scenes("scenes:120")
    scenes = [s for part in source.scenes.values() for s in part]
    items = [item for part in source.splits().values() for item in part]
    facts = [(arrangement(s.kind), {s.kind[:2]: s.sizes[0], s.kind[3:]: s.sizes[1]}) for s in scenes]
    texts = {text: true_of(text) for item in items for text in item.captions}
    for item, (kind, sizes) in zip(items, facts, strict=True):
        for text, (said, said_sizes) in texts.items():
            holds = said == kind and said_sizes <= sizes.items()
            assert holds == (text in item.captions), (text, item.captions)


def test_pictures_are_drawn_as_told_and_the_same_every_time():
    source, again = open_captions("scenes:40"), open_captions("scenes:40")
    assert source.splits() == again.splits()
    items = [item for part in source.splits().values() for item in part]
    shown = [np.asarray(source.read(item)) for item in items]
    assert {s.shape for s in shown} == {(96, 96, 3)}
    assert len({s.tobytes() for s in shown}) == 40
    assert np.array_equal(shown[-1], np.asarray(again.read(items[-1])))
    made: Scene = open_caption_scenes("scenes:40").scenes["test"][-1]
    assert items[-1].captions == tuple(captions(made))
    assert np.array_equal(shown[-1], np.asarray(draw(made, 96)))
    assert (source.classes, source.multilabel, {item.label for item in items}) == ((), False, {0})


def test_more_pictures_than_descriptions_repeat_them_with_other_places():
    scenes = open_caption_scenes("scenes:2000").scenes["test"]
    counts = Counter((s.kind, s.sizes) for s in scenes)
    assert max(counts.values()) == 2
    same = [s for s in scenes if (s.kind, s.sizes) == counts.most_common(1)[0][0]]
    assert not np.array_equal(*(np.asarray(draw(s)) for s in same))


@pytest.mark.parametrize("text", ["scenes:36", "scenes:42", "scenes:8x10", "scenes:many", "scenes:"])
def test_what_cannot_be_drawn_is_refused(text):
    with pytest.raises(
        DataError, match=f"no scenes with captions '{text}'. Wanted: scenes, or scenes:PICTURES"
    ):
        open_captions(text)


def test_a_folder_called_scenes_is_a_folder(tmp_path, plant, monkeypatch):
    monkeypatch.chdir(tmp_path)
    plant(tmp_path, {"scenes": 1})
    (tmp_path / "scenes" / "0.txt").write_text("said")
    assert [i.captions for i in open_captions("scenes").splits()["all"]] == [("said",)]
