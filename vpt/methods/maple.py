"""MaPLe, Multi-modal Prompt Learning, arXiv 2210.03117 (code: muzairkhattak/multimodal-prompt-learning), as published.

Rows in both towers; those of the image tower are a linear map of those of the text tower, layer by layer.
"""

from __future__ import annotations

import copy

from torch import Tensor, nn

from vpt.methods.coop import SLOT
from vpt.methods.ivlp import start_with_words
from vpt.methods.method import Method, deep
from vpt.prompt import Context, Prompt, Site
from vpt.tower import Tower
from vpt.towers.tokens import Tokens

__all__ = ["MaPLe"]


class MaPLe(Method):
    """Text rows and their maps.

    length: rows a layer.  layers: how many layers of both towers get their own (9 of 12 as published; by default three
    quarters of the shallower tower).  words: the first text rows start from these.
    """

    named = True

    def __init__(
        self,
        image: Tower,
        text: Tower,
        tokens: Tokens,
        *,
        length: int = 2,
        layers: int | None = None,
        words: str = "a photo of a",
    ) -> None:
        super().__init__()
        layers = layers or max(1, 3 * min(image.depth, text.depth) // 4)
        self.text_prompt = Prompt(text.name, SLOT, deep("embedded", layers, text), length, text.width)
        self.sentence = start_with_words(self.text_prompt, tokens, words, length)
        self.image_sites = [Site(image.name, stage, "suffix") for stage in deep("placed", layers, image)]
        above = nn.Linear(text.width, image.width)  # as published, the deeper maps start as copies of one
        maps = [nn.Linear(text.width, image.width), *[copy.deepcopy(above) for _ in range(layers - 1)]]
        self.maps = nn.ModuleList(maps)

    def forward(self, context: Context) -> dict[Site, Tensor]:
        text = self.text_prompt(context)
        image = [to_image(rows) for to_image, rows in zip(self.maps, text.values(), strict=True)]
        return text | dict(zip(self.image_sites, image, strict=True))
