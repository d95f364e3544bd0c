"""The smallest pipeline of every diffusion family, built from configs: random weights, nothing downloaded.

Every builder returns a new pipeline in eval mode, the same to the bit each time; ``FAMILIES`` names them, and ``shared`` keeps
one of each a process for tests that change nothing. ``SMALL`` is what a call needs beside its prompt to be small.
Tokenizers are the families' own classes over small vocabularies in which the words of ``WORDS`` are one token each.
"""

import gzip
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLCogVideoX,
    AutoencoderKLLTXVideo,
    AutoencoderKLWan,
    CogVideoXDDIMScheduler,
    CogVideoXPipeline,
    CogVideoXTransformer3DModel,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    LTXPipeline,
    LTXVideoTransformer3DModel,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
    WanPipeline,
    WanTransformer3DModel,
)
from open_clip.tokenizer import bytes_to_unicode
from torch import nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
)

from vpt.towers.starter.clip_mini import MERGES

WORDS = "a an the of on in with photo picture dog cat mug rain red blue and".split()

Build = Callable[[], Any]


def clip_tokenizer() -> CLIPTokenizer:
    """CLIP's byte pairs cut to 8,000 entries, those of clip-mini; 77 positions."""
    merges = [
        tuple(line.split())
        for line in gzip.decompress(MERGES.read_bytes()).decode().split("\n")[1:]
        if line.strip()
    ]
    signs = list(bytes_to_unicode().values())
    entries = [*signs, *(s + "</w>" for s in signs), *("".join(m) for m in merges)]
    entries += ["<|startoftext|>", "<|endoftext|>"]
    vocab = {entry: i for i, entry in enumerate(entries)}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=77)


def t5_tokenizer() -> T5TokenizerFast:
    """Pieces: the words, and every sign on its own."""
    signs = [chr(c) for c in range(33, 127)]
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -20.0), ("▁", -8.0)]
    pieces += [(f"▁{word}", -2.0) for word in WORDS] + [(sign, -9.0) for sign in signs]
    return T5TokenizerFast(vocab=pieces, extra_ids=0, model_max_length=512)


def _seeded(make: Build) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make().eval().requires_grad_(False)


def clip(width: int = 32, layers: int = 3, projected: bool = False, act: str = "quick_gelu") -> nn.Module:
    """A CLIP text model on ``clip_tokenizer``; projected: the class with the projection, to the same width."""
    config = CLIPTextConfig(
        vocab_size=8000,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        projection_dim=width,
        hidden_act=act,
        bos_token_id=7998,
        eos_token_id=7999,
        pad_token_id=7999,
    )
    return _seeded(lambda: (CLIPTextModelWithProjection if projected else CLIPTextModel)(config))


def t5(width: int = 32) -> nn.Module:
    """A T5 encoder of two blocks on ``t5_tokenizer``."""
    config = T5Config(
        vocab_size=128,
        d_model=width,
        d_kv=8,
        d_ff=2 * width,
        num_layers=2,
        num_heads=4,
        feed_forward_proj="gated-gelu",
    )
    return _seeded(lambda: T5EncoderModel(config))


def vae(channels: int = 4, **config: Any) -> nn.Module:
    """An image autoencoder that halves each side: pictures of 16 px, latents [channels, 8, 8]."""
    return _seeded(
        lambda: AutoencoderKL(
            block_out_channels=(8, 8),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            norm_num_groups=4,
            latent_channels=channels,
            sample_size=16,
            **config,
        )
    )


def unet(**config: Any) -> nn.Module:
    """A U-Net on latents [4, 8, 8] with cross-attention in the lower of two levels."""
    given = {
        "sample_size": 8,
        "layers_per_block": 1,
        "block_out_channels": (16, 32),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "cross_attention_dim": 32,
        "norm_num_groups": 8,
        "attention_head_dim": 8,
    } | config
    return _seeded(lambda: UNet2DConditionModel(**given))


def _ready(pipe: Any) -> Any:
    pipe.set_progress_bar_config(disable=True)
    return pipe


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
    return _ready(
        StableDiffusionPipeline(
            **_parts(DDIMScheduler(clip_sample=False, steps_offset=1), clip(), unet=unet())
        )
    )


