"""Objective reward: rows are moved towards pictures that a reward likes, through the steps that drew them.

Backward through the last denoising steps: DRaFT (arXiv 2309.17400). Of the negative side's rows: ReNeg (arXiv
2412.19637). A reward that is trained on is no fair measure of the pictures; look at them, or measure with another.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torchmetrics import MeanMetric
from torchvision.transforms.functional import InterpolationMode, center_crop, normalize, resize

from vpt.encode import encode
from vpt.objectives.objective import Loss
from vpt.text import encode_text, lay
from vpt.towers.backbone import Backbone

__all__ = ["Judge", "Likeness", "Reward", "prepared", "scores"]

Judge = Callable[[Tensor, Sequence[str]], Any]
"""Pictures [batch, 3, height, width] in [0, 1] and what they should show, to a number each [batch]; more is better."""


def prepared(pictures: Tensor, config: Mapping[str, Any]) -> Tensor:
    """Pictures [batch, 3, height, width] in [0, 1] as a network of this preprocessing reads them, differentiably.

    The picture is scaled to fill ``input_size`` over ``crop_pct``, antialiased as Pillow does, and its middle cut out.
    """
    _, height, width = config["input_size"]
    whole = [math.floor(side / (config.get("crop_pct") or 1.0)) for side in (height, width)]
    if config.get("crop_mode") != "squash":
        scale = max(side / own for side, own in zip(whole, pictures.shape[2:], strict=True))
        whole = [max(side, int(own * scale)) for side, own in zip(whole, pictures.shape[2:], strict=True)]
    mode = InterpolationMode(config.get("interpolation") or "bicubic")
    x = center_crop(resize(pictures, whole, mode, antialias=True).clamp(0, 1), [height, width])
    return normalize(x, list(config["mean"]), list(config["std"]))


class Likeness:
    """Cosine of a picture's features with those of its prompt, of other words, or of a picture: in [-1, 1].

    backbone: frozen.  words: in place of the prompts.  picture: in place of words.
    Raises ValueError for words and a backbone without a text tower.
    """

    def __init__(self, backbone: Backbone, words: str = "", picture: Image.Image | None = None) -> None:
        self.backbone = backbone
        self.wanted: Tensor | None = None
        with torch.no_grad():
            if picture is not None:
                self.wanted = encode(backbone.image, backbone.preprocess(picture)[None])
            elif words:
                self.wanted = self._read([words])
        if picture is None:
            _ = backbone.text  # raises, with those that have one

    def _read(self, texts: Sequence[str]) -> Tensor:
        """Features [N, out] of sentences, without their last words where they are too long."""
        text, tokens = self.backbone.text, self.backbone.tokens
        return encode_text(
            text, lay(text, [tokens.sentence("{}", tokens.fitted("{}", t)[0]) for t in texts]), {}
        )

    def __call__(self, pictures: Tensor, prompts: Sequence[str]) -> Tensor:
        for tower in self.backbone.towers.values():
            tower.model.to(pictures.device)
        seen = encode(self.backbone.image, prepared(pictures, self.backbone.preprocessing))
        with torch.no_grad():
            wanted = self._read(prompts) if self.wanted is None else self.wanted.to(pictures.device)
        return F.cosine_similarity(seen.float(), wanted.float(), dim=-1)


def scores(judge: Judge, pictures: Tensor, prompts: Sequence[str], name: str = "the reward") -> Tensor:
    """What a reward says of pictures [batch]. Raises ValueError for what is not a finite number each."""
    found = judge(pictures, prompts)
    values = torch.as_tensor(found, device=pictures.device).to(pictures.dtype)
    if values.shape != (len(pictures),):
        raise ValueError(
            f"{name} gave the shape {list(values.shape)} for {len(pictures)} pictures. Wanted a number each: "
            f"[{len(pictures)}]."
        )
    if not (fine := values.isfinite()).all():
        i = int((~fine).nonzero()[0])
        raise ValueError(
            f"{name} gave {values[i].item()} for the prompt {prompts[i]!r}. Wanted finite numbers; mend the reward."
        )
    return values


class Drawer(Protocol):
    """What this objective asks of the model that learns."""

    def draw(self, seeds: Tensor, prompts: Sequence[str], *, last: int | None = None) -> Tensor:
        """Pictures in [0, 1] of prompts, each from its seed; last: steps under autograd, by default the recipe's."""

    def said(self, prompt: str) -> str:
        """The prompt with words for its placeholders."""

    def seen(self, seeds: Tensor, rewards: Tensor) -> Any:
        """What the method's losses look at."""

    def strayed(self) -> Tensor:
        """How far rows are from their start: squares, as a share of the start's."""


@dataclass(frozen=True)
class Reward:
    """The mean reward of pictures of the prompts, as much as it can be; their numbers are in the batch.

    prompts, held: to train and to measure on.  near: weight of staying near the rows' start.  name: of the reward.
    """

    judge: Judge
    prompts: Sequence[str]
    held: Sequence[str]
    near: float = 0.0
    name: str = "the reward"

    @property
    def classes(self) -> tuple[str, ...]:
        """There are none."""
        return ()

    @property
    def headline(self) -> str:
        """The mean reward."""
        return "reward"

    @property
    def better(self) -> Literal["max", "min"]:
        return "max"

    def metric(self) -> MeanMetric:
        """The mean over prompts and seeds."""
        return MeanMetric()

    def refuse_flat(self, size: tuple[int, int], device: torch.device) -> None:
        """Raise ValueError for a reward without a gradient to the pictures, before any is drawn."""
        grey = torch.full((2, 3, *size), 0.5, device=device, requires_grad=True)
        with torch.enable_grad():
            found = scores(self.judge, grey, ["a picture"] * 2, self.name)
        if not found.requires_grad:
            raise ValueError(
                f"{self.name} has no gradient to the pictures. Set optimizer=cma, which needs none (vpt.tasks.evolve)."
            )

    def score(self, model: Drawer, seeds: Tensor, prompts: Sequence[str], last: int | None = None) -> Tensor:
        """Rewards [batch] of pictures that are drawn now."""
        pictures = model.draw(seeds, prompts, last=last)
        return scores(self.judge, pictures, [model.said(prompt) for prompt in prompts], self.name)

    def step(self, model: Drawer, inputs: Any, batch: Mapping[str, Any], epoch: int) -> tuple[Any, Loss]:
        """The rewards in the place of logits."""
        seeds = _seeds(inputs)
        found = self.score(model, seeds, [self.prompts[i] for i in batch["index"].tolist()])

        def loss(rewards: Tensor) -> Tensor:
            return self.near * model.strayed() - rewards.mean()

        return model.seen(seeds, found), loss

    def more(self, seen: Any) -> Mapping[str, Tensor]:
        """Terms beside the method's own: none."""
        return {}

    def observe(self, metric: MeanMetric, model: Drawer, inputs: Any, batch: Mapping[str, Any]) -> None:
        """Rewards of the held prompts with their own seeds."""
        prompts = [self.held[i] for i in batch["index"].tolist()]
        metric.update(self.score(model, _seeds(inputs), prompts, last=0))

    def result(self, metric: MeanMetric, model: Any) -> dict[str, Tensor]:
        """The mean reward."""
        return {"reward": metric.compute()}


def _seeds(inputs: Any) -> Tensor:
    """[batch]; a stream holds them where several learning rates share a batch."""
    seeds = getattr(inputs, "x", inputs)
    assert isinstance(seeds, Tensor)
    return seeds
