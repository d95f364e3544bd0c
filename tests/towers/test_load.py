"""Names to backbones, local weights, picture sizes, and what a fingerprint notices."""

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from timm.data import create_transform, resolve_data_config
from torch import Tensor, nn

import vpt.towers.load as home
from vpt.encode import encode
from vpt.promptset import fingerprint
from vpt.towers.backbone import Backbone
from vpt.towers.load import load
from vpt.towers.vit import open_timm, tiny

NAME = "test_vit"  # timm's own smallest: 160 px, 64 wide, 6 deep


@pytest.fixture(scope="module")
def random() -> Backbone:
    return load(f"timm/{NAME}", pretrained=False)


def test_a_name_without_a_family_is_timms(random: Backbone) -> None:
    again = load(NAME, pretrained=False)
    assert again.name == random.name == f"timm/{NAME}"
    assert again.towers.keys() == {"image"}
    assert again.image.model.pretrained_cfg == random.image.model.pretrained_cfg
    assert not any(p.requires_grad for p in again.image.model.parameters())


def test_the_preprocessing_is_timms_for_these_weights() -> None:
    backbone = load("timm/vit_xsmall_patch16_clip_224.tinyclip_yfcc15m", pretrained=False)
    config = resolve_data_config({}, model=backbone.image.model)
    assert backbone.preprocessing == {
        "input_size": [3, 224, 224],
        "interpolation": "bicubic",
        "mean": [0.48145466, 0.4578275, 0.40821073],
        "std": [0.26862954, 0.26130258, 0.27577711],
        "crop_pct": config["crop_pct"],
        "crop_mode": config["crop_mode"],
    }
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (70, 90, 3), np.uint8))
    want = create_transform(**config, is_training=False)(picture)
    assert torch.equal(backbone.preprocess(picture), want)


def test_another_size_holds_for_the_network_and_for_the_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    picture = Image.new("RGB", (50, 40))
    for name, size in ((NAME, 96), ("test_resnet", 100), ("test_vit4", 64)):
        backbone = load(name, pretrained=False, size=size)
        x = backbone.preprocess(picture)[None]
        assert x.shape == (1, 3, size, size)
        assert backbone.preprocessing["input_size"] == [3, size, size]
        assert encode(backbone.image, x).shape == (1, backbone.image.out)
        assert backbone.label()["size"] == size
    with pytest.raises(ValueError, match=r"size=100 is no multiple of the patches of test_vit, \(16, 16\)"):
        load(NAME, pretrained=False, size=100)
    monkeypatch.setattr(timm, "get_pretrained_cfg", lambda name: None)  # a network registered without a card
    with pytest.raises(ValueError, match=r"test_resnet takes no other picture size\. Leave out size=96"):
        load("test_resnet", pretrained=False, size=96)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("timm/vit_tinny_patch16_224", "no model 'vit_tinny_patch16_224'; near it: vit_tiny_patch16_224"),
        ("resnet5O", "near it: resnet50"),
        ("qqqqqq", "timm has no model 'qqqqqq'. `vpt models`"),
        (f"{NAME}.r161_in1k", f"{NAME} has no weights tagged 'r161_in1k', but: r160_in1k"),
        ("openclip/ViT-B-32", "unknown family 'openclip' in 'openclip/ViT-B-32'"),
        ("starter/vit-maxi", "no starter 'vit-maxi'. There are vit-mini, clip-mini, sd-mini"),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest(name: str, message: str) -> None:
    for pretrained in (False, True):
        with pytest.raises(ValueError) as caught:  # noqa: PT011  the message is compared as it is
            load(name, pretrained=pretrained)
        assert message in str(caught.value)


def test_a_starter_has_no_options_and_a_missing_hub_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    for options in ({"pretrained": False}, {"weights": "x.pth"}, {"size": 64}):
        with pytest.raises(ValueError, match="starter/vit-mini is loaded as it is"):
            load("starter/vit-mini", **options)
    monkeypatch.setitem(home.STARTERS, "vit-mini", lambda: tiny().model)
    assert load("starter/vit-mini").name == "starter/vit-mini"
    with pytest.raises(
        OSError, match=f"weights of {NAME} are not on this machine.*weights=.*pretrained=False"
    ):
        load(NAME)


def state(**options: Any) -> dict[str, Tensor]:
    return timm.create_model(NAME, **options).state_dict()


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("classes", [1000, 7, 0])
def test_local_weights_take_the_place_of_the_hubs(tmp_path: Path, suffix: str, classes: int) -> None:
    """Any head, or none; a training checkpoint that holds more than weights."""
    path, want = tmp_path / f"mine{suffix}", state(num_classes=classes)
    if suffix == ".pth":
        torch.save({"state_dict": {f"module.{k}": v for k, v in want.items()}, "epoch": 3}, path)
    else:
        save_file(want, path)
    backbone = load(NAME, weights=str(path))
    got = backbone.image.model.state_dict()
    assert got.keys() == want.keys()
    assert all(torch.equal(got[k], want[k]) for k in want)
    assert (backbone.logits is None) is (classes == 0)
    assert backbone.label()["weights"] == str(path)
    resized = load(NAME, weights=str(path), size=96)
    assert encode(resized.image, torch.zeros(1, 3, 96, 96)).shape == (1, 64)
    assert torch.equal(
        resized.image.model.state_dict()["blocks.0.attn.qkv.weight"], want["blocks.0.attn.qkv.weight"]
    )


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("other.safetensors", lambda p: save_file({"x": torch.zeros(3)}, p)),
        ("other.pth", lambda p: torch.save({"model": {"x": torch.zeros(3)}}, p)),
        ("network.pth", lambda p: torch.save(timm.create_model("test_resnet").state_dict(), p)),
        ("pickled.pth", lambda p: torch.save(nn.Linear(2, 2), p)),
        ("text.pth", lambda p: p.write_text("not a checkpoint")),
        ("text.safetensors", lambda p: p.write_text("not a checkpoint")),
        ("empty.pth", lambda p: p.touch()),
        ("array.npz", lambda p: np.savez(p, x=np.zeros(3))),
    ],
)
def test_a_file_that_holds_something_else_is_refused(tmp_path: Path, name: str, write: Callable) -> None:
    write(tmp_path / name)
    with pytest.raises(ValueError, match=f"{name} does not hold the weights of {NAME} .*Give a state dict"):
        load(NAME, weights=str(tmp_path / name))


