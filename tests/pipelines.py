"""The smallest pipeline of every diffusion family, built from configs: random weights, nothing downloaded.

Every builder returns a new pipeline in eval mode, the same to the bit each time. ``FAMILIES`` names them, ``shared``
keeps one of each a process for tests that change nothing, ``SMALL`` is what a call needs beside its prompt to be
small.
"""

from functools import cache
from typing import Any

import torch
from diffusers import (
    ControlNetModel,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionControlNetPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
)
from pipeline_parts import PICTURE, Build, clip, clip_tokenizer, ready, seeded, t5, t5_tokenizer, unet, vae
from pipelines_llm import flux2, flux2_klein, qwen_image, sana, z_image
from pipelines_video import cogvideox, ltx, wan
from torch import nn


def _parts(scheduler: Any, text: nn.Module, **denoiser: nn.Module) -> dict[str, Any]:
    return {
        "vae": vae(),
        "text_encoder": text,
        "tokenizer": clip_tokenizer(),
        "scheduler": scheduler,
        "safety_checker": None,
        "feature_extractor": None,
        "requires_safety_checker": False,
        **denoiser,
    }


def sd() -> StableDiffusionPipeline:
    """Stable Diffusion 1: noise is predicted."""
    return ready(
        StableDiffusionPipeline(
            **_parts(DDIMScheduler(clip_sample=False, steps_offset=1), clip(), unet=unet())
        )
    )


def variants(pipe: StableDiffusionPipeline) -> dict[str, tuple[Any, dict[str, Any]]]:
    """The other pipelines of Stable Diffusion on the same parts, by name, with what a call needs beside its prompt."""
    parts = pipe.components | {"requires_safety_checker": False}
    picture = torch.linspace(0, 1, 3 * 16 * 16).view(1, 3, 16, 16)
    mask = (torch.arange(16) < 8).float().expand(1, 1, 16, 16)
    net = ControlNetModel.from_unet(pipe.unet, conditioning_embedding_out_channels=(8, 16))
    net.eval().requires_grad_(False)
    for zero in (*net.controlnet_down_blocks, net.controlnet_mid_block):
        nn.init.eye_(zero.weight[:, :, 0, 0])  # it starts at zero, where it does nothing
    found = {
        "image-to-image": (StableDiffusionImg2ImgPipeline(**parts), {"image": picture, "strength": 1.0}),
        "inpainting": (
            StableDiffusionInpaintPipeline(**parts),
            {"image": picture, "mask_image": mask} | PICTURE,
        ),
        "controlnet": (
            StableDiffusionControlNetPipeline(**parts, controlnet=net),
            {"image": picture} | PICTURE,
        ),
    }
    return {name: (ready(other), call) for name, (other, call) in found.items()}


def sd2() -> StableDiffusionPipeline:
    """Stable Diffusion 2: OpenCLIP's text tower with its last block left out, and velocity is predicted."""
    scheduler = DDIMScheduler(clip_sample=False, steps_offset=1, prediction_type="v_prediction")
    return ready(
        StableDiffusionPipeline(
            **_parts(scheduler, clip(layers=2, act="gelu"), unet=unet(use_linear_projection=True))
        )
    )


def sdxl() -> StableDiffusionXLPipeline:
    """SDXL: two CLIP encoders side by side, the pooled state of the second, time ids."""
    added = 8
    denoiser = unet(
        cross_attention_dim=64,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=added,
        projection_class_embeddings_input_dim=32 + 6 * added,
        transformer_layers_per_block=(1, 1),
    )
    return ready(
        StableDiffusionXLPipeline(
            vae=vae(),
            text_encoder=clip(),
            text_encoder_2=clip(projected=True, act="gelu"),
            tokenizer=clip_tokenizer(),
            tokenizer_2=clip_tokenizer(),
            unet=denoiser,
            scheduler=EulerDiscreteScheduler(steps_offset=1),
            add_watermarker=False,
        )
    )


