"""Draws the picture of the README: a tower as a row of stages, and where each method writes.

``python -m vpt.workflow.ladder vpt/workflow/ladder.png``
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.patches import FancyBboxPatch

__all__ = ["draw"]

STAGES = ("input", "embedded", "placed", "0", "1", "2", "…", "11", "12", "normed", "pooled")
STEPS = ("patches", "positions", "pre-norm", "block", "block", "block", "…", "block", "norm", "pool")
WRITES = (
    ("pixel prompts: a frame added to the picture", "#c2410c", ("input",)),
    ("VPT-shallow: rows once, then they flow on", "#1d4ed8", ("0",)),
    ("VPT-deep, VFPT: new rows before every block", "#15803d", ("0", "1", "2", "…", "11")),
    ("VPT in the last layers: all below is computed once and stored", "#7e22ce", ("…", "11")),
    ("prefix tuning: keys and values in every block", "#a16207", ("0", "1", "2", "…", "11")),
)


def draw(path: Path) -> None:
    """Write the picture, 1600 x 620 pixels, on white so that it reads in dark mode too."""
    figure, axes = plt.subplots(figsize=(10, 3.9), dpi=160)
    axes.set(xlim=(-0.7, len(STAGES) - 0.3), ylim=(-len(WRITES) - 0.7, 1.6))
    axes.axis("off")
    for i, stage in enumerate(STAGES):
        axes.text(i, 0.95, stage, ha="center", va="center", family="monospace", fontsize=9.5, weight="bold")
        if i < len(STEPS):
            box = FancyBboxPatch(
                (i + 0.17, 0.02),
                0.66,
                0.5,
                boxstyle="round,pad=0.02,rounding_size=0.08",
                fc="#eef1f5",
                ec="#94a3b8",
            )
            axes.add_patch(box)
            axes.text(i + 0.5, 0.27, STEPS[i], ha="center", va="center", fontsize=7.6, color="#334155")
        axes.plot([i, i], [-len(WRITES) - 0.35, 0.72], color="#cbd5e1", lw=0.8, zorder=0)
    axes.text(-0.6, 1.42, "stages of a frozen ViT, 12 blocks deep", fontsize=8.5, color="#475569")
    for k, (label, colour, stages) in enumerate(WRITES):
        y = -0.55 - k
        places = [STAGES.index(s) for s in stages]
        axes.plot([places[0], places[-1]], [y, y], color=colour, lw=1.2, alpha=0.5)
        for x in places:
            axes.scatter(
                [x - 0.1, x, x + 0.1], [y] * 3, s=34, color=colour, marker="s", zorder=3, edgecolors="white"
            )
        start, at, side = 3.0, y - 0.42, "left"
        if places[-1] < 4:
            start, at, side = places[-1] + 0.3, float(y), "left"
        elif places[0] > 3:
            start, at, side = places[0] - 0.3, float(y), "right"
        plain = {"fc": "white", "ec": "none", "pad": 1}
        axes.text(start, at, label, ha=side, va="center", fontsize=8.2, color=colour, bbox=plain)
    figure.savefig(path, bbox_inches="tight", facecolor="white")
    plt.close(figure)


if __name__ == "__main__":
    draw(Path(sys.argv[1] if len(sys.argv) > 1 else "ladder.png"))
