"""The context of a denoiser: the sequence that its cross-attention reads, or that joins its own tokens.

Rows join it at the slots "positive" and "negative". Where sentences are padded to one length, rows take the places of
padding; where they are not, rows stand behind the sentence. A negative prompt that is learned whole (ReNeg, arXiv
2412.19637) is rows at every place.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from vpt.encode import advance
from vpt.prompt import Rows, Site
from vpt.tower import Stream, Tower
from vpt.towers.families import Family

__all__ = ["join_context", "open_context"]

# what families call the width of the sequence that their network is given; where it is mapped to another first, that is
# the cross_attention_dim
WIDTHS = (
    "caption_channels",
    "joint_attention_dim",
    "text_embed_dim",
    "text_dim",
    "cap_feat_dim",
    "cross_attention_dim",
)
SLOTS = {"positive": "", "negative": "negative_"}


def open_context(network: Any) -> Tower:
    """The tower of one step that a denoiser reads its conditioning from."""
    config = network.config
    width = next((int(config[name]) for name in WIDTHS if isinstance(config.get(name), int)), 0)
    return Tower(
        "context",
        network,
        ("embedded", "0", "normed"),
        (lambda s: s, lambda s: s),
        width=width,
        out=width,
        traits={"class": "context", "width": width},
        begin=lambda x: Stream(x, stage="embedded"),
    )


def join_context(tower: Tower, family: Family, given: dict[str, Any], rows: Rows) -> dict[str, Any]:
    """``given`` with the rows of the context in it. Raises ValueError where there is no room for them."""
    for slot, sign in SLOTS.items():
        site, name = Site(tower.name, "embedded", slot), f"{sign}prompt_embeds"
        if site not in rows or name not in given:
            continue
        mask = f"{sign}{family.mask}" if family.mask else ""
        x, seen = given[name], given.get(mask)
        if isinstance(x, list):  # one sequence a sample, each of its own length
            given[name] = [_joined(tower, site, one[None], None, rows[site], False)[0][0] for one in x]
            continue
        x, seen = _joined(tower, site, x, seen, rows[site], family.fixed)
        given[name] = x
        if seen is not None:
            given[mask] = seen
    return given


def _joined(
    tower: Tower, site: Site, x: Tensor, mask: Tensor | None, rows: Tensor, fixed: bool
) -> tuple[Tensor, Tensor | None]:
    """Rows [n, width] in a context [batch, length, width], and in its mask [batch, length]."""
    batch, length, n = len(x), x.shape[1], rows.shape[-2]
    if not fixed:
        x = torch.cat([x, x.new_zeros(batch, n, x.shape[2])], 1)
        ends = torch.full((batch,), length, device=x.device)
        if mask is not None:  # behind each sentence, not behind its padding
            ends, mask = mask.long().sum(1), torch.cat([mask, mask.new_zeros(batch, n)], 1)
    elif n > length:
        raise ValueError(f"{n} rows for {site}, whose sequence has {length} places. Learn fewer rows.")
    elif mask is None:
        ends = torch.full((batch,), length - n, device=x.device)
    else:
        ends = mask.long().sum(1).clamp(max=length - n)
    places = ends[:, None] + torch.arange(n, device=x.device)
    if mask is not None:
        mask = mask.scatter(1, places, 1)
    s = Stream(x, stage="embedded", places={site.slot: places})
    return replace(advance(tower, s, {site: rows}, "normed")).x, mask
