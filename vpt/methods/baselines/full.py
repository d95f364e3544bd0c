"""Full fine-tuning: every weight below the network's classifier learns, with a new head.

The copy stays in evaluation mode: batch norm keeps its statistics, and the network's own dropout is off.
"""

from __future__ import annotations

from vpt.methods.baselines.weights import feature_names, lowest_stage
from vpt.methods.method import Method
from vpt.tower import Tower

__all__ = ["Full"]


class Full(Method):
    """No rows; :meth:`learn` makes the copy that learns."""

    def __init__(self, image: Tower) -> None:
        super().__init__()

    def learn(self, image: Tower) -> Tower:
        chosen = set(feature_names(image))
        return image.learning(chosen.__contains__, lowest_stage(image, chosen))
