"""Two processes on the CPU give the prompts of one on the same global batch.

By SGD: Adam divides by the gradient's size, and where that is rounding alone it makes a full step of it.
"""

from __future__ import annotations

import subprocess
import sys

import torch

from vpt.promptset import PromptSet

SCRIPT = """
import sys
import torch
from timm.models.vision_transformer import VisionTransformer
from vpt.towers.backbone import Backbone
from vpt.towers.load import preprocessing_of
from vpt.towers.vit import open_timm
from vpt.tasks.tune import tune

if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = VisionTransformer(img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=2, num_classes=5)
    for p in model.parameters():
        if p.ndim > 1:
            torch.nn.init.normal_(p, std=0.3)
    config = preprocessing_of(model) | {"input_size": [3, 32, 32]}
    backbone = Backbone("timm/tiny", {"image": open_timm(model)}, config, "timm")
    devices = int(sys.argv[1])
    trainer = {"devices": devices, "strategy": "ddp"} if devices > 1 else {}
    tune(backbone, sys.argv[2], "vpt-deep", epochs=3, lr=0.1, optimizer="sgd", length=3, batch_size=12,
         augment="flip", views=2,
         store="memory", progress=False, device="cpu", precision="float32", out=sys.argv[3], trainer=trainer)
"""


def test_two_processes_equal_one(pictures, tmp_path):
    script = tmp_path / "run.py"
    script.write_text(SCRIPT)
    found = {}
    for devices in (1, 2):
        out = tmp_path / str(devices)
        command = [sys.executable, str(script), str(devices), str(pictures), str(out)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=400, cwd=tmp_path)
        assert done.returncode == 0, done.stderr[-2000:]
        found[devices] = PromptSet.load(out / "prompts.safetensors")
    one, two = (found[d].tensors() for d in (1, 2))
    assert one.keys() == two.keys()
    for name in one:
        assert torch.allclose(one[name], two[name], atol=2e-5), name
    metrics = [{(m["split"], m["name"]): m["value"] for m in found[d].about["metrics"]} for d in (1, 2)]
    assert metrics[0][("test", "top1")] == metrics[1][("test", "top1")]
