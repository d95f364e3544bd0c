"""Copies that learn: what learns, from where, and that the frozen network hears nothing of it."""

import hashlib

import pytest
import timm
import torch
from timm.models.eva import Eva
from torch import Tensor, nn

from vpt.encode import encode
from vpt.methods.baselines.bias import Bias
from vpt.methods.baselines.full import Full
from vpt.methods.baselines.linear import Linear
from vpt.methods.baselines.lora import LoRA
from vpt.methods.baselines.random_rows import RandomRows
from vpt.methods.method import Method
from vpt.prompt import Context
from vpt.tower import Tower
from vpt.towers.vit import open_timm, tiny


def eva(qkv_fused: bool = False) -> Tower:
    return open_timm(
        Eva(img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=2, qkv_fused=qkv_fused, num_classes=5)
    )


def vit() -> Tower:
    image = tiny()
    nn.init.normal_(image.model.cls_token)  # at timm's 1e-6 the first step throws the class token anywhere
    return image


TOWERS = {
    "vit": vit,
    "pooled": lambda: tiny(global_pool="avg", class_token=False),
    "eva": eva,
    "resnet": lambda: open_timm(timm.create_model("test_resnet", pretrained=False)),
}


def weights(module: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        digest.update(name.encode() + tensor.numpy().tobytes())
    return digest.hexdigest()


def fit(image: Tower, method: Method, steps: int = 3) -> tuple[Tower, list[float]]:
    """A few steps on what learns: the method, its tower, a head."""
    twin = method.learn(image)
    method.train()
    head = method.head(twin.out, 3)
    pictures = torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    learning = [p for m in (method, twin.model, head) for p in m.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learning, 1e-3)
    losses = []
    for _ in range(steps):
        loss = nn.functional.cross_entropy(head(encode(twin, pictures, method(Context(6)))), labels)
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad is not None for p in learning)
        optimizer.step()
        losses.append(loss.item())
    return twin, losses


PAIRS = [(kind, baseline) for kind in TOWERS for baseline in (Linear, Full, Bias)]
PAIRS += [(kind, baseline) for kind in TOWERS if kind != "resnet" for baseline in (LoRA, RandomRows)]


@pytest.mark.parametrize(("kind", "baseline"), PAIRS)
def test_the_frozen_network_stays_as_it_is(kind: str, baseline: type[Method]) -> None:
    torch.manual_seed(0)
    image = TOWERS[kind]()
    before = weights(image.model)
    twin, losses = fit(image, baseline(image))
    assert losses[-1] < losses[0]
    assert weights(image.model) == before
    assert not any(p.requires_grad or p.grad is not None for p in image.model.parameters())
    assert not image.model.training
    if baseline in (Linear, RandomRows):
        assert twin is image
    else:
        ours = {p.data_ptr() for p in image.model.parameters()}
        assert ours.isdisjoint(p.data_ptr() for p in twin.model.parameters())
        assert weights(twin.model) != before
        assert not any(m.training for m in twin.model.modules() if not isinstance(m, nn.Identity))


def names(twin: Tower) -> set[str]:
    return {name for name, p in twin.model.named_parameters() if p.requires_grad}


def test_full_learns_all_but_the_classifier() -> None:
    for made in TOWERS.values():
        image = made()
        twin = Full(image).learn(image)
        left = {n for n, _ in image.model.named_parameters()} - names(twin)
        assert left == {"fc.weight", "fc.bias"} if image.closed else {"head.weight", "head.bias"}
        assert twin.learns_from == "input"


def test_bias_learns_the_biases_from_the_first_block_on() -> None:
    image = tiny()
    twin = Bias(image).learn(image)
    every = {n for n, _ in image.model.named_parameters() if n.endswith("bias")}
    assert names(twin) == every - {"patch_embed.proj.bias", "head.bias"}
    assert {"norm.bias", "blocks.0.norm1.bias", "blocks.2.attn.qkv.bias"} <= names(twin)
    assert twin.learns_from == "0"
    rotary = eva(qkv_fused=True)
    assert {"blocks.0.attn.q_bias", "blocks.1.attn.v_bias"} <= names(Bias(rotary).learn(rotary))
    closed = TOWERS["resnet"]()
    twin = Bias(closed).learn(closed)
    assert names(twin) == {n for n, _ in closed.model.named_parameters() if n.endswith("bias")} - {"fc.bias"}
    assert twin.learns_from == "input"


