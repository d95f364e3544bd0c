"""Pixel slots against masks drawn by hand."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vpt.pixels import PIXEL_SLOTS, border_size, pixel_places


@given(st.integers(3, 40), st.integers(3, 40), st.data())
def test_a_border_is_every_pixel_within_its_thickness_of_an_edge(height: int, width: int, data) -> None:
    thickness = data.draw(st.integers(1, min(height, width) // 2))
    near = [
        y * width + x
        for y in range(height)
        for x in range(width)
        if min(y, x, height - 1 - y, width - 1 - x) < thickness
    ]
    assert border_size(thickness, height, width) == len(near)
    assert pixel_places("border", len(near), (height, width)).tolist() == near


def test_a_corner_is_the_square_at_the_top_left() -> None:
    mask = torch.zeros(5, 7)
    mask[:3, :3] = 1
    assert pixel_places("corner", 9, (5, 7)).tolist() == mask.flatten().nonzero()[:, 0].tolist()
    assert pixel_places("corner", 25, (5, 7)).numel() == 25


def test_anywhere_is_a_square_whose_last_row_and_column_of_places_are_never_drawn() -> None:
    tops, lefts = set(), set()
    for _ in range(300):
        places = pixel_places("anywhere", 4, (5, 7))
        y, x = places // 7, places % 7
        top, left = int(y.min()), int(x.min())
        assert sorted(zip(y.tolist(), x.tolist(), strict=True)) == [
            (top + i, left + j) for i in range(2) for j in range(2)
        ]
        tops.add(top)
        lefts.add(left)
    assert tops == set(range(5 - 2))  # numpy's randint(high) of the authors' code leaves the last out
    assert lefts == set(range(7 - 2))
    assert pixel_places("anywhere", 25, (5, 5)).tolist() == list(range(25))


@pytest.mark.parametrize(
    ("slot", "n"), [("border", 15), ("border", 0), ("corner", 8), ("corner", 36), ("anywhere", 49)]
)
def test_a_number_of_pixels_that_makes_no_such_shape_is_refused(slot: str, n: int) -> None:
    with pytest.raises(ValueError, match=f"{n} pixels make no '{slot}' in a picture of 5 x 7"):
        pixel_places(slot, n, (5, 7))


def test_an_unknown_slot_is_refused_with_those_that_exist() -> None:
    with pytest.raises(ValueError, match=f"no slot 'prefix'. Choose one of {', '.join(PIXEL_SLOTS)}"):
        pixel_places("prefix", 4, (5, 7))
