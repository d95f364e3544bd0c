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
    against: of those, the negative prompt where none is given; None: no guidance without one.
    call: further arguments of ``__call__`` while the network is asked in training; networks that read guidance as an
        input are told 3.5, as diffusers' training scripts tell them.
    """

    gives: tuple[str, ...]
    mask: str = ""
    fixed: bool = True
    latents: Callable[[Any, Tensor], Tensor] = _scaled
    video: bool = False
    twice: bool = False
    against: str | None = None
    call: Mapping[str, Any] = field(default_factory=dict)


def _flux(pipe: Any, z: Tensor) -> Tensor:
    z = _scaled(pipe, z)
    return pipe._pack_latents(z, *z.shape)


def _wan(pipe: Any, z: Tensor) -> Tensor:
    config, shape = pipe.vae.config, (1, -1, 1, 1, 1)
    mean, std = (torch.tensor(v).to(z).view(shape) for v in (config.latents_mean, config.latents_std))
    return (z - mean) / std


def _cogvideox(pipe: Any, z: Tensor) -> Tensor:
    scale = pipe.vae.config.scaling_factor
    return (z / scale if pipe.vae.config.invert_scale_latents else z * scale).transpose(1, 2)


def _ltx(pipe: Any, z: Tensor) -> Tensor:
    vae = pipe.vae
    z = pipe._normalize_latents(z, vae.latents_mean, vae.latents_std, vae.config.scaling_factor)
    return pipe._pack_latents(z, pipe.transformer_spatial_patch_size, pipe.transformer_temporal_patch_size)


def _qwen_image(pipe: Any, z: Tensor) -> Tensor:
    z = _wan(pipe, z)[:, :, 0]
    return pipe._pack_latents(z, *z.shape)


def _flux2(pipe: Any, z: Tensor) -> Tensor:
    z, vae, shape = pipe._patchify_latents(z), pipe.vae, (1, -1, 1, 1)
    variance = vae.bn.running_var.to(z).view(shape) + vae.config.batch_norm_eps
    return (z - vae.bn.running_mean.to(z).view(shape)) / variance.sqrt()


FAMILIES: dict[str, Family] = {
    "StableDiffusionXL": Family(POOLED),
    "StableDiffusion3": Family(POOLED),
    "StableDiffusion": Family(SD),
    "PixArtSigma": Family(MASKED, mask="prompt_attention_mask"),
    "PixArtAlpha": Family(MASKED, mask="prompt_attention_mask"),
    "Flux": Family(
        ("prompt_embeds", "pooled_prompt_embeds", ""), latents=_flux, twice=True, call={"guidance_scale": 3.5}
    ),
    "Sana": Family(MASKED, mask="prompt_attention_mask"),
    "LTX": Family(MASKED, mask="prompt_attention_mask", latents=_ltx, video=True),
    "Wan": Family(SD, latents=_wan, video=True),
    "CogVideoX": Family(SD, latents=_cogvideox, video=True),
    "QwenImage": Family(
        ("prompt_embeds", "prompt_embeds_mask"),
        mask="prompt_embeds_mask",
        fixed=False,
        latents=_qwen_image,
        video=True,
        twice=True,
        call={"true_cfg_scale": 1.0, "guidance_scale": None},
    ),
    "Flux2Klein": Family(("prompt_embeds", ""), fixed=False, latents=_flux2, twice=True, against=""),
    "Flux2": Family(
        ("prompt_embeds", ""), fixed=False, latents=_flux2, twice=True, call={"guidance_scale": 3.5}
    ),
    "ZImage": Family(SD, fixed=False, call={"guidance_scale": 0.0}),
}


# pipelines that only begin as a family does, and are called otherwise
OTHERS = ("SanaSprint", "SanaVideo", "QwenImageEdit", "QwenImageLayered", "ZImageOmni")


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
    if not known or name.startswith(OTHERS) or not hasattr(pipe, "encode_prompt"):
        raise ValueError(
            f"{name} is no pipeline that vpt prompts. Those that it does begin with {', '.join(FAMILIES)}, and take "
            "text. Another family is one entry in vpt/towers/families.py."
        )
    return known[0], FAMILIES[known[0]]
