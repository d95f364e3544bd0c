"""What a number means: which data, how pictures reach the network, how it was trained, what val was for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vpt.methods.method import Method
from vpt.tasks.task import Recipe
from vpt.towers.backbone import Backbone

__all__ = ["protocol_of", "reaches", "recipe_of"]


def protocol_of(
    backbone: Backbone,
    data: Mapping[str, Any],
    method: Method,
    recipe: Recipe,
    lrs: Sequence[float],
    train: Mapping[str, Any],
    precision: str,
) -> dict[str, Any]:
    """The label of a run.  data: its own label.  lrs: rates tried.  train: what is kept of it."""
    stops = method.trains and recipe.patience
    chosen = {
        "the learning rate": method.trains and len(lrs) > 1,
        "strengths": type(method).solve is not Method.solve,
        "when to stop": stops,
    }
    decided = ", ".join(what for what, so in chosen.items() if so)
    return {
        **data,
        "task": recipe.objective,
        "selection": f"early stop, patience {recipe.patience}" if stops else "no early stop",
        "lr_grid": list(lrs),
        "inductive": True,  # nothing here trains on test pictures, with or without their labels
        "preprocessing": reaches(backbone),
        "validation": f"chose {decided}" if decided else "not used",
        "precision": precision,
        "trained": recipe_of(train),
    }


def reaches(backbone: Backbone) -> str:
    """How pictures reach the network, in a line."""
    p = backbone.preprocessing
    size = "x".join(map(str, p["input_size"][1:]))
    return f"{p['crop_mode']} {size}, {p['crop_pct']:g} of it, {p['interpolation']}"


def recipe_of(train: Mapping[str, Any]) -> str:
    """Epochs, batch, optimizer and schedule of a run in a line; "not by gradient" where it made no steps."""
    if "stopped" in train:
        return f"stopped: {train['stopped']}"
    if not train["steps"]:
        return "not by gradient"
    return (
        f"{train['epochs']} epochs of batch {train['batch_size']}, {train['optimizer']} with "
        f"{train['lr']:g}, {train['schedule']}"
    )
