"""Learn a personal concept: a few pictures and a name in, a prompt file with one new word out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vpt.data.captions import open_captions
from vpt.data.collection import open_collection
from vpt.data.concept import FEW, TEMPLATES, ConceptPairs
from vpt.data.item import DataError, Source
from vpt.data.module import ImageData
from vpt.tasks.device import Machine
from vpt.tasks.task import Recipe
from vpt.tasks.tune import fit
from vpt.tasks.tuned import Tuned
from vpt.towers.backbone import Backbone

__all__ = ["RECIPE", "learn_concept"]

SKS = "sks"  # a word that means nothing to a tokenizer: what stands for a concept where no row does (POLAR)
RECIPE = Recipe(objective="retrieve", epochs=150, warmup=0.0, schedule="constant")


def learn_concept(
    backbone: Backbone,
    pictures: Source | str,
    background: Source | str,
    *,
    name: str = "my-concept",
    word: str = "thing",
    method: str = "concept",
    options: Mapping[str, Any] | None = None,
    recipe: Recipe = RECIPE,
    machine: Machine = Machine(),  # noqa: B008  frozen
    templates: Sequence[str] = TEMPLATES,
    limit: int = 1000,
    seed: int = 1,
) -> Tuned:
    """Rows for ``<name>`` from 3 to 10 pictures, told from the pictures of a background set with captions.

    One step sees all pictures: those without rows in their captions are read once. word: what kind of thing it is.
    method: "concept", or "polar" as a comparison, for which the word "sks" stands in the sentences.
    Raises ValueError or DataError, before anything is trained, for what cannot be used.
    """
    own = open_collection(pictures) if isinstance(pictures, str) else pictures
    beside = open_captions(background) if isinstance(background, str) else background
    count = sum(map(len, own.splits().values()))
    if not FEW[0] <= count <= FEW[1]:
        raise DataError(
            f"{own.name} has {count} pictures, wanted {FEW[0]} to {FEW[1]} of one thing. With more, learn a class: "
            "vpt fit."
        )
    rows = method == "concept"
    limit = 0 if recipe.loss == "pull" else limit  # true pairs of the background say nothing of the concept
    pairs = ConceptPairs(f"<{name}>" if rows else SKS, own, beside, templates, limit, seed)
    size = len(pairs.splits()["train"])
    data = ImageData(pairs, captions=True, batch_size=size, val=0.0, seed=seed)
    named = {"name": name, "word": word} if rows else {}
    return fit(backbone, data, method, {**named, **(options or {})}, recipe, machine)
