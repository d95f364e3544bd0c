"""Backbones that ship with the package, weights included: what ``load("starter/NAME")`` can open."""

from collections.abc import Callable
from typing import Any

from torch import nn

__all__ = ["CLIP_STARTERS", "DRAWING_STARTERS", "STARTERS"]


def _vit_mini() -> nn.Module:
    from vpt.towers.starter.vit_mini import load_vit_mini  # imports timm: 7 s on a cold start

    return load_vit_mini()


def _clip_mini() -> tuple[nn.Module, Any, dict[str, Any]]:
    from vpt.towers.starter.clip_mini import load_clip_mini  # imports open_clip: 8 s on a cold start

    return load_clip_mini()


def _sd_mini() -> Any:
    from vpt.towers.starter.sd_mini import load_sd_mini  # imports diffusers

    return load_sd_mini()


STARTERS: dict[str, Callable[[], nn.Module]] = {"vit-mini": _vit_mini}

# with a text tower: the model, its tokenizer, and timm's data config of its pictures
CLIP_STARTERS: dict[str, Callable[[], tuple[nn.Module, Any, dict[str, Any]]]] = {"clip-mini": _clip_mini}

DRAWING_STARTERS: dict[str, Callable[[], Any]] = {"sd-mini": _sd_mini}  # pipelines of diffusers
