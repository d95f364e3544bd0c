"""Which weights of a network lie where: baselines that learn some of them ask here."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from torch import nn

from vpt.tower import Tower

__all__ = ["feature_names", "lowest_stage", "stage_of"]

BLOCK = re.compile(r"(?:^|\.)(?:blocks|resblocks|block|layers|layer)\.(\d+)\.")
NORMS = {"norm", "ln_post", "ln_final", "layernorm", "post_layernorm", "final_layer_norm"}
ABOVE = {"fc_norm", "attn_pool", "proj", "head", "text_projection", "projection"}


def feature_names(tower: Tower) -> list[str]:
    """Names of the parameters that the pooled features depend on: all but the network's own classifier."""
    model: Any = tower.model
    found = model.get_classifier() if hasattr(model, "get_classifier") else None
    heads = [m for m in (found if isinstance(found, tuple) else (found,)) if isinstance(m, nn.Module)]
    classifier = {id(p) for head in heads for p in head.parameters()}
    return [name for name, p in model.named_parameters() if id(p) not in classifier]


def stage_of(tower: Tower, name: str) -> str:
    """The stage whose step holds a parameter, by the names of timm, open_clip and transformers; "input" for all that
    stands in front of the blocks, and for what is not known.

    A closed tower is one step, so it is "input" there too.
    """
    if tower.closed:
        return "input"
    if found := BLOCK.search(name):
        return found[1]
    parts = name.removeprefix("trunk.").removeprefix("tower.").split(".")
    if parts[0] in ABOVE:
        return tower.stages[-2]
    front = parts[0].startswith(("patch_embed", "embeddings"))
    return str(tower.depth) if NORMS.intersection(parts[-2:-1]) and not front else "input"


def lowest_stage(tower: Tower, names: Iterable[str]) -> str:
    """The lowest stage of the tower that holds one of these parameters."""
    return min((stage_of(tower, name) for name in names), key=tower.index)
