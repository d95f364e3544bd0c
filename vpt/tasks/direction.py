"""Direction-only steps (DTI, arXiv 2512.13672, section 4): rows keep their length and turn.

Facts of the authors' code (kunheek/dti): the gradient is pulled towards the start by kappa, projected onto the tangent
of the sphere and set to length 1, so every step turns by the learning rate; then the row is set to length 1 again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F

__all__ = ["Direction"]

KAPPA = 1e-4


class Direction(torch.optim.Optimizer):
    """Steps of unit rows [..., width] on the sphere. The weight decay of a group is not used: kappa takes its place."""

    def __init__(self, params: Iterable[Any], lr: float = 1e-2, kappa: float = KAPPA) -> None:
        super().__init__(params, {"lr": lr, "kappa": kappa})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of every row that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                start = self.state[p].setdefault("start", p.detach().clone())
                g = p.grad - group["kappa"] * start
                g = F.normalize(g - (g * p).sum(-1, keepdim=True) * p, dim=-1)
                p.copy_(F.normalize(p - group["lr"] * g, dim=-1))
        return loss
