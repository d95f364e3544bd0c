"""Transformer blocks of timm and open_clip as steps that can leave out what nobody reads.

The blocks are called as they are; only where rows are keys and values alone, or where only the class token is
read afterwards, the attention's own projections are used one by one. That is done for the exact block and
attention types whose arithmetic stands here; any other block runs whole.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import AttentionRope, apply_rot_embed_cat
from timm.layers.attention import Attention
from timm.models.eva import EvaAttention, EvaBlock
from timm.models.vision_transformer import Block as ViTBlock
from torch import Tensor, nn

from vpt.tower import Live, Step, Stream

__all__ = ["LiveBlock", "Multihead", "Parts", "PlainBlock", "open_block", "project", "rotate"]

NOTHING = nn.Identity()
LANES = 16  # float32 numbers in the widest vector of a CPU (AVX-512)


def open_block(
    block: nn.Module, index: int, rope: Callable[[Stream, int], Tensor | None] | None = None
) -> Step:
    """The step of one block; rope: rotary angles of this stream at this layer, for blocks that take them."""
    attention = getattr(block, "attn", None)
    linear = [getattr(attention, name, None) for name in ("qkv", "q_proj", "k_proj", "v_proj")]
    exact = all(
        type(m) in (nn.Linear, type(None)) for m in linear
    )  # an adapter in their place: run the block whole
    if exact and type(block) is ViTBlock and type(attention) is Attention:
        return LiveBlock(block, index, None, None, block, _vit_residuals)
    grouped = getattr(attention, "num_kv_groups", 1) > 1
    if exact and not grouped and type(block) is EvaBlock and type(attention) in (EvaAttention, AttentionRope):
        return LiveBlock(block, index, rope, None, block, _eva_residuals)
    return PlainBlock(block, index, rope)


@dataclass(frozen=True)
class PlainBlock:
    """A block that runs whole.

    rope: rotary angles of this stream at this layer.  fixed: the tower's own attention mask for this stream, which
    the stream's mask takes the place of.
    """

    block: nn.Module
    index: int
    rope: Callable[[Stream, int], Tensor | None] | None = None
    fixed: Callable[[Stream], Tensor | None] | None = None

    def mask(self, s: Stream) -> Tensor | None:
        """The mask that the attention is given."""
        return self.fixed(s) if s.mask is None and self.fixed is not None else s.mask

    def __call__(self, s: Stream) -> Stream:
        mask = self.mask(s)
        given: dict[str, Any] = {} if mask is None else {"attn_mask": mask}
        if self.rope is not None:
            given["rope"] = self.rope(s, self.index)
        return replace(s, x=self.block(s.x, **given))


@dataclass(frozen=True)
class LiveBlock(PlainBlock):
    """A pre-norm block whose attention can be opened.  parts: its pieces by timm's names, often the block itself."""

    parts: Any = None
    residuals: Callable[[Any, Tensor, Tensor], Tensor] = lambda parts, x, out: x

    def live(self, s: Stream, live: Live) -> Stream:
        mask = self.mask(s)
        if mask is not None and (live.rows or live.kv is not None):
            raise ValueError("keys and values cannot join a block behind a mask: they have no place in it.")
        rope = None if self.rope is None else self.rope(s, self.index)
        h = self.parts.norm1(s.x)
        x, h_read = _take(s.x, live.read), _take(h, live.read)
        out = _attend(self.parts, h, h_read, live, rope, _mask_rows(mask, live.read))
        return replace(s, x=self.residuals(self.parts, x, out))


@dataclass(frozen=True)
class Multihead:
    """torch's nn.MultiheadAttention by the names of timm's attention."""

    attn: nn.MultiheadAttention
    q_norm: nn.Module = NOTHING
    k_norm: nn.Module = NOTHING
    norm: nn.Module = NOTHING
    proj_drop: nn.Module = NOTHING
    gate: None = None

    @property
    def qkv(self) -> Any:
        """Weight and bias of the joint projection."""
        return SimpleNamespace(weight=self.attn.in_proj_weight, bias=self.attn.in_proj_bias)

    @property
    def proj(self) -> nn.Module:
        """The projection behind the attention."""
        return self.attn.out_proj

    @property
    def num_heads(self) -> int:
        """Heads."""
        return self.attn.num_heads

    @property
    def scale(self) -> float:
        """What scores are multiplied by."""
        return float(self.attn.head_dim**-0.5)


