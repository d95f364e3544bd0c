"""The vit-mini that ships with the package: its file, timm's way to it, the plain loop over its layers."""

import json
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from timm.data import ImageNetInfo, resolve_data_config

from vpt.towers.starter import STARTERS
from vpt.towers.starter import vit_mini as starter


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Threads cost more than they do on a net this small."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def model():
    return STARTERS["vit-mini"]().requires_grad_(False)


@pytest.fixture(scope="module")
def pictures():
    return torch.rand(2, 3, 96, 96, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_every_tensor_of_the_file_is_in_the_model_and_survives_the_round_trip(model):
    file = load_file(starter.WEIGHTS)
    state = {k: v for k, v in model.state_dict().items() if not k.endswith("num_batches_tracked")}
    assert file.keys() == state.keys()
    assert all(v.dtype == torch.float16 for v in file.values())
    assert all(v.dtype == torch.float32 for v in state.values())
    assert all(torch.equal(state[k].half(), file[k]) and torch.equal(state[k], file[k].float()) for k in file)
    assert starter.WEIGHTS.stat().st_size <= 9_000_000
    assert not model.training


def test_a_file_with_a_tensor_too_few_or_too_many_is_refused(tmp_path):
    file = load_file(starter.WEIGHTS)
    for wrong in (
        {k: v for k, v in file.items() if k != "blocks.3.mlp.fc1.bias"},
        file | {"blocks.6.norm1.weight": torch.ones(192)},
    ):
        save_file(wrong, tmp_path / "wrong.safetensors")
        with pytest.raises(RuntimeError, match=r"blocks\.(3\.mlp\.fc1\.bias|6\.norm1\.weight)"):
            starter.vit_mini(
                pretrained=True, pretrained_cfg_overlay={"file": str(tmp_path / "wrong.safetensors")}
            )


def test_missing_weights_are_named(monkeypatch):
    monkeypatch.setattr(starter, "WEIGHTS", Path("nowhere/vit-mini.safetensors"))
    with pytest.raises(FileNotFoundError, match=r"nowhere/vit-mini\.safetensors.*install it again"):
        starter.load_vit_mini()


def test_timm_creates_the_same_model(model, pictures):
    theirs = timm.create_model("vit_mini", pretrained=True).eval()
    with torch.no_grad():
        assert torch.equal(theirs(pictures), model(pictures))
    untrained = timm.create_model("vit_mini")
    assert untrained.head.out_features == 200
    assert sum(p.numel() for p in untrained.parameters()) == pytest.approx(3.44e6, rel=0.01)


def test_timm_adapts_head_and_size(model):
    other = timm.create_model("vit_mini", pretrained=True, num_classes=7, img_size=128).eval()
    with torch.no_grad():
        assert other(torch.zeros(1, 3, 128, 128)).shape == (1, 7)
    assert torch.equal(other.blocks[5].mlp.fc2.weight, model.blocks[5].mlp.fc2.weight)
    assert other.pos_embed.shape == (1, 1 + 8 * 8, 192)


def test_the_plain_loop_over_its_layers_equals_timm(model, pictures):
    with torch.no_grad():
        x = model.norm_pre(model.patch_drop(model._pos_embed(model.patch_embed(pictures))))
        assert x.shape == (2, 37, 192)
        for block in model.blocks:
            x = block(x)
        x = model.norm(x)
        assert torch.equal(x, model.forward_features(pictures))
        assert torch.equal(model.forward_head(x), model(pictures))


def test_preprocessing_is_in_the_configuration(model):
    assert resolve_data_config(model.pretrained_cfg) == {
        "input_size": (3, 96, 96),
        "interpolation": "bicubic",
        "mean": (0.5, 0.5, 0.5),
        "std": (0.5, 0.5, 0.5),
        "crop_pct": 1.0,
        "crop_mode": "center",
    }


def test_class_names_are_in_the_order_of_the_head():
    entries = json.loads(starter.WEIGHTS.with_name("vit-mini-classes.json").read_text())
    assert len(set(starter.CLASSES)) == len(entries) == 200
    wnids = [entry["wnid"] for entry in entries]
    assert wnids == sorted(set(wnids))  # the head's order is that of the WordNet ids
    info = ImageNetInfo("imagenet-1k")  # an independent source of the names
    synonyms = dict(zip(info.label_names(), info.label_descriptions(), strict=True))
    assert "goldfish" in synonyms[wnids[0]]
    shared = sum(
        any(word in synonyms[w].lower() for word in name.lower().split())
        for w, name in zip(wnids, starter.CLASSES, strict=True)
    )
    assert shared >= 195


def test_it_is_sure_of_something(model):
    """A trained net is sure of something; the same net with random weights is near log(200) = 5.3."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, 96), torch.linspace(-1, 1, 96), indexing="ij")
    with torch.no_grad():
        p = model(
            torch.stack([torch.where(x**2 + y**2 < 0.4, c, 0.8) for c in (1.0, 0.1, -0.6)])[None]
        ).softmax(1)
    assert -(p * p.log()).sum() < 4.8
