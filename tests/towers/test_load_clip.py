"""open_clip's models by name: weights from tags, files and folders, preprocessing, and what is refused."""

import json
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from timm.data import create_transform

from vpt.encode import encode
from vpt.promptset import fingerprint
from vpt.towers.load import load
from vpt.towers.load_clip import backbone_of, preprocessing_of_clip

TINY: dict[str, Any] = {
    "embed_dim": 16,
    "vision_cfg": {"layers": 1, "width": 32, "head_width": 16, "patch_size": 8, "image_size": 32},
    "text_cfg": {"context_length": 12, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}
TAGS = {
    "quick": {
        "hf_hub": "nobody/nothing/",
        "quick_gelu": True,
        "mean": (0.4, 0.5, 0.6),
        "resize_mode": "squash",
    },
    "plain": {"hf_hub": "nobody/nothing/"},
}


@pytest.fixture(autouse=True)
def _tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """open_clip knows an architecture "Tiny-8" with two sets of weights."""
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "Tiny-8", TINY)
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "Tiny-8", TAGS)


@pytest.fixture
def model() -> Any:
    return open_clip.create_model("Tiny-8", load_weights=False).eval()


def picture(width: int, height: int) -> Image.Image:
    ramp = torch.arange(height * width * 3).view(height, width, 3).remainder(251).byte().numpy()
    return Image.fromarray(ramp)


