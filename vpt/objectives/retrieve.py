"""Objective retrieve: pictures and captions that find each other, by a contrastive loss over the global batch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from vpt.objectives.captions import Captions
from vpt.objectives.objective import Loss, Model
from vpt.objectives.recall import Gallery, both_ways

__all__ = ["Retrieve", "info_nce", "pull", "sigmoid"]


def info_nce(logits: Tensor, true: Tensor) -> Tensor:
    """Mean over queries of -log of a true entry's share among itself and the wrong ones (arXiv 1807.03748, eq. 4).

    logits, true: [queries, gallery]. A query with several true entries counts the mean over them, none of which is a
    negative of another; one without wrong entries counts 0.
    """
    logits = logits.float()
    some = ~true.all(-1)
    logits, true, queries = logits[some], true[some], len(logits)
    wrong = logits.masked_fill(true, -torch.inf).logsumexp(-1, keepdim=True)
    each = (F.softplus(wrong - logits) * true).sum(-1) / true.sum(-1)
    return each.sum() / queries


def sigmoid(logits: Tensor, true: Tensor) -> Tensor:
    """SigLIP's loss (arXiv 2303.15343, section 3.2): every pair is a binary question; a sum over the gallery."""
    return F.softplus(torch.where(true, -logits, logits).float()).sum(-1).mean()


def pull(logits: Tensor, true: Tensor) -> Tensor:
    """Mean squared distance between unit vectors of true pairs; logits are their cosines. Nothing is pushed away."""
    return (2 - 2 * logits.float())[true].mean()


LOSSES = {"infonce": info_nce, "sigmoid": sigmoid}


class _Gather(torch.autograd.Function):
    """The tensors of all processes, one behind the other; each gets the sum of all gradients for its own part."""

    @staticmethod
    def forward(ctx: Any, t: Tensor) -> Tensor:
        parts = [torch.empty_like(t) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, t.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        gradient = gradient.contiguous()
        dist.all_reduce(gradient)
        return gradient.chunk(dist.get_world_size())[dist.get_rank()]


def gathered(t: Tensor) -> Tensor:
    """The tensors of all processes, one behind the other; gradients flow back to each."""
    return _Gather.apply(t) if _world() > 1 else t


def _world() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


@dataclass(frozen=True)
class Retrieve:
    """Both directions, pictures to captions and captions to pictures, weigh the same.

    train, val: the captions of the splits; val may be empty.
    loss: "infonce", "sigmoid", or "pull", which knows true pairs only.
    each: captions a picture brings to a batch, in turn over the epochs; 0: all.
    consistency: weight of 1 - cosine between features and those of the frozen model, in towers that are written to.
    bank: features of all training pictures [views, N, out] where the image tower writes none: all are negatives.
    """

    train: Captions
    val: Captions
    loss: Literal["infonce", "sigmoid", "pull"] = "infonce"
    each: int = 1
    consistency: float = 0.0
    seed: int = 1
    bank: Tensor | None = None

    @property
    def classes(self) -> tuple[str, ...]:
        """The captions of the training pictures."""
        return self.train.texts

    @property
    def headline(self) -> str:
        """The metric that selects."""
        return "mean_recall"

    @property
    def better(self) -> Literal["max", "min"]:
        return "max"

    def step(self, model: Model, inputs: Any, batch: Mapping[str, Any], epoch: int) -> tuple[Any, Loss]:
        """Every process encodes its own pictures and its share of the batch's captions, and sees all of both.

        So each has the loss of the global batch. Its gradients reach features of all processes, which sums what DDP
        then divides: the result is that of one process.
        """
        pictures = gathered(batch["index"])
        chosen = self.train.drawn(pictures.tolist(), epoch, self.each, self.seed)
        if (world := _world()) > 1:
            share = -(-len(chosen) // world)
            padded = torch.cat([chosen, chosen[-1:].expand(share * world - len(chosen))])
            seen = model.see(inputs, batch.get("frozen"), padded.view(world, share)[dist.get_rank()])
            seen = _everywhere(seen, len(chosen))
            seen = replace(seen, logits=model.rate(seen))
        else:
            seen = model.see(inputs, batch.get("frozen"), chosen)
        return seen, self._loss(model, seen, pictures, chosen, epoch)

    def _loss(self, model: Model, seen: Any, pictures: Tensor, chosen: Tensor, epoch: int) -> Loss:
        """The loss of logits [B, M], against all that is stored where a tower writes nothing."""
        device = seen.image.device
        true = self.train.true(pictures, chosen).to(device)
        if self.loss == "pull":  # needs no negatives, so nothing stored is looked at
            return lambda logits: pull((logits - seen.bias) / seen.scale, true)
        one_way = LOSSES[self.loss]
        captions = images = None
        if (texts := model.stored_texts()) is not None:
            captions = model.rate(seen, text=texts), self.train.true(pictures, None).to(device)
        if self.bank is not None:
            bank = self.bank[epoch % len(self.bank)].to(device)
            images = model.rate(seen, image=bank), self.train.true(None, chosen).to(device)

        def loss(logits: Tensor) -> Tensor:
            to_captions, to_images = captions or (logits, true), images or (logits, true)
            return (one_way(*to_captions) + one_way(to_images[0].mT, to_images[1].mT)) / 2

        return loss

    def more(self, seen: Any) -> Mapping[str, Tensor]:
        """Terms beside the method's own."""
        if not self.consistency:
            return {}
        pairs = [(seen.image, seen.frozen), (seen.text, seen.plain)]
        near = [F.cosine_similarity(a.float(), b.float(), dim=-1).mean() for a, b in pairs if b is not None]
        return {"consistency": self.consistency * torch.stack([1 - n for n in near]).sum()}

    def metric(self) -> Gallery:
        """Features of the val pictures."""
        return Gallery()

    def observe(self, metric: Gallery, model: Model, inputs: Any, batch: Mapping[str, Any]) -> None:
        """Put a batch of val into the gallery."""
        metric.update(model.look(inputs), batch["index"])

    def result(self, metric: Gallery, model: Model) -> dict[str, Tensor]:
        """Recall both ways over the whole of val."""
        return both_ways(metric.compute(), model.read(self.val.texts).to(metric.device), self.val)


def _everywhere(seen: Any, captions: int) -> Any:
    """What all processes saw; captions: how many there are without padding."""

    def texts(t: Tensor | None) -> Tensor | None:
        return None if t is None else gathered(t)[:captions]

    return replace(
        seen,
        image=gathered(seen.image),
        text=texts(seen.text),
        frozen=None if seen.frozen is None else gathered(seen.frozen),
        plain=texts(seen.plain),
        taught={name: texts(t) for name, t in seen.taught.items()},
        read={slot: gathered(t) for slot, t in seen.read.items()},
    )
