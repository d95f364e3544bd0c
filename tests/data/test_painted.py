"""Paintings: the same for the same numbers, drawn as they are told, and nothing held out in training."""

from itertools import product

import numpy as np
import pytest

from vpt.data.painted import (
    BACKGROUNDS,
    PLACES,
    SIZES,
    Look,
    Painting,
    Setting,
    captions,
    draw,
    is_held_out,
    looks,
    painting,
)
from vpt.data.scenes import COLOURS, SHAPES


def mask(picture):
    """Where a picture differs from its corners: bool [H, W]."""
    x = np.asarray(picture, int)
    return np.abs(x - x[0, 0]).max(-1) > 40


def test_a_painting_is_the_same_for_the_same_numbers_and_another_for_others():
    a, b, c = painting(3, 5), painting(3, 5), painting(3, 6)
    assert a == b
    assert np.array_equal(draw(a), draw(b))
    assert not np.array_equal(draw(a), draw(c))
    assert draw(a, 32).size == (32, 32)
    assert draw(a).mode == "RGB"


@pytest.mark.parametrize("rule", [0, 1])
def test_held_out_looks_are_never_shown_and_leave_every_word_to_training(rule):
    train, novel = looks(held_out=False, rule=rule), looks(held_out=True, rule=rule)
    assert len(train) + len(novel) == len(looks()) == 8 * 6 * 9
    assert not set(train) & set(novel)
    assert 0.15 < len(novel) / len(looks()) < 0.25
    for thing in product(COLOURS, SHAPES):
        assert sum(look[:2] == thing for look in train) >= 7
    for background in (None, *BACKGROUNDS):
        assert sum(look.background == background for look in novel) >= 3
    shown = [painting(7, i, rule=rule) for i in range(200)]
    assert not any(is_held_out(Look(p.colour, p.shape, p.setting.background), rule) for p in shown)
    others = [painting(7, i, held_out=True, rule=rule) for i in range(50)]
    assert all(is_held_out(Look(p.colour, p.shape, p.setting.background), rule) for p in others)


def test_captions_say_all_that_the_setting_says_and_nothing_else():
    one = Painting("orange", "star", Setting("blue", "small", "at the top left"), 0, 0)
    said = captions(one)
    assert said[0] == "a small orange star at the top left on a blue background"
    assert len(set(said)) == len(said) == 8
    assert all("small orange star" in s and "blue background" in s and "at the top left" in s for s in said)
    assert captions(Painting("orange", "star", Setting(), 0, 0))[0] == "an orange star"
    assert str(Look("orange", "star")) == "an orange star"
    assert str(Look("red", "heart", "white")) == "a red heart on a white background"


@pytest.mark.parametrize("place", PLACES)
def test_things_lie_where_the_words_say(place):
    right, down = PLACES[place]
    for i in range(12):
        rows, columns = np.nonzero(mask(draw(Painting("black", "circle", Setting(None, None, place), 0, i))))
        for where, step in ((columns.mean(), right), (rows.mean(), down)):
            assert np.sign(round((where - 31.5) / 64 / 0.16)) == step


def test_small_things_are_smaller_than_large_ones():
    def area(size, i):
        return mask(draw(Painting("blue", "square", Setting("yellow", size), 0, i))).sum()

    assert max(area("small", i) for i in range(10)) < min(area("large", i) for i in range(10)) / 2
    assert set(SIZES) == {"small", "large"}


@pytest.mark.parametrize("background", [None, *BACKGROUNDS])
def test_the_background_fills_the_picture_to_its_edge(background):
    for i in range(5):
        x = np.asarray(
            draw(Painting("red" if background != "red" else "blue", "heart", Setting(background), 0, i)), int
        )
        edge = np.concatenate([x[0], x[-1], x[:, 0], x[:, -1]])
        assert (edge == edge[0]).all()
        wanted = BACKGROUNDS.get(background, (225, 225, 225))
        assert np.abs(edge[0] - wanted).max() <= (40 if background is None else 14)


@pytest.mark.parametrize(
    "one",
    [
        Painting("mauve", "circle", Setting(), 0, 0),
        Painting("red", "blob", Setting(), 0, 0),
        Painting("red", "circle", Setting("mauve"), 0, 0),
        Painting("red", "circle", Setting(None, "huge"), 0, 0),
        Painting("red", "circle", Setting(None, None, "nowhere"), 0, 0),
    ],
)
def test_unknown_words_are_refused_with_those_that_there_are(one):
    with pytest.raises(ValueError, match=r"there is no \w+ '\w+'. Known are \w+"):
        draw(one)
