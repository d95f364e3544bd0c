"""vit-mini: timm's VisionTransformer, 192 wide and 6 deep, on a frozen EfficientNet-lite0 stem; see CARD.md.

Importing this file registers ``vit_mini`` with timm, so timm (and open_clip, as an image tower) can name it.
"""

import json
from functools import partial
from pathlib import Path
from typing import Any

import timm
from timm.layers import HybridEmbed
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch import nn

__all__ = ["CLASSES", "load_vit_mini", "vit_mini"]

WEIGHTS = Path(__file__).with_name("vit-mini.safetensors")

# the 200 names of tiny-imagenet in the order of the head, which is the order of their WordNet ids
CLASSES: tuple[str, ...] = tuple(
    entry["name"]
    for entry in json.loads(Path(__file__).with_name("vit-mini-classes.json").read_text("utf-8"))
)

default_cfgs = generate_default_cfgs(
    {
        "vit_mini": {
            "file": str(WEIGHTS),
            "num_classes": len(CLASSES),
            "input_size": (3, 96, 96),
            "fixed_input_size": True,
            "interpolation": "bicubic",
            "crop_pct": 1.0,
            "mean": (0.5, 0.5, 0.5),
            "std": (0.5, 0.5, 0.5),
            "first_conv": "patch_embed.backbone.conv_stem",
            "classifier": "head",
            "license": "other",  # LICENSE-WEIGHTS.md
        }
    }
)


def _stem(**kwargs: Any) -> nn.Module:
    """EfficientNet-lite0 up to stride 16: pictures [B, 3, H, W] -> [[B, 112, H/16, W/16]]."""
    stem: Any = timm.create_model("tf_efficientnet_lite0", features_only=True, out_indices=(3,), **kwargs)
    stem.blocks = stem.blocks[
        :5
    ]  # timm keeps, and would run, the blocks above the last map that is asked for
    return stem


@register_model
def vit_mini(pretrained: bool = False, **kwargs: Any) -> VisionTransformer:
    """vit-mini for pictures [B, 3, 96, 96] in [-1, 1]; with ``pretrained`` the weights of this package.

    kwargs: those of timm's VisionTransformer. With ``pretrained``, another ``img_size`` (a multiple of 16)
    resamples the positions, and another ``num_classes`` starts a new head.
    """
    stem = _stem(**{key: kwargs[key] for key in ("in_chans", "device", "dtype") if key in kwargs})
    shape: dict[str, Any] = {
        "img_size": 96,
        "patch_size": 1,
        "embed_layer": partial(HybridEmbed, backbone=stem, proj=True),
        "embed_dim": 192,
        "depth": 6,
        "num_heads": 3,
        "num_classes": len(CLASSES),
    }
    out_indices = kwargs.pop("out_indices", 3)
    return build_model_with_cfg(
        VisionTransformer,
        "vit_mini",
        pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg={"out_indices": out_indices, "feature_cls": "getter"},
        **(shape | kwargs),
    )


def load_vit_mini() -> VisionTransformer:
    """The trained starter in evaluation mode: float32, 200-class head in the order of ``CLASSES``.

    Every tensor of the file has its place and every place its tensor, else RuntimeError.
    Raises FileNotFoundError if the package came without its weights.
    """
    if not WEIGHTS.is_file():
        raise FileNotFoundError(
            f"the weights of starter vit-mini are not at {WEIGHTS}. They are part of the package: "
            "install it again, or check the repository out with this file."
        )
    return vit_mini(pretrained=True).eval()
