"""Objective classify: one class a picture (cross-entropy), or several (binary cross-entropy)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import MetricCollection
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassCalibrationError,
    MulticlassConfusionMatrix,
    MultilabelAveragePrecision,
    MultilabelF1Score,
)

from vpt.objectives.objective import Model

__all__ = ["Classify"]


@dataclass(frozen=True)
class Classify:
    """classes: their names.  multilabel: targets are [batch, K] of 0 and 1.  smoothing: of the labels, in [0, 1)."""

    classes: Sequence[str]
    multilabel: bool = False
    smoothing: float = 0.0

    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """Mean loss of logits [batch, K]; target: class numbers [batch], or weights [batch, K] (mixup, multi-label)."""
        logits = logits.float()
        if self.multilabel:
            return F.binary_cross_entropy_with_logits(logits, target.float())
        return F.cross_entropy(logits, target, label_smoothing=self.smoothing)

    @property
    def headline(self) -> str:
        """The metric that selects: top-1 accuracy, or mean average precision."""
        return "map" if self.multilabel else "top1"

    @property
    def better(self) -> Literal["max", "min"]:
        return "max"

    def step(
        self, model: Model, inputs: Any, batch: Mapping[str, Any], epoch: int
    ) -> tuple[Any, Callable[[Tensor], Tensor]]:
        """What the model saw, and the loss of its logits; ``target`` in the batch stands in for its labels (mixup)."""
        target = batch.get("target", batch["label"])
        return model.see(inputs, batch.get("frozen")), lambda logits: self.loss(logits, target)

    def more(self, seen: Any) -> Mapping[str, Tensor]:
        """Terms beside the method's own: none."""
        return {}

    def observe(self, metric: MetricCollection, model: Model, inputs: Any, batch: Mapping[str, Any]) -> None:
        """Put a batch into the metrics."""
        metric.update(self.scores(model(inputs)), self.targets(batch))

    def result(self, metric: MetricCollection, model: Model) -> dict[str, Tensor]:
        """Values by name."""
        return metric.compute()

    def metric(self) -> MetricCollection:
        """top1, top5 (above 5 classes), mean accuracy a class, calibration error; map and f1 for several labels."""
        k = len(self.classes)
        if self.multilabel:
            return MetricCollection({"map": MultilabelAveragePrecision(k), "f1": MultilabelF1Score(k)})
        found: dict[str, Any] = {
            "top1": MulticlassAccuracy(k, average="micro"),
            "mean_per_class": MulticlassAccuracy(k, average="macro"),
            "ece": MulticlassCalibrationError(k, n_bins=15),
        }
        if k > 5:
            found["top5"] = MulticlassAccuracy(k, average="micro", top_k=5)
        return MetricCollection(found)

    def confusion(self, scores: Tensor, target: Tensor) -> Tensor | None:
        """Counts [K true, K predicted]; None for several labels a picture."""
        if self.multilabel:
            return None
        return MulticlassConfusionMatrix(len(self.classes))(scores, target)

    def scores(self, logits: Tensor) -> Tensor:
        """Probabilities [batch, K]."""
        return logits.float().sigmoid() if self.multilabel else logits.float().softmax(-1)

    def targets(self, batch: Mapping[str, Any]) -> Tensor:
        """The batch's labels as metrics read them."""
        label: Tensor = batch["label"]
        return label.to(torch.int64)
