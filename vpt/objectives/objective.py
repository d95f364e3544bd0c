"""What an objective says: how a batch becomes a loss, and what a model is measured by."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Protocol

from torch import Tensor

__all__ = ["Loss", "Model", "Objective"]

Loss = Callable[[Tensor], Tensor]  # of logits


class Model(Protocol):
    """What classify and retrieve ask of the model that learns; denoise asks for other things.

    classes: class names, or the captions of the training pictures.
    """

    classes: tuple[str, ...]

    def see(self, inputs: Any, frozen: Tensor | None = None, chosen: Tensor | None = None) -> Any:
        """One step: features and logits. chosen: numbers of the classes to compare with, by default all."""

    def rate(self, seen: Any, *, image: Tensor | None = None, text: Tensor | None = None) -> Tensor:
        """Logits of what was seen, or of other features in the place of those."""

    def stored_texts(self) -> Tensor | None:
        """Features of all classes where the text tower writes none, so that they stay as they are."""

    def __call__(self, inputs: Any) -> Tensor:
        """Logits [batch, K]."""

    def look(self, inputs: Any) -> Tensor:
        """Features of pictures [batch, out]."""

    def read(self, texts: Sequence[str]) -> Tensor:
        """Features of captions [N, out]."""


class Objective(Protocol):
    """classify, retrieve, denoise: batches and features to losses and metrics.

    classes: class names, or the captions of the training pictures.
    """

    @property
    def classes(self) -> Sequence[str]: ...

    @property
    def headline(self) -> str:
        """The metric that selects."""

    @property
    def better(self) -> Literal["max", "min"]:
        """Whether more of it is better, or less."""

    def metric(self) -> Any:
        """An empty metric of the val split."""

    def step(self, model: Any, inputs: Any, batch: Mapping[str, Any], epoch: int) -> tuple[Any, Loss]:
        """What the model saw, and the loss of logits between it."""

    def more(self, seen: Any) -> Mapping[str, Tensor]:
        """Terms of the loss beside the method's own."""

    def observe(self, metric: Any, model: Any, inputs: Any, batch: Mapping[str, Any]) -> None:
        """Put a batch into a metric."""

    def result(self, metric: Any, model: Any) -> dict[str, Tensor]:
        """Values by name, when all batches are in."""
