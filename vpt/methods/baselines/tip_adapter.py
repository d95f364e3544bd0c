"""Tip-Adapter and Tip-Adapter-F, arXiv 2111.03930 (code: gaopengcuhk/Tip-Adapter).

The training pictures are a cache: their normalised features are keys, their classes values. A picture's logits are
its zero-shot logits plus ``alpha * exp(-beta (1 - f . keys)) @ values``. With ``finetune`` (Tip-Adapter-F) the keys
learn by gradient, with alpha and beta at 1. Then alpha and beta are searched on val, on the authors' grid.

Differs: logits have the network's own scale in place of 100; Tip-Adapter-F is taken at its last epoch with what val
chose, where the authors take the best figure on test; its keys start from the pictures as for evaluation; AdamW's
epsilon is torch's (theirs 1e-4).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vpt.encode import encode
from vpt.methods.method import Batches, Method, Say, Seen
from vpt.methods.templates import checked
from vpt.tower import Tower

__all__ = ["TipAdapter"]

TRIED = (200, 20)  # values of beta and of alpha


class TipAdapter(Method):
    """A cache beside the class names; it belongs to its classes.

    template: how class names are said.  finetune: the keys learn (Tip-Adapter-F).
    beta_end, alpha_end: the search goes from 0.1 to these, in 200 and 20 values; published: 7 and 3, for some data
        sets more.
    augmented: views of each training picture whose mean feature is the key, where the data are augmented.
    """

    named = True
    class_specific = True
    whole = True

    def __init__(
        self,
        image: Tower,
        classes: int,
        scale: float,
        *,
        template: str = "a photo of a {}.",
        finetune: bool = False,
        beta_end: float = 7.0,
        alpha_end: float = 3.0,
        augmented: int = 10,
    ) -> None:
        super().__init__()
        self.sentence, self.trains, self.classes, self.scale = checked(template), finetune, classes, scale
        self.views = 0 if finetune else augmented
        self.ends = beta_end, alpha_end
        self.keys = nn.Parameter(torch.zeros(0, image.out), requires_grad=finetune)
        self.register_buffer("labels", torch.zeros(0, dtype=torch.long))
        self.register_buffer("beta", torch.tensor(1.0))
        self.register_buffer("alpha", torch.tensor(1.0))
        self.labels: Tensor
        self.beta: Tensor
        self.alpha: Tensor

    def _load_from_state_dict(self, state: Any, prefix: str, *args: Any) -> None:
        """The cache is as long as it was; the parameter stays the same object for its optimizer."""
        if (kept := state.get(f"{prefix}keys")) is not None:
            self.keys.data = torch.empty_like(kept, device=self.keys.device)
            self.labels = torch.empty(len(kept), dtype=torch.long, device=self.keys.device)
        super()._load_from_state_dict(state, prefix, *args)

    def fill(self, features: Tensor, labels: Tensor) -> None:
        """Take features [n, out] and labels [n] as the cache."""
        if labels.ndim != 1:
            raise ValueError(
                "tip-adapter takes one label a picture. Use the method linear for several labels."
            )
        self.keys.data = F.normalize(features.float(), dim=-1).to(self.keys.device)
        self.labels = labels.to(self.keys.device)

    @torch.no_grad()
    def start(self, image: Tower, batches: Batches, head: nn.Linear | None) -> None:
        read = [(encode(image, batch["image"]), batch["label"]) for batch in batches()]
        self.fill(torch.cat([f for f, _ in read]), torch.cat([y for _, y in read]))

    def near(self, features: Tensor) -> Tensor:
        """Cosines [batch, n] of normalised features [batch, out] to the keys, which are not normalised again."""
        return features @ self.keys.mT

    def cached(self, cosines: Tensor, beta: float | Tensor) -> Tensor:
        """The cache's logits [batch, K] before alpha."""
        weight = (-beta * (1 - cosines)).exp()
        return weight.new_zeros(len(weight), self.classes).index_add(1, self.labels, weight)

    def logits(self, seen: Seen) -> Tensor:
        told = super().logits(seen)
        near = self.near(F.normalize(seen.image.float(), dim=-1))
        return told + self.alpha * self.cached(near, self.beta)

    def teach(self, say: Say) -> dict[str, Tensor]:
        return {"text": say(self.sentence)}

    @torch.no_grad()
    def solve(
        self,
        features: Tensor,
        labels: Tensor,
        val: tuple[Tensor, Tensor],
        head: nn.Linear | None,
        taught: Mapping[str, Tensor] | None = None,
    ) -> dict[str, float]:
        """Fill the cache, unless it learned, and choose alpha and beta on ``val``: of equals the first of the grid.

        Returns them and the accuracy on val.
        """
        assert taught is not None
        if not self.trains:
            self.fill(features, labels)
        device = self.keys.device
        f, t = (F.normalize(x.float().to(device), dim=-1) for x in (val[0], taught["text"]))
        told, near, wanted = self.scale * f @ t.mT, self.near(f), val[1].to(device)
        best = (-1.0, 1.0, 1.0)
        for beta in _grid(self.ends[0], TRIED[0]):
            cached = self.cached(near, beta)
            for alpha in _grid(self.ends[1], TRIED[1]):
                accuracy = float(((told + alpha * cached).argmax(-1) == wanted).float().mean())
                if accuracy > best[0]:
                    best = accuracy, beta, alpha
        accuracy, beta, alpha = best
        self.beta.fill_(beta)
        self.alpha.fill_(alpha)
        return {"beta": beta, "alpha": alpha, "val_accuracy": accuracy}


def _grid(end: float, count: int) -> Sequence[float]:
    """From 0.1 on, without the end, as the authors have it."""
    return [0.1 + i * (end - 0.1) / count for i in range(count)]
