"""A tiny frozen network and a tiny folder of pictures, for everything that trains."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer

from vpt.towers.backbone import Backbone
from vpt.towers.load import preprocessing_of
from vpt.towers.vit import open_timm


@pytest.fixture
def backbone() -> Backbone:
    """Random weights, 32 px, patch 8, 32 wide, 3 deep."""
    torch.manual_seed(0)
    model = VisionTransformer(img_size=32, patch_size=8, embed_dim=32, depth=3, num_heads=2, num_classes=5)
    for p in model.parameters():  # timm's start is nearly blind; this one sees
        if p.ndim > 1:
            torch.nn.init.normal_(p, std=0.3)
    return Backbone(
        "timm/tiny",
        {"image": open_timm(model)},
        preprocessing_of(model) | {"input_size": [3, 32, 32]},
        "timm",
    )


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory, paint: Callable[..., Path]) -> Path:
    """Noisy pictures of three colours in train, val and test folders."""
    return paint(tmp_path_factory.mktemp("pictures"), {"train": 12, "val": 6, "test": 6}, noise=40)


@pytest.fixture(scope="session")
def pairs(
    tmp_path_factory: pytest.TempPathFactory, paint: Callable[..., Path], tell: Callable[[Path], Path]
) -> Path:
    """Such pictures with captions: 12 to train, 6 for val and for the test."""
    return tell(paint(tmp_path_factory.mktemp("pairs"), {"train": 4, "val": 2, "test": 2}, noise=80))


@pytest.fixture
def frozen_hash(backbone: Backbone) -> Callable[[], int]:
    """A number that changes when any weight or buffer of the frozen network does."""
    return lambda: hash(tuple(t.numpy().tobytes() for t in backbone.image.model.state_dict().values()))
