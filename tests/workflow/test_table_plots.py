"""The picture of a table: every seed is where it was measured."""

import io
from functools import partial

import numpy as np
import pytest
from PIL import Image

from vpt.workflow.plots import LIGHT, render
from vpt.workflow.table_plots import draw
from vpt.workflow.tabulate import Cell, Line, Table


def table(columns: tuple[str, ...], **cells: list[Cell | str]) -> Table:
    lines = [Line(name, "coop", dict(zip(columns, found, strict=True)), ()) for name, found in cells.items()]
    return Table("a table", columns, tuple(lines), {})


def test_panels_have_a_ring_a_seed_and_a_bar_at_the_mean() -> None:
    found = table(
        ("base", "novel"), coop=[Cell((0.7, 0.8)), Cell((0.5, 0.6), 0.54)], linear=[Cell((0.9, 0.9)), "-"]
    )
    figure = draw(found, LIGHT)
    base, novel = figure.axes
    assert [axes.get_title() for axes in figure.axes] == ["base", "novel"]
    rings = np.array([c.get_offsets().data for c in base.collections])
    np.testing.assert_allclose(rings, [[[70, 0], [80, 0]], [[90, 1], [90, 1]]])
    assert [set(bar.get_xdata()) for bar in novel.lines] == [{54}]
    assert [t.get_text() for t in novel.texts] == ["-"]
    assert [t.get_text() for t in base.get_yticklabels()] == ["coop", "linear"]


def test_shots_are_a_line_with_the_spread() -> None:
    found = table(("1 shot", "16 shots"), coop=[Cell((0.5, 0.6)), Cell((0.7, 0.9))])
    (axes,) = draw(found, LIGHT).axes
    ((line, _, (bars,)),) = axes.containers
    assert list(line.get_xdata()) == [1, 16]
    assert list(line.get_ydata()) == pytest.approx([55, 80])
    assert [segment[:, 1].tolist() for segment in bars.get_segments()] == [
        pytest.approx([50, 60]),
        pytest.approx([70, 90]),
    ]


def test_many_columns_stand_in_rows_and_leave_no_empty_frame() -> None:
    found = table(tuple("abcde"), coop=[Cell((0.5,))] * 5)
    figure = draw(found, LIGHT)
    assert [axes.axison for axes in figure.axes] == [True] * 5 + [False] * 3
    light, dark = (Image.open(io.BytesIO(data)) for data in render(partial(draw, found)))
    assert light.size == dark.size
