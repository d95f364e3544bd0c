"""What differs between objectives in a run: what is refused, what learns, what is measured, what comes out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lightning.pytorch.callbacks import Callback

from vpt.data.module import ImageData
from vpt.methods.method import Method
from vpt.objectives.classify import Classify
from vpt.objectives.objective import Objective
from vpt.promptset import PromptSet
from vpt.tasks.bound import Bound
from vpt.tasks.device import Machine
from vpt.tasks.learner import Learner
from vpt.tasks.learning import Learning
from vpt.tasks.measure import Numbers
from vpt.tasks.task import Recipe
from vpt.tasks.tuned import Tuned
from vpt.tower import Tower
from vpt.towers.backbone import Backbone

__all__ = ["Kind"]


class Kind:
    """Classes of labelled pictures; the others say what they do otherwise.

    captioned: the pictures have captions in place of labels.  held: the split that measures training as it goes.
    data: what is trained on.  methods_of: another objective, whose methods it takes too.
    """

    captioned = False
    data: type[Any] = ImageData
    methods_of = ""

    def check(self, name: str, method: Method, backbone: Backbone, recipe: Recipe) -> None:
        """Refuse what cannot be trained so; raises ValueError, before data are read."""
        if backbone.draws:
            raise ValueError(
                f"{backbone.name} draws pictures, and the objective {recipe.objective} needs features of them. Use "
                "--task text-to-image, or a timm, open_clip, hf or starter backbone."
            )
        if recipe.ema and type(method).after_epoch is not Method.after_epoch:
            raise ValueError(
                f"ema={recipe.ema} would undo what {name} does with its rows after every epoch. Set ema=0."
            )

    def held(self, data: ImageData) -> str:
        """The split that measures training; "" for none."""
        return "val" if data.protocol()["counts"].get("val") else ""

    def every(self, batches: int) -> int:
        """Epochs between two measurements of the held split. batches: of an epoch."""
        return 1

    def objective(self, backbone: Backbone, data: ImageData, recipe: Recipe) -> Objective:
        """The objective on these data."""
        return Classify(data.classes, data.multilabel, recipe.smoothing)

    def learner(
        self,
        method: Method,
        backbone: Backbone,
        classes: Sequence[str],
        towers: Mapping[str, Tower],
        recipe: Recipe,
    ) -> Learning:
        """What one learning rate trains."""
        return Learner(
            method,
            backbone,
            classes,
            towers=towers,
            zero_head=recipe.head == "zeros",
            captions=self.captioned,
            needs=recipe.consistency > 0,
            chunk=recipe.chunk,
        )

    def callbacks(self, machine: Machine, precision: str) -> list[Callback]:
        """What watches training. Raises ValueError for what the machine asks of it and it cannot do."""
        if machine.sample_every:
            raise ValueError(
                f"sample_every={machine.sample_every} draws pictures, which only text to image does. Leave it out."
            )
        return []

    def bound(self, backbone: Backbone, prompts: PromptSet, precision: str) -> Bound:
        """What is handed to the user."""
        return Tuned(backbone, prompts, precision=precision)

    def numbers(self, tuned: Any, learner: Learning, numbers: Numbers) -> dict[str, list[dict[str, Any]]]:
        """What is measured at the end."""
        return numbers.of(tuned)
