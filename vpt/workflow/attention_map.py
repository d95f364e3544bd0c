"""Who looks where: the attention weights of a block, rows included, and maps of them over the picture."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vpt.encode import advance
from vpt.prompt import Rows
from vpt.tower import Stream, Tower
from vpt.towers.live import LiveBlock, project, rotate

__all__ = ["Attention", "attention", "upsample"]


@dataclass(frozen=True)
class Attention:
    """weights: [batch, heads, length, length], each line sums to 1: how much a token (line) takes from each.

    rows: places of the rows in the sequence [n].  patches: places of the patches, row by row of the ``grid``.
    """

    stage: str
    weights: Tensor
    rows: Tensor
    patches: Tensor
    grid: tuple[int, int]

    def of_class(self) -> Tensor:
        """Where the class token looks: its weights on the patches, mean over heads, [batch, height, width]."""
        return self.weights[:, :, 0, self.patches].mean(1).unflatten(-1, self.grid)

    def of_rows(self) -> Tensor:
        """Where the rows look: mean over rows and heads, [batch, height, width]; zeros where there are none."""
        summed = self.weights[:, :, self.rows][..., self.patches].sum(2).mean(1)
        return (summed / max(len(self.rows), 1)).unflatten(-1, self.grid)

    def readers(self) -> Tensor:
        """Who looks at the rows: the share of each patch's attention that goes to them, [batch, height, width]."""
        return self.weights[:, :, self.patches][..., self.rows].sum(-1).mean(1).unflatten(-1, self.grid)

    def to_rows(self) -> Tensor:
        """Share of the class token's attention that goes to the rows, mean over heads, [batch]."""
        return self.weights[:, :, 0, self.rows].sum(-1).mean(1)


@torch.no_grad()
def attention(tower: Tower, inputs: Tensor | Stream, rows: Rows, stage: str | int) -> Attention:
    """Attention weights of the block at ``stage``, with ``rows`` written on the way up and at it.

    The network's own projections make queries and keys. Raises ValueError for a block that vpt cannot open,
    and for rows that are keys and values only (slot "kv"), which have no place in the sequence.
    """
    tower.check(rows)
    index = tower.index(stage)
    step = tower.steps[index] if index < len(tower.steps) else None
    if not isinstance(step, LiveBlock):
        known = [name for name, b in zip(tower.stages, tower.steps, strict=False) if isinstance(b, LiveBlock)]
        raise ValueError(
            f"{tower.name}/{stage} is no attention block that vpt can open exactly. Such blocks here: "
            f"{', '.join(known) or 'none'}."
        )
    if any(site.slot == "kv" for site in rows):
        raise ValueError(
            "rows in the slot 'kv' are keys and values without a place: draw prefix rows instead."
        )
    s = advance(tower, inputs, rows, stage, live=False)
    weights = _weights(step, s)
    opened = [slot for slot in ("prefix", "suffix") if slot in s.grown]
    places = [s.places[slot][0] for slot in opened] or [torch.empty(0, dtype=torch.long, device=s.x.device)]
    at = torch.cat(places)
    rest = torch.ones(s.x.shape[1], dtype=torch.bool, device=s.x.device)
    rest[: tower.prefix], rest[at] = False, False
    patches = rest.nonzero()[:, 0]
    return Attention(str(stage), weights, at, patches, _grid(tower, len(patches)))


def _weights(step: LiveBlock, s: Stream) -> Tensor:
    """softmax(q k^T * scale + mask) of one block's attention, as its fused kernel computes it."""
    block: Any = step.block
    a = block.attn
    rope = None if step.rope is None else step.rope(s, step.index)
    q, k, _ = project(a, block.norm1(s.x), "qkv")
    q, k = rotate(a, a.q_norm(q), rope), rotate(a, a.k_norm(k), rope)
    scores = q @ k.mT * a.scale
    return (scores if s.mask is None else scores + s.mask).softmax(-1)


def _grid(tower: Tower, patches: int) -> tuple[int, int]:
    """Height and width of the patch grid: what the network says, else a square."""
    grid = getattr(getattr(tower.model, "patch_embed", None), "grid_size", None)
    if grid is not None and grid[0] * grid[1] == patches:
        return int(grid[0]), int(grid[1])
    side = math.isqrt(patches)
    if side * side != patches:
        raise ValueError(f"{patches} patches make no square, and the network does not say how they lie.")
    return side, side


def upsample(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Maps [batch, h, w] over pictures of ``size``, [batch, height, width], each scaled to 0..1 by its own range."""
    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    scaled = (maps - low) / (high - low).clamp(min=1e-12)
    return F.interpolate(scaled[:, None], size, mode="bicubic", align_corners=False)[:, 0].clamp(0, 1)
