"""LP++, a text-initialised linear probe, arXiv 2404.02285 (code: FereshteShakeri/FewShot-CLIP-Strong-Baseline).

Logits are ``W f + b + alpha_k (f . t_k)`` of a normalised image feature f and class feature t_k: linear in f, so the
result is an ordinary head. Steps and starts follow from the features, and no rate is searched.

As in the authors' code: W starts as the sums of each class's features, alpha at 250 times the mean of all f . t; W
takes a step of SGD (momentum 0.9, rate 4 N / largest eigenvalue of F'F) each time, alpha one (rate N / (4 max_k sum_i
(f_i . t_k)^2)) every tenth, along the sum of all its gradients so far, which the code never sets to zero; of equal
accuracies on val the later step counts. Differs: b starts at 0 in place of a random start; features are those of the
picture as for evaluation unless the data are augmented, then of one view, as there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vpt.methods.method import Method, Say
from vpt.methods.templates import checked
from vpt.tower import Tower

__all__ = ["LPPlusPlus"]

MOMENTUM = 0.9
TURN = 10  # alpha moves once in so many steps


class LPPlusPlus(Method):
    """No rows: :meth:`solve` fills a head on normalised features.

    template: how class names are said.  steps: of full-batch descent.
    """

    output = "normalised"
    trains = False
    views = 1

    def __init__(self, text: Tower, *, template: str = "a photo of a {}.", steps: int = 300) -> None:
        super().__init__()
        self.template, self.steps = checked(template), steps

    def teach(self, say: Say) -> dict[str, Tensor]:
        return {"text": say(self.template)}

    @torch.no_grad()
    def solve(
        self,
        features: Tensor,
        labels: Tensor,
        val: tuple[Tensor, Tensor],
        head: nn.Linear | None,
        taught: Mapping[str, Tensor] | None = None,
    ) -> dict[str, float]:
        """Fit ``features`` [n, out] to ``labels`` [n]; keep the step that is best on ``val``.

        Returns that step, counted from 1, and its accuracy.
        """
        assert head is not None
        assert taught is not None
        device = head.weight.device
        f, seen, t = (
            F.normalize(x.to(device, torch.float32), dim=-1) for x in (features, val[0], taught["text"])
        )
        y, wanted = labels.to(device), val[1].to(device)
        descent, best, chosen = _Descent.start(f, y, t), -1.0, 0
        for step in range(1, self.steps + 1):
            descent.step(move_alpha=step % TURN == 0)
            weight = descent.folded()
            accuracy = float(((seen @ weight.mT + descent.b).argmax(-1) == wanted).float().mean())
            if accuracy >= best:
                best, chosen = accuracy, step
                head.weight.copy_(weight)
                head.bias.copy_(descent.b)
        return {"step": chosen, "val_accuracy": best}


@dataclass
class _Descent:
    """f [n, out] and t [K, out], normalised; hot: labels [n, K]; told: f . t.  w, b, alpha: what moves.

    dw, db: momentum of w and b.  grads: of alpha, summed.
    """

    f: Tensor
    t: Tensor
    hot: Tensor
    told: Tensor
    w: Tensor
    b: Tensor
    alpha: Tensor
    dw: Tensor
    db: Tensor
    grads: Tensor

    @classmethod
    def start(cls, f: Tensor, labels: Tensor, t: Tensor) -> _Descent:
        hot, told = F.one_hot(labels, len(t)).to(f.dtype), f @ t.mT
        w, nothing = hot.mT @ f, torch.zeros(len(t), dtype=f.dtype, device=f.device)
        alpha = torch.full_like(nothing, 250 * float(told.mean()))
        return cls(f, t, hot, told, w, nothing, alpha, torch.zeros_like(w), nothing, nothing)

    def __post_init__(self) -> None:
        n = len(self.f)
        self.rate = 4 * n / float(torch.linalg.eigvalsh(self.f.mT @ self.f)[-1])
        self.alpha_rate = n / (4 * float(self.told.square().sum(0).max()))

    def step(self, move_alpha: bool) -> None:
        """One step of w and b by the cross-entropy's mean gradient, and every so often of alpha."""
        logits = self.f @ self.w.mT + self.b + self.alpha * self.told
        error = (logits.softmax(-1) - self.hot) / len(self.f)
        self.dw = MOMENTUM * self.dw + error.mT @ self.f
        self.db = MOMENTUM * self.db + error.sum(0)
        self.grads = self.grads + (error * self.told).sum(0)
        self.w = self.w - self.rate * self.dw
        self.b = self.b - self.rate * self.db
        if move_alpha:
            self.alpha = self.alpha - self.alpha_rate * self.grads

    def folded(self) -> Tensor:
        """The head's weight [K, out]."""
        return self.w + self.alpha[:, None] * self.t
