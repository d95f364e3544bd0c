"""Bias-only tuning (BitFit, arXiv 2106.10199; "tinytl-bias" in VPT's code).

Every bias of the blocks and above them learns, norms included. What stands in front of the blocks stays
frozen, so that a convolutional stem needs no backward; VPT's code also learns the one bias of the patch
embedding. A closed tower learns all of its biases.
"""

from __future__ import annotations

from vpt.methods.baselines.weights import feature_names, lowest_stage, stage_of
from vpt.methods.method import Method
from vpt.tower import Tower

__all__ = ["Bias"]


class Bias(Method):
    """No rows; :meth:`learn` makes the copy that learns, and raises ValueError where there are no biases."""

    def __init__(self, image: Tower) -> None:
        super().__init__()

    def learn(self, tower: Tower) -> Tower:
        biases = {
            name for name in feature_names(tower) if name.endswith("bias")
        }  # also Eva's q_bias and v_bias
        if not tower.closed:
            biases = {name for name in biases if stage_of(tower, name) != "input"}
        if not biases:
            raise ValueError(
                f"this {type(tower.model).__name__} has no biases to learn. Choose another baseline."
            )
        return tower.learning(biases.__contains__, lowest_stage(tower, biases))