@dataclass(frozen=True)
class Parts:
    """The pieces of another library's pre-norm block by the names of timm's."""

    norm1: nn.Module
    attn: Any
    norm2: nn.Module
    mlp: nn.Module
    ls1: nn.Module = NOTHING
    ls2: nn.Module = NOTHING
    drop_path1: nn.Module = NOTHING
    drop_path2: nn.Module = NOTHING

    def step(
        self, block: nn.Module, index: int, fixed: Callable[[Stream], Tensor | None] | None = None
    ) -> LiveBlock:
        """The live step of the block that these are the pieces of."""
        return LiveBlock(block, index, None, fixed, self, _vit_residuals)


def _vit_residuals(block: Any, x: Tensor, attended: Tensor) -> Tensor:
    x = x + block.drop_path1(block.ls1(attended))
    return x + block.drop_path2(block.ls2(block.mlp(block.norm2(x))))


def _eva_residuals(block: Any, x: Tensor, attended: Tensor) -> Tensor:
    x = x + block.drop_path1(attended if block.gamma_1 is None else block.gamma_1 * attended)
    mlp = block.mlp(block.norm2(x))
    return x + block.drop_path2(mlp if block.gamma_2 is None else block.gamma_2 * mlp)


def _take(x: Tensor, read: int | Tensor | None) -> Tensor:
    """The tokens that are read: all, so many leading ones, or those at places [batch or 1, m]."""
    if read is None:
        return x
    if isinstance(read, int):
        return x[:, :read]
    return x.take_along_dim(read.expand(len(x), -1)[..., None], 1)


def _heads(x: Tensor, count: int) -> Tensor:
    """[..., length, channels] -> [..., heads, length, channels of a head]."""
    return x.unflatten(-1, (count, -1)).transpose(-2, -3)


def _joint(a: Any) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of the joint projection to queries, keys and values."""
    if a.qkv.bias is None and getattr(a, "q_bias", None) is not None:
        return a.qkv.weight, torch.cat((a.q_bias, a.k_bias, a.v_bias))
    return a.qkv.weight, a.qkv.bias


def project(a: Any, h: Tensor, which: str) -> list[Tensor]:
    """The attention's own projections of h, split into heads: which = "q", "kv" or "qkv"."""
    if a.qkv is None:
        return [_heads(getattr(a, f"{name}_proj")(h), a.num_heads) for name in which]
    weight, bias = _joint(a)
    width = len(weight) // 3
    part = {"q": slice(0, width), "kv": slice(width, None), "qkv": slice(None)}[which]
    joined = F.linear(h, weight[part], None if bias is None else bias[part])
    return [_heads(t, a.num_heads) for t in joined.chunk(len(which), -1)]


def rotate(a: Any, t: Tensor, rope: Tensor | None, read: int | Tensor | None = None) -> Tensor:
    """Rotary positions for what stands behind the prefix; ``read`` leading tokens lie within the prefix."""
    n = a.num_prefix_tokens if rope is not None else 0
    if rope is None or (isinstance(read, int) and read <= n):
        return t
    turned = apply_rot_embed_cat(t[:, :, n:], rope, half=getattr(a, "rotate_half", False))
    return torch.cat([t[:, :, :n], turned], 2).type_as(t)


def _mask_rows(mask: Tensor | None, read: int | Tensor | None) -> Tensor | None:
    """Of an additive mask [S, S] or [batch, heads or 1, S, S], the rows of the tokens that are read."""
    if mask is None or read is None:
        return mask
    if isinstance(read, int):
        return mask[..., :read, :]
    if mask.ndim == 2:
        return mask[read][:, None]
    return mask.take_along_dim(read[:, None, :, None], -2)