@pytest.mark.parametrize("mode", ["shortest", "squash"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("size", [32, (32, 32), (24, 40)], ids=str)
def test_preprocessing_is_open_clips_to_the_bit(model: Any, mode: str, interpolation: str, size: Any) -> None:
    config = {"size": size, "mean": (0.4, 0.5, 0.6), "std": (0.2, 0.3, 0.25)}
    config |= {"interpolation": interpolation, "resize_mode": mode}
    open_clip.model.set_model_preprocess_cfg(model, config)
    cfg = open_clip.transform.PreprocessCfg(**config)
    theirs = open_clip.transform.image_transform_v2(cfg, is_train=False)
    ours = create_transform(**preprocessing_of_clip(model), is_training=False)
    for width, height in ((90, 60), (61, 97), (20, 30)):
        image = picture(width, height)
        assert torch.equal(ours(image), theirs(image))


def test_black_borders_are_refused(model: Any) -> None:
    open_clip.model.set_model_preprocess_cfg(
        model, {"size": 32, "mean": 0.5, "std": 0.5, "resize_mode": "longest"}
    )
    with pytest.raises(ValueError, match=r"padded with black .*Choose 'shortest' or 'squash'"):
        backbone_of(model, "mine", "Tiny-8")


def test_no_weights_in_the_list_want_them() -> None:
    modes = {open_clip.get_pretrained_cfg(*pair).get("resize_mode") for pair in open_clip.list_pretrained()}
    assert {"shortest", "squash"} <= modes
    assert "longest" not in modes


def test_random_weights_come_with_all_that_a_clip_has(model: Any) -> None:
    backbone = load("open_clip/Tiny-8", pretrained=False)
    assert backbone.options == {"pretrained": False}
    assert backbone.scale == pytest.approx(1 / 0.07)
    assert backbone.bias == 0
    assert backbone.preprocess(picture(50, 40)).shape == (3, 32, 32)
    assert backbone.tokens("a cat").shape == (1, 12)
    features = (
        encode(backbone.image, torch.randn(2, 3, 32, 32)),
        encode(backbone.text, backbone.tokens(["a", "b"])),
    )
    assert all(f.shape == (2, 16) for f in features)
    label = backbone.label()
    assert label["libraries"].keys() == {"torch", "open_clip_torch"}
    assert label["fingerprints"].keys() == {"image", "text"}
    again = backbone_of(model, "mine", "Tiny-8")
    assert again.tokens("a cat").shape == (1, 12)
    larger = load("open_clip/Tiny-8", pretrained=False, size=48)
    assert larger.preprocess(picture(50, 40)).shape == (3, 48, 48)
    assert encode(larger.image, torch.randn(1, 3, 48, 48)).shape == (1, 16)


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_weights_come_from_a_file(model: Any, tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"clip{suffix}"
    if suffix == ".pt":
        torch.save(
            {"epoch": 3, "state_dict": {f"module.{k}": v for k, v in model.state_dict().items()}}, file
        )
    else:
        save_file(model.state_dict(), file)
    backbone = load("open_clip/Tiny-8", weights=str(file))
    pictures = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(encode(backbone.image, pictures), model.encode_image(pictures))
    assert backbone.options == {"weights": str(file)}
    assert backbone.image.traits["activation"] == "GELU"
    assert backbone.preprocessing["crop_mode"] == "center"


def test_a_tag_says_how_the_weights_of_a_file_are_used(model: Any, tmp_path: Path) -> None:
    save_file(model.state_dict(), tmp_path / "clip.safetensors")
    backbone = load("open_clip/Tiny-8:quick", weights=str(tmp_path / "clip.safetensors"))
    assert backbone.image.traits["activation"] == backbone.text.traits["activation"] == "QuickGELU"
    assert backbone.preprocessing["mean"] == [0.4, 0.5, 0.6]
    assert backbone.preprocessing["crop_mode"] == "squash"
    assert backbone.name == "open_clip/Tiny-8:quick"


def test_a_local_folder_is_loaded(model: Any, tmp_path: Path) -> None:
    said = {"model_cfg": TINY, "preprocess_cfg": {"mean": [0.1, 0.2, 0.3]}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(said))
    name = f"open_clip/local-dir:{tmp_path}"
    with pytest.raises(OSError, match=r"has a config and no weights\. Give a checkpoint as weights="):
        load(name)  # a folder without weights would be random ones
    save_file(model.state_dict(), tmp_path / "open_clip_model.safetensors")
    backbone = load(name)
    assert fingerprint(backbone.image) == fingerprint(backbone_of(model, "x", "Tiny-8").image)
    assert backbone.preprocessing["mean"] == [0.1, 0.2, 0.3]
    other = open_clip.create_model("Tiny-8", load_weights=False)
    save_file(other.state_dict(), tmp_path / "other.st.safetensors")
    given = load(name, weights=str(tmp_path / "other.st.safetensors"))
    assert fingerprint(given.text) == fingerprint(backbone_of(other, "x", "Tiny-8").text)
    assert fingerprint(given.text) != fingerprint(backbone.text)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("open_clip/ViT-B-33:openai", r"no architecture 'ViT-B-33'; near it: ViT-B-32.*`vpt models`"),
        ("open_clip/Nothing", r"no architecture 'Nothing'\. `vpt models`"),
        ("open_clip/ViT-B-32:openia", r"ViT-B-32 has no weights tagged 'openia', but: .*openai"),
        (
            "open_clip/ViT-B/32",
            r"open_clip/ViT-B-32 says no weights. There are: open_clip/ViT-B-32:openai.*weights=",
        ),
        ("open_clip/ViT-S-32-alt", r"says no weights. There are: none in open_clip. Or give a file"),
    ],
)
def test_unknown_names_and_tags_are_refused_with_what_there_is(name: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        load(name)


@pytest.mark.parametrize("name", ["open_clip/Tiny-8:plain", "open_clip/hf-hub:nobody/nothing"])
def test_weights_out_of_reach_say_so(name: str) -> None:
    with pytest.raises(
        OSError, match=r"needs files that are not on this machine.*weights=, or pretrained=False"
    ):
        load(name)


def test_files_that_do_not_fit_are_refused(model: Any, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no weights file 'nowhere.pt'"):
        load("open_clip/Tiny-8", weights="nowhere.pt")
    state = model.state_dict()
    torch.save({k: v for k, v in state.items() if "resblocks" not in k}, tmp_path / "part.pt")
    torch.save({**state, "ln_final.weight": torch.zeros(7)}, tmp_path / "wrong.pt")
    torch.save({}, tmp_path / "empty.pt")
    (tmp_path / "text.pt").write_text("no weights")
    for file in ("part.pt", "wrong.pt", "empty.pt", "text.pt"):
        with pytest.raises(
            ValueError, match=rf"{file} does not hold the weights of Tiny-8 \(.+\). Give a state dict"
        ):
            load("open_clip/Tiny-8", weights=str(tmp_path / file))


def test_a_tokenizer_out_of_reach_says_so(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = backbone_of(model, "mine", "ViT-B-16-SigLIP")
    with pytest.raises(OSError, match="the tokenizer of ViT-B-16-SigLIP is not on this machine and the hub"):
        _ = backbone.tokens
