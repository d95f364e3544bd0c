"""Rows in the context of a diffusion network: joined to the sequence that its cross-attention reads.

Positive rows stand behind every sentence of a style or a domain; negative rows are the other side of guidance, and at
every place they are a learned negative prompt (ReNeg, arXiv 2412.19637).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from vpt.methods.method import Method
from vpt.methods.textual_inversion import check_word
from vpt.prompt import Context, Prompt, Site, given

if TYPE_CHECKING:
    from vpt.towers.diffusion import Diffusion

__all__ = ["ContextRows"]


class ContextRows(Method):
    """Rows at the slot "positive" or "negative" of the context; they start from the states of ``words``.

    length: rows; 0: as many as the sequence has places, where its length is fixed.
    words: a sentence whose states the rows start from, the last of them first filled; "" is the empty prompt.
    concept, word: a placeholder that captions may say, read as its word, so that the same captions serve all methods.
    """

    def __init__(
        self,
        pipeline: Diffusion,
        *,
        length: int = 4,
        side: Literal["positive", "negative"] = "positive",
        words: str = "",
        concept: str = "my-concept",
        word: str = "thing",
    ) -> None:
        super().__init__()
        self.placeholders = {check_word(concept, word): word}
        with torch.no_grad():
            states = pipeline.embeds(words, guided=False)["prompt_embeds"][0].float()
        if not length and not pipeline.family.fixed:
            raise ValueError(
                f"the context of {pipeline.kind} has no fixed length. Say how many rows: length=8."
            )
        count = length or len(states)
        if count > len(states) and pipeline.family.fixed:
            raise ValueError(
                f"length={length} rows do not fit the {len(states)} places of {pipeline.kind}'s context."
            )
        start = (
            states[torch.arange(count) % len(states)]
            if not pipeline.family.fixed
            else states[len(states) - count :]
        )
        self.prompt = Prompt("context", side, ["embedded"], count, states.shape[-1], init=given(start))

    def forward(self, context: Context) -> dict[Site, Tensor]:
        return self.prompt(context)
