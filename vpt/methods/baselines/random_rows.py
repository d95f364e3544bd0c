"""Control: VPT-deep's rows (arXiv 2203.12119) at their random start, frozen; only the head learns.

What a prompt gains over these rows, and not over the head alone, is what its rows have learned.
"""

from __future__ import annotations

from torch import Tensor

from vpt.methods.method import Method, layers_of
from vpt.prompt import Context, Prompt, Site, xavier
from vpt.tower import Tower

__all__ = ["RandomRows"]


class RandomRows(Method):
    """Rows that do not learn.  length, layers: as in :class:`vpt.methods.vpt.VPT`."""

    def __init__(self, image: Tower, *, length: int = 10, layers: str = "all") -> None:
        super().__init__()
        start = xavier(image.patch, image.width)
        chosen = layers_of(image, layers)
        self.image_prompt = Prompt(image.name, "prefix", chosen, length, image.width, init=start)
        self.image_prompt.requires_grad_(False)

    def forward(self, context: Context) -> dict[Site, Tensor]:
        return self.image_prompt(context)
