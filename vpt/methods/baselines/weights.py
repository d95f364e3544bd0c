"""Which weights of a network lie where: baselines that learn some of them ask here."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from vpt.tower import Tower

__all__ = ["feature_names", "lowest_stage", "stage_of"]


def feature_names(image: Tower) -> list[str]:
    """Names of the parameters that the pooled features depend on: all but the network's own classifier."""
    model: Any = image.model
    found = model.get_classifier() if hasattr(model, "get_classifier") else None
    heads = [m for m in (found if isinstance(found, tuple) else (found,)) if isinstance(m, nn.Module)]
    classifier = {id(p) for head in heads for p in head.parameters()}
    return [name for name, p in model.named_parameters() if id(p) not in classifier]


def stage_of(image: Tower, name: str) -> str:
    """The stage whose step holds a parameter, by timm's names; "input" for all that stands in front of the
    blocks.

    A closed tower is one step, so it is "input" there too.
    """
    part, _, rest = name.partition(".")
    if image.closed:
        return "input"
    if part == "blocks":
        return rest.partition(".")[0]
    return {"norm": str(image.depth), "fc_norm": "normed", "attn_pool": "normed"}.get(part, "input")


def lowest_stage(image: Tower, names: Iterable[str]) -> str:
    """The lowest stage of the tower that holds one of these parameters."""
    return min((stage_of(image, name) for name in names), key=image.index)
