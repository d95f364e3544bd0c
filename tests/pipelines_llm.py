"""The smallest pipelines of the families whose text encoder is a language model; see ``pipelines``."""

from typing import Any

import torch
from diffusers import (
    AutoencoderDC,
    AutoencoderKLFlux2,
    AutoencoderKLQwenImage,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Pipeline,
    Flux2Transformer2DModel,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
    SanaPipeline,
    SanaTransformer2DModel,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from pipeline_parts import decoder, gemma_tokenizer, mistral_processor, qwen_tokenizer, ready, seeded, vae
from transformers import (
    Gemma2Config,
    Gemma2Model,
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3Model,
)


def sana() -> SanaPipeline:
    """Sana: Gemma 2 behind an instruction, of whose states those of the prompt are kept."""
    denoiser = seeded(
        lambda: SanaTransformer2DModel(
            in_channels=4,
            out_channels=4,
            num_attention_heads=2,
            attention_head_dim=8,
            num_layers=2,
            num_cross_attention_heads=2,
            cross_attention_head_dim=8,
            cross_attention_dim=16,
            caption_channels=32,
            sample_size=32,
        )
    )
    autoencoder = seeded(
        lambda: AutoencoderDC(
            latent_channels=4,
            attention_head_dim=2,
            encoder_block_types=("ResBlock", "EfficientViTBlock"),
            decoder_block_types=("ResBlock", "EfficientViTBlock"),
            encoder_block_out_channels=(8, 8),
            decoder_block_out_channels=(8, 8),
            encoder_qkv_multiscales=((), (5,)),
            decoder_qkv_multiscales=((), (5,)),
            encoder_layers_per_block=(1, 1),
            decoder_layers_per_block=(1, 1),
            downsample_block_type="conv",
            upsample_block_type="interpolate",
            decoder_norm_types="rms_norm",
            decoder_act_fns="silu",
            scaling_factor=0.41407,
        )
    )
    config = Gemma2Config(**decoder(3), query_pre_attn_scalar=16, sliding_window=64)
    scheduler = DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )
    return ready(
        SanaPipeline(
            tokenizer=gemma_tokenizer(),
            text_encoder=seeded(lambda: Gemma2Model(config)),
            vae=autoencoder,
            transformer=denoiser,
            scheduler=scheduler,
        )
    )


def qwen_image() -> QwenImagePipeline:
    """Qwen-Image: Qwen2.5-VL behind a template whose states are dropped; only what is no padding is handed on."""
    denoiser = seeded(
        lambda: QwenImageTransformer2DModel(
            in_channels=16,
            out_channels=4,
            num_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=32,
            axes_dims_rope=(4, 6, 6),
        )
    )
    autoencoder = seeded(
        lambda: AutoencoderKLQwenImage(
            base_dim=4,
            z_dim=4,
            dim_mult=[1, 1, 1, 1],
            num_res_blocks=1,
            temperal_downsample=[False, True, True],
            latents_mean=[-0.7, 0.1, 0.4, -0.2],
            latents_std=[2.8, 1.4, 2.3, 2.6],
        )
    )
    text = decoder(3) | {
        "rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 1e6}
    }
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 32}
    config = Qwen2_5_VLConfig(text_config=text, vision_config=vision | {"fullatt_block_indexes": [0]})
    return ready(
        QwenImagePipeline(
            scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift_terminal=0.02),
            vae=autoencoder,
            text_encoder=seeded(lambda: Qwen2_5_VLForConditionalGeneration(config)),
            tokenizer=qwen_tokenizer(),
            transformer=denoiser,
        )
    )


def _flux2_parts(guided: bool) -> dict[str, Any]:
    autoencoder = seeded(
        lambda: AutoencoderKLFlux2(
            block_out_channels=(8, 8),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            layers_per_block=1,
            norm_num_groups=4,
            latent_channels=4,
            sample_size=16,
        )
    )
    autoencoder.bn.running_mean.copy_(
        torch.linspace(-0.2, 0.2, 16)
    )  # of trained weights they are not 0 and 1
    autoencoder.bn.running_var.copy_(torch.linspace(0.5, 2.0, 16))
    denoiser = seeded(
        lambda: Flux2Transformer2DModel(
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=96,
            timestep_guidance_channels=16,
            axes_dims_rope=(4, 4, 4, 4),
            guidance_embeds=guided,
        )
    )
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
    return {"vae": autoencoder, "transformer": denoiser, "scheduler": scheduler}


def flux2() -> Flux2Pipeline:
    """FLUX.2 dev: three states of Mistral 3 side by side, guidance as an input, no negatives."""
    config = Mistral3Config(
        text_config=decoder(31) | {"model_type": "mistral"},
        vision_config={
            "model_type": "pixtral",
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 28,
            "patch_size": 14,
        },
    )
    return ready(
        Flux2Pipeline(
            text_encoder=seeded(lambda: Mistral3ForConditionalGeneration(config)),
            tokenizer=mistral_processor(),
            **_flux2_parts(guided=True),
        )
    )


def flux2_klein() -> Flux2KleinPipeline:
    """FLUX.2 Klein: three states of Qwen3 side by side; negatives as embeddings."""
    config = Qwen3Config(**decoder(28))
    return ready(
        Flux2KleinPipeline(
            text_encoder=seeded(lambda: Qwen3ForCausalLM(config)),
            tokenizer=qwen_tokenizer(),
            **_flux2_parts(guided=False),
        )
    )


def z_image() -> ZImagePipeline:
    """Z-Image: Qwen3's last state but one, one tensor a sentence without its padding."""
    denoiser = seeded(
        lambda: ZImageTransformer2DModel(
            in_channels=4,
            dim=32,
            n_layers=1,
            n_refiner_layers=1,
            n_heads=2,
            n_kv_heads=2,
            cap_feat_dim=32,
            axes_dims=[4, 6, 6],
            axes_lens=[640, 16, 16],
        )
    )
    config = Qwen3Config(**decoder(3))
    return ready(
        ZImagePipeline(
            scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
            vae=vae(shift_factor=0.1, use_quant_conv=False, use_post_quant_conv=False),
            text_encoder=seeded(lambda: Qwen3Model(config)),
            tokenizer=qwen_tokenizer(),
            transformer=denoiser,
        )
    )
