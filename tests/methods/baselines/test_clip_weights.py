"""Baselines that learn weights of a CLIP: which learn, what they compute, and their files."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
import torch.nn.functional as F
from open_clip.hf_model import HFTextEncoder
from torch import Tensor, nn
from transformers import SiglipConfig, SiglipModel, XLMRobertaConfig

from vpt.encode import encode
from vpt.methods.baselines.bias import Bias
from vpt.methods.baselines.full import Full
from vpt.methods.baselines.lora import LoRA
from vpt.methods.baselines.split import SplitAttention
from vpt.methods.baselines.weights import stage_of
from vpt.methods.method import Method
from vpt.tasks.learner import Learner, build_method
from vpt.tasks.tuned import load_prompts
from vpt.tower import Tower
from vpt.towers.backbone import Backbone
from vpt.towers.clip import TextPart, open_text
from vpt.towers.hf import open_hf
from vpt.towers.load_clip import backbone_of

NAMES = ("red square", "green circle", "star")
LABELS = torch.tensor([0, 1, 2])


@pytest.fixture(scope="module")
def trunk_clip(shaken: Callable[..., nn.Module]) -> Backbone:
    """A CLIP whose image tower is timm's network, as of SigLIP and the starter."""
    model = open_clip.model.CustomTextCLIP(
        16,
        vision_cfg=open_clip.model.CLIPVisionCfg(
            timm_model_name="test_vit", timm_model_pretrained=False, timm_pool="token", image_size=32
        ),
        text_cfg=open_clip.model.CLIPTextCfg(width=24, heads=2, layers=3),
    )
    model.visual.preprocess_cfg = {"size": 32}
    return backbone_of(shaken(model, 0.5), "open_clip/tiny-trunk", "ViT-B-32")


@pytest.fixture(params=["clip", "trunk"])
def clip(request: pytest.FixtureRequest, tiny_clip: Backbone, trunk_clip: Backbone) -> Backbone:
    return tiny_clip if request.param == "clip" else trunk_clip


def learner(name: str, backbone: Backbone, **options: object) -> Learner:
    return Learner(build_method(name, backbone, options, classes=len(NAMES)), backbone, NAMES)


def learns(made: Learner) -> set[str]:
    return {name for name, p in made.network.named_parameters() if p.requires_grad}


