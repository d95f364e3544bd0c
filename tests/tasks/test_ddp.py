"""Two processes on the CPU give the prompts of one on the same global batch.

By SGD: Adam divides by the gradient's size, and where that is rounding alone it makes a full step of it.
"""

from __future__ import annotations

import subprocess
import sys

import pytest
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


PAIRS = """
import sys
import open_clip
import torch
from vpt.data.module import ImageData
from vpt.tasks.tune import tune
from vpt.towers.load_clip import backbone_of

if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.manual_seed(0)
    picture = open_clip.model.CLIPVisionCfg(layers=2, width=32, head_width=16, patch_size=8, image_size=32)
    model = open_clip.model.CLIP(16, picture, open_clip.model.CLIPTextCfg(width=24, heads=2, layers=2))
    for p in model.parameters():
        if p.ndim > 1:
            torch.nn.init.normal_(p, std=0.3)
    model.visual.preprocess_cfg = {"size": 32}
    backbone = backbone_of(model, "open_clip/tiny", "ViT-B-32")
    devices = int(sys.argv[1])
    trainer = {"devices": devices, "strategy": "ddp"} if devices > 1 else {}
    data = ImageData(sys.argv[2], captions=True, batch_size=12, augment="flip", views=2)
    tune(backbone, data, "ivlp", objective="retrieve", epochs=3, lr=0.1, optimizer="sgd", consistency=0.5,
         length=2, layers=2, image_layers=2, words="", captions=2,
         store="memory", progress=False, device="cpu", precision="float32", out=sys.argv[3], trainer=trainer)
"""


@pytest.mark.parametrize(
    ("content", "data", "metric"), [(SCRIPT, "pictures", "top1"), (PAIRS, "pairs", "mean_recall")]
)
def test_two_processes_equal_one(content, data, metric, request, tmp_path):
    """For captions the shares of the two differ: as many texts as there are, and one more where they are odd."""
    script = tmp_path / "run.py"
    script.write_text(content)
    found = {}
    for devices in (1, 2):
        out = tmp_path / str(devices)
        command = [sys.executable, str(script), str(devices), str(request.getfixturevalue(data)), str(out)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=400, cwd=tmp_path)
        assert done.returncode == 0, done.stderr[-2000:]
        found[devices] = PromptSet.load(out / "prompts.safetensors")
    one, two = (found[d].tensors() for d in (1, 2))
    assert one.keys() == two.keys()
    for name in one:
        assert torch.allclose(one[name], two[name], atol=2e-5), name
    metrics = [{(m["split"], m["name"]): m["value"] for m in found[d].about["metrics"]} for d in (1, 2)]
    assert metrics[0][("test", metric)] == metrics[1][("test", metric)]
