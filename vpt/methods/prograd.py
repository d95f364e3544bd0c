"""ProGrad, Prompt-aligned Gradient, arXiv 2205.14865 (code: BeierZhu/Prompt-align), as published.

CoOp whose gradient loses what would work against the frozen model's own opinion: where the gradients of the task and
of the divergence from the zero-shot model conflict, the task's is projected.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from vpt.methods.coop import CoOp
from vpt.methods.method import Say, Seen
from vpt.tower import Tower
from vpt.towers.tokens import Tokens

__all__ = ["ProGrad"]


class ProGrad(CoOp):
    """CoOp with another gradient.

    words: fill the last rows, the rest starts at 0 (as published); empty: N(0, 0.02).
    teacher: the zero-shot model's sentence.  strength: of the projection (lambda).  temperature: of the divergence.
    """

    def __init__(
        self,
        text: Tower,
        tokens: Tokens,
        classes: int,
        *,
        length: int = 16,
        words: str = "a photo of a",
        teacher: str = "a photo of a {}.",
        strength: float = 1.0,
        temperature: float = 1.0,
    ) -> None:
        super().__init__(text, tokens, classes, length=length)
        self.teacher, self.strength, self.temperature = teacher, strength, temperature
        if words:
            vectors = tokens.embed(words)[-length:]
            start = torch.zeros(1, length, text.width)
            start[0, length - len(vectors) :] = vectors
            self.text_prompt.fill(start)

    def teach(self, say: Say) -> dict[str, Tensor]:
        return {"text": say(self.teacher)}

    def losses(self, seen: Seen, task: Callable[[Tensor], Tensor]) -> Mapping[str, Tensor]:
        t = self.temperature
        opinion = seen.compare(seen.image, seen.taught["text"]) / t
        stray = t * t * F.cross_entropy(seen.logits / t, opinion.softmax(-1))
        return {"task": task(seen.logits), "stray": stray}

    def total(self, losses: Mapping[str, Tensor]) -> Tensor:
        """The task's loss, with a gradient of our own: its value and ``strength``-projected gradient."""
        own = [p for p in self.parameters() if p.requires_grad]
        if not (torch.is_grad_enabled() and losses["task"].requires_grad):
            return losses["task"]
        wanted = torch.autograd.grad(losses["task"], own, retain_graph=True)
        held = torch.autograd.grad(losses["stray"], own, retain_graph=True)
        total = losses["task"].detach()
        for p, g, k in zip(own, wanted, held, strict=True):
            unit = k / k.norm().clamp_min(torch.finfo(k.dtype).tiny)
            along = (g * unit).sum()
            g = g - self.strength * along.clamp(max=0) * unit
            term = (p * g.detach()).sum()
            total = total + term - term.detach()
        return total
