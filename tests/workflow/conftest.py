"""A tiny frozen network that another process can load too, and a tiny folder of pictures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch

from vpt.towers.backbone import Backbone
from vpt.towers.load import load
from vpt.workflow.compare import Result


@pytest.fixture(scope="session")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    """timm's test_vit at 32 px (64 wide, 4 patches) with random weights, kept in a file."""
    torch.manual_seed(0)
    model = timm.create_model("test_vit", img_size=32)
    for p in model.parameters():
        if p.ndim > 1:
            torch.nn.init.normal_(p, std=0.2)
    file = tmp_path_factory.mktemp("weights") / "test_vit.pt"
    torch.save(model.state_dict(), file)
    return load("timm/test_vit", weights=str(file), size=32)


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory, paint: Callable[..., Path]) -> Path:
    """Noisy pictures of three colours in train, val and test folders."""
    return paint(tmp_path_factory.mktemp("pictures"), {"train": 6, "val": 3, "test": 5}, noise=60)


@pytest.fixture
def result() -> Callable[..., Result]:
    """result(name, method, seed, top1): a run that was never run."""

    def make(name: str, method: str, seed: int, top1: float, **changes: object) -> Result:
        protocol = {
            "data": "tiny",
            "classes": 3,
            "shots": 4,
            "seed": seed,
            "split": f"hash{seed}",
            "counts": {"train": 12, "val": 6, "test": 200},
            "task": "classify",
            "selection": "no early stop",
            "inductive": True,
            "augment": "flip",
            "views": 2,
        }
        facts = {
            "metrics": {"top1": top1, "top5": 1.0},
            "parameters": 1234,
            "bytes": 5600 + seed,
            "seconds": 2.0 + seed,
            "step_ms": 10.0 * seed,
            "peak_mb": 700.0 + seed,
            "lr": 0.005,
            "file": f"out/{name}/seed{seed}/prompts.safetensors",
            "protocol": protocol,
        }
        return Result(**{"name": name, "method": method, "seed": seed, **facts, **changes})

    return make
