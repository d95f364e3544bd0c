"""A prompt set bound to a loaded backbone: predict, score, save."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from vpt.data.images import decode
from vpt.objectives.classify import Classify
from vpt.promptset import PromptSet
from vpt.tasks.device import autocast, resolve_device
from vpt.tasks.learner import build_method, logits_of
from vpt.tower import Tower
from vpt.towers.load import Backbone, load

__all__ = ["Evaluation", "Prediction", "Tuned", "load_prompts"]

Picture = str | os.PathLike[str] | Image.Image


class Prediction(NamedTuple):
    """picture: the path as given ("" for a picture in memory).  label: most probable class.  probability: in [0, 1].
    scores: the most probable classes with their probabilities, best first."""

    picture: str
    label: str
    probability: float
    scores: dict[str, float]


class Evaluation(NamedTuple):
    """metrics: by name.  scores: [N, K].  labels: [N] or [N, K].  keys: of the pictures.  confusion: [K true, K], or
    None for several labels a picture."""

    metrics: dict[str, float]
    scores: Tensor
    labels: Tensor
    keys: list[str]
    confusion: Tensor | None


class Tuned:
    """What training leaves: rows (or a baseline's weights) and a head on the backbone they were learned on."""

    def __init__(self, backbone: Backbone, prompts: PromptSet, *, precision: str = "32-true") -> None:
        self.backbone, self.prompts, self.precision = backbone, prompts, precision
        self.device = backbone.image.device

    @property
    def rows(self) -> dict[Any, Tensor]:
        """Rows by site, as ``vpt.encode`` takes them."""
        return self.prompts.rows

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes."""
        return self.prompts.classes

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """What was measured: name, value, split, count and seed."""
        return list(self.prompts.about.get("metrics") or [])

    @property
    def protocol(self) -> dict[str, Any]:
        """How it was measured."""
        return dict(self.prompts.about.get("protocol") or {})

    @cached_property
    def tower(self) -> Tower:
        """The tower that predicts: the frozen one, or for a baseline its own copy with the learned weights."""
        about, image = self.prompts.about, self.backbone.image
        if self.prompts.weights:
            method = about["method"]
            image = build_method(method["name"], self.backbone.towers, method["options"]).learn(image)
            wrong = image.model.load_state_dict(self.prompts.weights, strict=False).unexpected_keys
            if wrong:
                raise ValueError(
                    f"these baseline weights do not fit {self.backbone.name}: it has no {wrong[0]}."
                )
        return image.pooling(about.get("pool", "own"))

    @cached_property
    def _parts(self) -> tuple[dict[Any, Tensor], dict[str, Tensor]]:
        def here(tensors: Mapping[Any, Tensor]) -> dict[Any, Tensor]:
            return {k: v.to(self.device) for k, v in tensors.items()}

        return here(self.prompts.rows), here(self.prompts.head)

    @torch.inference_mode()
    def encode_image(self, images: Tensor) -> Tensor:
        """Features [batch, out] of preprocessed pictures [batch, 3, height, width], with the rows written."""
        with autocast(self.device, self.precision):
            return logits_of(self.tower, images.to(self.device), self._parts[0], "features")

    @torch.inference_mode()
    def logits(self, images: Tensor) -> Tensor:
        """Class logits [batch, K] of preprocessed pictures."""
        rows, head = self._parts
        reads = (self.prompts.about.get("head") or {}).get("reads", "features")
        with autocast(self.device, self.precision):
            features = logits_of(self.tower, images.to(self.device), rows, reads)
        return F.linear(features.float(), head["weight"], head["bias"])

    @property
    def objective(self) -> Classify:
        """The objective that the head was trained for."""
        return Classify(self.classes, multilabel=bool(self.prompts.about.get("multilabel")))

    def predict(
        self, pictures: Picture | Sequence[Picture], *, batch_size: int = 32, top: int = 5
    ) -> list[Prediction]:
        """Classes of picture files or PIL pictures, in their order. Raises UnreadableImage with the file's name."""
        given = [pictures] if isinstance(pictures, (str, os.PathLike, Image.Image)) else list(pictures)
        preprocess, found = self.backbone.preprocess, []
        for start in range(0, len(given), batch_size):
            part = given[start : start + batch_size]
            scores = self.objective.scores(
                self.logits(torch.stack([preprocess(decode(p)) for p in part]))
            ).cpu()
            best = scores.topk(min(top, scores.shape[1]), dim=1)
            for picture, values, places in zip(
                part, best.values.tolist(), best.indices.tolist(), strict=True
            ):
                named = {self.classes[i]: v for i, v in zip(places, values, strict=True)}
                path = "" if isinstance(picture, Image.Image) else str(picture)
                found.append(Prediction(path, self.classes[places[0]], values[0], named))
        return found

    def evaluate(self, batches: Iterable[Mapping[str, Any]]) -> Evaluation:
        """Metrics over batches of {"image", "label", "key"}; synchronised when several processes share them."""
        objective = self.objective
        metrics = objective.metrics()
        scores, labels, keys = [], [], []
        for batch in batches:
            scores.append(objective.scores(self.logits(batch["image"])).cpu())
            labels.append(objective.targets(batch))
            keys += list(batch["key"])
            metrics.update(scores[-1], labels[-1])
        found = {name: float(value) for name, value in metrics.compute().items()}
        every, truth = torch.cat(scores), torch.cat(labels)
        return Evaluation(found, every, truth, keys, objective.confusion(every, truth))

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the prompt file (or the baseline's weights file)."""
        return self.prompts.save(path)


def load_prompts(
    path: str | os.PathLike[str], backbone: Backbone | None = None, *, device: str = "auto"
) -> Tuned:
    """Bind a prompt file to its backbone, loaded by the name in the file where none is given.

    Raises BadPromptFile for a damaged file, ValueError for another backbone, with both values.
    """
    prompts = PromptSet.load(path)
    if backbone is None:
        made = prompts.about.get("backbone") or {}
        options = {k: made[k] for k in ("pretrained", "weights", "size") if k in made}
        backbone = load(made["name"], **options)
    prompts.check(backbone.towers.values(), backbone.preprocessing)
    for tower in backbone.towers.values():
        tower.model.to(resolve_device(device))
    return Tuned(backbone, prompts)