def fit(made: Learner, images: Tensor, lr: float, steps: int = 4) -> list[float]:
    made.train()
    optimizer = torch.optim.AdamW(made.groups(lr, lr, 0.0))
    losses = []
    for _ in range(steps):
        loss = F.cross_entropy(made(images), LABELS)
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad is not None for p in made.parameters() if p.requires_grad)
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("name", ["clip-lora", "clip-full", "lora", "full", "bias", "linear"])
def test_it_learns_and_its_file_says_the_same(
    name: str, clip: Backbone, images: Tensor, tmp_path: Path
) -> None:
    before = [p.clone() for t in clip.towers.values() for p in t.model.parameters()]
    made = learner(name, clip)
    losses = fit(made, images, 1e-3 if "full" in name else 1e-2)
    assert losses[-1] < losses[0]
    after = [p for t in clip.towers.values() for p in t.model.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    label = {
        "kind": "baseline",
        "method": {"name": name, "options": {}},
        "classes": list(NAMES),
        "backbone": clip.label(),
    }
    made.eval()
    with torch.no_grad():
        want = made(images)
    made.export(label).save(tmp_path / "b.safetensors")
    back = load_prompts(tmp_path / "b.safetensors", clip, device="cpu")
    assert torch.allclose(back.logits(images), want, atol=1e-5)
    weights = back.prompts.weights
    assert any(key.startswith("text.") for key in weights) == name.startswith("clip-")
    assert len(weights) == len(learns(made))
    if name.startswith("clip-"):  # names of the test are said by the text tower that learned
        text = back.encode_text(["star"], normalize=True)
        v = back.encode_image(images, normalize=True)
        assert torch.allclose(clip.scale * v @ text.mT, want[:, 2:], atol=1e-4)
        other = back.with_classes(["star", "moon"])
        assert torch.allclose(other.logits(images)[:, 0], want[:, 2], atol=1e-4)


@pytest.mark.parametrize("name", ["clip-lora", "clip-full"])
def test_it_starts_as_the_zero_shot_model(name: str, clip: Backbone, images: Tensor) -> None:
    with torch.no_grad():
        want = learner("zero-shot", clip).eval()(images)
        assert torch.allclose(learner(name, clip).eval()(images), want, atol=1e-4)


def by_hand(linear: Any, x: Tensor, scale: float) -> Tensor:
    a, b = linear.lora_A["default"].weight, linear.lora_B["default"].weight
    return linear.base_layer(x) + scale * x @ a.mT @ b.mT


def test_clip_lora_has_three_updates_a_block_in_both_towers(tiny_clip: Backbone) -> None:
    made = learner("clip-lora", tiny_clip, dropout=0.0)
    kinds = {f"{kind}_proj.lora_{side}.default.weight" for kind in "qkv" for side in "AB"}
    want = {
        f"{tower}.transformer.resblocks.{i}.attn.{kind}"
        for tower in ("image", "text")
        for i in range(3)
        for kind in kinds
    }
    assert learns(made) == want
    attention = made.tower.model.get_submodule("transformer.resblocks.1.attn")
    assert isinstance(attention, SplitAttention)
    for linear in (attention.q_proj, attention.k_proj, attention.v_proj):
        nn.init.normal_(linear.lora_B["default"].weight)  # type: ignore[union-attr,index]
    x = torch.randn(2, 5, 32)
    q, k, v = (  # the published layer: scale 1 / sqrt(2)
        by_hand(linear, x, 2**-0.5).unflatten(-1, (attention.num_heads, -1)).transpose(1, 2)
        for linear in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    scores = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1)
    out = attention.out_proj((scores @ v).transpose(1, 2).flatten(2))
    assert torch.allclose(attention(x, x, x)[0], out, atol=1e-5)


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_the_split_attention_is_torchs(batch_first: bool, bias: bool) -> None:
    whole = nn.MultiheadAttention(12, 3, bias=bias, batch_first=batch_first).eval()
    for p in whole.parameters():
        nn.init.normal_(p)
    x = torch.randn(2, 5, 12) if batch_first else torch.randn(5, 2, 12)
    mask = torch.full((5, 5), -torch.inf).triu(1)
    for given in (None, mask):
        want = whole(x, x, x, need_weights=False, attn_mask=given)[0]
        assert torch.allclose(SplitAttention(whole)(x, x, x, attn_mask=given)[0], want, atol=1e-5)


def test_dropout_falls_on_the_updates_while_training(tiny_clip: Backbone, images: Tensor) -> None:
    made = learner("clip-lora", tiny_clip, dropout=0.5)
    for name, p in made.network.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(p)
    made.train()
    with torch.no_grad():
        assert not torch.equal(made(images), made(images))
        made.eval()
        assert torch.equal(made(images), made(images))


def test_steps_of_weights_are_where_they_are_used(clip: Backbone, images: Tensor) -> None:
    """A weight lies at or above the stage it is said to: what is computed below it does not depend on it."""
    for tower, given in ((clip.image, images), (clip.text, clip.tokens(["a star"]))):
        stages = {name: stage_of(tower, name) for name, _ in tower.model.named_parameters()}
        blocks = {s for s in stages.values() if s.isdigit() and int(s) < tower.depth}
        assert blocks == set(map(str, range(tower.depth)))
        assert {str(tower.depth), "normed"} & set(stages.values())
        for name, p in tower.model.named_parameters():
            twin = tower.learning(lambda n, name=name: n == name, stages[name])  # type: ignore[misc]
            features = encode(twin, given)
            if features.requires_grad:
                features.square().sum().backward()
                q = dict(twin.model.named_parameters())[name]
                assert q.grad is not None, name
            else:
                assert _unused(tower, name, given), name
            assert not p.requires_grad


def _unused(tower: Tower, name: str, given: Tensor) -> bool:
    assert tower.reopen is not None
    twin = tower.reopen(copy.deepcopy(tower.model))
    with torch.no_grad():
        dict(twin.model.named_parameters())[name].mul_(1.5).add_(0.1)
        return torch.equal(encode(twin, given), encode(tower, given))


def test_full_learns_both_towers_whole(tiny_clip: Backbone) -> None:
    made = learner("clip-full", tiny_clip)
    every = {f"{t.name}.{n}" for t in tiny_clip.towers.values() for n, _ in t.model.named_parameters()}
    assert learns(made) == every
    assert isinstance(made.network["text"], TextPart)
    assert {t.learns_from for t in made.towers if t is not None} == {"input"}


def test_bias_learns_from_the_first_block_on(clip: Backbone) -> None:
    made = learner("bias", clip)
    front = {"image.ln_pre.bias", "image.conv1.bias", "image.trunk.patch_embed.proj.bias"}
    every = {f"image.{n}" for n, _ in clip.image.model.named_parameters() if n.endswith("bias")}
    assert learns(made) == every - front
    assert made.tower.learns_from == "0"


def test_lora_refuses_towers_without_attention() -> None:
    model = open_clip.model.CLIP(
        16,
        vision_cfg=open_clip.model.CLIPVisionCfg(layers=[1, 1, 1, 1], width=8, image_size=32),
        text_cfg=open_clip.model.CLIPTextCfg(width=24, heads=2, layers=3),
    )
    model.visual.preprocess_cfg = {"size": 32}
    closed = backbone_of(model, "open_clip/tiny-rn", "ViT-B-32")
    with pytest.raises(ValueError, match="ModifiedResNet has no attention layer qkv"):
        build_method("clip-lora", closed)
    assert learner("clip-full", closed).tower.learns_from == "input"


def _of_transformers() -> dict[str, Tower]:
    small: dict[str, Any] = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
    }
    text = {**small, "vocab_size": 60, "max_position_embeddings": 20}
    sigmoid = SiglipConfig(
        text_config={**text, "projection_size": 24},
        vision_config={**small, "image_size": 32, "patch_size": 8},
    )
    roberta = XLMRobertaConfig(**text, pad_token_id=1)
    words = HFTextEncoder(
        "x", 24, config=roberta, pooler_type="mean_pooler", proj_type="linear", pretrained=False
    )
    return {"siglip": open_hf(SiglipModel(sigmoid))["image"], "roberta": open_text(words)}


@pytest.mark.parametrize("baseline", [Full, Bias, LoRA])
def test_transformers_towers_learn_too(baseline: Callable[[Tower], Method], images: Tensor) -> None:
    for kind, tower in _of_transformers().items():
        given = images if kind == "siglip" else torch.tensor([[0, 5, 6, 2, 1, 1]])
        twin = baseline(tower).learn(tower)
        features = encode(twin, given)
        assert torch.allclose(features, encode(tower, given), atol=1e-5)
        features.square().sum().backward()
        chosen = [(n, p) for n, p in twin.model.named_parameters() if p.requires_grad]
        missing = [n for n, p in chosen if p.grad is None]
        assert not [n for n in missing if ".pooler." not in n], "only what no feature reads"
        assert len(chosen) >= 12
        assert twin.learns_from == ("input" if baseline is Full else "0")
