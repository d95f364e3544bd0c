"""Pictures of a concept beside a background, and scenes with a character that no split of scenes shows."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from vpt.data.captions import open_captions
from vpt.data.collection import open_collection
from vpt.data.concept import TEMPLATES, ConceptPairs, ConceptPictures, concept_scenes, templates_of
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


def folder(root, count, captions=None):
    root.mkdir()
    for i in range(count):
        Image.new("RGB", (8, 8), (40 * i, 0, 0)).save(root / f"{i}.png")
        if captions:
            (root / f"{i}.txt").write_text(captions)
    return str(root)


def test_pictures_of_a_concept_say_its_word_and_class_pictures_their_own(tmp_path):
    """All are trained on, whatever val and test say: what is held out are noises."""
    own, beside = folder(tmp_path / "own", 3), folder(tmp_path / "beside", 2, "a photo of a mug")
    data = ImageData(own, concept="my-mug", beside=beside, val=0.5, batch_size=5)
    data.bind({"input_size": (3, 8, 8), "mean": (0.5,) * 3, "std": (0.5,) * 3})
    assert data.protocol()["counts"] == {"train": 5, "val": 0, "test": 0}
    said, keys = data.captions("train"), [item.key for item in data.pictures("train").items]
    assert data.captioned
    for captions, key in zip(said, keys, strict=True):
        if key.startswith("class/"):
            assert captions == ("a photo of a mug",)
        else:
            assert captions == tuple(t.replace("{}", "<my-mug>") for t in TEMPLATES)
    assert sum(key.startswith("class/") for key in keys) == 2
    source = ConceptPictures("<my-mug>", open_collection(own), beside=open_captions(beside))
    reds = {
        item.key: int(np.asarray(Image.open(BytesIO(source.read(item))))[0, 0, 0])
        for item in source.splits()["train"]
    }
    assert reds == {
        **{f"concept/{i}.png": 40 * i for i in range(3)},
        **{f"class/{i}.png": 40 * i for i in range(2)},
    }
    assert source.name.count(" beside ") == 1


def test_class_pictures_without_captions_and_empty_folders_are_refused(tmp_path):
    pictures = open_collection(folder(tmp_path / "own", 2))
    with pytest.raises(DataError, match=r"0.png of the class pictures has no caption, such as"):
        ConceptPictures("<my-mug>", pictures, beside=pictures).splits()


def test_sentences_of_their_own(tmp_path):
    assert all("{}" in sentence for which in ("object", "style") for sentence in templates_of(which))
    lines = tmp_path / "lines.txt"
    lines.write_text("a {} here\n\n  the {}.\n")
    assert templates_of(str(lines)) == ("a {} here", "the {}.")
    lines.write_text("a {}\nnothing\n")
    for wrong in (str(lines), str(tmp_path / "none"), "sentence"):
        with pytest.raises(DataError, match=r"wanted object, style, or a file with a sentence a line"):
            templates_of(wrong)
