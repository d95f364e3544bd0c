"""Full fine-tuning: every weight below the network's classifier learns, with a new head or, of a CLIP, with names.

With names both towers learn, from the zero-shot model on; the scale of the logits stays.
The copy stays in evaluation mode: batch norm keeps its statistics, and the network's own dropout is off.
"""

from __future__ import annotations

from vpt.methods.baselines.weights import feature_names, lowest_stage
from vpt.methods.method import Method
from vpt.methods.templates import checked
from vpt.tower import Tower

__all__ = ["ClipFull", "Full"]


class Full(Method):
    """No rows; :meth:`learn` makes the copy that learns."""

    def __init__(self, image: Tower) -> None:
        super().__init__()

    def learn(self, tower: Tower) -> Tower:
        chosen = set(feature_names(tower))
        return tower.learning(chosen.__contains__, lowest_stage(tower, chosen))


class ClipFull(Full):
    """Both towers learn; names are encoded anew in every step.  template: how they are said."""

    named = True

    def __init__(self, image: Tower, *, template: str = "a photo of a {}.") -> None:
        super().__init__(image)
        self.sentence = checked(template)