def test_bias_starts_above_blocks_that_have_none() -> None:
    image = tiny(depth=2)
    for module in image.model.blocks[0].modules():
        if getattr(module, "bias", None) is not None:
            module.bias = None
    assert Bias(image).learn(open_timm(image.model)).learns_from == "1"


def test_no_biases_are_refused() -> None:
    image = tiny()
    for module in image.model.modules():
        if getattr(module, "bias", None) is not None:
            module.bias = None
    with pytest.raises(ValueError, match="has no biases to learn"):
        Bias(image).learn(image)


def lora_by_hand(x: Tensor, adapted: nn.Module, scale: float) -> Tensor:
    a, b = adapted.lora_A["default"].weight, adapted.lora_B["default"].weight
    return adapted.base_layer(x) + scale * (x @ a.mT @ b.mT)


@pytest.mark.parametrize("targets", ["qkv", "proj", "qkv+proj"])
def test_lora_is_pefts_own_forward_and_the_formula(targets: str) -> None:
    torch.manual_seed(0)
    image, pictures = tiny(), torch.randn(3, 3, 32, 32)
    method = LoRA(image, rank=4, alpha=6, targets=targets)
    twin = method.learn(image)
    torch.testing.assert_close(
        encode(twin, pictures), encode(image, pictures), rtol=0, atol=2e-6
    )  # B starts at 0
    with torch.no_grad():
        for name, p in twin.model.named_parameters():
            if "lora_B" in name:
                p.normal_(std=0.3)
    got = encode(twin, pictures)
    assert torch.equal(got, twin.model.forward_head(twin.model.forward_features(pictures), pre_logits=True))
    assert (got - encode(image, pictures)).abs().max() > 0.1
    adapted = [
        m
        for n, m in twin.model.named_modules()
        if n.endswith(tuple(targets.split("+"))) and hasattr(m, "lora_A")
    ]
    assert len(adapted) == 3 * len(targets.split("+"))
    for layer in adapted:
        x = torch.randn(2, 5, 32)
        torch.testing.assert_close(layer(x), lora_by_hand(x, layer, 6 / 4), rtol=0, atol=1e-5)
    rows = sum(p.numel() for p in twin.model.parameters() if p.requires_grad)
    assert rows == 3 * 4 * sum(32 + {"qkv": 96, "proj": 32}[t] for t in targets.split("+"))
    assert all("lora_" in name for name in names(twin))
    assert twin.learns_from == "0"


def test_loras_dropout_follows_the_method() -> None:
    torch.manual_seed(0)
    image, pictures = tiny(), torch.randn(3, 3, 32, 32)
    method = LoRA(image, dropout=0.5)
    twin = method.learn(image)
    for name, p in twin.model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(p)
    method.train()
    twin.model.eval()
    assert not torch.equal(encode(twin, pictures), encode(twin, pictures))
    method.eval()
    twin.model.train()
    assert torch.equal(encode(twin, pictures), encode(twin, pictures))


def test_lora_refuses_what_it_cannot_adapt() -> None:
    with pytest.raises(ValueError, match="has no attention layer qkv"):
        LoRA(TOWERS["resnet"]())
    image = eva(qkv_fused=True)
    with pytest.raises(ValueError, match="without calling the layer"):
        LoRA(image)
    assert names(LoRA(image, targets="proj").learn(image))


def test_random_rows_stay_at_vpts_start() -> None:
    torch.manual_seed(0)
    image = tiny()
    method = RandomRows(image, length=4)
    before = {site: rows.clone() for site, rows in method(Context()).items()}
    _, losses = fit(image, method)
    assert losses[-1] < losses[0]  # the head learns
    assert all(torch.equal(rows, before[site]) for site, rows in method(Context()).items())
    bound = (6 / (3 * 64 + 32)) ** 0.5
    assert all(rows.abs().max() <= bound for rows in before.values())
    assert "image_prompt.table.rows" in method.state_dict()
