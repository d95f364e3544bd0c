"""open_clip's CLIP models laid open: image towers (CLIP's ViT, or timm's networks) and text towers.

Follows ``encode_image`` and ``encode_text`` of open_clip 3.3: the library's own modules in their own order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from open_clip.coca_model import CoCa
from open_clip.hf_model import HFTextEncoder
from open_clip.model import CLIP, CustomTextCLIP
from open_clip.timm_model import TimmModel
from open_clip.transformer import ResidualAttentionBlock, VisionTransformer
from torch import Tensor, nn

from vpt.tower import Reading, Step, Stream, Tower
from vpt.towers.live import LiveBlock, Multihead, Parts, PlainBlock
from vpt.towers.steps import at_ends, in_order, then
from vpt.towers.vit import open_timm

__all__ = ["TextPart", "open_clip_model", "open_image", "open_text"]

FRONT = ("input", "embedded", "placed")


def open_clip_model(m: nn.Module) -> dict[str, Tower]:
    """The towers "image" and "text" of an open_clip model; frozen and in eval mode from here on.

    CoCa's decoder, which writes captions, is no part of them. Raises ValueError for a model whose features are not
    those of two towers.
    """
    if isinstance(m, CLIP):
        return {"image": open_image(m.visual), "text": open_text(TextPart(m))}
    if isinstance(m, CustomTextCLIP | CoCa):
        return {"image": open_image(m.visual), "text": open_text(m.text)}
    raise ValueError(
        f"{type(m).__name__} cannot be opened: vpt knows the CLIP, CustomTextCLIP and CoCa of open_clip."
    )


@dataclass(frozen=True)
class _Block(LiveBlock):
    """CLIP's block, whose attention takes one mask for all or one a sample and head."""

    def __call__(self, s: Stream) -> Stream:
        mask = self.mask(s)
        if mask is not None and mask.ndim == 4:
            mask = mask.expand(len(s.x), self.parts.attn.num_heads, -1, -1).flatten(0, 1)
        return replace(s, x=self.block(s.x) if mask is None else self.block(s.x, attn_mask=mask))


def _block(block: nn.Module, index: int, fixed: Callable[[Stream], Tensor | None] | None = None) -> Step:
    """The step of one block: live for CLIP's own, whole for others."""
    b: Any = block
    if type(block) is not ResidualAttentionBlock or hasattr(block, "ln_1_kv"):
        return PlainBlock(block, index, None, fixed)
    if type(b.attn) is not nn.MultiheadAttention or not b.attn._qkv_same_embed_dim:
        return PlainBlock(block, index, None, fixed)
    parts = Parts(b.ln_1, Multihead(b.attn), b.ln_2, b.mlp, b.ls_1, b.ls_2)
    return _Block(**vars(parts.step(block, index, fixed)))


def _activation(blocks: Any) -> str:
    found = [m for m in blocks[0].modules() if "GELU" in type(m).__name__.upper()]
    return type(found[0]).__name__ if found else ""


def _traits(kind: str, blocks: Any, pool: str) -> dict[str, Any]:
    attn = blocks[0].attn
    return {
        "class": kind,
        "pool": pool,
        "activation": _activation(blocks),
        "heads": attn.num_heads,
        "eps": blocks[0].ln_1.eps,
    }


