"""The pictures of a report. Each is drawn for light and for dark pages, legible at the width of a phone."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import cycle
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap, to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

__all__ = [
    "DARK",
    "LIGHT",
    "Look",
    "Shown",
    "accuracies",
    "bare",
    "confusion",
    "curves",
    "glances",
    "predictions",
    "render",
]

WIDTH = 4.4  # inches: over the width of a phone a point becomes a little more than a pixel
DPI = 200


@dataclass(frozen=True)
class Look:
    """Colours of a page: paper, ink, what stays in the background, and a sequence for lines.

    The sequence is Okabe and Ito's, which colour-blind readers can tell apart.
    """

    paper: str
    ink: str
    faint: str
    lines: tuple[str, ...]


LIGHT = Look(
    "#ffffff",
    "#1d2733",
    "#c9d1d9",
    ("#0072b2", "#d55e00", "#009e73", "#8c4a73", "#a17700", "#4d4d4d", "#56b4e9"),
)
DARK = Look(
    "#161b22",
    "#e6edf3",
    "#3d4753",
    ("#56b4e9", "#ff9e4a", "#2fd3a5", "#e29bc4", "#f0e442", "#b9c0c7", "#7fb0ff"),
)
MARKS = ("o", "s", "^", "D", "v", "P", "X")
STYLES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1)), (0, (3, 2)), (0, (1, 1)))


@dataclass(frozen=True)
class Shown:
    """A test picture with what was said of it. probability: of the predicted class, in [0, 1]."""

    picture: Image.Image
    truth: str
    predicted: str
    probability: float


def render(draw: Callable[[Look], Figure]) -> tuple[bytes, bytes]:
    """The drawing as PNG, for light and for dark pages."""
    return _png(draw, LIGHT), _png(draw, DARK)


def _png(draw: Callable[[Look], Figure], look: Look) -> bytes:
    inked = ("text.color", "axes.labelcolor", "xtick.color", "ytick.color")
    style: dict[Any, Any] = dict.fromkeys(inked, look.ink)
    style |= {"font.family": "DejaVu Sans", "font.size": 9.5}
    style |= {"axes.edgecolor": look.faint, "axes.facecolor": look.paper}
    with rc_context(style):
        figure = draw(look)
        FigureCanvasAgg(figure)
        file = io.BytesIO()
        figure.savefig(file, format="png", dpi=DPI, facecolor=look.paper)
    small = io.BytesIO()  # 256 colours are enough for the eye, and a third of the bytes
    Image.open(file).convert("RGB").quantize(256).save(small, format="png", optimize=True)
    return small.getvalue()


def _figure(height: float) -> Figure:
    return Figure(figsize=(WIDTH, height), layout="constrained")


def bare(axes: Axes) -> None:
    """Take the frame away where no axis is."""
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def accuracies(found: Mapping[str, Sequence[float]], base: str, look: Look) -> Figure:
    """Test accuracy of each method: a ring a seed, a bar at the mean, a line at the mean of ``base``.

    found: percentages by method, one a seed.
    """
    figure = _figure(0.9 + 0.34 * len(found))
    axes = figure.subplots()
    line = float(np.mean(found[base]))
    axes.axvline(line, color=look.ink, lw=0.8, ls=(0, (4, 3)), label=f"mean of {base}")
    for y, values in enumerate(found.values()):
        colour = look.lines[y % len(look.lines)]
        axes.scatter(values, [y] * len(values), s=34, facecolors="none", edgecolors=colour, linewidths=1.4)
        axes.plot([np.mean(values)] * 2, [y - 0.28, y + 0.28], color=colour, lw=2.6)
    axes.set_yticks(range(len(found)), list(found))
    axes.invert_yaxis()
    axes.grid(axis="x", color=look.faint, lw=0.5)
    axes.set_axisbelow(True)
    axes.set_xlabel("test accuracy, %")
    axes.legend(frameon=False, loc="upper right", bbox_to_anchor=(1, 1.16), fontsize=8, borderpad=0)
    bare(axes)
    return figure


def curves(histories: Mapping[str, Sequence[Sequence[float]]], look: Look) -> Figure:
    """Validation accuracy after every epoch: the mean over seeds of each method. histories: percentages by method, one
    list a seed."""
    figure = _figure(3.9)
    axes = figure.subplots()
    kinds = zip(cycle(look.lines), cycle(MARKS), cycle(STYLES), strict=False)
    for (name, runs), (colour, mark, style) in zip(histories.items(), kinds, strict=False):
        length = min(map(len, runs), default=0)
        if length:
            mean = np.mean([run[:length] for run in runs], 0)
            epochs = range(1, length + 1)
            axes.plot(epochs, mean, color=colour, marker=mark, ls=style, ms=4, lw=1.4, label=name)
    axes.set(xlabel="epoch", ylabel="validation accuracy, %")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(color=look.faint, lw=0.5)
    axes.set_axisbelow(True)
    bare(axes)
    figure.legend(frameon=False, loc="outside lower center", ncols=2, fontsize=8, handlelength=3.2)
    return figure


def confusion(counts: np.ndarray, classes: Sequence[str], look: Look) -> Figure:
    """How often pictures of each class (line) were called each class (column)."""
    figure = _figure(WIDTH + 0.2)
    axes = figure.subplots()
    share = counts / counts.sum(1, keepdims=True).clip(min=1)
    shades = LinearSegmentedColormap.from_list("share", [look.paper, look.lines[0]])
    axes.imshow(share, cmap=shades, vmin=0, vmax=1)
    for i, j in np.argwhere(counts > 0):
        colour = max((look.paper, look.ink), key=partial(_contrast, shades(share[i, j])))
        axes.text(j, i, str(counts[i, j]), ha="center", va="center", fontsize=8.5, color=colour)
    axes.set_xticks(np.arange(len(classes) + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(len(classes) + 1) - 0.5, minor=True)
    axes.grid(which="minor", color=look.faint, lw=0.5)
    long = max(map(len, classes)) > 3
    turn: dict[str, Any] = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"} if long else {}
    axes.set_xticks(range(len(classes)), classes, fontsize=8, **turn)
    axes.set_yticks(range(len(classes)), classes, fontsize=8)
    axes.tick_params(which="both", length=0)
    axes.set(xlabel="predicted", ylabel="what it is")
    for side in axes.spines.values():
        side.set_visible(False)
    return figure


def _contrast(a: Any, b: Any) -> float:
    """Contrast ratio of two colours, 1 to 21, as WCAG 2 defines it (gamma rounded to 2.2)."""
    low, high = sorted(float(np.dot(np.power(to_rgb(c), 2.2), (0.2126, 0.7152, 0.0722))) for c in (a, b))
    return (high + 0.05) / (low + 0.05)


def predictions(shown: Sequence[Shown], look: Look, columns: int = 3) -> Figure:
    """A grid of pictures. Right: a tick, a solid frame. Wrong: a cross, a dashed frame, and the truth."""
    lines = -(-len(shown) // columns)
    figure = _figure(0.1 + 2.0 * lines)
    grid = figure.subplots(lines, columns, squeeze=False)
    for axes in grid.flat:
        axes.axis("off")
    for axes, s in zip(grid.flat, shown, strict=False):
        _show(axes, s.picture)
        right = s.predicted == s.truth
        colour = look.lines[2 if right else 1]
        _frame(axes, colour, "-" if right else (0, (2, 1.5)))
        axes.set_title(f"{'✓' if right else '✗'} {s.predicted}", fontsize=8.5, color=look.ink, pad=3)
        sure = f"{100 * s.probability:.0f} %"
        axes.set_xlabel(sure if right else f"{sure}\nis: {s.truth}", fontsize=8.5, labelpad=3)
    return figure


def _show(axes: Axes, picture: Image.Image | np.ndarray) -> None:
    pixels = np.asarray(picture)
    small = pixels.shape[0] < 24  # eight pixels a side: show them as they are
    axes.imshow(pixels, interpolation="nearest" if small else "antialiased")


def _frame(axes: Axes, colour: str, style: Any) -> None:
    axes.axis("on")
    axes.set_xticks([])
    axes.set_yticks([])
    for side in axes.spines.values():
        side.set(color=colour, linewidth=2.2, linestyle=style)


def glances(
    pictures: Sequence[np.ndarray],
    maps: Sequence[tuple[str, np.ndarray]],
    notes: Sequence[str],
    noted: int,
    look: Look,
) -> Figure:
    """Pictures [height, width, 3] in 0..1, and for each a row of maps laid over it: bright is much attention.

    maps: title and [pictures, height, width] in 0..1.  notes: one a picture, below its column ``noted``.
    """
    columns = 1 + len(maps)
    figure = _figure(0.45 + 1.08 * len(pictures))
    grid = figure.subplots(len(pictures), columns, squeeze=False)
    for i, picture in enumerate(pictures):
        grey = np.repeat(picture.mean(-1, keepdims=True), 3, -1)
        for j, axes in enumerate(grid[i]):
            _frame(axes, look.faint, "-")
            axes.imshow(grey if j else picture)
            if j:
                axes.imshow(maps[j - 1][1][i], cmap="inferno", alpha=0.62, vmin=0, vmax=1)
            if i == 0:
                axes.set_title("picture" if j == 0 else maps[j - 1][0], fontsize=8.2, pad=3)
        grid[i][noted].set_xlabel(notes[i], fontsize=8, labelpad=2)
    return figure
