"""Subjects: DreamBooth's layout as it is published, and drawn characters with what can be checked of them."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vpt.data.item import DataError
from vpt.data.subjects import drawn_characters, dreambooth, pictures_in

KINDS = "Classes\n\nsubject_name,class\nteapot,teapot\ndog2,dog\nbear_plushie,stuffed animal\n"
PROMPTS = """
Prompts

Object Prompts

prompt_list = [
'a {0} {1} in the jungle'.format(unique_token, class_token),
'a red {0} {1}'.format(unique_token, class_token)
]

Live Subject Prompts

prompt_list = [
'a {0} {1} wearing a red hat'.format(unique_token, class_token)
]
"""


def published(root: Path, text: str = KINDS + PROMPTS) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    (root / "prompts_and_classes.txt").write_text(text)
    for i, name in enumerate(("teapot", "dog2", "bear_plushie")):
        (root / name).mkdir()
        Image.new("RGB", (8, 8), (i, 0, 0)).save(root / name / "00.jpg")
        (root / name / "notes.txt").write_text("no picture")
    return root


@pytest.mark.parametrize("inside", ["", "dataset"])
def test_the_published_layout_is_read(tmp_path: Path, inside: str) -> None:
    published(tmp_path / inside)
    teapot, dog, bear = dreambooth(tmp_path)
    assert (teapot.name, teapot.word, bear.word) == ("teapot", "teapot", "stuffed animal")
    assert teapot.sentences == bear.sentences == ("a {} in the jungle", "a red {}")
    assert dog.sentences == ("a {} wearing a red hat",)  # dogs and cats wear, things do not
    assert len(pictures_in(dog.folder)) == 1
    assert dog.real == dog.folder  # the protocol compares with the pictures that taught


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no prompts_and_classes\.txt in .*google/dreambooth"):
        dreambooth(tmp_path)
    published(tmp_path / "a", KINDS)
    with pytest.raises(DataError, match="names 3 subjects and 0 lists"):
        dreambooth(tmp_path / "a")
    (published(tmp_path / "b") / "dog2" / "00.jpg").unlink()
    with pytest.raises(DataError, match=r"no pictures in .*dog2"):
        dreambooth(tmp_path / "b")


def test_characters_are_new_and_drawn_the_same_again(tmp_path: Path) -> None:
    first, again = drawn_characters(tmp_path / "a"), drawn_characters(tmp_path / "b")
    assert len({s.told for s in first}) == len({s.name for s in first}) == 10
    for one, other in zip(first, again, strict=True):
        assert [len(pictures_in(f)) for f in (one.folder, one.real)] == [5, 10]
        for here, there in ((one.folder, other.folder), (one.real, other.real)):
            pairs = zip(pictures_in(here), pictures_in(there), strict=True)
            assert all(np.array_equal(a, b) for a, b in pairs)
    assert first[0].told != drawn_characters(tmp_path / "c", 1, seed=1)[0].told


def test_a_characters_sentences_ask_for_backgrounds_that_it_does_not_have(tmp_path: Path) -> None:
    for s in drawn_characters(tmp_path):
        assert (s.grounds[0], s.sentences[0]) == ("", "a {}")
        for ground, sentence in zip(s.grounds[1:], s.sentences[1:], strict=True):
            assert f" {ground} background" in sentence
            assert f" {ground} " not in f" {s.told} "
