"""Backbones that ship with the package, weights included: what ``load("starter/NAME")`` can open."""

from collections.abc import Callable

from torch import nn

__all__ = ["STARTERS"]


def _vit_mini() -> nn.Module:
    from vpt.towers.starter.vit_mini import load_vit_mini  # imports timm: 7 s on a cold start

    return load_vit_mini()


STARTERS: dict[str, Callable[[], nn.Module]] = {"vit-mini": _vit_mini}