def sd2() -> StableDiffusionPipeline:
    """Stable Diffusion 2: OpenCLIP's text tower with its last block left out, and velocity is predicted."""
    scheduler = DDIMScheduler(clip_sample=False, steps_offset=1, prediction_type="v_prediction")
    return _ready(
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
    return _ready(
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
    denoiser = _seeded(
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
    return _ready(
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
    denoiser = _seeded(
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
    return _ready(
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
    denoiser = _seeded(
        lambda: PixArtTransformer2DModel(
            sample_size=32,
            num_layers=2,
            patch_size=2,
            attention_head_dim=8,
            num_attention_heads=4,
            caption_channels=32,
            in_channels=4,
            out_channels=8,
            cross_attention_dim=32,
            attention_bias=True,
            use_additional_conditions=False,
        )
    )
    return _ready(
        PixArtSigmaPipeline(
            tokenizer=t5_tokenizer(),
            text_encoder=t5(),
            vae=vae(),
            transformer=denoiser,
            scheduler=DPMSolverMultistepScheduler(),
        )
    )


def ltx() -> LTXPipeline:
    """LTX-Video: T5 with a mask that only the denoiser sees."""
    denoiser = _seeded(
        lambda: LTXVideoTransformer3DModel(
            in_channels=8,
            out_channels=8,
            num_attention_heads=2,
            attention_head_dim=16,
            cross_attention_dim=32,
            num_layers=1,
            caption_channels=32,
        )
    )
    autoencoder = _seeded(
        lambda: AutoencoderKLLTXVideo(
            latent_channels=8,
            block_out_channels=(8, 8, 8, 8),
            decoder_block_out_channels=(8, 8, 8, 8),
            layers_per_block=(1, 1, 1, 1, 1),
            decoder_layers_per_block=(1, 1, 1, 1, 1),
            spatio_temporal_scaling=(True, True, False, False),
            decoder_spatio_temporal_scaling=(True, True, False, False),
            patch_size=1,
            encoder_causal=True,
            decoder_causal=False,
        )
    )
    return _ready(
        LTXPipeline(
            scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift_terminal=0.1),
            vae=autoencoder,
            text_encoder=t5(),
            tokenizer=t5_tokenizer(),
            transformer=denoiser,
        )
    )


def wan() -> WanPipeline:
    """Wan 2.1: UMT5's states, and zeros where the sentence ends."""
    denoiser = _seeded(
        lambda: WanTransformer3DModel(
            patch_size=(1, 2, 2),
            num_attention_heads=2,
            attention_head_dim=12,
            in_channels=4,
            out_channels=4,
            text_dim=32,
            freq_dim=32,
            ffn_dim=32,
            num_layers=2,
            rope_max_seq_len=16,
        )
    )
    autoencoder = _seeded(
        lambda: AutoencoderKLWan(
            base_dim=4,
            z_dim=4,
            dim_mult=[1, 1, 1, 1],
            num_res_blocks=1,
            temperal_downsample=[False, True, True],
            latents_mean=[-0.7, 0.1, 0.4, -0.2],
            latents_std=[2.8, 1.4, 2.3, 2.6],
        )
    )
    return _ready(
        WanPipeline(
            tokenizer=t5_tokenizer(),
            text_encoder=t5(),
            vae=autoencoder,
            scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
            transformer=denoiser,
        )
    )


def cogvideox() -> CogVideoXPipeline:
    """CogVideoX: T5's states of a fixed length in one sequence with the video, velocity is predicted."""
    denoiser = _seeded(
        lambda: CogVideoXTransformer3DModel(
            num_attention_heads=4,
            attention_head_dim=8,
            in_channels=4,
            out_channels=4,
            time_embed_dim=8,
            text_embed_dim=32,
            num_layers=2,
            sample_width=8,
            sample_height=8,
            sample_frames=5,
            patch_size=2,
            temporal_compression_ratio=4,
            max_text_seq_length=226,
        )
    )
    autoencoder = _seeded(
        lambda: AutoencoderKLCogVideoX(
            down_block_types=("CogVideoXDownBlock3D",) * 4,
            up_block_types=("CogVideoXUpBlock3D",) * 4,
            block_out_channels=(8, 8, 8, 8),
            latent_channels=4,
            layers_per_block=1,
            norm_num_groups=2,
            temporal_compression_ratio=4,
        )
    )
    return _ready(
        CogVideoXPipeline(
            tokenizer=t5_tokenizer(),
            text_encoder=t5(),
            vae=autoencoder,
            transformer=denoiser,
            scheduler=CogVideoXDDIMScheduler(
                prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing"
            ),
        )
    )


PICTURE = {"height": 16, "width": 16}
SMALL: dict[str, dict[str, Any]] = {
    "sd": PICTURE,
    "sd2": PICTURE,
    "sdxl": PICTURE,
    "sd3": PICTURE,
    "flux": PICTURE,
    "pixart_sigma": PICTURE | {"use_resolution_binning": False},
    "ltx": {"height": 32, "width": 32, "num_frames": 5},
    "wan": {"height": 16, "width": 16, "num_frames": 5},
    "cogvideox": {"height": 64, "width": 64, "num_frames": 5},
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
}


@cache
def shared(family: str) -> Any:
    """The pipeline of a family, one a process. For tests that change nothing of it."""
    return FAMILIES[family]()
