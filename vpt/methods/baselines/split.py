"""torch's attention with its projections as layers of their own, where adapters can take their places."""

from __future__ import annotations

import re
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["SplitAttention", "in_blocks", "split_attention"]


class SplitAttention(nn.Module):
    """The projections of an nn.MultiheadAttention, copied, and the same attention between them.

    nn.MultiheadAttention reads the weights of its output projection without calling it, and has those to queries,
    keys and values in one matrix, so that layers put in their places would not be used.
    """

    def __init__(self, a: nn.MultiheadAttention) -> None:
        super().__init__()
        self.num_heads, self.batch_first = a.num_heads, a.batch_first
        assert a.in_proj_weight is not None
        biases = (None,) * 3 if a.in_proj_bias is None else a.in_proj_bias.detach().chunk(3)
        three = zip(a.in_proj_weight.detach().chunk(3), biases, strict=True)
        self.q_proj, self.k_proj, self.v_proj = (_linear(w, b) for w, b in three)
        self.out_proj = _linear(a.out_proj.weight.detach(), a.out_proj.bias)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        need_weights: bool = False,
        attn_mask: Tensor | None = None,
    ) -> tuple[Tensor, None]:
        """As nn.MultiheadAttention without weights; a mask is additive, [length, length] or with batch and heads."""
        given = (query, key, value) if self.batch_first else (t.transpose(0, 1) for t in (query, key, value))
        q, k, v = (
            project(t).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for project, t in zip((self.q_proj, self.k_proj, self.v_proj), given, strict=True)
        )
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask).transpose(1, 2).flatten(2)
        out = self.out_proj(out)
        return (out if self.batch_first else out.transpose(0, 1)), None


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    out, width = weight.shape
    made = nn.Linear(width, out, bias=bias is not None, device=weight.device, dtype=weight.dtype)
    made.weight.data.copy_(weight)
    if bias is not None:
        made.bias.data.copy_(bias.detach())
    return made


def in_blocks(model: nn.Module) -> dict[str, nn.MultiheadAttention]:
    """torch's attention modules in a network's blocks, by name; those whose queries have a width of their own not."""
    return {
        name: m
        for name, m in model.named_modules()
        if type(m) is nn.MultiheadAttention and m._qkv_same_embed_dim and re.search(r"\.\d+\.", name)
    }


def split_attention(model: nn.Module) -> nn.Module:
    """Put :class:`SplitAttention` in the place of torch's attention in the blocks of this very module."""
    for name, attention in in_blocks(model).items():
        parent, _, last = name.rpartition(".")
        holder: Any = model.get_submodule(parent)
        setattr(holder, last, SplitAttention(attention).train(attention.training))
    return model
