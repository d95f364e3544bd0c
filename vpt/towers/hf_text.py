"""open_clip's Hugging Face text encoders laid open: BERT, RoBERTa, XLM-R, and the encoders of mT5 and M2M-100 (NLLB).

Follows ``HFTextEncoder.forward`` of open_clip 3.3 and the encoders of transformers 5: the library's own modules in
their own order, and its own mask.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from open_clip.hf_model import ClsLastHiddenStatePooler, ClsPooler, MeanPooler
from torch import Tensor, nn
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_outputs import BaseModelOutputWithPooling

from vpt.tower import Reading, Step, Stream, Tower
from vpt.towers.steps import in_order, then

__all__ = ["open_hf_text"]

LONG = 512  # positions of an encoder that counts them relatively


class _Pieces(NamedTuple):
    """words: ids to embeddings.  positions: ids to the positions that depend on padding, None where none do.
    place: the stream at "embedded" to what the first block reads.  norm: behind the blocks.
    spare: positions of the table that no token gets.  order: names of the weights, in step order.
    """

    words: Any
    positions: Callable[[Tensor], Tensor] | None
    place: Callable[[Stream], Tensor]
    blocks: Sequence[nn.Module]
    norm: nn.Module
    spare: int
    order: tuple[str, ...]


def _bert(m: Any) -> _Pieces:
    e, positions = m.embeddings, None
    if hasattr(e, "create_position_ids_from_input_ids"):  # RoBERTa counts from behind the id of its padding
        positions = partial(e.create_position_ids_from_input_ids, padding_idx=e.padding_idx)

    def place(s: Stream) -> Tensor:
        return e(inputs_embeds=s.x, position_ids=s.positions)

    parts = ("word_embeddings", "position_embeddings", "token_type_embeddings", "LayerNorm")
    order = (*(f"embeddings.{part}" for part in parts), "encoder")
    spare = 0 if positions is None else e.padding_idx + 1
    return _Pieces(e.word_embeddings, positions, place, m.encoder.layer, nn.Identity(), spare, order)


def _t5(m: Any) -> _Pieces:
    order = ("embed_tokens", "block", "final_layer_norm")
    return _Pieces(m.embed_tokens, None, lambda s: s.x, m.block, m.final_layer_norm, 0, order)


def _m2m(m: Any) -> _Pieces:
    e = m.embed_positions

    def place(s: Stream) -> Tensor:
        assert s.positions is not None
        return s.x + F.embedding(s.positions, e.weights)

    positions = partial(e.create_position_ids_from_input_ids, padding_idx=e.padding_idx)
    order = ("embed_tokens", "layers", "layer_norm")
    return _Pieces(m.embed_tokens, positions, place, m.layers, m.layer_norm, 0, order)


FAMILIES = {"bert": _bert, "roberta": _bert, "xlm-roberta": _bert, "mt5": _t5, "m2m_100": _m2m}
POOLERS = {MeanPooler: "mean", ClsPooler: "class", ClsLastHiddenStatePooler: "class"}


def open_hf_text(t: Any, name: str = "text") -> Tower:
    """The tower of open_clip's ``HFTextEncoder``; frozen and in eval mode from here on.

    It sees the whole sentence and no padding: sentences are cut after the longest of a batch, and not packed. Rows
    enter at "embedded", before positions and the first norm. Raises ValueError for other encoders and poolings.
    """
    kind = t.config.model_type
    if kind not in FAMILIES or type(t.pooler) not in POOLERS:
        raise ValueError(
            f"the text encoder {kind!r} with {type(t.pooler).__name__} cannot be opened. Those that can: "
            f"{', '.join(FAMILIES)}, read at the class token or as the mean of the tokens."
        )
    t.requires_grad_(False).eval()
    m, pad = t.transformer, t.config.pad_token_id
    pieces = FAMILIES[kind](m)
    pooler = (
        getattr(m, "pooler", None) if type(t.pooler) is ClsPooler and t.pooler.use_pooler_output else None
    )

    def embed(s: Stream) -> Stream:
        x = pieces.words(s.x)
        where = None if pieces.positions is None else pieces.positions(s.x)
        return replace(s, x=x, mask=_mask(m.config, x, s.x != pad), positions=where)

    def pool(s: Stream) -> Stream:
        seen = torch.ones_like(s.x[..., 0]) if s.mask is None else s.mask[:, 0, 0] == 0
        out = BaseModelOutputWithPooling(s.x, None if pooler is None else pooler(s.x))
        return replace(s, x=t.proj(t.pooler(out, seen.long())))

    linear = [p for p in t.proj.modules() if isinstance(p, nn.Linear)]
    width = pieces.words.embedding_dim
    parts = (*pieces.order, "pooler") if pooler is not None else pieces.order
    return Tower(
        name,
        t,
        ("input", "embedded", "placed", *map(str, range(len(pieces.blocks) + 1)), "normed", "pooled"),
        (
            embed,
            lambda s: replace(s, x=pieces.place(s)),
            lambda s: s,
            *[_block(block, kind == "mt5") for block in pieces.blocks],
            then(pieces.norm),
            pool,
        ),
        width=width,
        out=linear[-1].out_features if linear else width,
        reads=None if type(t.pooler) is MeanPooler else 1,
        grows="normed",  # positions are counted, and rows behind padding would be padding
        reopen=partial(open_hf_text, name=name),
        canonical=lambda: in_order(t, (*(f"transformer.{part}" for part in parts), "proj")),
        traits=_traits(t.config) | {"pool": POOLERS[type(t.pooler)]},
        reading=Reading(_context(t.config) - pieces.spare, pad, cuts=True),
    )


def _mask(config: Any, x: Tensor, seen: Tensor) -> Tensor | None:
    """The library's mask of padding, additive [batch, 1, length, length]; None where there is no padding."""
    mask = create_bidirectional_mask(config=config, inputs_embeds=x, attention_mask=seen.long())
    if mask is None or mask.dtype != torch.bool:
        return mask
    return torch.zeros(mask.shape, dtype=x.dtype, device=x.device).masked_fill(~mask, -torch.inf)


def _block(block: nn.Module, biased: bool) -> Step:
    """One block; biased: T5's, whose first makes the position bias for all."""

    def plain(s: Stream) -> Stream:
        return replace(s, x=block(s.x, s.mask))

    def with_bias(s: Stream) -> Stream:
        x, bias, _ = block(s.x, s.mask, s.extra.get("bias"))
        return replace(s, x=x, extra={**s.extra, "bias": bias})

    return with_bias if biased else plain


def _context(config: Any) -> int:
    return int(getattr(config, "max_position_embeddings", None) or LONG)


def _traits(config: Any) -> dict[str, Any]:
    """What fixes the function beside the weights, whatever the family calls it."""

    def fact(*names: str) -> Any:
        return next((getattr(config, n) for n in names if getattr(config, n, None) is not None), None)

    return {
        "class": f"hf-text-{config.model_type}",
        "activation": fact("hidden_act", "dense_act_fn", "activation_function"),
        "heads": fact("encoder_attention_heads", "num_attention_heads", "num_heads"),
        "eps": fact("layer_norm_eps", "layer_norm_epsilon"),
        "pad": config.pad_token_id,
    }
