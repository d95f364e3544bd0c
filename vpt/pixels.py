"""Where the pixel slots of a picture lie. Their rows, one value a channel, are added (arXiv 2203.17274)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["PIXEL_SLOTS", "border_size", "pixel_places"]

PIXEL_SLOTS = ("border", "corner", "anywhere")


def border_size(thickness: int, height: int, width: int) -> int:
    """Number of pixels in a frame so thick."""
    return height * width - (height - 2 * thickness) * (width - 2 * thickness)


def pixel_places(slot: str, n: int, size: tuple[int, int] | torch.Size) -> Tensor:
    """Flat positions [n] of a pixel slot in pictures of ``size`` (height, width).

    "border": a frame, row by row from the top left, its thickness following from n.
    "corner": a square at the top left.  "anywhere": a square at a random place, one draw for the whole batch;
    like the authors' code (utils of hjbahng/visual_prompting) the last possible row and column are never
    drawn.
    Raises ValueError for another slot, or an n that fits no such shape.
    """
    height, width = size
    grid = torch.arange(height * width).view(height, width)
    if slot == "border":
        for thickness in range(1, min(height, width) // 2 + 1):
            if border_size(thickness, height, width) == n:
                inside = torch.zeros(height, width, dtype=torch.bool)
                inside[thickness : height - thickness, thickness : width - thickness] = True
                return grid[~inside]
    elif slot in ("corner", "anywhere"):
        side = math.isqrt(n)
        if side * side == n and side <= min(height, width):
            top = left = 0
            if slot == "anywhere":
                top, left = (int(torch.randint(max(d - side, 1), ())) for d in (height, width))
            return grid[top : top + side, left : left + side].flatten()
    else:
        raise ValueError(f"pictures have no slot {slot!r}. Choose one of {', '.join(PIXEL_SLOTS)}.")
    raise ValueError(
        f"{n} pixels make no {slot!r} in a picture of {height} x {width}: the prompt is for another size."
    )