def open_image(v: Any, name: str = "image") -> Tower:
    """An image tower: CLIP's VisionTransformer, or timm's network behind its projection; CNNs are closed towers."""
    v.requires_grad_(False).eval()
    if isinstance(v, TimmModel):
        return _open_trunk(v, name)
    if type(v) is not VisionTransformer:
        return _open_resnet(v, name)
    blocks = v.transformer.resblocks

    def place(s: Stream) -> Stream:
        token = v.class_embedding.view(1, 1, -1).expand(len(s.x), -1, -1).to(s.x.dtype)
        x = torch.cat([token, s.x], 1) + v.positional_embedding.to(s.x.dtype)
        return replace(s, x=v.patch_dropout(x))

    late = v.attn_pool is not None or v.final_ln_after_pool

    def pool(s: Stream) -> Stream:
        pooled = (v._pool if late else v._global_pool)(s.own())[0]
        return replace(s, x=pooled if v.proj is None else pooled @ v.proj)

    return Tower(
        name,
        v,
        (*FRONT, *map(str, range(len(blocks) + 1)), "normed", "pooled"),
        (
            lambda s: replace(s, x=v.conv1(s.x).flatten(2).permute(0, 2, 1)),
            place,
            then(v.ln_pre),
            *[_block(b, i) for i, b in enumerate(blocks)],
            (lambda s: s) if late else then(v.ln_post),
            pool,
        ),
        width=v.class_embedding.shape[-1],
        out=v.output_dim if v.proj is not None else v.class_embedding.shape[-1],
        prefix=1,
        reads=1 if v.attn_pool is None and v.pool_type == "tok" else None,
        patch=tuple(v.patch_size),
        grows="placed",
        reopen=partial(open_image, name=name),
        canonical=lambda: in_order(v, IMAGE_ORDER),
        traits=_traits("clip-image", blocks, v.pool_type),
    )


IMAGE_ORDER = (
    *("conv1", "class_embedding", "positional_embedding", "ln_pre", "transformer.resblocks"),
    *("ln_post", "attn_pool", "attn_pool_contrastive", "proj"),
)


def _open_trunk(v: Any, name: str) -> Tower:
    """timm's tower behind open_clip's projection, which is the network's own classifier where there is no other."""
    tower = open_timm(v.trunk, name)
    trunk = tower.canonical
    assert trunk is not None

    def canonical() -> Iterable[Tensor]:
        yield from trunk()
        for head in (v.trunk.get_classifier(), v.head):
            yield from head.state_dict(keep_vars=True).values()

    linear = [m for m in v.head.modules() if isinstance(m, nn.Linear)]
    return replace(
        tower,
        model=v,
        steps=(*tower.steps[:-1], lambda s: replace(s, x=v.head(v.trunk.forward_head(s.own())))),
        out=linear[-1].out_features if linear else v.trunk.num_classes or tower.out,
        logits=None,
        reopen=partial(open_image, name=name),
        canonical=canonical,
    )


def _open_resnet(v: Any, name: str) -> Tower:
    """A convolutional image tower: its pixels can be written, its features read, nothing else."""
    return Tower(
        name,
        v,
        ("input", "pooled"),
        (lambda s: replace(s, x=v(s.x)),),
        width=v.output_dim,
        out=v.output_dim,
        reopen=partial(open_image, name=name),
        traits={"class": type(v).__name__},
        closed=f"{type(v).__name__} is a closed tower: it is no plain sequence of transformer blocks.",
    )


class TextPart(nn.Module):
    """The text half of open_clip's CLIP, whose parts lie beside ``visual``: the same modules under the names that
    TextTransformer has."""

    def __init__(self, m: CLIP) -> None:
        super().__init__()
        self.token_embedding, self.transformer, self.ln_final = m.token_embedding, m.transformer, m.ln_final
        self.positional_embedding, self.text_projection = m.positional_embedding, m.text_projection
        self.register_buffer("attn_mask", m.attn_mask, persistent=False)
        self.context_length, self.pool_type, self.eos_id = m.context_length, m.text_pool_type, m.text_eos_id
        self.pad_id, self.cls_emb, self.use_pad_mask = 0, None, False


def _ends(t: Any, ids: Tensor) -> Tensor:
    """Where a text tower reads, [batch, 1]."""
    if t.cls_emb is not None:  # the class token stands behind all others
        return torch.full((len(ids), 1), ids.shape[1], device=ids.device)
    if t.pool_type == "argmax":
        return ids.argmax(1, keepdim=True)
    if t.pool_type == "eos":
        return (ids == t.eos_id).int().argmax(1, keepdim=True)
    return torch.full((len(ids), 1), 0 if t.pool_type == "first" else ids.shape[1] - 1, device=ids.device)


