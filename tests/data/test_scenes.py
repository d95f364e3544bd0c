"""Scenes: the same for the same numbers, drawn as they are described, and nothing held out in training."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from vpt.data.scenes import CHARACTER, Kind, captions, draw, is_held_out, kinds, scene, vocabulary

WORDS = vocabulary()


def triples(kind):
    """What the kind says of each of its coloured shapes."""
    return {tuple(kind[:3]), tuple(kind.mirrored()[:3])}


def test_a_scene_is_the_same_for_the_same_numbers_and_another_for_others():
    a, b, c = scene(3, 5), scene(3, 5), scene(3, 6)
    assert a == b
    assert captions(a) == captions(b)
    assert np.array_equal(draw(a), draw(b))
    assert not np.array_equal(draw(a), draw(c))
    assert draw(a, 32).size == (32, 32)
    assert draw(a, 32).mode == "RGB"
    assert len({scene(seed, i) for seed in range(4) for i in range(50)}) == 200


def test_every_arrangement_is_one_kind():
    things = list(product(WORDS["colours"], WORDS["shapes"]))
    pairs = len(things) * (len(things) - 1)  # ordered; two relations remain once mirror images are one
    assert len(kinds()) == len({frozenset((k, k.mirrored())) for k in kinds()}) == 2 * pairs
    assert {k.relation for k in kinds()} == set(WORDS["relations"])
    assert all(k.mirrored().mirrored() == k.turned().turned() == k for k in kinds()[:20])
    kind = Kind("red", "circle", "above", "blue", "star")
    assert str(kind.turned()) == "a red circle below a blue star"
    assert str(kind.mirrored()) == "a blue star below a red circle"


def test_held_out_combinations_are_never_shown_and_leave_every_word_to_training():
    for rule in (0, 1):
        possible = set(product(WORDS["colours"], WORDS["shapes"], WORDS["relations"]))
        train, novel = kinds(held_out=False, rule=rule), kinds(held_out=True, rule=rule)
        assert len(train) + len(novel) == len(kinds())
        shown = set().union(*map(triples, train))
        held = possible - shown
        assert 0.15 < len(held) / len(possible) < 0.25
        assert all(triples(k) & held for k in novel)
        for thing in product(WORDS["colours"], WORDS["shapes"]):
            assert sum(t[:2] == thing for t in shown) >= 3
        stream = [scene(7, i, rule=rule).kind for i in range(300)]
        assert not any(triples(k) & held for k in stream)
        assert all(is_held_out(scene(7, i, held_out=True, rule=rule).kind, rule) for i in range(50))
        assert all(is_held_out(k, rule) == is_held_out(k.mirrored(), rule) for k in kinds()[:200])
    assert set(kinds(held_out=True)) != set(kinds(held_out=True, rule=1))
    both = [is_held_out(scene(7, i, held_out=None).kind) for i in range(100)]
    assert any(both)
    assert not all(both)


def centre(picture, other):
    """Where two pictures differ: mean column and row."""
    rows, columns = np.nonzero(np.abs(np.asarray(picture, int) - np.asarray(other, int)).max(2) > 40)
    return columns.mean(), rows.mean()


@pytest.mark.parametrize("relation", WORDS["relations"])
def test_shapes_lie_as_the_words_say(relation):
    for i in range(12):
        red, green = (
            scene(0, i, kind=Kind(colour, "square", relation, "blue", "circle"))
            for colour in ("red", "green")
        )
        x, y = centre(draw(red), draw(green))  # only the first shape differs
        red, green = (
            scene(0, i, kind=Kind("blue", "circle", relation, colour, "square"))
            for colour in ("red", "green")
        )
        other_x, other_y = centre(draw(red), draw(green))
        told = {"left of": other_x - x, "right of": x - other_x, "above": other_y - y, "below": y - other_y}
        level = abs(other_y - y) if relation in ("left of", "right of") else abs(other_x - x)
        assert told[relation] > level
        assert told[relation] > 15


def test_colour_and_size_are_those_of_the_words():
    areas = {"small": [], "large": []}
    for i in range(40):
        s = scene(1, i, kind=Kind("blue", "square", "above", "red", "circle"))
        pixels = np.asarray(draw(s), int)
        blue = (pixels[..., 2] > 150) & (pixels[..., 0] < 90)
        red = (pixels[..., 0] > 150) & (pixels[..., 2] < 90)
        areas[s.sizes[0]].append(blue.sum())
        assert red.sum() > 100
    assert max(areas["small"]) < min(areas["large"])


def test_captions_name_everything_and_agree_with_each_other():
    for i in range(30):
        s = scene(2, i)
        told = captions(s)
        assert told[0] == str(s.kind)
        assert told[1] == str(s.kind.mirrored())
        assert len(set(told)) == len(told) == 8
        for text in told:
            assert text.count(f"{s.kind.colour} {s.kind.shape}") >= 1
            assert f"{s.kind.other_colour} {s.kind.other_shape}" in text
        for text in told[4:]:
            assert f"{s.sizes[0]} {s.kind.colour} {s.kind.shape}" in text
    kind = Kind("orange", "star", "left of", "red", "heart")
    assert captions(scene(0, 0, kind=kind))[:4] == [
        "an orange star left of a red heart",
        "a red heart right of an orange star",
        "an orange star to the left of a red heart",
        "there is an orange star with a red heart on its right",
    ]


def test_no_two_kinds_share_a_description():
    told = [text for k in kinds() for text in captions(scene(0, 0, kind=k))[:4]]
    assert len(set(told)) == 4 * len(kinds())


def test_the_character_is_drawn_and_lies_outside_the_vocabulary():
    assert CHARACTER not in WORDS["shapes"]
    kind = Kind("green", CHARACTER, "left of", "red", "square")
    s = scene(0, 0, kind=kind)
    circle = scene(0, 0, kind=kind._replace(shape="circle"))
    assert not np.array_equal(draw(s), draw(circle))
    assert f"a green {CHARACTER}" in captions(s)[0]
    assert all(CHARACTER not in k for k in kinds())


def test_an_unknown_word_is_named_with_those_there_are():
    for field, word in (("colour", "mauve"), ("other_shape", "blob"), ("relation", "near")):
        kind = Kind("red", "circle", "above", "blue", "star")._replace(**{field: word})
        with pytest.raises(ValueError, match=f"no {field.replace('_', ' ')} {word!r}. There is"):
            draw(replace(scene(0, 0), kind=kind))
