"""The picture of a table: lines over shots, or a panel a column; every seed is seen."""

from __future__ import annotations

from itertools import cycle

from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from vpt.workflow.plots import MARKS, STYLES, WIDTH, Look, bare
from vpt.workflow.tabulate import Cell, Table

__all__ = ["draw", "over_shots", "panels"]

ACROSS = 4  # panels in a row


def draw(table: Table, look: Look, told: str = "test accuracy, %") -> Figure:
    """Lines where the columns are numbers of shots, else a panel a column. told: what the numbers are."""
    shots = [column for column in table.columns if column.endswith((" shot", " shots"))]
    return over_shots(table, look) if len(shots) > 1 else panels(table, look, told)


def over_shots(table: Table, look: Look) -> Figure:
    """Accuracy over pictures a class, a line a method; bars are the spread over seeds."""
    figure = Figure(figsize=(WIDTH, 3.4 + 0.12 * len(table.lines)), layout="constrained")
    axes = figure.subplots()
    counts = [int(column.partition(" ")[0]) for column in table.columns]
    kinds = zip(cycle(look.lines), cycle(MARKS), cycle(STYLES), strict=False)
    for i, (line, (colour, mark, style)) in enumerate(zip(table.lines, kinds, strict=False)):
        cells = [line.cells[column] for column in table.columns]
        found = [(n, c) for n, c in zip(counts, cells, strict=True) if isinstance(c, Cell)]
        aside = 1 + 0.012 * (i - (len(table.lines) - 1) / 2)  # so that bars do not hide each other
        axes.errorbar(
            [n * aside for n, _ in found],
            [100 * c.mean for _, c in found],
            [100 * c.std for _, c in found],
            color=colour, marker=mark, ls=style, ms=4, lw=1.4, elinewidth=1, capsize=2, label=line.name,
        )  # fmt: skip
    axes.set_xscale("log", base=2)
    axes.set_xticks(counts, [str(n) for n in counts])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set(xlabel="pictures a class", ylabel="test accuracy, %")
    axes.grid(color=look.faint, lw=0.5)
    axes.set_axisbelow(True)
    bare(axes)
    figure.legend(frameon=False, loc="outside lower center", ncols=2, fontsize=8, handlelength=3.2)
    return figure


def panels(table: Table, look: Look, told: str = "test accuracy, %") -> Figure:
    """A panel a column, a line a method: a ring a seed, a bar at the mean."""
    across = min(ACROSS, len(table.columns))
    down = -(-len(table.columns) // across)
    size = 1.6 + 1.5 * across, down * (0.7 + 0.3 * len(table.lines))
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(down, across, squeeze=False, sharey=True)
    for axes in grid.flat[len(table.columns) :]:
        axes.axis("off")
    for axes, column in zip(grid.flat, table.columns, strict=False):
        for y, line in enumerate(table.lines):
            cell, colour = line.cells.get(column), look.lines[y % len(look.lines)]
            if isinstance(cell, Cell):
                values = [100 * v for v in cell.values]
                axes.scatter(
                    values, [y] * len(values), s=26, facecolors="none", edgecolors=colour, linewidths=1.2
                )
                axes.plot([100 * cell.mean] * 2, [y - 0.28, y + 0.28], color=colour, lw=2.4)
            else:
                axes.text(0.5, y, "-", color=look.ink, transform=axes.get_yaxis_transform(), va="center")
        axes.set_yticks(range(len(table.lines)), [line.name for line in table.lines])
        axes.set_ylim(len(table.lines) - 0.5, -0.5)
        axes.set_title(column, fontsize=9, color=look.ink)
        axes.grid(axis="x", color=look.faint, lw=0.5)
        axes.set_axisbelow(True)
        axes.tick_params(labelsize=8)
        bare(axes)
    figure.supxlabel(told, fontsize=9, color=look.ink)
    return figure
