"""A small folder of pictures, a small network in a file, and a prompt file trained on both by ``vpt fit``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import timm
import torch
from safetensors.torch import save_file

COLOURS = {"red": (220, 40, 40), "green": (40, 200, 60), "sky [blue]": (50, 60, 220)}


class Trained(NamedTuple):
    """pictures: class folders, 10 pictures each.  weights: of timm/test_vit.  prompts: trained on them.
    bare: options of that run without method, rate and folder."""

    pictures: Path
    weights: Path
    prompts: Path
    bare: list[str]


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, paint: Callable[..., Path]) -> Trained:
    from vpt.cli import main

    root = paint(tmp_path_factory.mktemp("cli"), {"pictures": 10}, noise=40, colours=COLOURS)
    torch.manual_seed(0)
    model = timm.create_model("test_vit")
    for p in model.parameters():
        if p.ndim > 1:
            torch.nn.init.normal_(p, std=0.2)  # at timm's start all pictures look alike
    save_file(model.state_dict(), root / "test_vit.safetensors")
    bare = ["--data", str(root / "pictures"), "--model", "timm/test_vit", "--size", "32", "--shots", "4"]
    bare += ["--weights", str(root / "test_vit.safetensors"), "--seed", "3", "--batch-size", "12"]
    bare += ["--epochs", "8", "--device", "cpu", "--progress", "false"]
    method = ["--method.length", "2", "--lr", "0.003,0.03"]
    assert main(["fit", *bare, *method, "--out", str(root / "run")]) == 0
    prompts = root / "run" / "prompts.safetensors"
    return Trained(root / "pictures", root / "test_vit.safetensors", prompts, bare)
