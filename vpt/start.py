"""Rows that start from the data: patch tokens of training pictures, as a layer of the frozen network reads
them.

"kmeans" clusters them. "vipamin" is VIPAMIN, arXiv 2510.16446 (code: iamjaekyun/vipamin): rows at VPT's start
look for the patches whose keys are most like theirs, and are mixed with a direction that attention does not
yet reach.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from vpt.encode import advance
from vpt.prompt import Prompt, Rows
from vpt.tower import Stream, Tower

__all__ = ["rows_from_data"]

SEED = 0
NEAREST = 8  # patches a row is the mean of; the authors search 2, 8, 32, 128
MIX = 0.5  # weight of the new direction; the authors search 0 and 0.5


@torch.no_grad()
def rows_from_data(
    image: Tower, prompt: Prompt, pictures: Tensor, how: Literal["kmeans", "vipamin"]
) -> Tensor:
    """Rows [layers, n, width] for a prompt in a sequence, from one batch of ``pictures`` [batch, 3, height,
    width].

    The prompt gives the layers and the number of rows; for "vipamin" also the rows to start from.
    Raises ValueError where there are fewer tokens than rows, or the blocks cannot be opened for "vipamin".
    """
    n = prompt.table().shape[-2]
    stages = [site.stage for site in prompt.sites]
    pictures = pictures.to(image.device)
    if how == "kmeans":
        rows = [_clusters(_patches(image, s), n) for s in _climb(image, pictures, {}, stages)]
    else:
        rows = _vipamin(image, prompt, pictures, stages)
    return torch.stack(rows).to(pictures.device, torch.float32)


def _climb(image: Tower, pictures: Tensor, rows: Rows, stages: list[str]) -> Iterator[Stream]:
    """The stream at each stage, rows of that stage included; one at a time, since all of them are large."""
    s: Tensor | Stream = pictures
    for stage in stages:
        s = advance(image, s, rows, stage, live=False)
        yield s


def _patches(image: Tower, s: Stream) -> Tensor:
    """The tokens of the patches [batch, patches, width]."""
    return s.own()[:, image.prefix :]


def _clusters(tokens: Tensor, n: int) -> Tensor:
    """Centres [n, width] of mini-batch k-means over tokens [batch, patches, width]."""
    from sklearn.cluster import MiniBatchKMeans  # over a second to import

    flat = tokens.flatten(0, 1).float().cpu().numpy()
    if len(flat) < n:
        raise ValueError(
            f"{n} rows cannot start from {len(flat)} patch tokens. Give a larger batch, or fewer rows."
        )
    found = MiniBatchKMeans(n, random_state=SEED, n_init=1, batch_size=4096).fit(flat)
    return torch.from_numpy(found.cluster_centers_)


def _vipamin(image: Tower, prompt: Prompt, pictures: Tensor, stages: list[str]) -> list[Tensor]:
    """VIPAMIN's rows [n, width] of each layer: (1 - MIX) matched + MIX orthogonal.

    Departures from the authors' code: their pseudo-inverse lacks a transpose; and where the tokens outnumber
    the channels, attention spans all directions, so none is new and the matched rows stand alone.
    """
    attentions = [_attention(image, stage) for stage in stages]
    start = dict(zip(prompt.sites, prompt.through(prompt.table()), strict=True))
    rows = []
    prompted, plain = _climb(image, pictures, start, stages), _climb(image, pictures, {}, stages)
    for site, attention, with_rows, without in zip(prompt.sites, attentions, prompted, plain, strict=True):
        norm = _block(image, site.stage).norm1
        matched = _matched(attention, norm, with_rows, site.slot, image.prefix)
        new = _orthogonal(attention, norm(without.x), start[site].to(without.x))
        rows.append(matched if new is None else (1 - MIX) * matched + MIX * new)
    return rows


def _block(image: Tower, stage: str) -> Any:
    """The network's own block behind a step that vpt can open."""
    return getattr(image.steps[image.index(stage)], "block", None)


def _attention(image: Tower, stage: str) -> Any:
    attention = getattr(_block(image, stage), "attn", None)
    step: Any = image.steps[image.index(stage)]
    if not hasattr(step, "live") or step.rope is not None or getattr(attention, "qkv", None) is None:
        raise ValueError(
            f"init='vipamin' reads keys and values of {image.name}/{stage}, which vpt cannot open in this "
            f"{type(image.model).__name__} (another attention, or rotary positions). Use init='kmeans'."
        )
    return attention


def _project(attention: Any, h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values [batch, heads, length, channels] of h, as timm's Attention makes them."""
    q, k, v = attention.qkv(h).unflatten(-1, (3, attention.num_heads, -1)).permute(2, 0, 3, 1, 4)
    return attention.q_norm(q), attention.k_norm(k), v


def _matched(attention: Any, norm: Any, s: Stream, slot: str, prefix: int) -> Tensor:
    """For each row of the slot, the mean [width] of the patches whose keys are nearest to its own."""
    keys = F.normalize(_project(attention, norm(s.x))[1].mean((0, 1)), dim=-1)
    at = s.places[slot][0]
    patch = torch.ones(len(keys), dtype=torch.bool, device=keys.device)
    patch[:prefix], patch[at] = False, False
    near = (keys[at] @ keys[patch].mT).topk(min(NEAREST, int(patch.sum()))).indices
    return s.x.mean(0)[patch][near].mean(1)


def _orthogonal(attention: Any, h: Tensor, start: Tensor) -> Tensor | None:
    """Rows whose values have no part in what attention puts out now; None where that spans every
    direction."""
    out = F.scaled_dot_product_attention(*_project(attention, h), scale=attention.scale)
    reached = out.transpose(1, 2).flatten(2).mean(0)  # [length, channels]
    if len(reached) >= reached.shape[1]:
        return None
    basis = torch.linalg.qr(reached.mT).Q
    weight = attention.qkv.weight[-reached.shape[1] :]
    bias = (
        attention.qkv.bias[-len(weight) :]
        if attention.qkv.bias is not None
        else weight.new_zeros(len(weight))
    )
    values = F.linear(start, weight, bias)
    values = values - values @ basis @ basis.mT
    return (values - bias) @ torch.linalg.pinv(weight).mT