def sd3() -> StableDiffusion3Pipeline:
    """Stable Diffusion 3: two CLIP encoders side by side, T5 behind them, both pooled states."""
    denoiser = seeded(
        lambda: SD3Transformer2DModel(
            sample_size=8,
            patch_size=2,
            in_channels=4,
            out_channels=4,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=4,
            joint_attention_dim=64,
            caption_projection_dim=32,
            pooled_projection_dim=64,
            pos_embed_max_size=8,
        )
    )
    return ready(
        StableDiffusion3Pipeline(
            transformer=denoiser,
            scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
            vae=vae(shift_factor=0.06, use_quant_conv=False, use_post_quant_conv=False),
            text_encoder=clip(projected=True),
            tokenizer=clip_tokenizer(),
            text_encoder_2=clip(projected=True, act="gelu"),
            tokenizer_2=clip_tokenizer(),
            text_encoder_3=t5(64),
            tokenizer_3=t5_tokenizer(),
        )
    )


def flux() -> FluxPipeline:
    """Flux.1 dev: T5's states, CLIP's pooled state, guidance as an input."""
    denoiser = seeded(
        lambda: FluxTransformer2DModel(
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=8,
            num_attention_heads=4,
            joint_attention_dim=32,
            pooled_projection_dim=32,
            guidance_embeds=True,
            axes_dims_rope=(2, 2, 4),
        )
    )
    return ready(
        FluxPipeline(
            transformer=denoiser,
            scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
            vae=vae(shift_factor=0.1, use_quant_conv=False, use_post_quant_conv=False),
            text_encoder=clip(),
            tokenizer=clip_tokenizer(),
            text_encoder_2=t5(),
            tokenizer_2=t5_tokenizer(),
        )
    )


def pixart_sigma() -> PixArtSigmaPipeline:
    """PixArt-Sigma: T5 with a mask; the variance, which is learned too, is cut off by the pipeline."""
    denoiser = seeded(
        lambda: PixArtTransformer2DModel(
            sample_size=32,
            num_layers=2,
            patch_size=2,
            attention_head_dim=8,
            num_attention_heads=4,
            caption_channels=24,
            in_channels=4,
            out_channels=8,
            cross_attention_dim=32,
            attention_bias=True,
            use_additional_conditions=False,
        )
    )
    return ready(
        PixArtSigmaPipeline(
            tokenizer=t5_tokenizer(),
            text_encoder=t5(24),
            vae=vae(),
            transformer=denoiser,
            scheduler=DPMSolverMultistepScheduler(),
        )
    )


SMALL: dict[str, dict[str, Any]] = {
    "sd": PICTURE,
    "sd2": PICTURE,
    "sdxl": PICTURE,
    "sd3": PICTURE,
    "flux": PICTURE,
    "pixart_sigma": PICTURE | {"use_resolution_binning": False},
    "ltx": {"height": 32, "width": 32, "num_frames": 5},
    "wan": {"height": 32, "width": 32, "num_frames": 5},
    "cogvideox": {"height": 64, "width": 64, "num_frames": 5},
    "sana": {"height": 32, "width": 32, "use_resolution_binning": False},
    "qwen_image": {"height": 32, "width": 32},
    "flux2": PICTURE,
    "flux2_klein": PICTURE,
    "z_image": PICTURE,
}


FAMILIES: dict[str, Build] = {
    "sd": sd,
    "sd2": sd2,
    "sdxl": sdxl,
    "sd3": sd3,
    "flux": flux,
    "pixart_sigma": pixart_sigma,
    "ltx": ltx,
    "wan": wan,
    "cogvideox": cogvideox,
    "sana": sana,
    "qwen_image": qwen_image,
    "flux2": flux2,
    "flux2_klein": flux2_klein,
    "z_image": z_image,
}


@cache
def shared(family: str) -> Any:
    """The pipeline of a family, one a process. For tests that change nothing of it."""
    return FAMILIES[family]()
