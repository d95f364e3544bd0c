"""A personal concept: rows that a few pictures teach a new word, such as ``<my-mug>``, for search and generation.

The word stands in captions: pictures of the concept have "a photo of <my-mug>", and background pictures their own,
all under one contrastive objective, so that the rows must tell the concept from the rest and still mean a thing that
sentences can be built around. Rows at the embedding layer are those of textual inversion (arXiv 2208.01618), which
learns them by a loss on true pairs alone (loss "pull", no background).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from vpt.methods.method import Method, Say, Seen, deep
from vpt.methods.textual_inversion import check_word
from vpt.prompt import Context, Prompt, Site
from vpt.tower import Tower
from vpt.towers.tokens import Tokens

__all__ = ["Concept"]


class Concept(Method):
    """Rows at one placeholder.

    name: of the concept, the placeholder without its brackets.  word: what kind of thing it is; its embedding is the
    start.  length: rows; more than the word has tokens repeat these.  layers: of the text tower that get their own.
    near: weight of 1 - cosine between a sentence with the concept and the same with the word. On drawn scenes 0.1 finds
    more in context than 0 on the mean of characters (``vpt concept scenes``).
    Raises ValueError for a name that is no placeholder, and for an empty word.
    """

    named = True
    sentence = "{}"

    def __init__(
        self,
        text: Tower,
        tokens: Tokens,
        *,
        name: str = "my-concept",
        word: str = "thing",
        length: int = 1,
        layers: int = 1,
        near: float = 0.1,
    ) -> None:
        super().__init__()
        self.slot, self.word, self.near = check_word(name, word), word, near
        self.placeholders = {self.slot: word}
        vectors = tokens.embed(word)
        self.text_prompt = Prompt(text.name, self.slot, deep("embedded", layers, text), length, text.width)
        rows = self.text_prompt.table().detach().clone()
        rows[0] = vectors[torch.arange(length) % len(vectors)]
        self.text_prompt.fill(rows)

    def forward(self, context: Context) -> dict[Site, Tensor]:
        return self.text_prompt(context)

    def teach(self, say: Say) -> dict[str, Tensor]:
        """Features of the captions that name the concept, with the word in its place; zeros for the others."""
        own = [i for i, caption in enumerate(say.classes) if self.slot in caption]
        if not self.near or not own:
            return {}
        told = say.encode([say.classes[i].replace(self.slot, self.word) for i in own])
        found = told.new_zeros(len(say.classes), told.shape[-1])
        return {"word": found.index_copy(0, torch.tensor(own, device=told.device), told)}

    def losses(self, seen: Seen, task: Callable[[Tensor], Tensor]) -> Mapping[str, Tensor]:
        terms = {"task": task(seen.logits)}
        if "word" in seen.taught:
            assert seen.text is not None
            word = seen.taught["word"].float()
            own = word.any(-1)
            stray = 1 - F.cosine_similarity(seen.text.float()[own], word[own], dim=-1).mean()
            terms["near"] = self.near * stray
        return terms
