"""POLAR, arXiv 2506.10182 (code: adobe-research/polar-vl): a concept as a rank-1 update of the last value matrix.

The word "sks" in a sentence stands for the concept; W_V of the text tower's last block becomes W_V + B A / |A|. Unlike
rows, the update changes what every other sentence means. As published: B starts at 0, A as a linear layer, a penalty
on B, and the loss "pull" of true pairs. Differs: attention as the tower computes it, with the value bias (the authors'
training leaves it out), and the optimiser of the recipe in place of Adam.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from vpt.methods.baselines.split import in_blocks
from vpt.methods.baselines.weights import lowest_stage
from vpt.methods.method import Method, Seen
from vpt.tower import Tower

__all__ = ["Polar"]


class RankOne(nn.Module):
    """Adds B A / |A| to the value part of the joined query, key and value weights [3 width, width]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.b, self.a = nn.Parameter(torch.zeros(width, 1)), nn.Parameter(torch.empty(1, width))
        nn.init.kaiming_uniform_(self.a, a=math.sqrt(5))

    def forward(self, weight: Tensor) -> Tensor:
        query_key, value = weight.split((2 * len(self.b), len(self.b)))
        return torch.cat([query_key, value + self.b @ (self.a / self.a.norm())])


class Polar(Method):
    """penalty: weight of the mean square of B.

    Raises ValueError for a text tower whose blocks have no attention of torch's kind.
    """

    named = True
    sentence = "{}"

    def __init__(self, text: Tower, *, penalty: float = 0.35) -> None:
        super().__init__()
        self.penalty = penalty
        if not in_blocks(text.model):
            raise ValueError(
                f"polar changes the joined projections of torch's attention, which {type(text.model).__name__} has "
                "not. Take a CLIP of open_clip."
            )
        self._update: tuple[RankOne, ...] = ()  # in a tuple: the network owns it

    def learn(self, tower: Tower) -> Tower:
        if tower.name != "text":
            return tower
        assert tower.reopen is not None
        model = copy.deepcopy(tower.model)
        name, attention = list(in_blocks(model).items())[-1]
        self._update = (RankOne(attention.embed_dim),)
        parametrize.register_parametrization(attention, "in_proj_weight", self._update[0])
        twin = tower.reopen(model)
        for p in model.parameters():
            p.requires_grad_(False)
        self._update[0].requires_grad_(True)
        return replace(twin, learns_from=lowest_stage(tower, [f"{name}.in_proj_weight"]))

    def losses(self, seen: Seen, task: Callable[[Tensor], Tensor]) -> Mapping[str, Tensor]:
        return {"task": task(seen.logits), "small": self.penalty * self._update[0].b.square().mean()}
