"""CLIP-LoRA, arXiv 2405.18541 (code: MaxZanella/CLIP-LoRA), through peft: LoRA in both towers of a CLIP, no head.

Class names are encoded anew in every step by the text tower that learns.

As published: separate updates of queries, keys and values in all blocks of both towers, rank 2, scale alpha /
sqrt(rank), dropout on the updates' input. peft's own layer for torch's attention has one update for the three
together, always adapts the output projection, and takes no dropout; so the copy's attention is split into layers of
its own first. Differs: timm's towers behind open_clip project queries, keys and values by one matrix, which then gets
one update; one sequence holds all class names, so that dropout falls on what they share once.
"""

from __future__ import annotations

from vpt.methods.baselines.lora import LoRA, adaptable
from vpt.methods.templates import checked
from vpt.tower import Tower

__all__ = ["ClipLoRA"]


class ClipLoRA(LoRA):
    """rank, alpha, dropout: as in :class:`vpt.methods.baselines.lora.LoRA`.  template: how class names are said."""

    named = True
    rank_stable = True

    def __init__(
        self,
        image: Tower,
        text: Tower,
        *,
        rank: int = 2,
        alpha: int = 1,
        dropout: float = 0.25,
        template: str = "a photo of a {}.",
    ) -> None:
        super().__init__(image, rank=rank, alpha=alpha, dropout=dropout)
        adaptable(text.model, self.projections)
        self.sentence = checked(template)