def _no_padding(t: Any, ids: Tensor, dtype: torch.dtype) -> Tensor | None:
    """The mask [batch, 1, length, length] of towers that do not see padding: CoCa's, and bidirectional ones."""
    if t.cls_emb is None and not t.use_pad_mask:
        return None
    length = ids.shape[1] + (t.cls_emb is not None)
    mask = t._build_additive_mask(ids, length, dtype).unflatten(0, (len(ids), -1))[:, :1]
    return mask if t.attn_mask is None else t.attn_mask[:length, :length] + mask


def open_text(t: Any, name: str = "text") -> Tower:
    """A text tower: open_clip's TextTransformer, the text half of CLIP, or a Hugging Face encoder."""
    t.requires_grad_(False).eval()
    if isinstance(t, HFTextEncoder):
        from vpt.towers.hf_text import open_hf_text  # transformers takes seconds to import

        return open_hf_text(t, name)
    if t.cls_emb is None and t.pool_type not in ("argmax", "eos", "first", "last"):
        raise ValueError(
            f"this text tower pools by {t.pool_type!r}, so it has no feature of a sentence. Choose a tower that reads "
            "one token: pool_type argmax, eos, first or last."
        )
    blocks, projection = t.transformer.resblocks, t.text_projection
    width = t.token_embedding.embedding_dim

    def embed(s: Stream) -> Stream:
        x = t.token_embedding(s.x).to(t.transformer.get_cast_dtype())
        return replace(s, x=x, mask=_no_padding(t, s.x, x.dtype) if s.mask is None else s.mask)

    def place(s: Stream) -> Stream:
        x, where = s.x, t.positional_embedding.to(s.x.dtype)
        if t.cls_emb is not None:
            x = torch.cat([x, t.cls_emb.to(x.dtype).expand(len(x), 1, -1)], 1)
        return replace(s, x=x + (where[: x.shape[1]] if s.positions is None else where[s.positions]))

    def mask(s: Stream) -> Tensor | None:
        length = s.x.shape[1]
        if t.attn_mask is None or length <= len(t.attn_mask):
            return None if t.attn_mask is None else t.attn_mask[:length, :length]
        return t.attn_mask.new_full((length, length), -torch.inf).triu(1)  # rows have lengthened the sequence

    def pool(s: Stream) -> Stream:
        x = at_ends(s) if t.cls_emb is None else t.ln_final(at_ends(s))
        if projection is not None:
            x = t.text_projection(x) if isinstance(projection, nn.Linear) else x @ t.text_projection
        return replace(s, x=x)

    causal = t.attn_mask is not None and t.cls_emb is None and t.pool_type in ("argmax", "eos")
    out = width if projection is None else getattr(projection, "out_features", None) or projection.shape[-1]
    return Tower(
        name,
        t,
        (*FRONT, *map(str, range(len(blocks) + 1)), "normed", "pooled"),
        (
            embed,
            place,
            lambda s: s,
            *[_block(b, i, mask) for i, b in enumerate(blocks)],
            then(t.ln_final) if t.cls_emb is None else lambda s: s,
            pool,
        ),
        width=width,
        out=out,
        prefix=1 if causal else 0,
        reads="end",
        grows="placed" if causal else "normed",  # a causal mask can grow, once positions are counted
        begin=lambda ids: Stream(ids, places={"end": _ends(t, ids)}),
        reopen=partial(open_text, name=name),
        canonical=lambda: in_order(t, TEXT_ORDER),
        ends=sum(name.startswith("text_projection") for name in t.state_dict()),
        traits=_traits("clip-text", blocks, "class" if t.cls_emb is not None else t.pool_type)
        | {"causal": t.attn_mask is not None},
        reading=Reading(t.context_length, t.pad_id, causal=causal, cuts=causal),
    )


TEXT_ORDER = (
    "token_embedding",
    "positional_embedding",
    "cls_emb",
    "transformer.resblocks",
    "ln_final",
    "text_projection",
)
