"""transformers' ViT, DINOv2, CLIP and SigLIP laid open: the library's own modules in their own order.

Follows the ``forward`` of ``ViTModel``, ``Dinov2Model``, ``CLIPModel`` and ``SiglipModel`` of transformers 5.
Embedding and position are one step in image towers; CLIP's rows enter behind it, before the pre-norm.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.clip.modeling_clip import CLIPAttention
from transformers.models.dinov2.modeling_dinov2 import Dinov2Attention
from transformers.models.dinov2_with_registers.modeling_dinov2_with_registers import (
    Dinov2WithRegistersAttention,
)
from transformers.models.siglip.modeling_siglip import SiglipAttention
from transformers.models.vit.modeling_vit import ViTAttention

from vpt.tower import Reading, Step, Stream, Tower
from vpt.towers.live import LiveBlock, Parts
from vpt.towers.steps import at_ends, in_order, then

__all__ = ["OPENED", "open_clip_text", "open_hf"]

NOTHING = nn.Identity()
ATTENTION = (CLIPAttention, SiglipAttention, ViTAttention, Dinov2Attention, Dinov2WithRegistersAttention)
ACTIVATIONS = {"gelu": "GELU", "quick_gelu": "QuickGELU"}  # by open_clip's names, so that fingerprints agree


def open_hf(m: nn.Module) -> dict[str, Tower]:
    """The towers of a transformers model, "image" and, of CLIP and SigLIP, "text"; frozen and in eval mode.

    Raises ValueError for other models, with those that open.
    """
    kind = type(m).__name__
    if kind not in OPENED:
        raise ValueError(f"{kind} of transformers cannot be opened. Those that can: {', '.join(OPENED)}.")
    config: Any = m.config
    if config._attn_implementation != "sdpa":
        raise ValueError(
            f"{kind} was built with {config._attn_implementation!r} attention. Build it with "
            "attn_implementation='sdpa', the default."
        )
    return OPENED[kind](m)


@dataclass(frozen=True)
class _Attention:
    """transformers' attention by the names of timm's."""

    attn: Any
    qkv: None = None
    q_norm: nn.Module = NOTHING
    k_norm: nn.Module = NOTHING
    norm: nn.Module = NOTHING
    proj_drop: nn.Module = NOTHING
    gate: None = None

    q_proj = property(lambda self: self.attn.q_proj)
    k_proj = property(lambda self: self.attn.k_proj)
    v_proj = property(lambda self: self.attn.v_proj)
    proj = property(lambda self: self.attn.o_proj if hasattr(self.attn, "o_proj") else self.attn.out_proj)
    scale = property(lambda self: self.attn.scale if hasattr(self.attn, "scale") else self.attn.scaling)

    @property
    def num_heads(self) -> int:
        """Heads."""
        return getattr(self.attn, "num_heads", 0) or self.attn.num_attention_heads


@dataclass(frozen=True)
class _Layer(LiveBlock):
    """A block of transformers. causal: it sees nothing behind a token, which the library says by a flag."""

    causal: bool = False

    def mask(self, s: Stream) -> Tensor | None:
        if s.mask is not None or not self.causal:
            return s.mask
        length = s.x.shape[1]
        return torch.full((length, length), -torch.inf, dtype=s.x.dtype, device=s.x.device).triu(1)

    def __call__(self, s: Stream) -> Stream:
        flag = {"is_causal": True} if self.causal and s.mask is None else {}
        return replace(s, x=self.block(s.x, s.mask, **flag))


def _parts(block: Any) -> Parts:
    """The pieces of a block, whatever its family calls them."""

    def piece(*names: str) -> Any:
        return next((getattr(block, name) for name in names if hasattr(block, name)), NOTHING)

    return Parts(
        piece("layernorm_before", "layer_norm1", "norm1"),
        _Attention(piece("attention", "self_attn")),
        piece("layernorm_after", "layer_norm2", "norm2"),
        block.mlp,
        piece("layer_scale1"),
        piece("layer_scale2"),
    )


def _blocks(blocks: Sequence[nn.Module], causal: bool = False) -> list[Step]:
    steps: list[Step] = []
    for i, block in enumerate(blocks):
        parts = _parts(block)
        if type(parts.attn.attn) not in ATTENTION:
            raise ValueError(
                f"a block whose attention is {type(parts.attn.attn).__name__} is none that vpt knows. Open the model "
                "as the library makes it."
            )
        steps.append(_Layer(**vars(parts.step(block, i)), causal=causal))
    return steps


def _weights(blocks: Sequence[nn.Module]) -> Iterable[Tensor]:
    """Weights of blocks in step order, queries, keys and values joined."""
    for block in blocks:
        parts = _parts(block)
        attn = parts.attn.attn
        yield from parts.norm1.parameters()
        for kind in ("weight", "bias"):
            three = [getattr(getattr(attn, f"{name}_proj"), kind) for name in "qkv"]
            if three[0] is not None:
                yield torch.cat(three)
        for piece in (parts.attn.proj, parts.ls1, parts.norm2, parts.mlp, parts.ls2):
            yield from piece.parameters()


def _traits(kind: str, config: Any, pool: str) -> dict[str, Any]:
    return {
        "class": kind,
        "pool": pool,
        "activation": ACTIVATIONS.get(config.hidden_act, config.hidden_act),
        "heads": config.num_attention_heads,
        "eps": config.layer_norm_eps,
    }


def _pair(size: Any) -> tuple[int, int]:
    return tuple(size) if isinstance(size, Sequence) else (size, size)


def _image(
    m: nn.Module, config: Any, embed: Step, settle: Step, blocks: Sequence[nn.Module], **more: Any
) -> Tower:
    """An image tower; ``more``: the steps "norm" and "pool", and what the family has beside."""
    return Tower(
        "image",
        m,
        ("input", "placed", *map(str, range(len(blocks) + 1)), "normed", "pooled"),
        (embed, settle, *_blocks(blocks), more.pop("norm"), more.pop("pool")),
        width=config.hidden_size,
        out=more.pop("out", config.hidden_size),
        patch=_pair(config.patch_size),
        grows="placed",
        **more,
    )


def _resized(embeddings: Any, config: Any) -> Step:
    """Patches at their positions; those of pictures of another size are interpolated, as the library does."""
    own = _pair(config.image_size)

    def step(s: Stream) -> Stream:
        other = {} if s.x.shape[-2:] == own else {"interpolate_pos_encoding": True}
        return replace(s, x=embeddings(s.x.to(next(embeddings.parameters()).dtype), **other))

    return step


def _as_it_is(s: Stream) -> Stream:
    return s


def _classified(
    m: Any, base: Any, embed: Step, blocks: Sequence[nn.Module], prefix: int, mean: bool
) -> Tower:
    """ViT and DINOv2, read at the class token; their classifier reads it, and the mean of the patches if ``mean``."""
    m.requires_grad_(False).eval()

    def logits(s: Stream) -> Tensor:
        x = s.own()
        return m.classifier(torch.cat([x[:, 0], x[:, prefix:].mean(1)], 1) if mean else x[:, 0])

    def canonical() -> Iterable[Tensor]:
        yield from in_order(base.embeddings, EMBEDDED)
        yield from _weights(blocks)
        yield from base.layernorm.parameters()

    return _image(
        m,
        base.config,
        embed,
        _as_it_is,
        blocks,
        norm=then(base.layernorm),
        pool=lambda s: replace(s, x=s.own()[:, 0]),
        prefix=prefix,
        reads=1,
        logits=logits if isinstance(getattr(m, "classifier", None), nn.Linear) else None,
        reopen=lambda twin: open_hf(twin)["image"],
        canonical=canonical,
        traits=_traits(f"hf-{base.config.model_type}", base.config, "token"),
    )


EMBEDDED = ("patch_embeddings", "cls_token", "register_tokens", "position_embeddings")


def _open_vit(m: Any) -> dict[str, Tower]:
    base = getattr(m, "vit", m)
    embed = _resized(base.embeddings, base.config)
    return {"image": _classified(m, base, embed, base.layers, 1, mean=False)}


def _open_dino(m: Any) -> dict[str, Tower]:
    base = next((getattr(m, name) for name in ("dinov2", "dinov2_with_registers") if hasattr(m, name)), m)
    prefix = 1 + getattr(base.config, "num_register_tokens", 0)
    return {
        "image": _classified(m, base, then(base.embeddings), base.encoder.layer, prefix, mean=True)
    }  # positions are interpolated in any case


def _halves(m: Any, image: Callable[..., Tower], text: Callable[..., Tower]) -> dict[str, Tower]:
    """The two towers of a CLIP, each on the modules that are its own."""
    m.requires_grad_(False).eval()
    halves = {
        "image": {"tower": m.vision_model, "projection": getattr(m, "visual_projection", None)},
        "text": {"tower": m.text_model, "projection": getattr(m, "text_projection", None)},
    }
    modules = {k: nn.ModuleDict({n: p for n, p in v.items() if p is not None}) for k, v in halves.items()}
    return {"image": image(modules["image"].eval()), "text": text(modules["text"].eval())}


def _clip_image(m: Any) -> Tower:
    m.requires_grad_(False).eval()
    v, projection = m["tower"], m["projection"]
    e = v.embeddings

    def canonical() -> Iterable[Tensor]:
        yield from (e.patch_embedding.weight, e.class_embedding, e.position_embedding.weight)
        yield from v.pre_layrnorm.parameters()
        yield from _weights(v.encoder.layers)
        yield from v.post_layernorm.parameters()
        yield projection.weight.T

    return _image(
        m,
        v.config,
        _resized(e, v.config),
        then(v.pre_layrnorm),
        v.encoder.layers,
        norm=then(v.post_layernorm),
        pool=lambda s: replace(s, x=projection(s.own()[:, 0])),
        out=projection.out_features,
        prefix=1,
        reads=1,
        reopen=_clip_image,
        canonical=canonical,
        traits=_traits("clip-image", v.config, "tok"),
    )


def _siglip_image(m: Any) -> Tower:
    m.requires_grad_(False).eval()
    v = m["tower"]
    if not v.use_head:
        raise ValueError(
            "this SigLIP has no pooling head (vision_use_head=False), so a picture has no feature. Choose one that "
            "has it."
        )

    def canonical() -> Iterable[Tensor]:
        yield from in_order(v.embeddings, ("patch_embedding", "position_embedding"))
        yield from _weights(v.encoder.layers)
        yield from in_order(v, ("post_layernorm", "head"))

    return _image(
        m,
        v.config,
        _resized(v.embeddings, v.config),
        _as_it_is,
        v.encoder.layers,
        norm=then(v.post_layernorm),
        pool=lambda s: replace(s, x=v.head(s.own())),
        reopen=_siglip_image,
        canonical=canonical,
        traits=_traits("siglip-image", v.config, "map"),
    )


def _text(m: Any, *, causal: bool) -> Tower:
    """A text tower: causal and read at the end token (CLIP), or read at its last place (SigLIP)."""
    m.requires_grad_(False).eval()
    t = m["tower"]
    config, e = t.config, t.embeddings
    projection = getattr(m, "projection", None) if causal else t.head
    # the library's two ways to find the end token agree where its id is the highest
    highest = config.eos_token_id in (2, config.vocab_size - 1)

    def place(s: Stream) -> Stream:
        if s.positions is None:
            return replace(s, x=e(inputs_embeds=s.x))
        return replace(
            s, x=s.x + e.position_embedding(s.positions)
        )  # packed sentences outgrow the library's check

    def begin(ids: Tensor) -> Stream:
        if not causal:
            end = torch.full((len(ids), 1), ids.shape[1] - 1, device=ids.device)
        elif highest:
            end = ids.argmax(1, keepdim=True)
        else:
            end = (ids == config.eos_token_id).int().argmax(1, keepdim=True)
        return Stream(ids, places={"end": end})

    def canonical() -> Iterable[Tensor]:
        yield from in_order(e, ("token_embedding", "position_embedding"))
        yield from _weights(t.encoder.layers)
        yield from t.final_layer_norm.parameters()
        if projection is not None:
            yield from (projection.weight.T,) if causal else projection.parameters()

    kind, pool = ("clip-text", "argmax" if highest else "eos") if causal else ("siglip-text", "last")
    return Tower(
        "text",
        m,
        ("input", "embedded", "placed", *map(str, range(len(t.encoder.layers) + 1)), "normed", "pooled"),
        (
            then(e.token_embedding),
            place,
            _as_it_is,
            *_blocks(t.encoder.layers, causal),
            then(t.final_layer_norm),
            lambda s: replace(s, x=at_ends(s) if projection is None else projection(at_ends(s))),
        ),
        width=config.hidden_size,
        out=config.hidden_size if projection is None else projection.out_features,
        prefix=1 if causal else 0,
        reads="end",
        grows="placed" if causal else "normed",  # a causal mask can grow, once positions are counted
        begin=begin,
        reopen=partial(_text, causal=causal),
        canonical=canonical,
        ends=0 if projection is None else 1 if causal else len(list(projection.parameters())),
        traits=_traits(kind, config, pool) | {"causal": causal},
        reading=Reading(config.max_position_embeddings, config.pad_token_id, causal=causal, cuts=causal),
    )


def open_clip_text(m: Any) -> Tower:
    """CLIP's text tower alone, as diffusion pipelines hold it: ``CLIPTextModel``, without a projection, or
    ``CLIPTextModelWithProjection``."""
    m.requires_grad_(False).eval()
    parts = {"tower": getattr(m, "text_model", m)}
    if hasattr(m, "text_projection"):
        parts["projection"] = m.text_projection
    return _text(nn.ModuleDict(parts).eval(), causal=True)


OPENED: dict[str, Callable[[Any], dict[str, Tower]]] = {
    "ViTModel": _open_vit,
    "ViTForImageClassification": _open_vit,
    "Dinov2Model": _open_dino,
    "Dinov2ForImageClassification": _open_dino,
    "Dinov2WithRegistersModel": _open_dino,
    "Dinov2WithRegistersForImageClassification": _open_dino,
    "CLIPModel": partial(_halves, image=_clip_image, text=partial(_text, causal=True)),
    "SiglipModel": partial(_halves, image=_siglip_image, text=partial(_text, causal=False)),
}
