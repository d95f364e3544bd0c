"""Prefix tuning, arXiv 2101.00190, in a vision transformer: keys and values of their own in every block.

A row holds a key and a value side by side; they join the block's own after its projections, and no query
reads from a row, so the sequence does not grow. The start is xavier uniform over rows and channels, for the
keys and the values alike, as in the modules for ViTs that others published.
"""

from __future__ import annotations

import math

from torch import Tensor

from vpt.methods.method import Method, layers_of
from vpt.prompt import Context, Prompt, Site, uniform
from vpt.tower import Tower

__all__ = ["Prefix"]


class Prefix(Method):
    """Learned keys and values.

    length: pairs a layer.  layers: "all", or a range (:func:`vpt.methods.method.layers_of`).
    Raises ValueError, before data are read, for towers whose attention cannot be opened.
    """

    def __init__(self, image: Tower, *, length: int = 10, layers: str = "all") -> None:
        super().__init__()
        bound = math.sqrt(6 / (image.width * (length + 1)))  # xavier_uniform_ on [1, length, width]
        self.image_prompt = Prompt(
            image.name, "kv", layers_of(image, layers), length, 2 * image.width, init=uniform(bound)
        )
        image.check(self.image_prompt.sites)

    def forward(self, context: Context) -> dict[Site, Tensor]:
        return self.image_prompt(context)
