"""How well pictures and captions find each other: recall at k, median rank and mean average precision, both ways.

Ranks are counted against the whole gallery, never inside a batch. Of equal scores the wrong one counts as the better,
so that features which all look alike are the worst and not the best. Equal to torchmetrics' RetrievalHitRate and
RetrievalMAP, which loop over queries, hold every score at once, and forget true entries with a score of 0 or less.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from vpt.objectives.captions import Captions

__all__ = ["Gallery", "both_ways", "ranked"]

AT = (1, 5, 10)
CHUNK = 512  # queries whose scores are held at once


class Gallery(Metric):
    """Features of pictures as batches bring them; several processes hold a part each."""

    features: list[Tensor]
    numbers: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("features", default=[], dist_reduce_fx="cat")
        self.add_state("numbers", default=[], dist_reduce_fx="cat")

    def update(self, features: Tensor, numbers: Tensor) -> None:
        """features: [batch, out].  numbers: of the pictures in their split, [batch]."""
        self.features.append(features.detach().float())
        self.numbers.append(numbers.to(features.device))

    def compute(self) -> Tensor:
        """Features [N, out] in the order of the split; a picture that several processes saw counts once."""
        # lists, or one tensor each where several processes gave theirs
        numbers, order = dim_zero_cat(self.numbers).sort(stable=True)
        first = torch.ones_like(numbers, dtype=torch.bool)
        first[1:] = numbers[1:] != numbers[:-1]
        return dim_zero_cat(self.features)[order[first]]


def ranked(queries: Tensor, gallery: Tensor, true: Tensor) -> tuple[Tensor, Tensor]:
    """Of each query the rank of its best true entry, from 1, and the average precision over all of them.

    queries: [q, out].  gallery: [g, out].  true: [q, g], at least one a query.
    """
    scores = F.normalize(queries.float(), dim=-1) @ F.normalize(gallery.float(), dim=-1).mT
    wrong = scores.masked_fill(true, -torch.inf).sort(-1).values
    most = int(true.sum(-1).max())
    right = scores.masked_fill(~true, -torch.inf).topk(most, -1).values
    before = wrong.shape[1] - torch.searchsorted(wrong, right)  # wrong entries that score at least as much
    place = torch.arange(1, most + 1, device=scores.device)
    precision = (place / (place + before)).masked_fill(right.isinf(), 0.0)
    return before[:, 0] + 1, precision.sum(-1) / true.sum(-1)


def both_ways(pictures: Tensor, texts: Tensor, captions: Captions) -> dict[str, Tensor]:
    """Metrics of ``captions.texts`` against their pictures: ``i2t_*`` find captions, ``t2i_*`` pictures.

    pictures: [N, out].  texts: [C, out].  Recalls and mAP are in [0, 1]: the share of queries with a true entry among
    the first k. mean_recall is the mean of all six recalls.
    """
    found: dict[str, Tensor] = {}
    for way, queries, gallery in (("i2t", pictures, texts), ("t2i", texts, pictures)):
        ranks, precision = [], []
        for start in range(0, len(queries), CHUNK):
            some = torch.arange(start, min(start + CHUNK, len(queries)))
            true = captions.true(some, None) if way == "i2t" else captions.true(None, some).mT
            r, p = ranked(queries[start : start + CHUNK], gallery, true.to(queries.device))
            ranks.append(r)
            precision.append(p)
        rank = torch.cat(ranks).float()
        found |= {f"{way}_r{k}": (rank <= k).float().mean() for k in AT}
        found |= {f"{way}_median_rank": rank.median(), f"{way}_map": torch.cat(precision).mean()}
    recalls = [found[f"{way}_r{k}"] for way in ("i2t", "t2i") for k in AT]
    return {**found, "mean_recall": torch.stack(recalls).mean()}
