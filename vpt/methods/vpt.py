"""VPT, Visual Prompt Tuning, arXiv 2203.12119 (code: KMnP/vpt), as published.

Rows enter behind the class token after the position embedding, and get none; deep rows are replaced before
every block. One projection, shared by all layers, may make them from narrower ones; dropout acts on the
projected rows. Rows that begin above block 0 are opened there; the authors' "reverse deep" variant, which
overwrites patches instead, is what happens to a stream whose places for "prefix" are given.
"""

from __future__ import annotations

from functools import partial
from typing import Literal

from torch import Tensor, nn

from vpt.methods.method import Batches, Method, layers_of
from vpt.prompt import Context, LowRank, Prompt, Shared, Site, Table, normal, uniform, xavier
from vpt.start import rows_from_data
from vpt.tower import Tower

__all__ = ["VPT"]

Start = Literal["xavier", "normal", "uniform", "kmeans", "vipamin"]


class VPT(Method):
    """Learned rows in a vision transformer.

    length: rows a layer.  layers: "first" is VPT-shallow, "all" VPT-deep, or a range (:func:`layers_of`).
    project: width of the rows in front of the shared projection; None: no projection.
    dropout: on the rows, per sample; the authors use 0.1 for deep and 0 for shallow.
    init: "xavier" as published; "normal" and "uniform" at 0.02; "kmeans" and "vipamin" (arXiv 2510.16446)
        from the patch tokens of the training pictures at that layer (:mod:`vpt.start`).
    shared: one set of rows for all layers.  rank: rows as a product of two thin tables.
    pool: "own" as the network pools; "image", "prompt", "global" are the paper's variants.
    """

    def __init__(
        self,
        image: Tower,
        *,
        length: int = 10,
        layers: str = "all",
        project: int | None = None,
        dropout: float = 0.0,
        init: Start = "xavier",
        shared: bool = False,
        rank: int | None = None,
        pool: Literal["own", "image", "prompt", "global"] = "own",
    ) -> None:
        super().__init__()
        if shared and rank:
            raise ValueError("shared rows are one set already: give shared or rank, not both.")
        if init in ("kmeans", "vipamin") and project:
            raise ValueError(
                f"init={init!r} gives rows of the tower's width and cannot start project={project}."
            )
        inner = project or image.width
        fills = {"normal": normal(0.02), "uniform": uniform(0.02)}
        through = None
        if project:
            through = nn.Linear(project, image.width)
            nn.init.kaiming_normal_(through.weight, a=0, mode="fan_out")  # KMnP/vpt, vit_prompt/vit.py
        self.image_prompt = Prompt(
            image.name,
            "prefix",
            layers_of(image, layers),
            length,
            image.width,
            table=Shared if shared else partial(LowRank, rank=rank) if rank else Table,
            init=fills.get(init, xavier(image.patch, inner)),
            through=through,
            inner=inner,
            dropout=dropout,
        )
        self.pool, self.init = pool, init

    def forward(self, context: Context) -> dict[Site, Tensor]:
        return self.image_prompt(context)

    def start(self, image: Tower, batches: Batches, head: nn.Linear | None) -> None:
        if self.init in ("kmeans", "vipamin"):
            pictures = next(iter(batches()))["image"]
            self.image_prompt.fill(rows_from_data(image, self.image_prompt, pictures, self.init))
