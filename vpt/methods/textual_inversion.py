"""Textual inversion, arXiv 2208.01618: rows for a new word, learned through a frozen diffusion pipeline.

Variants that are options: several rows (section 4.2 of the paper), rows at deeper layers too, one set of rows a
cross-attention (P+, arXiv 2303.09522), and rows that keep their length and turn (DTI, arXiv 2512.13672).
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vpt.methods.method import Method, deep
from vpt.prompt import Context, Init, Prompt, Site, Table, given
from vpt.towers.tokens import PLACEHOLDER

if TYPE_CHECKING:
    from vpt.towers.diffusion import Diffusion

__all__ = ["PPlus", "TextualInversion", "Turned", "check_word"]


def check_word(name: str, word: str) -> str:
    """The placeholder of a name, with or without brackets. Raises ValueError for none, and for an empty word."""
    slot = f"<{name.strip('<>')}>"
    if not (found := PLACEHOLDER.fullmatch(slot)) or found[2] or name == "ctx":
        raise ValueError(
            f"a concept cannot be called {name!r}. Use letters, digits, - and _, such as my-mug; ctx is taken."
        )
    if not word.strip():
        raise ValueError("word is empty. Say what kind of thing the concept is, such as mug.")
    return slot


class Turned(nn.Module):
    """Rows of a fixed length: the table holds directions, ``forward() -> [layers, n, width]`` scales them.

    norm: the length of every row.
    """

    def __init__(self, layers: int, length: int, width: int, init: Init, *, norm: float) -> None:
        super().__init__()
        self.rows = nn.Parameter(torch.empty(layers, length, width))
        self.norm = norm
        with torch.no_grad():
            init(self.rows)
            self.rows.copy_(F.normalize(self.rows, dim=-1))

    def forward(self) -> Tensor:
        return self.norm * F.normalize(self.rows, dim=-1)


class TextualInversion(Method):
    """Rows at one placeholder of every CLIP encoder of the pipeline; where it has none, of its one encoder.

    concept: its name, the placeholder without its brackets.  word: what kind of thing it is; its embedding is the
    start, and encoders that learn nothing read it in the placeholder's place.  length: rows an encoder.
    layers: of CLIP's encoders that get rows of their own.
    norm: "free", or "fixed" to the mean length of the vocabulary (DTI); then optimizer=direction turns the rows.
    encoders: which learn, such as "text,text_2"; by default CLIP's.
    """

    def __init__(
        self,
        pipeline: Diffusion,
        *,
        concept: str = "my-concept",
        word: str = "thing",
        length: int = 1,
        layers: int = 1,
        norm: Literal["free", "fixed"] = "free",
        encoders: str = "",
    ) -> None:
        super().__init__()
        self.slot = check_word(concept, word)
        self.placeholders = {self.slot: word}
        self.directed = norm == "fixed"
        self.prompts = nn.ModuleDict()
        for encoder in _chosen(pipeline, encoders):
            tower = pipeline.towers[encoder]
            if layers > 1 and tower.depth < layers:
                raise ValueError(
                    f"layers={layers} does not fit the encoder {encoder!r} of {pipeline.name}, which opens "
                    f"{tower.depth or 1}. Deep rows are for CLIP's encoders."
                )
            stages = deep("embedded", layers, tower) if layers > 1 else ["embedded"]
            vectors = pipeline.vectors(encoder, word)
            rows = vectors[torch.arange(length) % len(vectors)]
            table = partial(Turned, norm=pipeline.length(encoder)) if self.directed else Table
            first = torch.randn(len(stages), length, tower.width) * rows.std() if layers > 1 else rows[None]
            first[0] = rows
            self.prompts[encoder] = Prompt(
                encoder, self.slot, stages, length, tower.width, table=table, init=given(first)
            )

    def forward(self, context: Context) -> dict[Site, Tensor]:
        return {site: r for prompt in self.prompts.values() for site, r in prompt(context).items()}


class PPlus(Method):
    """P+ (arXiv 2303.09522, section 4): rows for a new word, a set of its own for each cross-attention of the U-Net.

    concept, word: see :class:`TextualInversion`.  length: rows a set.
    Raises ValueError for a pipeline whose network is no U-Net.
    """

    def __init__(
        self, pipeline: Diffusion, *, concept: str = "my-concept", word: str = "thing", length: int = 1
    ) -> None:
        super().__init__()
        self.slot = check_word(concept, word)
        self.placeholders = {self.slot: word}
        count = len(pipeline.cross_attentions)
        if not count:
            raise ValueError(
                f"P+ has rows for each cross-attention of a U-Net, and {pipeline.name} is a {pipeline.kind} pipeline "
                "without one. Use textual-inversion."
            )
        self.rows = nn.ParameterDict()
        for encoder in _chosen(pipeline, ""):
            vectors = pipeline.vectors(encoder, word)[
                torch.arange(length) % len(pipeline.vectors(encoder, word))
            ]
            self.rows[encoder] = nn.Parameter(vectors.repeat(count, 1, 1))

    def forward(self, context: Context) -> dict[Site, Tensor]:
        return {Site(encoder, "embedded", self.slot): rows for encoder, rows in self.rows.items()}


def _chosen(pipeline: Diffusion, encoders: str) -> list[str]:
    """Names of the encoders that learn. Raises ValueError for one that the pipeline lacks."""
    if not encoders:
        return [name for name, tower in pipeline.encoders.items() if tower.depth] or [
            next(iter(pipeline.encoders))
        ]
    chosen = [name.strip() for name in encoders.split(",")]
    if wrong := [name for name in chosen if name not in pipeline.encoders]:
        raise ValueError(f"{pipeline.name} has no encoder {wrong[0]!r}, but {', '.join(pipeline.encoders)}.")
    return chosen
