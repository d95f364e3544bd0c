"""Drawings: what stands in them, for light and for dark pages, and at which size."""

import io
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from vpt.workflow.plots import (
    DARK,
    LIGHT,
    Look,
    Shown,
    accuracies,
    confusion,
    curves,
    glances,
    predictions,
    render,
)

WHITE = Image.new("RGB", (16, 16), "white")
SHOWN = [Shown(WHITE, "cat", "cat", 0.91), Shown(WHITE, "dog", "cat", 0.42)]


def words(figure: Figure) -> list[str]:
    """Every text of a figure's axes, as far as they are shown."""
    found = []
    for axes in (a for a in figure.axes if a.axison):
        parts = [axes.title, axes.xaxis.label, axes.yaxis.label, *axes.texts]
        found += [t.get_text() for t in [*parts, *axes.get_xticklabels(), *axes.get_yticklabels()]]
    return [text for text in found if text]


@pytest.mark.parametrize("look", [LIGHT, DARK], ids=["light", "dark"])
def test_right_and_wrong_differ_by_more_than_colour(look: Look) -> None:
    figure = predictions(SHOWN, look)
    assert words(figure) == ["✓ cat", "91 %", "✗ cat", "42 %\nis: dog"]
    solid, dashed = (axes.spines["top"].get_linestyle() for axes in figure.axes[:2])
    assert solid != dashed
    assert not figure.axes[2].axison  # the empty place of the grid


def test_accuracies_are_drawn_where_they_are() -> None:
    figure = accuracies({"head": [80.0, 82.0], "deep": [85.0, 88.0]}, "head", LIGHT)
    rings = [c.get_offsets().tolist() for c in figure.axes[0].collections]
    assert rings == [[[80, 0], [82, 0]], [[85, 1], [88, 1]]]
    line, *bars = figure.axes[0].lines
    assert set(line.get_xdata()) == {81}
    assert [set(bar.get_xdata()) for bar in bars] == [{81}, {86.5}]
    assert {"head", "deep"} <= set(words(figure))


def test_curves_are_means_over_seeds() -> None:
    figure = curves({"head": [[10, 20, 30], [30, 40, 50]], "deep": [[1, 2, 3]], "none": []}, LIGHT)
    head, deep = figure.axes[0].lines
    assert list(head.get_xdata()) == [1, 2, 3]
    assert list(head.get_ydata()) == [20, 30, 40]
    assert list(deep.get_ydata()) == [1, 2, 3]
    assert head.get_marker() != deep.get_marker()
    assert head.get_linestyle() != deep.get_linestyle()
    assert [t.get_text() for t in figure.legends[0].get_texts()] == ["head", "deep"]


def test_confusion_names_the_counts_and_stays_readable() -> None:
    counts = np.array([[9, 1, 0], [0, 7, 3], [0, 0, 0]])  # a class without pictures divides by nothing
    for look in (LIGHT, DARK):
        figure = confusion(counts, ["cat", "dog", "ground vehicle"], look)
        texts = {t.get_text(): t.get_color() for t in figure.axes[0].texts}
        assert set(texts) == {"9", "1", "7", "3"}
        assert texts["9"] == look.paper  # on a full square
        assert texts["1"] == look.ink  # on an almost empty one
        shares = figure.axes[0].images[0].get_array()
        np.testing.assert_allclose(shares, [[0.9, 0.1, 0], [0, 0.7, 0.3], [0, 0, 0]])


def test_maps_lie_over_their_pictures() -> None:
    pictures, maps = [np.zeros((8, 8, 3)), np.ones((8, 8, 3))], np.random.default_rng(0).random((2, 8, 8))
    figure = glances(
        pictures, [("class token", maps), ("rows", maps[::-1])], ["to rows: 1 %", "to rows: 2 %"], 1, LIGHT
    )
    grid = np.array(figure.axes).reshape(2, 3)
    assert [len(axes.images) for axes in grid[0]] == [1, 2, 2]
    np.testing.assert_array_equal(grid[0, 1].images[1].get_array(), maps[0])
    np.testing.assert_array_equal(grid[1, 2].images[1].get_array(), maps[0])
    assert words(figure) == ["picture", "class token", "to rows: 1 %", "rows", "to rows: 2 %"]


def test_a_drawing_comes_in_both_looks() -> None:
    draw: Callable[[Look], Figure] = partial(predictions, SHOWN)
    light, dark = (Image.open(io.BytesIO(data)).convert("RGB") for data in render(draw))
    assert light.size == dark.size == (880, round(200 * 2.1))
    for image, look in ((light, LIGHT), (dark, DARK)):
        paper = tuple(int(look.paper[i : i + 2], 16) for i in (1, 3, 5))
        assert max(abs(a - b) for a, b in zip(image.getpixel((2, 2)), paper, strict=True)) <= 3
