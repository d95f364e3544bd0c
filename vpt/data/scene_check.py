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

__all__ = ["Obeyed", "Seen", "cut_out", "look_at", "obeyed"]

SIDE = 64  # pixels to which a picture is brought
RING = 3  # of these: along the edge, where the background is looked at
FINE = 4  # how much finer outlines are compared
FAINT = 15.0  # a thing that differs less than this from the background (CIELAB) is not seen
ALIKE = 0.65  # of two outlines, intersection over union: blurred shapes mostly reach it, blobs seldom
PART = 0.25  # a thing of several colours: parts may be this much more like the background than the others
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
    lab, ground, largest = _stands_out(picture)
    background = _nearest(ground, {**BACKGROUNDS, **LIGHT})
    background = "white" if background in LIGHT else background
    if largest is None:
        return Seen(None, None, background)
    inside = ndimage.minimum_filter(largest, 3 * FINE)[FINE // 2 :: FINE, FINE // 2 :: FINE]
    away = np.linalg.norm(lab - ground, axis=-1)
    here = inside if inside.any() else away == away.max()
    return Seen(_nearest(np.median(lab[here], axis=0), COLOURS), _shape(largest), background)


def cut_out(picture: Image.Image, side: int = 32) -> np.ndarray:
    """The largest thing alone, its box stretched to a square, on middle grey: [side, side, 3] in [0, 1].

    So two pictures of one thing are alike wherever it stands, and whatever is behind it.
    """
    mask = _stands_out(picture, PART)[2]
    if mask is None:
        return np.full((side, side, 3), 0.5)
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    box = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
    whole = picture.convert("RGB").resize((FINE * SIDE,) * 2, Image.Resampling.BILINEAR)
    grey = Image.new("RGB", whole.size, (128, 128, 128))
    shown = Image.composite(whole, grey, Image.fromarray(255 * mask.astype(np.uint8)))
    return np.asarray(shown.crop(box).resize((side, side), Image.Resampling.BOX)) / 255.0


def _stands_out(picture: Image.Image, share: float = 0.5) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """CIELAB [SIDE, SIDE, 3], the background's colour, and where the largest thing is, FINE times as fine; None
    where nothing stands out.

    share: of how much the most different pixels differ from the background; what differs less belongs to it.
    """
    lab = _lab(np.asarray(picture.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BILINEAR)) / 255.0)
    ring = np.ones((SIDE, SIDE), bool)
    ring[RING:-RING, RING:-RING] = False
    ground = np.median(lab[ring], axis=0)
    away = np.linalg.norm(lab - ground, axis=-1)
    reach = float(np.quantile(away, 0.985))  # the smallest thing has more than 1.5% of the pixels
    if reach < FAINT:
        return lab, ground, None
    fine = Image.fromarray(away.astype(np.float32)).resize((FINE * SIDE,) * 2, Image.Resampling.BILINEAR)
    parts, _ = ndimage.label(np.asarray(fine) > share * reach)
    largest = ndimage.binary_fill_holes(parts == np.bincount(parts[parts > 0]).argmax())
    return lab, ground, np.asarray(largest)


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
