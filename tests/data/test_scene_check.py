"""The checker on true pictures, on pictures that obey nothing, and on blurred and noisy ones."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image, ImageFilter
from scipy import ndimage

from vpt.data.painted import Look, Setting, draw, painting
from vpt.data.scene_check import cut_out, look_at, obeyed
from vpt.data.scenes import COLOURS, SHAPES


def look_of(one):
    return Look(one.colour, one.shape, one.setting.background)


@pytest.fixture(scope="module")
def shown():
    every = [painting(7, i, held_out=None) for i in range(200)]
    return [(look_of(one), draw(one)) for one in every]


def test_true_pictures_obey_their_words(shown):
    found = np.array([obeyed(look, picture) for look, picture in shown])
    assert (found.mean(0) >= 0.98).all()


def test_blurred_noisy_pictures_are_read_as_well(shown):
    def worn(picture, i):
        x = np.asarray(picture.filter(ImageFilter.GaussianBlur(0.7)), float)
        return Image.fromarray(
            (x + np.random.default_rng(i).normal(0, 6, x.shape)).clip(0, 255).astype(np.uint8)
        )

    found = np.array([obeyed(look, worn(picture, i)) for i, (look, picture) in enumerate(shown[:100])])
    assert (found.mean(0) >= 0.95).all()


def test_shapes_are_told_where_edges_are_soft(shown):
    """A pixel of blur, as of a model that draws 64 px from 16: arms of stars are thin, and the first to go."""
    soft = [(look.shape, picture.filter(ImageFilter.GaussianBlur(1.0))) for look, picture in shown]
    read = [look_at(picture).shape == shape for shape, picture in soft]
    assert np.mean(read) >= 0.96
    assert np.mean([ok for ok, (shape, _) in zip(read, soft, strict=True) if shape == "star"]) >= 0.8


def test_blobs_are_no_stars_and_no_crosses():
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:64, :64] - 32
    read = []
    for _ in range(150):
        noise = ndimage.gaussian_filter(rng.normal(size=(64, 64)), rng.uniform(4, 9))
        inside = noise / noise.std() + 1.5 > (x**2 + y**2) / 220
        blob = np.where(inside[..., None], (40, 90, 215), (245, 245, 245)).astype(np.uint8)
        read.append(look_at(Image.fromarray(blob)).shape)
    assert sum(shape in ("star", "cross", "square") for shape in read) <= 2


def test_words_of_another_picture_are_not_obeyed(shown):
    found = np.array([obeyed(look, other) for (look, _), (_, other) in pairwise(shown)])
    assert found[:, 0].mean() < 2 / len(COLOURS)
    assert found[:, 1].mean() < 2 / len(SHAPES)
    assert found[:, 2].mean() < 0.35


def test_nothing_is_seen_on_an_empty_ground_and_no_shape_in_a_blot():
    empty = look_at(Image.new("RGB", (64, 64), (40, 90, 215)))
    assert empty == (None, None, "blue")
    blot = np.full((64, 64, 3), 230, np.uint8)
    blot[20:24, 8:56] = blot[8:56, 52:56] = (214, 39, 40)  # a bent bar
    assert look_at(Image.fromarray(blot)) == ("red", None, "white")


def test_a_thing_cut_out_is_the_same_wherever_it_stands():
    def cut(shape, background, place):
        one = replace(painting(3, 1), colour="red", shape=shape, setting=Setting(background, "large", place))
        return cut_out(draw(one))

    here, there = cut("heart", "blue", "at the top left"), cut("heart", "yellow", "on the right")
    other = cut("cross", "blue", "at the top left")
    assert here.shape == (32, 32, 3)
    assert np.abs(here - there).mean() < 0.05 < np.abs(here - other).mean()
    assert np.ptp(cut_out(Image.new("RGB", (64, 64), (9, 9, 9)))) == 0  # nothing stands out of one colour
