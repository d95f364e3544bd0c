"""Characters: told by their parts, drawn by them, and ten that no starter has met."""

from collections import Counter

import numpy as np
import pytest

from vpt.data.characters import (
    PARTS,
    Character,
    character,
    described,
    draw_character,
    is_held_out,
    new_characters,
)
from vpt.data.painted import Setting

ONE = Character("green", "red", "round", "horns", "two eyes", "smile", "spotted")
CASES = [(part, word) for part, words in PARTS.items() for word in words if word != getattr(ONE, part)]


def draw(one, setting=Setting(), index=0):  # noqa: B008 (a setting is a tuple)
    return np.asarray(draw_character(one, setting, 0, index), int)


def test_a_character_is_the_same_for_the_same_numbers():
    assert character(3, 5) == character(3, 5) != character(3, 6)
    assert np.array_equal(draw(ONE), draw(ONE))
    assert not np.array_equal(draw(ONE), draw(ONE, index=1))


@pytest.mark.parametrize(("part", "word"), CASES)
def test_every_part_shows(part, word):
    other = ONE._replace(**{part: word})
    shown = (
        np.abs(draw(ONE, Setting("white", "large")) - draw(other, Setting("white", "large"))).max(-1) > 60
    ).sum()
    assert shown >= 4


def test_the_words_tell_the_parts():
    assert str(ONE) == ("round spotted green creature with red horns, two eyes, a smile and a red nose")
    plain = Character("orange", "orange", "wide", "nothing", "one eye", "open mouth", "plain")
    assert str(plain) == "wide orange creature with one eye, an open mouth and an orange nose"
    rng = np.random.default_rng(0)
    said = [described(ONE, rng) for _ in range(300)]
    assert len(set(said)) > 100
    words = Counter(word for s in said for word in s.replace(",", "").split())
    assert words["green"] > 250
    assert all(100 < words[word] < 220 for word in ("spotted", "round", "horns", "smile", "nose"))


def test_no_starter_meets_a_held_out_character():
    assert not any(is_held_out(character(0, i)) for i in range(300))
    assert all(is_held_out(character(0, i, held_out=True)) for i in range(20))
    triples = [(c, h, t) for c in PARTS["colour"] for h in PARTS["head"] for t in PARTS["top"]]
    held = sum(is_held_out(ONE._replace(colour=c, head=h, top=t)) for c, h, t in triples)
    assert 0.15 < held / len(triples) < 0.25


def test_new_characters_are_ten_different_ones_that_are_held_out():
    ten = new_characters()
    assert len({(c.colour, c.top) for c in ten}) == 10
    assert all(map(is_held_out, ten))
    assert ten == new_characters()
    assert new_characters(3) == ten[:3]
    assert new_characters(seed=1) != ten


def test_a_character_stands_before_the_background_that_is_said():
    x = draw(ONE, Setting("yellow"))
    assert np.abs(x[0, 0] - (245, 215, 40)).max() <= 14
    with pytest.raises(ValueError, match=r"there is no top 'wings'. Known are round ears"):
        draw(ONE._replace(top="wings"))
