"""A running average of what learns, which is measured and kept in its place."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from vpt.tasks.learning import Learning

__all__ = ["Average"]


class Average:
    """Exponential moving averages of what learners learned, one a learner.

    decay: of the average, which after n steps is at most (1 + n) / (10 + n), so that a short run forgets its start
    (the rule of TensorFlow's ExponentialMovingAverage with ``num_updates``, and of diffusers' EMAModel).
    """

    def __init__(self, learners: Sequence[Learning], decay: float) -> None:
        self.learners, self.decay, self.steps = learners, decay, 0
        self.kept = [_copies(learner) for learner in learners]

    @torch.no_grad()
    def update(self) -> None:
        """Take in what the learners are now; once a step."""
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        for learner, kept in zip(self.learners, self.kept, strict=True):
            for name, now in learner.learned().items():
                if now.is_floating_point():
                    kept[name].lerp_(now, 1 - decay)
                else:
                    kept[name].copy_(now)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange averages and learners; a second call undoes the first."""
        for learner, kept in zip(self.learners, self.kept, strict=True):
            for name, now in learner.learned().items():
                held = now.clone()
                now.copy_(kept[name])
                kept[name].copy_(held)

    @contextmanager
    def shown(self) -> Iterator[None]:
        """While it is open, the learners are their averages."""
        self.swap()
        try:
            yield
        finally:
            self.swap()

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"steps": self.steps, "kept": self.kept}

    def load(self, state: dict[str, Any]) -> None:
        """Go on from :meth:`state`."""
        self.steps = state["steps"]
        for kept, saved in zip(self.kept, state["kept"], strict=True):
            for name, t in kept.items():
                t.copy_(saved[name])


def _copies(learner: Learning) -> dict[str, Tensor]:
    return {name: t.detach().clone() for name, t in learner.learned().items()}
