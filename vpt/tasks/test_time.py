"""Adapting to one test picture: TPT, arXiv 2209.07511 (code: azshue/TPT), ZERO, arXiv 2405.18330 (FarinaMatteo/zero).

Both look at a picture in many views and keep those of which the model is surest. TPT makes the mean of their
predictions surer by a step on the text rows, predicts the picture, and forgets the step; ZERO lets each view vote.
Several pictures adapt side by side, each from the same rows with an optimiser state of its own, which is exact: the
first pass over the class names is then the same for all pictures, and is made once.

Left out of TPT: AugMix, which the authors mix into the views of the fine-grained sets.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torchvision import transforms

from vpt.data.pictures import eval_transform
from vpt.encode import encode
from vpt.methods.method import Method
from vpt.prompt import Site
from vpt.tasks.device import autocast
from vpt.tasks.learner import Learner
from vpt.text import encode_text

__all__ = ["Adaptation", "Adapted", "Adapter", "Views", "spread", "surest", "vote"]

FRACTIONS = {"tpt": 0.1, "zero": 0.3}
PASS = 64  # views of one pass through the image tower


@dataclass(frozen=True)
class Adaptation:
    """How a test picture is adapted to.

    views: of each picture, the first as for evaluation.  fraction: of them that are kept, int(views * fraction); None:
    as published, 0.1 for TPT and 0.3 for ZERO.
    steps, lr, weight_decay: of TPT's AdamW; the views are chosen once, before the first step.
    """

    method: Literal["tpt", "zero"] = "tpt"
    views: int = 64
    fraction: float | None = None
    steps: int = 1
    lr: float = 5e-3
    weight_decay: float = 0.01

    def __post_init__(self) -> None:
        if self.method not in FRACTIONS:
            raise ValueError(f"no test-time method {self.method!r}. Choose one of {', '.join(FRACTIONS)}.")
        if not 0 < self.share <= 1 or self.kept < 1:
            raise ValueError(
                f"{self.views} views of which {self.share:g} are kept leave {self.kept}. Wanted is at least 1: give "
                f"a fraction up to 1, from {1 / max(self.views, 1):.3g} on."
            )
        if self.steps < 1 or not self.lr > 0 or self.weight_decay < 0:
            raise ValueError(
                f"steps {self.steps}, lr {self.lr}, weight_decay {self.weight_decay}: wanted at least 1, above 0, and "
                "at least 0."
            )

    @property
    def share(self) -> float:
        """The fraction of the views that is kept."""
        return FRACTIONS[self.method] if self.fraction is None else self.fraction

    @property
    def kept(self) -> int:
        """How many views are kept."""
        return int(self.views * self.share)

    def label(self) -> dict[str, Any]:
        """What the protocol says of it; ZERO takes no steps."""
        told: dict[str, Any] = {"task": "test-time", "method": self.method, "views": self.views}
        told |= {"fraction": self.share, "kept": self.kept, "view": "random resized crop (8 to 100 %), flip"}
        tuned = {"steps": self.steps, "lr": self.lr, "weight_decay": self.weight_decay}
        return told | (tuned if self.method == "tpt" else {})


class Views:
    """A picture to [count, 3, height, width]: as for evaluation, then random resized crops (torchvision's, bilinear,
    as published) with flips. Draws from the global generators, which the data seed."""

    def __init__(self, preprocessing: Mapping[str, Any], count: int) -> None:
        self.count, self.whole = count, eval_transform(preprocessing)
        self.crop = transforms.Compose(
            [
                transforms.RandomResizedCrop(tuple(preprocessing["input_size"][1:])),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(preprocessing["mean"], preprocessing["std"]),
            ]
        )

    def __call__(self, picture: Image.Image) -> Tensor:
        return torch.stack([self.whole(picture), *[self.crop(picture) for _ in range(self.count - 1)]])


def surest(logits: Tensor, count: int) -> Tensor:
    """The ``count`` views of lowest entropy, the lowest first: numbers [..., count] of logits [..., views, K]."""
    spreads = torch.distributions.Categorical(logits=logits.float()).entropy()
    return spreads.argsort(dim=-1, stable=True)[..., :count]


def spread(logits: Tensor) -> Tensor:
    """Entropy [...] of the mean over views of the probabilities of logits [..., views, K]."""
    mean = logits.float().log_softmax(-1).logsumexp(-2) - torch.tensor(float(logits.shape[-2])).log()
    return -(mean * mean.exp()).sum(-1)


def vote(logits: Tensor, count: int) -> Tensor:
    """ZERO's shares of votes [..., K] of logits [..., views, K]: each of the ``count`` surest views votes its class.

    Of classes with equally many votes the first wins that one of the other views names, asked by rising entropy; where
    none names one, that of the highest logit in the surest of them. The winner's share is then larger by the smallest
    possible number. (The authors' code asks the other views in the order in which they were drawn.)
    """
    if logits.ndim > 2:
        return torch.stack([vote(each, count) for each in logits])
    order = surest(logits, len(logits))
    says = logits[order].argmax(-1)
    votes = F.one_hot(says[:count], logits.shape[-1]).sum(0)
    shares = votes / count
    tied = (votes == votes.max()).nonzero()[:, 0]
    if len(tied) > 1:
        named = [c for c in says[count:].tolist() if c in set(tied.tolist())]
        rest = logits[order[min(count, len(logits) - 1)]]
        winner = named[0] if named else int(tied[rest[tied].argmax()])
        shares[winner] = torch.nextafter(shares[winner], shares.new_tensor(2.0))
    return shares


@dataclass(frozen=True)
class Adapted:
    """What adapting to B pictures gave.

    scores: [B, K] that add up to 1.  logits: of the picture itself [B, K], with the rows adapted to it (TPT).
    before: of all views with the rows as they came, [B, views, K].  chosen: the views kept, [B, kept].
    losses: [steps, B].  rows: adapted, [B, n, width] by site.
    """

    scores: Tensor
    before: Tensor
    chosen: Tensor
    logits: Tensor | None = None
    losses: Tensor = field(default_factory=lambda: torch.empty(0))
    rows: Mapping[Site, Tensor] = field(default_factory=dict)


class Adapter:
    """Adapts a learner's text rows to pictures; the learner itself stays as it is.

    Raises ValueError where TPT has nothing to adapt: no rows in the text tower, or rows that depend on the picture.
    """

    def __init__(self, learner: Learner, rule: Adaptation, precision: str = "32-true") -> None:
        self.learner, self.rule, self.precision = learner.eval(), rule, precision
        method = learner.method
        if not method.named:
            raise ValueError("this prompt has a head in place of class names, so no text rows can adapt.")
        with torch.no_grad():
            rows = dict(method(learner.context()))
        self.rows = {site: r.detach() for site, r in rows.items()}
        if rule.method == "tpt":
            self._check(method)

    def _check(self, method: Method) -> None:
        kind = type(method).__name__
        if method.per_sample or method.reads or type(method).logits is not Method.logits:
            raise ValueError(
                f"TPT adapts text rows that are the same for every picture; {kind} makes or reads its own otherwise. "
                "Start from words, or from a prompt of coop, kgcoop, prograd, ivlp or maple."
            )
        if not any(site.tower == "text" for site in self.rows):
            raise ValueError(
                f"{kind} has no rows in the text tower, and TPT adapts those. Start from words, from a prompt that has "
                "some (coop), or take method zero, which adapts none."
            )

    def _around(self) -> AbstractContextManager[Any]:
        return autocast(self.learner.tower.device, self.precision)

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """Image features [B, views, out] of views [B, views, 3, height, width]."""
        flat = images.flatten(0, 1).to(self.learner.tower.device)
        rows = {site: r for site, r in self.rows.items() if site.tower == "image"}
        with self._around():
            parts = [encode(self.learner.tower, part, rows).float() for part in flat.split(PASS)]
        return torch.cat(parts).unflatten(0, images.shape[:2])

    def __call__(self, images: Tensor) -> Adapted:
        """Adapt to each picture on its own, from its views [B, views, 3, height, width]."""
        return self.tune(self.features(images)) if self.rule.method == "tpt" else self.poll(images)

    @torch.no_grad()
    def poll(self, images: Tensor) -> Adapted:
        """ZERO."""
        flat = images.flatten(0, 1).to(self.learner.tower.device)
        with self._around():
            logits = torch.cat([self.learner(part).float() for part in flat.split(PASS)])
        logits = logits.unflatten(0, images.shape[:2])
        return Adapted(vote(logits, self.rule.kept), logits, surest(logits, self.rule.kept))

    def compare(self, image: Tensor, text: Tensor) -> Tensor:
        """Logits [..., views, K] of image features [..., views, out] and class features [..., K, out]."""
        v, t = F.normalize(image.float(), dim=-1), F.normalize(text.float(), dim=-1)
        return self.learner.scale * v @ t.mT + self.learner.bias

    @cached_property
    def start(self) -> dict[Site, Tensor]:
        """The text rows that every picture starts from, flat: class-specific ones lie one behind the other."""
        rows = {site: r for site, r in self.rows.items() if site.tower == "text"}
        return {s: r.flatten(0, -2).clone().requires_grad_() for s, r in rows.items()}

    @cached_property
    def first(self) -> Tensor:
        """Class features [K, out] of the rows at their start, with the graph that leads back to them."""
        with torch.enable_grad(), self._around():
            return self._texts(self.start)

    def _texts(self, rows: Mapping[Site, Tensor], sets: int | None = None) -> Tensor:
        """Class features [K, out] with these rows, or [sets, K, out]."""
        text = self.learner.towers[1]
        assert text is not None
        return encode_text(text, self.learner.streams(), rows, sets=sets)

    def tune(self, features: Tensor) -> Adapted:
        """TPT on image features [B, views, out]."""
        rule, count = self.rule, len(features)
        before = self.compare(features, self.first.detach())
        chosen = surest(before, rule.kept)
        kept = features.take_along_dim(chosen[..., None], 1)
        rows = {s: r.detach().expand(count, -1, -1).clone().requires_grad_() for s, r in self.start.items()}
        optimizer = torch.optim.AdamW(rows.values(), lr=rule.lr, weight_decay=rule.weight_decay)
        losses = []
        for step in range(rule.steps):
            loss = self._start_gradients(kept, rows) if step == 0 else self._gradients(kept, rows)
            losses.append(loss.detach())
            optimizer.step()
        adapted = {site: r.detach() for site, r in rows.items()}
        with torch.no_grad(), self._around():
            texts = self._texts(adapted, count)
        logits = self.compare(features[:, :1], texts)[:, 0]
        return Adapted(logits.softmax(-1), before, chosen, logits, torch.stack(losses), adapted)

    def _start_gradients(self, kept: Tensor, rows: Mapping[Site, Tensor]) -> Tensor:
        """Losses [B] of the first step, gradients into ``rows``: one pass over the names for all pictures ever, and
        the way back through it once a picture."""
        with torch.enable_grad():
            texts = self.first.detach().expand(len(kept), -1, -1).requires_grad_()
            loss = spread(self.compare(kept, texts))
            (pull,) = torch.autograd.grad(loss.sum(), texts)
        start = list(self.start.values())
        found = [torch.autograd.grad(self.first, start, g.to(self.first), retain_graph=True) for g in pull]
        for row, grads in zip(rows.values(), zip(*found, strict=True), strict=True):
            row.grad = torch.stack(grads)
        return loss

    def _gradients(self, kept: Tensor, rows: Mapping[Site, Tensor]) -> Tensor:
        """Losses [B] of a later step, where every picture has rows of its own."""
        with torch.enable_grad():
            with self._around():
                texts = self._texts(rows, len(kept))
            loss = spread(self.compare(kept, texts))
            grads = torch.autograd.grad(loss.sum(), list(rows.values()))
        for row, grad in zip(rows.values(), grads, strict=True):
            row.grad = grad
        return loss
