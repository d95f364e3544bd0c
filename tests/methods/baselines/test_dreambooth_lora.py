"""DreamBooth's network: updates of every attention on shared frozen weights, and its file."""

from __future__ import annotations

import pytest
import torch
from pipelines import sd, shared
from torch import nn

from vpt.methods.baselines.dreambooth_lora import DreamBoothLoRA, adapted
from vpt.prompt import Context
from vpt.tasks.diffusion import DiffusionLearner
from vpt.towers.diffusion import open_pipeline

X, T = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1)), torch.tensor([10, 900])
WORDS = {"concept": "my-mug", "word": "dog"}


@pytest.fixture(scope="module")
def backbone():
    return open_pipeline(shared("sd"), "diffusers/tiny", size=16)


def learned(backbone) -> DiffusionLearner:
    """After some training: the second factors are no longer 0."""
    learner = DiffusionLearner(DreamBoothLoRA(backbone, rank=2, alpha=4, **WORDS), backbone)
    with torch.no_grad():
        for name, p in learner.named_parameters():
            if "lora_B" in name:
                p.normal_(std=0.5)
    return learner


def test_it_starts_as_the_frozen_network_and_shares_its_weights(backbone):
    learner = DiffusionLearner(DreamBoothLoRA(backbone, **WORDS), backbone)
    given = backbone.embeds(["a sks dog", "sks dog in rain"], guided=False)
    with torch.no_grad():
        found = learner.paint(X, T, ["a <my-mug>", "<my-mug> in rain"])
        assert torch.equal(found, backbone.pipe.unet(X, T, given["prompt_embeds"]).sample)
    assert learner.method(Context()) == {}
    own, frozen = learner.towers[1].model, backbone.pipe.unet
    held = {id(p) for p in frozen.parameters()}
    assert {id(p) for n, p in own.named_parameters() if "lora_" not in n} == held
    assert not any("lora_" in n for n, _ in frozen.named_parameters())
    assert {n for n, p in learner.named_parameters() if p.requires_grad} == {
        n for n, _ in learner.named_parameters() if "lora_" in n
    }


def test_every_projection_of_every_attention_is_updated(backbone):
    """W x + (alpha / rank) B A x, by hand on one layer; and all of them are there."""
    learner = learned(backbone)
    attentions = [n for n, _ in backbone.pipe.unet.named_modules() if n.endswith(("attn1", "attn2"))]
    names = {f"{a}.{p}" for a in attentions for p in ("to_q", "to_k", "to_v", "to_out.0")}
    state = learner.towers[1].model.state_dict()
    assert {n.split(".lora_")[0] for n in state if ".lora_" in n} == names
    name = sorted(names)[0]
    layer, x = learner.towers[1].model.get_submodule(name), torch.randn(3, 32)
    a, b = (state[f"{name}.lora_{k}.default.weight"] for k in "AB")
    plain = backbone.pipe.unet.get_submodule(name)
    assert torch.allclose(layer(x), plain(x) + 4 / 2 * x @ a.T @ b.T, atol=1e-5)
    joined = DreamBoothLoRA(open_pipeline(shared("sd3"), "tiny"), **WORDS)
    tower = joined.learn(open_pipeline(shared("sd3"), "tiny").towers["denoiser"])
    assert any("add_q_proj.lora_A" in n for n, _ in tower.model.named_parameters())


def test_the_file_draws_what_training_left(backbone):
    learner = learned(backbone)
    made = learner.export({"kind": "baseline"})
    assert made.rows == {}
    assert len(made.weights) == 2 * 4 * 2 * 4
    method = DreamBoothLoRA(backbone, rank=2, alpha=4, **WORDS)
    pipe = adapted(backbone, method, made.weights)
    assert pipe.unet is not backbone.pipe.unet
    assert pipe.vae is backbone.pipe.vae
    given = backbone.embeds(["a sks dog"] * 2, guided=False)
    with torch.no_grad():
        want = learner.paint(X, T, ["a <my-mug>"] * 2)
        assert torch.equal(pipe.unet(X, T, given["prompt_embeds"]).sample, want)
        assert not torch.allclose(backbone.pipe.unet(X, T, given["prompt_embeds"]).sample, want, atol=1e-3)


def test_gradients_reach_the_updates_alone():
    backbone = open_pipeline(sd(), "diffusers/tiny", size=16)
    learner = learned(backbone).train()
    learner.paint(X, T, ["a <my-mug>"] * 2).square().mean().backward()
    for name, p in learner.named_parameters():
        assert (p.grad is not None and p.grad.abs().sum() > 0) == ("lora_" in name), name
    assert all(p.grad is None for p in backbone.pipe.text_encoder.parameters())


def test_weights_of_another_network_are_refused(backbone):
    weights = dict(learned(backbone).export({}).weights)
    weights.pop(next(iter(weights)))
    with pytest.raises(ValueError, match=r"do not fit diffusers/tiny: .* is in only one of them"):
        adapted(backbone, DreamBoothLoRA(backbone, rank=2, **WORDS), weights)


def test_a_network_without_attention_is_refused(backbone):
    tower = backbone.towers["denoiser"]
    bare = type(backbone)(
        "bare",
        {**backbone.towers, "denoiser": type(tower)(**{**vars(tower), "model": nn.Linear(2, 2)})},
        {},
        "diffusers",
    )
    with pytest.raises(ValueError, match="Linear has no attention"):
        DreamBoothLoRA(bare, **WORDS)
