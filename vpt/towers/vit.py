"""timm's VisionTransformer, Eva and NaFlexVit laid open; every other timm network as a closed tower.

Follows ``forward_features`` and ``forward_head`` of timm 1.0: the library's own modules in their own order.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from timm.models.deit import VisionTransformerDistilled
from timm.models.eva import Eva
from timm.models.naflexvit import NaFlexVit
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from vpt.tower import Step, Stream, Tower
from vpt.towers.live import open_block

__all__ = ["open_closed", "open_timm", "tiny"]

# Networks that look like a sequence and are none: why rows cannot enter, for the refusal.
REASONS = {
    "SwinTransformer": "Swin attends inside windows of the picture, where a row has no place.",
    "SwinTransformerV2": "Swin attends inside windows of the picture, where a row has no place.",
    "Beit": "BEiT's relative position bias is sized to its grid and knows no rows.",
    "VisionTransformerRelPos": "its relative position bias is sized to its grid and knows no rows.",
    "Hiera": "Hiera attends inside mask units of the picture, where a row has no place.",
    "Cait": "CaiT lets the class token in only above its talking-heads blocks.",
    "Xcit": "XCiT attends over channels and filters the grid with convolutions.",
}


def open_timm(m: nn.Module, name: str = "image") -> Tower:
    """The tower of any timm network; frozen and in eval mode from here on."""
    if type(m) in (VisionTransformer, VisionTransformerDistilled):
        return _open_vit(m, name)
    if type(m) is Eva:
        return _open_eva(m, name)
    if type(m) is NaFlexVit:
        return _open_naflex(m, name)
    return open_closed(m, name)


def _stages(depth: int, front: tuple[str, ...]) -> tuple[str, ...]:
    return (*front, *map(str, range(depth + 1)), "normed", "pooled")


def _then(f: Any) -> Step:
    """A step that only changes x."""
    return lambda s: replace(s, x=f(s.x))


def _tower(m: Any, name: str, front: tuple[str, ...], steps: Iterable[Step], **more: Any) -> Tower:
    """What the open families share: the steps behind the blocks, and the facts that timm keeps."""
    m.requires_grad_(False).eval()
    return Tower(
        name,
        m,
        _stages(len(m.blocks), front),
        (*steps, _then(m.norm), _pool(m)),
        width=m.embed_dim,
        out=_out_width(m),
        prefix=m.num_prefix_tokens,
        reads=_reads(m),
        grows="placed",
        logits=(lambda s: m.forward_head(s.own())) if m.num_classes else None,
        canonical=lambda: _canonical(m),
        traits={
            "class": type(m).__name__,
            "pool": m.global_pool,
            "activation": _activation(m),
            **_attention_traits(m),
        },
        **more,
    )


def _pool(m: Any) -> Step:
    return lambda s: replace(s, x=m.forward_head(s.own(), pre_logits=True))


def _reads(m: Any) -> int | None:
    """How many leading tokens timm's pooling reads; None when it reads patches."""
    if m.attn_pool is not None or m.global_pool != "token":
        return None
    return 2 if isinstance(m, VisionTransformerDistilled) else 1


def _out_width(m: Any) -> int:
    return int(getattr(getattr(m, "attn_pool", None), "out_features", m.num_features))