def _attend(
    block: Any, h: Tensor, h_read: Tensor, live: Live, rope: Tensor | None, mask: Tensor | None
) -> Tensor:
    """Attention of the tokens that are read over the sequence, the rows and the given keys and values."""
    a, batch = block.attn, len(h)
    if live.kv is None and rope is None and mask is None and _are_few(a, live.read, h_read):
        return _finish(a, _attend_few(a, h, h_read, [block.norm1(rows) for rows in live.rows]), h_read)
    if live.read is None:
        q, k, v = project(a, h, "qkv")
    elif rope is not None and not isinstance(live.read, int):
        raise ValueError("rotary blocks read leading tokens only.")
    else:
        (q,), (k, v) = project(a, h_read, "q"), project(a, h, "kv")
    q, k = rotate(a, a.q_norm(q), rope, live.read), rotate(a, a.k_norm(k), rope)
    keys, values = [k], [v]
    for rows in live.rows:  # shared rows: one set of keys and values for the whole batch, and no rotation
        row_k, row_v = project(a, block.norm1(rows), "kv")
        keys.append(a.k_norm(row_k).expand(batch, -1, -1, -1))
        values.append(row_v.expand(batch, -1, -1, -1))
    if live.kv is not None:
        for side, given in zip((keys, values), live.kv.to(v.dtype).chunk(2, -1), strict=True):
            side.append(_heads(given, a.num_heads).expand(batch, -1, -1, -1))
    mask = _fill_lanes(keys, values) if mask is None else mask.to(q.dtype)
    k, v = (torch.cat([t.to(q.dtype) for t in side], -2) for side in (keys, values))
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=a.scale).transpose(1, 2).flatten(2)
    return _finish(a, out, h_read)


def _fill_lanes(keys: list[Tensor], values: list[Tensor]) -> Tensor | None:
    """Add keys that a mask shuts out, up to a multiple of the vector width; returns the mask.

    The CPU's attention kernel takes what is left over of a vector number by number: with 207 keys it needs a sixth
    more time than with 208. Only where keys are joined anyway.
    """
    first, length = keys[0], sum(t.shape[-2] for t in keys)
    more = -length % LANES
    if len(keys) == 1 or not more or first.device.type != "cpu" or first.dtype != torch.float32:
        return None
    nothing = first.new_zeros(1, 1, 1, 1).expand(*first.shape[:-2], more, first.shape[-1])
    keys.append(nothing)
    values.append(nothing)
    mask = first.new_zeros(1, 1, 1, length + more)
    mask[..., length:] = -torch.inf
    return mask


def _are_few(a: Any, read: int | Tensor | None, h_read: Tensor) -> bool:
    """Is :func:`_attend_few` exact here, and less work than projecting the whole sequence?"""
    joint = a.qkv is not None and type(a.k_norm) is nn.Identity
    return read is not None and joint and h_read.shape[1] * a.num_heads * 4 <= h_read.shape[2]


def _attend_few(a: Any, h: Tensor, h_read: Tensor, rows: Sequence[Tensor]) -> Tensor:
    """Attention of a few tokens over the sequence and the rows, whose keys and values are never computed.

    Matrix products associate: the projections of keys and values act on the few queries and results instead. A
    key's bias adds the same to every score of a query, which the softmax does not see.
    """
    weight, bias = _joint(a)
    to_q, to_k, to_v = weight.chunk(3)
    q_bias, _, v_bias = (None, None, None) if bias is None else bias.chunk(3)
    q = a.q_norm(_heads(F.linear(h_read, to_q, q_bias), a.num_heads)) * a.scale
    asked = (q @ to_k.unflatten(0, (a.num_heads, -1))).flatten(1, 2)  # [batch, heads * read, width]
    told = [h, *rows]
    scores = torch.cat([asked @ t.mT for t in told], -1).softmax(-1)
    lengths = [t.shape[-2] for t in told]
    mixed = sum(part @ t for part, t in zip(scores.split(lengths, -1), told, strict=True))
    out = mixed.unflatten(1, (a.num_heads, -1)) @ to_v.unflatten(0, (a.num_heads, -1)).mT
    out = out.transpose(1, 2).flatten(2)
    return out if v_bias is None else out + v_bias.to(out.dtype)


def _finish(a: Any, out: Tensor, h_read: Tensor) -> Tensor:
    out = a.norm(out)
    if a.gate is not None:
        out = out * a.gate(h_read).sigmoid()
    return a.proj_drop(a.proj(out))
