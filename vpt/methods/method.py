"""What a method may say of itself. Every default is "nothing special"; a new one overrides what it needs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

from torch import Tensor, nn

from vpt.prompt import Context, Site
from vpt.tower import Tower

__all__ = ["Batches", "Method", "layers_of", "linear_head"]

Batches = Callable[[], Iterable[Mapping[str, Any]]]
"""Makes a fresh pass over training batches in one order: ``image`` [batch, 3, h, w], ``label`` [batch]."""


class Method(nn.Module):
    """Returns rows by site. Its constructor takes the towers it writes to, by their names, then its options.

    pool: how the image tower pools (:meth:`vpt.tower.Tower.pooling`).
    output: the head reads the tower's "features", or the network's own classifier's "logits".
    """

    pool: str = "own"
    output: Literal["features", "logits"] = "features"

    def forward(self, context: Context) -> dict[Site, Tensor]:
        """The rows of this step."""
        return {}

    def learn(self, image: Tower) -> Tower:
        """The tower to train: the frozen one, or (baselines) a copy that learns."""
        return image

    def head(self, width: int, classes: int) -> nn.Linear:
        """The head on what ``output`` names, at its start."""
        return linear_head(width, classes)

    def start(self, image: Tower, batches: Batches, head: nn.Linear) -> None:
        """Before training: starts that come from the data."""

    def after_epoch(self, image: Tower, batches: Batches, head: nn.Linear) -> None:
        """After every epoch of training."""

    def solve(
        self, features: Tensor, labels: Tensor, val: tuple[Tensor, Tensor], head: nn.Linear
    ) -> dict[str, float]:
        """Closed forms on stored features fill the head and say what they chose; else NotImplemented."""
        return NotImplemented


def linear_head(width: int, classes: int) -> nn.Linear:
    """VPT's head at its start (arXiv 2203.12119): weight kaiming normal over fan out, bias -log(99)."""
    head = nn.Linear(width, classes)
    nn.init.kaiming_normal_(head.weight, a=0, mode="fan_out")
    nn.init.constant_(head.bias, -math.log(99))
    return head


def layers_of(image: Tower, layers: str) -> list[int]:
    """Block numbers that a range names: "first", "all", "last-third", "4..11" (both included), "0,3,5", "7".

    Raises ValueError for a range outside the tower, with its depth.
    """
    depth = image.depth
    if image.closed:
        image.check([Site(image.name, "0", "prefix")])  # raises, with the reason
    named = {"first": range(1), "all": range(depth), "last-third": range(depth - max(depth // 3, 1), depth)}
    try:
        if layers in named:
            chosen = list(named[layers])
        elif ".." in layers:
            low, high = layers.split("..")
            chosen = list(range(int(low), int(high) + 1))
        else:
            chosen = sorted({int(n) for n in layers.split(",")})
    except ValueError:
        chosen = []
    if not chosen or not 0 <= chosen[0] <= chosen[-1] < depth:
        raise ValueError(
            f"layers={layers!r} names no blocks of a tower {depth} deep. Write first, all, last-third, a "
            f"range such as 0..{depth - 1} (both included), or a list such as 0,{depth - 1}."
        )
    return chosen
