"""The kinds of runs by their objectives."""

from __future__ import annotations

from vpt.data.module import ImageData
from vpt.methods.method import Method
from vpt.objectives.objective import Objective
from vpt.tasks.kind import Kind
from vpt.tasks.pairs import check_retrieval, pairs_objective
from vpt.tasks.task import Recipe
from vpt.towers.backbone import Backbone

__all__ = ["kind_of"]


class Pairs(Kind):
    """Captions that pictures are found by."""

    captioned = True

    def check(self, name: str, method: Method, backbone: Backbone, recipe: Recipe) -> None:
        super().check(name, method, backbone, recipe)
        check_retrieval(name, method, backbone, recipe)

    def objective(self, backbone: Backbone, data: ImageData, recipe: Recipe) -> Objective:
        return pairs_objective(data, recipe)


def kind_of(objective: str) -> Kind:
    """The kind of an objective."""
    if objective == "denoise":
        from vpt.tasks.noise import Noise  # diffusers takes seconds to import

        return Noise()
    if objective == "reward":
        from vpt.tasks.reward import Rewarded

        return Rewarded()
    return {"classify": Kind, "retrieve": Pairs}[objective]()
