"""sd-mini: a StableDiffusionPipeline on 64 px pictures whose text encoder is clip-mini's text tower.

Its folder holds U-Net, autoencoder and scheduler as diffusers saves them; the text encoder is read from
clip-mini's file, so a word learned for search has the same rows here. See CARD-sd-mini.md.
"""

from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from vpt.towers.starter import clip_mini

__all__ = ["export", "load_sd_mini", "sd_mini", "sd_mini_text", "sd_mini_tokenizer"]

FOLDER = Path(__file__).with_name("sd-mini")
START, END = "<|startoftext|>", "<|endoftext|>"
LAYERS = {  # of a block: transformers' name to open_clip's
    "layer_norm1": "ln_1",
    "self_attn.out_proj": "attn.out_proj",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}


def sd_mini_tokenizer() -> CLIPTokenizer:
    """clip-mini's byte pairs as transformers' CLIPTokenizer: the same ids, padded with the end token to 77."""
    theirs = clip_mini.clip_mini_tokenizer()
    names = {"<start_of_text>": START, "<end_of_text>": END}
    vocab = {names.get(entry, entry): i for entry, i in theirs.encoder.items()}
    return CLIPTokenizer(vocab=vocab, merges=list(theirs.bpe_ranks), model_max_length=77)


def sd_mini_text() -> CLIPTextModel:
    """clip-mini's text tower as transformers' CLIPTextModel: ids [B, 77] -> last_hidden_state [B, 77, 256].

    Raises FileNotFoundError if the package came without clip-mini's file.
    """
    _check(clip_mini.WEIGHTS)
    theirs = {n: t.float() for n, t in load_file(clip_mini.WEIGHTS).items() if not n.startswith("visual.")}
    depth, width = 4, theirs["ln_final.weight"].shape[0]
    last = theirs["token_embedding.weight"].shape[0] - 1
    config = CLIPTextConfig(
        vocab_size=last + 1,
        hidden_size=width,
        intermediate_size=theirs["transformer.resblocks.0.mlp.c_fc.weight"].shape[0],
        num_hidden_layers=depth,
        num_attention_heads=4,
        max_position_embeddings=77,
        hidden_act="gelu",
        projection_dim=clip_mini.WIDTH,
        bos_token_id=last - 1,
        eos_token_id=last,
        pad_token_id=last,
    )
    model = CLIPTextModel(config)
    model.load_state_dict(_as_transformers(theirs, depth))
    return model.eval().requires_grad_(False)


def _as_transformers(theirs: dict[str, Tensor], depth: int) -> dict[str, Tensor]:
    state = {
        "embeddings.token_embedding.weight": theirs["token_embedding.weight"],
        "embeddings.position_embedding.weight": theirs["positional_embedding"],
    }
    for kind in ("weight", "bias"):
        state[f"final_layer_norm.{kind}"] = theirs[f"ln_final.{kind}"]
        for i in range(depth):
            ours, block = f"encoder.layers.{i}", f"transformer.resblocks.{i}"
            for name, part in LAYERS.items():
                state[f"{ours}.{name}.{kind}"] = theirs[f"{block}.{part}.{kind}"]
            joined = theirs[f"{block}.attn.in_proj_{kind}"].chunk(3)
            for name, rows in zip(("q_proj", "k_proj", "v_proj"), joined, strict=True):
                state[f"{ours}.self_attn.{name}.{kind}"] = rows
    return state


def sd_mini() -> StableDiffusionPipeline:
    """sd-mini with a random U-Net and autoencoder, for pictures of 64 px: what its training starts from."""
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 32, 64),
        layers_per_block=1,
        norm_num_groups=8,
        latent_channels=4,
        sample_size=64,
        mid_block_add_attention=False,
    )
    unet = UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(48, 96, 144),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=256,
        attention_head_dim=4,  # diffusers means the number of heads by it
        norm_num_groups=16,
        use_linear_projection=True,
        # what the whole caption says reaches every residual block too, as in DeepFloyd IF's 64 px network: without it
        # words for shapes changed nothing after 3,500 steps
        addition_embed_type="text",
        addition_embed_type_num_heads=4,
        resnet_time_scale_shift="scale_shift",
    )
    # the last step is pure noise, so that a dark background can come out of it (arXiv 2305.08891)
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        clip_sample=False,
        set_alpha_to_one=True,
        steps_offset=1,  # without a part in trailing steps, but diffusers warns of 0
    )
    return _pipeline(vae, unet, scheduler)


def _pipeline(
    vae: AutoencoderKL, unet: UNet2DConditionModel, scheduler: DDIMScheduler
) -> StableDiffusionPipeline:
    pipe = StableDiffusionPipeline(
        vae=vae.eval(),
        text_encoder=sd_mini_text(),
        tokenizer=sd_mini_tokenizer(),
        unet=unet.eval(),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def load_sd_mini(folder: Path | None = None) -> StableDiffusionPipeline:
    """The trained pipeline in evaluation mode and float32.

    folder: another one in place of the package's, with ``unet``, ``vae`` and ``scheduler``.
    Raises FileNotFoundError if the package came without its files.
    """
    folder = folder or FOLDER
    for part in ("unet", "vae", "scheduler"):
        _check(folder / part)
    vae = AutoencoderKL.from_pretrained(folder / "vae", torch_dtype=torch.float32)
    unet = UNet2DConditionModel.from_pretrained(folder / "unet", torch_dtype=torch.float32)
    return _pipeline(vae, unet, DDIMScheduler.from_pretrained(folder / "scheduler"))


def export(folder: Path) -> Path:
    """Write the whole pipeline in diffusers' format: ``StableDiffusionPipeline.from_pretrained(folder)`` opens it."""
    load_sd_mini().save_pretrained(folder)
    return folder


def _check(path: Path) -> None:
    if not path.exists():
        raise FileNotFoundError(
            f"a file of starter sd-mini is not at {path}. It is part of the package: install it again, or check the "
            "repository out with this file."
        )
