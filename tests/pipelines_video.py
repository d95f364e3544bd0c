"""The smallest pipelines of the video families; see ``pipelines``."""

from diffusers import (
    AutoencoderKLCogVideoX,
    AutoencoderKLLTXVideo,
    AutoencoderKLWan,
    CogVideoXDDIMScheduler,
    CogVideoXPipeline,
    CogVideoXTransformer3DModel,
    FlowMatchEulerDiscreteScheduler,
    LTXPipeline,
    LTXVideoTransformer3DModel,
    WanPipeline,
    WanTransformer3DModel,
)
from pipeline_parts import ready, seeded, t5, t5_tokenizer


def ltx() -> LTXPipeline:
    """LTX-Video: T5 with a mask that only the denoiser sees."""
    denoiser = seeded(
        lambda: LTXVideoTransformer3DModel(
            in_channels=8,
            out_channels=8,
            num_attention_heads=2,
            attention_head_dim=16,
            cross_attention_dim=32,
            num_layers=1,
            caption_channels=24,
        )
    )
    autoencoder = seeded(
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
    return ready(
        LTXPipeline(
            scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift_terminal=0.1),
            vae=autoencoder,
            text_encoder=t5(24),
            tokenizer=t5_tokenizer(),
            transformer=denoiser,
        )
    )


def wan() -> WanPipeline:
    """Wan 2.1: UMT5's states, and zeros where the sentence ends."""
    denoiser = seeded(
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
    autoencoder = seeded(
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
    return ready(
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
    denoiser = seeded(
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
    autoencoder = seeded(
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
    return ready(
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
