"""MMRL, Multi-Modal Representation Learning, arXiv 2503.08497 (code: yunncheng/MMRL), as published.

Tokens that both towers share enter their upper layers behind the class and the start token, mapped into each layer, and
what the image tower makes of them is read back: a second image feature, beside the class token's. Other names than
those of training are told by the class token's feature alone.

Written from the authors' code. Not checked: their numbers (no recorded case), and mixed precision, in which they train.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vpt.methods.method import Method, Say, Seen
from vpt.prompt import Context, Site
from vpt.tower import Tower

__all__ = ["MMRL"]


class MMRL(Method):
    """Shared tokens, their maps and a projection of what is read back.

    length: tokens.  layers: of both towers, from the top, that they enter (7 of 12 as published; by default as many of
    the shallower tower's).  shared: width of the tokens.  template: how a name is said.
    alpha: share of the class token's feature in loss and logits.  weight: of the two terms that hold features near
    those of the frozen model. The paper gives 1 for base to novel, 0.5 for few-shot and 0.2 from ImageNet to other
    sets; the authors' code has one for each data set, from 0.01 (EuroSAT, there with tokens 2048 wide) to 7 (Cars).
    """

    named = True
    needs = True
    reads = ("prefix",)

    def __init__(
        self,
        image: Tower,
        text: Tower,
        *,
        length: int = 5,
        layers: int | None = None,
        shared: int = 512,
        template: str = "a photo of a {}.",
        alpha: float = 0.7,
        weight: float = 1.0,
    ) -> None:
        super().__init__()
        depth = min(image.depth, text.depth)
        layers = max(1, round(7 * depth / 12)) if layers is None else layers
        if not 1 <= layers <= depth:
            raise ValueError(
                f"layers={layers} does not fit towers of which the shallower has {depth}. Give 1 to {depth}."
            )
        self.sentence, self.alpha, self.weight = template, alpha, weight
        self.sites = {
            t.name: [Site(t.name, str(i), "prefix") for i in range(t.depth - layers, t.depth)]
            for t in (image, text)
        }
        for sites, tower in zip(self.sites.values(), (image, text), strict=True):
            tower.check(sites)
        self.shared_tokens = nn.Parameter(torch.randn(length, shared) * 0.02)
        # as published, the maps of one tower start as copies of one
        self.to_image, self.to_text = (
            nn.ModuleList([copy.deepcopy(one) for _ in range(layers)])
            for one in (nn.Linear(shared, image.width), nn.Linear(shared, text.width))
        )
        self.projection = nn.Parameter(torch.randn(image.width, image.out) * image.width**-0.5)

    def forward(self, context: Context) -> dict[Site, Tensor]:
        sites = [site for tower in self.sites.values() for site in tower]
        maps = [*self.to_image, *self.to_text]
        return {site: to_layer(self.shared_tokens) for site, to_layer in zip(sites, maps, strict=True)}

    def teach(self, say: Say) -> dict[str, Tensor]:
        return {"text": say(self.sentence)}

    def parts(self, seen: Seen) -> tuple[Tensor, Tensor]:
        """Logits [batch, K] of the class token's feature, and of what the tokens became."""
        assert seen.text is not None
        read = seen.read["prefix"].to(self.projection.dtype).mean(1) @ self.projection
        return seen.compare(seen.image, seen.text), seen.compare(read, seen.text)

    def logits(self, seen: Seen) -> Tensor:
        by_class, by_tokens = self.parts(seen)
        return self.alpha * by_class + (1 - self.alpha) * by_tokens if seen.own else by_class

    def losses(self, seen: Seen, task: Callable[[Tensor], Tensor]) -> Mapping[str, Tensor]:
        assert seen.text is not None
        assert seen.frozen is not None
        by_class, by_tokens = self.parts(seen)
        near = {"image": (seen.image, seen.frozen), "text": (seen.text, seen.taught["text"])}
        return {
            "task": self.alpha * task(by_class) + (1 - self.alpha) * task(by_tokens),
            **{
                name: self.weight * (1 - F.cosine_similarity(f.float(), f0.float(), dim=-1).mean())
                for name, (f, f0) in near.items()
            },
        }
