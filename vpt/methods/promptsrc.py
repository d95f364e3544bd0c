"""PromptSRC, Self-regulating Prompts, arXiv 2307.06948 (code: muzairkhattak/PromptSRC), as published.

IVLP with three terms that hold prompted features and logits near those of the frozen model, and with rows that are
a Gaussian-weighted mean over the epochs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vpt.methods.ivlp import IVLP
from vpt.methods.method import Batches, Say, Seen
from vpt.methods.templates import ensemble
from vpt.tower import Tower
from vpt.towers.tokens import Tokens

__all__ = ["PromptSRC", "gaussian"]


def gaussian(epochs: int, mean: float, std: float) -> list[float]:
    """Weights of epochs 1..epochs: a Gaussian of the epoch's number, normalised to sum 1."""
    heights = [math.exp(-((e - mean) ** 2) / (2 * std**2)) for e in range(1, epochs + 1)]
    return [h / sum(heights) for h in heights]


class PromptSRC(IVLP):
    """IVLP and its regularisers.

    text_weight, image_weight: of the mean absolute differences of normalised features.  logits_weight: of the
        divergence from the frozen model's logits.
    mean, std: of the averaging, in epochs; std 0: no averaging.  None: 3/4 of the epochs and 1/20 of them, the shares
        of the published base-to-novel recipe (15 and 1 of 20).
    """

    needs = True

    def __init__(
        self,
        image: Tower,
        text: Tower,
        tokens: Tokens,
        *,
        length: int = 4,
        image_length: int = 4,
        layers: int | None = None,
        image_layers: int | None = None,
        words: str = "a photo of a",
        text_weight: float = 25.0,
        image_weight: float = 10.0,
        logits_weight: float = 1.0,
        mean: float | None = None,
        std: float | None = None,
    ) -> None:
        super().__init__(
            image,
            text,
            tokens,
            length=length,
            image_length=image_length,
            layers=layers or max(1, 3 * text.depth // 4),
            image_layers=image_layers or max(1, 3 * image.depth // 4),
            words=words,
        )
        self.text_weight, self.image_weight, self.logits_weight = text_weight, image_weight, logits_weight
        self.mean, self.std = mean, std
        for name, p in self._rows():
            self.register_buffer(f"mean_{name}", torch.zeros_like(p))

    def _rows(self) -> list[tuple[str, nn.Parameter]]:
        return [(name.replace(".", "_"), p) for name, p in self.named_parameters()]

    def teach(self, say: Say) -> dict[str, Tensor]:
        """The mean over templates of features as they come; normalised where it is used."""
        return {"text": torch.stack([say(template) for template in ensemble("imagenet-60")]).mean(0)}

    def losses(self, seen: Seen, task: Callable[[Tensor], Tensor]) -> Mapping[str, Tensor]:
        assert seen.text is not None
        assert seen.frozen is not None
        t, t0, v, v0 = (
            F.normalize(f.float(), dim=-1) for f in (seen.text, seen.taught["text"], seen.image, seen.frozen)
        )
        before = seen.scale * v0 @ t0.mT + seen.bias
        stray = F.kl_div(
            seen.logits.log_softmax(-1), before.log_softmax(-1), reduction="sum", log_target=True
        )
        return {
            "task": task(seen.logits),
            "text": self.text_weight * (t - t0).abs().mean(),
            "image": self.image_weight * (v - v0).abs().mean(),
            "logits": self.logits_weight * stray / seen.logits.numel(),
        }

    @torch.no_grad()
    def after_epoch(
        self, epoch: int, epochs: int, image: Tower, batches: Batches, head: nn.Linear | None
    ) -> None:
        mean = 0.75 * epochs if self.mean is None else self.mean
        std = max(0.05 * epochs, 1.0) if self.std is None else self.std
        if not std:
            return
        weight = gaussian(epochs, mean, std)[epoch - 1]
        for name, p in self._rows():
            total: Tensor = getattr(self, f"mean_{name}")
            if epoch == 1:
                total.zero_()
            total.add_(p, alpha=weight)
            if epoch == epochs:
                p.copy_(total)
