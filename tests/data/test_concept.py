"""Pictures of a concept beside a background, and scenes with a character that no split of scenes shows."""

from __future__ import annotations

import numpy as np
import pytest

from vpt.data.captions import open_captions
from vpt.data.concept import TEMPLATES, ConceptPairs, concept_scenes
from vpt.data.item import DataError
from vpt.data.module import ImageData
from vpt.data.scenes import CHARACTER


def test_the_gallery_shows_the_character_where_the_contexts_say():
    scenes = concept_scenes(3, contexts=6, each=2, others=20)
    assert len(scenes.gallery) == 6 * (2 + 4) + 20
    colours = {s.kind.colour for s in scenes.shown}
    assert len(colours) == 1
    for place, s in enumerate(scenes.gallery):
        there = [said for said, places in scenes.contexts.items() if place in places]
        assert (s.kind.shape == CHARACTER) == bool(there)
        if there:
            assert str(s.kind).endswith(f"{CHARACTER} {there[0]}")
            assert {s.kind.colour} == colours
    taught = {s.kind[2:] for s in scenes.shown}
    assert taught.isdisjoint(s.kind[2:] for s in scenes.gallery if s.kind.shape == CHARACTER)
    assert len({(s.seed, s.index) for s in (*scenes.shown, *scenes.gallery)}) == len(scenes.shown) + len(
        scenes.gallery
    )
    assert concept_scenes(3, contexts=6, each=2, others=20) == scenes
    assert concept_scenes(4, contexts=6, each=2, others=20) != scenes


def test_pairs_read_the_pictures_of_both_sides():
    scenes, background = concept_scenes(1), open_captions("scenes:40")
    pairs = ConceptPairs("<moko>", scenes, background, limit=10)
    data = ImageData(pairs, captions=True, batch_size=4, val=0.0)
    data.bind({"input_size": (3, 32, 32), "mean": (0.5,) * 3, "std": (0.5,) * 3})
    assert data.protocol()["counts"] == {"train": 15, "val": 0, "test": len(background.splits()["test"])}
    said = data.captions("train")
    assert said[0] == tuple(t.replace("{}", "<moko>") for t in TEMPLATES)
    assert not any("<moko>" in caption for own in said[5:] for caption in own)
    items = pairs.splits()["train"]
    own = {item.key: item for item in background.splits()["train"]}
    for item in items[5:]:
        want = background.read(own[item.key.removeprefix("background/")])
        assert np.array_equal(np.asarray(pairs.read(item)), np.asarray(want))
    want = scenes.read(scenes.splits()["all"][2])
    assert np.array_equal(np.asarray(pairs.read(items[2])), np.asarray(want))


def test_a_background_without_captions_is_refused(tmp_path):
    scenes = concept_scenes(1)
    with pytest.raises(DataError, match="is no background"):
        ConceptPairs("<moko>", scenes, scenes).splits()
