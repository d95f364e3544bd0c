"""The families of diffusion pipelines: what their ``encode_prompt`` gives back, and how their latents lie.

Everything else (chat templates, masks, pooled states, position ids, packing) is done by the pipeline itself, which is
asked through its public calls. A new family is one entry.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

__all__ = ["FAMILIES", "Family", "family_of"]

SD = ("prompt_embeds", "negative_prompt_embeds")
POOLED = (*SD, "pooled_prompt_embeds", "negative_pooled_prompt_embeds")
MASKED = (
    "prompt_embeds",
    "prompt_attention_mask",
    "negative_prompt_embeds",
    "negative_prompt_attention_mask",
)


def _scaled(pipe: Any, z: Tensor) -> Tensor:
    """By the VAE's own shift and scale."""
    config = pipe.vae.config
    return (z - (getattr(config, "shift_factor", None) or 0.0)) * config.scaling_factor


@dataclass(frozen=True)
class Family:
    """Pipelines whose class names begin alike.

    gives: names, as ``__call__`` takes them, of what ``encode_prompt`` returns, in its order; "" is left out.
    mask: the name of the mask of ``prompt_embeds``; "" where there is none.
    fixed: sentences are padded to one length, so that rows of the context take the places of padding.
    latents: (pipe, sampled latents) to what ``__call__`` takes as ``latents``.
    video: pictures are videos of one frame.
    twice: ``encode_prompt`` knows no negative prompt, and is asked once more for it.
    call: further arguments of ``__call__`` while the network is asked in training.
    """

    gives: tuple[str, ...]
    mask: str = ""
    fixed: bool = True
    latents: Callable[[Any, Tensor], Tensor] = _scaled
    video: bool = False
    twice: bool = False
    call: Mapping[str, Any] = field(default_factory=dict)


def _flux(pipe: Any, z: Tensor) -> Tensor:
    z = _scaled(pipe, z)
    return pipe._pack_latents(z, *z.shape)


def _wan(pipe: Any, z: Tensor) -> Tensor:
    config, shape = pipe.vae.config, (1, -1, 1, 1, 1)
    mean, std = (torch.tensor(v).to(z).view(shape) for v in (config.latents_mean, config.latents_std))
    return (z - mean) / std


FAMILIES: dict[str, Family] = {
    "StableDiffusionXL": Family(POOLED),
    "StableDiffusion3": Family(POOLED),
    "StableDiffusion": Family(SD),
    "PixArtSigma": Family(MASKED, mask="prompt_attention_mask"),
    "PixArtAlpha": Family(MASKED, mask="prompt_attention_mask"),
    "Flux": Family(("prompt_embeds", "pooled_prompt_embeds", ""), latents=_flux, twice=True),
    "Wan": Family(SD, latents=_wan, video=True),
}


def family_of(pipe: Any) -> tuple[str, Family]:
    """The family of a pipeline, by the longest beginning of its class's name that is one.

    Raises ValueError for others, with the list of those that are known.
    """
    name = type(pipe).__name__
    known = [
        k
        for k in sorted(FAMILIES, key=len, reverse=True)
        if name.startswith(k) and not name[len(k)].isdigit()
    ]
    if not known or not hasattr(pipe, "encode_prompt"):
        raise ValueError(
            f"{name} is no pipeline that vpt prompts. Those that it does begin with {', '.join(FAMILIES)}, and take "
            "text. Another family is one entry in vpt/towers/families.py."
        )
    return known[0], FAMILIES[known[0]]