def test_a_file_that_is_not_there_is_named() -> None:
    with pytest.raises(FileNotFoundError, match=r"no weights file 'nowhere\.pth'"):
        load(NAME, weights="nowhere.pth")


def test_the_label_names_what_is_needed_to_load_again(random: Backbone) -> None:
    label = random.label()
    assert label["name"] == f"timm/{NAME}"
    assert label["pretrained"] is False
    assert label["fingerprints"] == {"image": fingerprint(random.image, random.preprocessing)}
    assert label["libraries"].keys() == {"torch", "timm"}


def test_a_backbone_is_hashed_once(random: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[Any] = []

    def counted(*given: Any) -> str:
        hashed.append(given)
        return fingerprint(*given)

    monkeypatch.setattr("vpt.towers.backbone.fingerprint", counted)
    fresh = replace(random)
    fresh.label()["fingerprints"].clear()  # a label is the caller's own
    assert fresh.label()["fingerprints"] == {"image": fingerprint(random.image, random.preprocessing)}
    assert len(hashed) == 1
    other = replace(fresh, preprocessing={**fresh.preprocessing, "mean": (0, 0, 0)})
    assert other.fingerprints != fresh.fingerprints


def changed(model: nn.Module, f: Callable[[nn.Module], object]) -> nn.Module:
    twin = copy.deepcopy(model)
    with torch.no_grad():
        f(twin)
    return twin


def test_a_fingerprint_notices_weights_traits_and_preprocessing(random: Backbone) -> None:
    m, pre = random.image.model, dict(random.preprocessing)
    marks = {"as it is": fingerprint(random.image, pre)}
    changes: dict[str, Callable[[nn.Module], object]] = {
        "one weight": lambda t: t.blocks[3].mlp.fc2.weight[5, 7].add_(0.01),
        "the class token": lambda t: t.cls_token[0, 0, 3].add_(0.01),
        "positions": lambda t: t.pos_embed[0, 2, 3].add_(0.01),
        "the last norm": lambda t: t.norm.bias[0].add_(0.01),
        "two blocks swapped": lambda t: t.load_state_dict(
            t.state_dict()
            | {
                k.replace("s.0.", "s.1."): v.clone()
                for k, v in m.state_dict().items()
                if k.startswith("blocks.0.")
            }
            | {
                k.replace("s.1.", "s.0."): v.clone()
                for k, v in m.state_dict().items()
                if k.startswith("blocks.1.")
            }
        ),
        "heads": lambda t: [setattr(b.attn, "num_heads", 4) for b in t.blocks],
        "eps": lambda t: [setattr(b.norm1, "eps", 1e-3) for b in t.blocks],
        "activation": lambda t: [setattr(b.mlp, "act", nn.ReLU()) for b in t.blocks],
        "pooling": lambda t: setattr(t, "global_pool", "avg"),
    }
    for what, change in changes.items():
        marks[what] = fingerprint(open_timm(changed(m, change)), pre)
    for key, value in {"mean": [0.5, 0.5, 0.4], "crop_pct": 0.8, "interpolation": "bilinear"}.items():
        marks[key] = fingerprint(random.image, {**pre, key: value})
    marks["no preprocessing"] = fingerprint(random.image)
    assert len(set(marks.values())) == len(marks)
    assert all(len(mark) == 16 and int(mark, 16) >= 0 for mark in marks.values())


def test_a_fingerprint_overlooks_classifiers_copies_rounding_and_containers(random: Backbone) -> None:
    m, pre = random.image.model, dict(random.preprocessing)
    mark = fingerprint(random.image, pre)
    assert fingerprint(open_timm(copy.deepcopy(m)), pre) == mark
    assert (
        fingerprint(random.image, {k: tuple(v) if isinstance(v, list) else v for k, v in pre.items()}) == mark
    )
    assert fingerprint(open_timm(changed(m, lambda t: t.reset_classifier(3))), pre) == mark
    assert fingerprint(open_timm(changed(m, lambda t: t.half().float())), pre) == mark
    assert fingerprint(replace(random.image, name="pictures"), pre) == mark


@pytest.mark.parametrize(
    "name",
    ["test_resnet", "test_efficientnet", "deit_tiny_distilled_patch16_224", "swin_tiny_patch4_window7_224"],
)
def test_classifiers_do_not_count_in_any_family(name: str) -> None:
    options = {"embed_dim": 24, "depths": (1, 1), "num_heads": (2, 2)} if "swin" in name else {}
    options = {"depth": 1} if "deit" in name else options
    torch.manual_seed(0)
    m = timm.create_model(name, num_classes=4, **options)
    mark = fingerprint(open_timm(m))
    m.reset_classifier(9)
    assert fingerprint(open_timm(m)) == mark
    next(p for n, p in m.named_parameters() if p.ndim > 1).data.add_(0.1)
    assert fingerprint(open_timm(m)) != mark
