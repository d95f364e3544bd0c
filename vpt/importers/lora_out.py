"""A DreamBooth-LoRA baseline as the file that diffusers' ``pipe.load_lora_weights`` reads."""

from __future__ import annotations

import os
from pathlib import Path

from safetensors.torch import save
from torch import Tensor

from vpt.promptset import PromptSet, write_atomically

__all__ = ["write_lora"]

OWN, UNET = (
    "denoiser.",
    ("down_blocks.", "mid_block.", "up_blocks."),
)  # how files of ours, and U-Nets, begin names


def write_lora(prompts: PromptSet, path: str | os.PathLike[str]) -> Path:
    """Write the updates of a network's attention by the names that diffusers and peft give them, in float32.

    The scale alpha / rank is multiplied into the second factor, since the file has no place for it that every version
    reads. Sentences must then say what captions said in training: the rare word and the kind, such as "sks mug".
    Raises ValueError, and writes nothing, for a set that holds anything else, and for another ending than .safetensors.
    """
    if (suffix := Path(path).suffix.lower()) != ".safetensors":
        raise ValueError(f"{path} ends in {suffix!r}; LoRA is written as .safetensors.")
    made = prompts.about.get("method") or {}
    if made.get("name") != "dreambooth-lora" or not prompts.weights:
        raise ValueError(
            f"this file is of the method {made.get('name') or 'unknown'}, and LoRA is written of dreambooth-lora. Rows "
            "at a placeholder are written with another layout, such as diffusers."
        )
    options = made["options"]
    scale = options.get("alpha", 4) / options.get("rank", 4)
    held: dict[str, Tensor] = {}
    for name, t in prompts.weights.items():
        module, _, factor = name.removeprefix(OWN).partition(".lora_")
        network = "unet" if module.startswith(UNET) else "transformer"
        value = t.float() * (scale if factor[0] == "B" else 1.0)
        held[f"{network}.{module}.lora_{factor[0]}.weight"] = value.contiguous()
    return write_atomically(path, save(held))
