"""KgCoOp, Knowledge-guided Context Optimization, arXiv 2303.13283 (code: htyao89/KgCoOp), as published.

CoOp whose class features are held near those of a hand-written sentence.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch.nn.functional as F
from torch import Tensor

from vpt.methods.coop import CoOp
from vpt.methods.method import Say, Seen
from vpt.tower import Tower
from vpt.towers.tokens import Tokens

__all__ = ["KgCoOp"]


class KgCoOp(CoOp):
    """CoOp and a term.  teacher: the sentence to stay near.  weight: of the term, 8 as in the paper's scripts."""

    usual = 4

    def __init__(
        self,
        text: Tower,
        tokens: Tokens,
        classes: int,
        *,
        length: int | None = None,
        words: str = "a photo of a",
        teacher: str = "a photo of a {}.",
        weight: float = 8.0,
    ) -> None:
        super().__init__(text, tokens, classes, length=length, words=words)
        self.teacher, self.weight = teacher, weight

    def teach(self, say: Say) -> dict[str, Tensor]:
        return {"text": say(self.teacher)}

    def losses(self, seen: Seen, task: Callable[[Tensor], Tensor]) -> Mapping[str, Tensor]:
        assert seen.text is not None
        near = F.cosine_similarity(seen.text.float(), seen.taught["text"].float(), dim=-1, eps=1e-7).mean()
        return {"task": task(seen.logits), "near": self.weight * (1 - near)}
