"""CoCoOp, Conditional Context Optimization, arXiv 2203.05557 (code: KaiyangZhou/CoOp), as published.

A small net of the picture's frozen feature shifts every row, so each picture has class features of its own.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from vpt.methods.coop import SLOT, beginning
from vpt.methods.method import Method
from vpt.prompt import Context, Prompt, Site
from vpt.tower import Tower
from vpt.towers.tokens import Tokens

__all__ = ["CoCoOp"]


class CoCoOp(Method):
    """Rows and a net.

    length, words: as in :class:`vpt.methods.coop.CoOp`, by default the words "a photo of a"; without words 4 rows.
    """

    named = True
    per_sample = True
    needs = True

    def __init__(
        self,
        image: Tower,
        text: Tower,
        tokens: Tokens,
        *,
        length: int | None = None,
        words: str = "a photo of a",
    ) -> None:
        super().__init__()
        length, init = beginning(tokens, words, length, 4)
        self.sentence = f"<ctx*{length}> {{}}."
        self.text_prompt = Prompt(text.name, SLOT, ["embedded"], length, text.width, init=init)
        hidden = max(1, image.out // 16)
        self.meta_net = nn.Sequential(
            nn.Linear(image.out, hidden), nn.ReLU(inplace=True), nn.Linear(hidden, text.width)
        )

    def forward(self, context: Context) -> dict[Site, Tensor]:
        """Rows [batch, n, width]."""
        shift = self.meta_net(F.normalize(context.features["image"].float(), dim=-1))[:, None]
        return {site: rows + shift for site, rows in self.text_prompt(context).items()}
