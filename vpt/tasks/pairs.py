"""What training on captions asks of a method, and what it is compared with: the frozen model as it is."""

from __future__ import annotations

from typing import Any

from vpt.data.module import ImageData
from vpt.methods.method import Method
from vpt.objectives.captions import Captions
from vpt.objectives.retrieve import Retrieve
from vpt.promptset import PromptSet
from vpt.tasks.task import Recipe
from vpt.tasks.tuned import Tuned
from vpt.towers.backbone import Backbone

__all__ = ["check_kind", "check_retrieval", "pairs_objective", "plainly"]


def pairs_objective(data: ImageData, recipe: Recipe) -> Retrieve:
    """The objective of a recipe on the captions of train and val."""
    counts = data.protocol()["counts"]
    train, val = (
        Captions.gather(data.captions(split) if counts.get(split) else ()) for split in ("train", "val")
    )
    return Retrieve(train, val, recipe.loss, recipe.captions, recipe.consistency, data.seed)


def plainly(backbone: Backbone, precision: str = "32-true") -> Tuned:
    """The frozen model as it is: pictures, and captions without rows."""
    about = {"task": "retrieve", "names": {"sentence": "{}", "class_specific": False}}
    return Tuned(backbone, PromptSet(about=about), precision=precision)


def check_kind(data: Any, recipe: Recipe, captioned: bool, kind: type[Any] = ImageData) -> None:
    """Refuse data of another kind; raises ValueError."""
    if not isinstance(data, kind):
        raise ValueError(
            f"the objective {recipe.objective} needs {kind.__name__}, and these are {type(data).__name__}: a reward is "
            "trained on prompts, other objectives on pictures."
        )
    if captioned != data.captioned:
        raise ValueError(
            f"the objective {recipe.objective} needs data with {'captions' if captioned else 'labels'}. Give captions="
            f"{captioned} with them, or another objective."
        )


def check_retrieval(name: str, method: Method, backbone: Backbone, recipe: Recipe) -> None:
    """Refuse what cannot be compared with captions; raises ValueError."""
    why = ""
    if not method.named:
        why = "it has a head for classes"
    elif method.class_specific or method.per_sample:
        why = "its rows belong to one class each, or to one picture"
    elif type(method).solve is not Method.solve:
        why = "it solves for the weights of classes"
    if why:
        raise ValueError(
            f"{name} cannot be trained on captions: {why}. Choose coop, kgcoop, clip-vpt, ivlp, maple or promptsrc, "
            "or a baseline: zero-shot, clip-lora, clip-full."
        )
    if recipe.loss == "sigmoid" and not backbone.bias:
        raise ValueError(
            f"{backbone.name} has no bias of its logits, so with the sigmoid loss every pair would start as true. "
            "Use loss=infonce, or a SigLIP."
        )
    if recipe.mixup or recipe.smoothing:
        raise ValueError("mixup and smoothing are of class labels; captions take neither. Set both to 0.")
