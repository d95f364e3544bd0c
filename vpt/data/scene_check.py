"""What a drawn picture shows, read from its pixels: the background's colour, the largest thing's colour and shape.

No network takes part, so a text-to-image model can be measured by it that was trained beside one of ours.
"""

from functools import cache
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage

from vpt.data.painted import BACKGROUNDS, Look
from vpt.data.scenes import COLOURS, SHAPES, draw_shape

__all__ = ["Obeyed", "Seen", "look_at", "obeyed"]

SIDE = 64  # pixels to which a picture is brought
RING = 3  # of these: along the edge, where the background is looked at
FINE = 4  # how much finer outlines are compared
FAINT = 15.0  # a thing that differs less than this from the background (CIELAB) is not seen
ALIKE = 0.7  # of two outlines: their intersection over their union
TEMPLATE = 64
LIGHT = {"pale": (225, 225, 225), "shaded": (200, 200, 200)}  # say "white", too


class Seen(NamedTuple):
    """colour, shape: of the largest thing, None where nothing stands out, or no shape fits. background: its colour."""

    colour: str | None
    shape: str | None
    background: str


class Obeyed(NamedTuple):
    """Which of a look's words a picture obeys. A background that was not said must be light, as in training."""

    colour: bool
    shape: bool
    background: bool


def look_at(picture: Image.Image) -> Seen:
    """What a picture of any size shows, by the words of COLOURS, SHAPES and BACKGROUNDS."""
    lab = _lab(np.asarray(picture.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BILINEAR)) / 255.0)
    ring = np.ones((SIDE, SIDE), bool)
    ring[RING:-RING, RING:-RING] = False
    ground = np.median(lab[ring], axis=0)
    background = _nearest(ground, {**BACKGROUNDS, **LIGHT})
    away = np.linalg.norm(lab - ground, axis=-1)
    reach = float(np.quantile(away, 0.985))  # the smallest thing has more than 1.5% of the pixels
    if reach < FAINT:
        return Seen(None, None, "white" if background in LIGHT else background)
    fine = Image.fromarray(away.astype(np.float32)).resize((FINE * SIDE,) * 2, Image.Resampling.BILINEAR)
    parts, _ = ndimage.label(np.asarray(fine) > reach / 2)
    largest = ndimage.binary_fill_holes(parts == np.bincount(parts[parts > 0]).argmax())
    inside = ndimage.minimum_filter(largest, 3 * FINE)[FINE // 2 :: FINE, FINE // 2 :: FINE]
    here = inside if inside.any() else away == away.max()
    colour = np.median(lab[here], axis=0)
    return Seen(_nearest(colour, COLOURS), _shape(largest), "white" if background in LIGHT else background)


def obeyed(look: Look, picture: Image.Image) -> Obeyed:
    """Whether the picture shows what the look says."""
    seen = look_at(picture)
    return Obeyed(
        seen.colour == look.colour, seen.shape == look.shape, seen.background == (look.background or "white")
    )


def _shape(mask: np.ndarray) -> str | None:
    cut = _normal(mask)

    def alike(shape: str) -> float:
        other = _template(shape)
        return float((cut & other).sum() / (cut | other).sum())

    best = max(SHAPES, key=alike)
    return best if alike(best) >= ALIKE else None


@cache
def _template(shape: str) -> np.ndarray:
    side = FINE * SIDE
    canvas = Image.new("RGB", (side, side))
    draw_shape(ImageDraw.Draw(canvas), shape, (side / 2, side / 2), 0.4 * side, (255, 255, 255))
    return _normal(np.asarray(canvas)[..., 0] > 127)


def _normal(mask: np.ndarray) -> np.ndarray:
    """The thing alone, its longer side TEMPLATE pixels long, in the middle: bool [TEMPLATE, TEMPLATE]."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    cut = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    side = max(cut.shape)
    square = np.zeros((side, side), np.uint8)
    y, x = ((side - n) // 2 for n in cut.shape)
    square[y : y + cut.shape[0], x : x + cut.shape[1]] = 255 * cut
    return np.asarray(Image.fromarray(square).resize((TEMPLATE, TEMPLATE), Image.Resampling.BILINEAR)) > 127


def _nearest(lab: np.ndarray, palette: dict[str, tuple[int, int, int]]) -> str:
    return min(palette, key=lambda word: float(np.linalg.norm(lab - _lab(np.array(palette[word]) / 255.0))))


def _lab(rgb: np.ndarray) -> np.ndarray:
    """sRGB [..., 3] in [0, 1] -> CIELAB (D65)."""
    linear = np.where(rgb > 0.04045, ((rgb + 0.055) / 1.055) ** 2.4, rgb / 12.92)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = linear @ to_xyz.T / np.array([0.9505, 1.0, 1.089])
    f = np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116)
    return np.stack(
        [116 * f[..., 1] - 16, 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])], axis=-1
    )