def _open_vit(m: Any, name: str) -> Tower:
    steps = [
        _then(m.patch_embed),
        lambda s: replace(s, x=m.patch_drop(m._pos_embed(s.x))),
        _then(m.norm_pre),
        *[open_block(block, i) for i, block in enumerate(m.blocks)],
    ]
    front = ("input", "embedded", "placed")
    grid, size = m.patch_embed.grid_size, m.patch_embed.img_size
    # a convolutional stem calls one position of its map a patch; what a row stands beside is its share of the picture
    patch = (
        tuple(s // g for s, g in zip(size, grid, strict=True)) if grid and size else m.patch_embed.patch_size
    )
    return _tower(m, name, front, steps, patch=patch, reopen=partial(_open_vit, name=name))


def _open_eva(m: Any, name: str) -> Tower:
    mixed = getattr(m, "rope_mixed", False)

    def place(s: Stream) -> Stream:
        x, rope = m._pos_embed(s.x)
        return replace(s, x=x, extra={} if rope is None else {"rope": rope})

    steps = [
        _then(m.patch_embed),
        place,
        _then(m.norm_pre),
        *[open_block(block, i, partial(_rope, mixed=mixed)) for i, block in enumerate(m.blocks)],
    ]
    return _tower(
        m,
        name,
        ("input", "embedded", "placed"),
        steps,
        patch=tuple(m.patch_embed.patch_size),
        extend=partial(_extend_rope, prefix=m.num_prefix_tokens),
        reopen=partial(_open_eva, name=name),
    )


def _open_naflex(m: Any, name: str) -> Tower:
    """NaFlexVit on ordinary batches [batch, 3, height, width]; embedding and position are one step there."""

    def embed(s: Stream) -> Stream:
        x, grid = m.embeds(s.x, patch_coord=None, patch_valid=None)
        return replace(s, x=x, extra={} if m.rope is None else {"rope": m.rope.get_embed(shape=grid)})

    rope = partial(_rope, mixed=m.rope_is_mixed) if m.rope is not None else None
    steps = [embed, _then(m.norm_pre), *[open_block(block, i, rope) for i, block in enumerate(m.blocks)]]
    return _tower(
        m,
        name,
        ("input", "placed"),
        steps,
        patch=tuple(m.embeds.patch_size),
        extend=partial(_extend_rope, prefix=m.num_prefix_tokens) if m.rope is not None else None,
        reopen=partial(_open_naflex, name=name),
    )


def _rope(s: Stream, layer: int, *, mixed: bool) -> Tensor | None:
    rope = s.extra.get("rope")
    return rope[layer] if mixed and rope is not None else rope


def _extend_rope(s: Stream, at: int, n: int, *, prefix: int) -> Stream:
    """Rotary angles [.., length, 2 * d], sin then cos, with n identity rotations at ``at`` (n < 0: without).

    Only what stands behind the prefix is rotated, so rows get the rotation by nothing: sin 0, cos 1.
    """
    rope = s.extra.get("rope")
    if rope is None:
        return s
    at -= prefix
    front, back = rope[..., :at, :], rope[..., at + max(-n, 0) :, :]
    still = rope.new_zeros(*rope.shape[:-2], max(n, 0), rope.shape[-1])
    still[..., rope.shape[-1] // 2 :] = 1
    return replace(s, extra={**s.extra, "rope": torch.cat([front, still, back], -2)})


def open_closed(m: Any, name: str = "image") -> Tower:
    """A network that is no open sequence: its pixels can be written, its features read, nothing else.

    Raises ValueError for networks that timm has as parts of others, without pooled features.
    """
    m.requires_grad_(False).eval()
    kind = type(m).__name__
    if not (hasattr(m, "get_classifier") and hasattr(m, "forward_head")):
        raise ValueError(
            f"{kind} gives no pooled features (it is the encoder of a larger model), so nothing can be learned "
            "on it. Choose a network with a classifier, such as its sibling without '_enc' in the name."
        )
    why = REASONS.get(
        kind, "it is no plain sequence of transformer blocks (convolutions, windows or stages)."
    )
    return Tower(
        name,
        m,
        ("input", "normed", "pooled"),
        (_then(m.forward_features), lambda s: replace(s, x=m.forward_head(s.x, pre_logits=True))),
        width=int(m.num_features),
        out=int(getattr(m, "head_hidden_size", None) or m.num_features),
        logits=(lambda s: m.forward_head(s.x)) if m.num_classes else None,
        reopen=partial(open_closed, name=name),
        canonical=lambda: _canonical(m),
        traits={"class": kind},
        closed=f"{kind} is a closed tower: {why}",
    )


def _canonical(m: Any) -> Iterable[Tensor]:
    """Weights and buffers in step order, without the classifier."""
    order = ("patch_embed", "embeds", "cls_token", "reg_token", "pos_embed", "rope", "norm_pre", "blocks")
    heads = m.get_classifier()
    heads = heads if isinstance(heads, tuple) else (heads,)
    classifier = {id(p) for head in heads for p in (*head.parameters(), *head.buffers())}
    state = {k: v for k, v in m.state_dict(keep_vars=True).items() if id(v) not in classifier}

    def rank(item: tuple[int, str]) -> tuple[int, int]:
        head = item[1].split(".")[0]
        return (order.index(head) if head in order else len(order), item[0])

    for _, key in sorted(enumerate(state), key=rank):
        yield state[key]


def _activation(m: Any) -> str:
    act = getattr(getattr(m.blocks[0], "mlp", None), "act", None)
    return type(act).__name__ if act is not None else ""


def _attention_traits(m: Any) -> dict[str, Any]:
    block = m.blocks[0]
    attention = getattr(block, "attn", block)  # a parallel block is its own attention
    return {
        "heads": getattr(attention, "num_heads", 0),
        "eps": getattr(getattr(block, "norm1", None), "eps", 0.0),
    }


def tiny(**kwargs: Any) -> Tower:
    """A ViT of random weights for examples and tests: 32 px, patch 8, 32 wide, 3 deep, 2 heads."""
    options = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2, "num_classes": 5}
    return open_timm(VisionTransformer(**{**options, **kwargs}))
