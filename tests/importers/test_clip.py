"""Imported CLIP prompts as prompt sets of tiny towers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import open_clip
import pytest
import timm
import torch
import torch.nn.functional as F
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg
from safetensors.torch import load_file
from torch import Tensor

from vpt.encode import encode
from vpt.importers import import_clip_prompts
from vpt.importers.dassl import read_dassl
from vpt.methods.mmrl import MMRL
from vpt.prompt import Context, Site
from vpt.tasks.learner import Learner
from vpt.tasks.tuned import Tuned
from vpt.text import encode_text, lay
from vpt.tower import Tower
from vpt.towers.clip import open_clip_model
from vpt.towers.tokens import of_open_clip, readable
from vpt.towers.vit import open_timm, tiny

T, V = 32, 48  # widths of the text and the image tower
CTX = Site("text", "embedded", "<ctx>")


@dataclass
class Backbone:
    towers: Mapping[str, Tower]
    preprocessing: Mapping[str, Any]

    def label(self) -> dict[str, Any]:
        return {"name": "open_clip/tiny", "fingerprints": {}}


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    torch.manual_seed(0)
    vision = CLIPVisionCfg(layers=4, width=V, head_width=16, patch_size=8, image_size=32)
    text = CLIPTextCfg(context_length=12, vocab_size=20, width=T, heads=2, layers=3)
    return Backbone(open_clip_model(CLIP(24, vision, text)), {"input_size": [3, 32, 32]})


def ivlp(image: int = 3, text: int = 2, **more: Tensor) -> dict[str, Tensor]:
    state = {"image_encoder.VPT": torch.randn(2, V), "prompt_learner.ctx": torch.randn(4, T)}
    for tower, layers, width, n in (("image", image, V, 2), ("text", text, T, 4)):
        for i in range(1, layers):
            state[f"{tower}_encoder.transformer.resblocks.{i}.VPT_shallow"] = torch.randn(n, width)
    return {**state, **more}


def cocoop(reads: int = 24) -> dict[str, Tensor]:
    net = {"linear1.weight": (1, reads), "linear1.bias": (1,), "linear2.weight": (T, 1), "linear2.bias": (T,)}
    return {"ctx": torch.randn(4, T), **{f"meta_net.{key}": torch.randn(shape) for key, shape in net.items()}}


def saved(path: Path, state: dict[str, Tensor]) -> Path:
    torch.save({"state_dict": state, "epoch": 5}, path)
    return path


def test_the_prompt_set_says_what_it_is_and_its_rows_are_written(tmp_path: Path, backbone: Backbone) -> None:
    state = ivlp()
    made = import_clip_prompts(saved(tmp_path / "model.pth.tar-5", state), backbone, classes=["a", "b"])
    about = made.about
    options = {"length": 4, "image_length": 2, "layers": 2, "image_layers": 3, "words": ""}
    assert about["method"] == {"name": "ivlp", "options": options, "paper": "2210.03117"}
    assert about["train"] == {
        "imported": "model.pth.tar-5",
        "code": "muzairkhattak/multimodal-prompt-learning",
        "epoch": 5,
    }
    assert about["names"] == {"sentence": "<ctx*4> {}.", "class_specific": False}
    assert about["metrics"] == []
    assert "head" not in about
    assert made.classes == ("a", "b")
    assert torch.equal(made.rows[CTX], state["prompt_learner.ctx"])
    made.check(backbone.towers.values())
    image, pictures = backbone.towers["image"], torch.randn(2, 3, 32, 32)
    features = encode(image, pictures, made.rows)
    assert not torch.allclose(features, encode(image, pictures, {}), atol=1e-3)
    for key, row in ((Site("image", "2", "suffix"), 1), (Site("image", "placed", "suffix"), 0)):
        changed = made.rows[key].clone()
        changed[row] += torch.randn(V)
        assert not torch.allclose(features, encode(image, pictures, {**made.rows, key: changed}), atol=1e-4)


def test_class_specific_rows_go_with_their_names(tmp_path: Path, backbone: Backbone) -> None:
    path = saved(tmp_path / "a.pth", {"ctx": torch.randn(3, 4, T)})
    made = import_clip_prompts(path, backbone, classes=["x", "y", "z"])
    assert made.about["names"]["class_specific"]
    assert made.rows[CTX].shape == (3, 4, T)
    for names in ([], ["x", "y"]):
        with pytest.raises(ValueError, match=f"for 3 classes, and {len(names)} names were given"):
            import_clip_prompts(path, backbone, classes=names)


def test_cocoop_is_kept_as_a_whole(tmp_path: Path, backbone: Backbone) -> None:
    state = cocoop()
    made = import_clip_prompts(saved(tmp_path / "a.pth", state), backbone)
    assert made.rows == {}
    assert {key: value.shape for key, value in made.method.items()} == {
        "text_prompt.table.rows": (1, 4, T),
        "meta_net.0.weight": (1, 24),
        "meta_net.0.bias": (1,),
        "meta_net.2.weight": (T, 1),
        "meta_net.2.bias": (T,),
    }
    assert torch.equal(made.method["text_prompt.table.rows"][0], state["ctx"])


def test_mmrl_is_kept_as_a_whole_and_is_the_method(tmp_path: Path, tiny_clip: Any) -> None:
    wrote, layers = MMRL(tiny_clip.image, tiny_clip.text, shared=8), range(2)
    state = {"image_encoder.proj_rep": wrote.projection}
    stem = "representation_learner.compound_rep_tokens"
    state[stem] = wrote.shared_tokens
    for part, maps in (("r2vproj", wrote.to_image), ("r2tproj", wrote.to_text)):
        for i in layers:
            state |= {f"{stem}_{part}.{i}.{k}": torch.randn_like(p) for k, p in maps[i].named_parameters()}
    for tower in ("image", "text"):  # the file holds a whole CLIP, by which the depth is known
        state |= {f"{tower}_encoder.transformer.resblocks.{i}.ln_1.bias": torch.ones(1) for i in range(3)}
    file = saved(tmp_path / "m.pth", {k: v.detach() for k, v in state.items()})
    made = import_clip_prompts(file, tiny_clip, classes=["a car", "dog"], sentence="a {}.")
    assert not made.rows
    tuned = Tuned(tiny_clip, made)
    method = tuned.learner.method
    assert isinstance(method, MMRL)
    assert method.sentence == "a {}."
    with torch.no_grad():
        for i in layers:
            wrote.to_image[i].load_state_dict(
                {k: state[f"{stem}_r2vproj.{i}.{k}"] for k in ("weight", "bias")}
            )
            wrote.to_text[i].load_state_dict(
                {k: state[f"{stem}_r2tproj.{i}.{k}"] for k in ("weight", "bias")}
            )
        wrote.sentence = "a {}."
        wanted = Learner(wrote, tiny_clip, ["a car", "dog"]).eval()(images := torch.randn(2, 3, 32, 32))
    torch.testing.assert_close(tuned.logits(images), wanted)
    read = read_dassl(file)["rows"]
    assert {site: r.shape for site, r in read.items()} == {s: r.shape for s, r in method(Context()).items()}
    for site, rows in method(Context()).items():
        torch.testing.assert_close(rows, read[site])
    assert not tuned.with_classes(["cat", "dog"]).learner.own
    deeper = {k.replace("resblocks.2", "resblocks.3"): v for k, v in state.items()}
    deeper |= {k: v for k, v in state.items() if "resblocks.2" in k}
    file = saved(tmp_path / "n.pth", {k: v.detach() for k, v in deeper.items()})
    with pytest.raises(ValueError, match="for block 3 of the 'image' tower"):
        import_clip_prompts(file, tiny_clip)
    file = saved(tmp_path / "o.pth", {k: v.detach() for k, v in state.items() if "resblocks.2" not in k})
    with pytest.raises(ValueError, match=r"up to block 1, the last of its 'image' tower; that of .* has 3"):
        import_clip_prompts(file, tiny_clip)


def test_method_and_sentence_as_asked(tmp_path: Path, backbone: Backbone) -> None:
    path = saved(tmp_path / "a.pth", {"ctx": torch.randn(4, T)})
    made = import_clip_prompts(path, backbone, method="prograd", sentence="{} <ctx*4>.")
    assert (made.about["method"]["name"], made.about["names"]["sentence"]) == ("prograd", "{} <ctx*4>.")
    assert made.about["train"]["code"] == "BeierZhu/Prompt-align"
    torch.save({"prompt_embeddings": torch.randn(4, T)}, path)
    assert import_clip_prompts(path, backbone).about["train"]["code"] == "huggingface/peft"


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"ctx": torch.ones(4, 512)}, r"text/embedded/<ctx> are 512 wide, the 'text' tower of open_clip/tiny takes 32"),
        ({"prompt_embeddings": torch.ones(4, 768)}, "are 768 wide"),
        ({"image_encoder.VPT": torch.ones(2, T)}, r"at image/placed/suffix are 32 wide, .* takes 48"),
        (ivlp(image=5), "for block 4 of the 'image' tower; that of open_clip/tiny has 4 blocks, 0 to 3"),
        (ivlp(text=4), "for block 3 of the 'text' tower"),
        (cocoop(512), "meta_net.0.weight is made for image features of 512 channels, open_clip/tiny gives 24"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_with_both_values(
    tmp_path: Path, backbone: Backbone, state: dict[str, Tensor], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        import_clip_prompts(saved(tmp_path / "a.pth", state), backbone)


def test_other_towers_are_refused_with_the_reason(tmp_path: Path, backbone: Backbone) -> None:
    path = saved(tmp_path / "a.pth", ivlp())
    with pytest.raises(
        ValueError, match=r"rows for a 'text' tower; open_clip/tiny has image\. Give the CLIP"
    ):
        import_clip_prompts(path, replace(backbone, towers={"image": tiny()}))
    closed = open_timm(timm.create_model("test_resnet", pretrained=False))
    with pytest.raises(ValueError, match="closed tower"):
        import_clip_prompts(path, replace(backbone, towers={**backbone.towers, "image": closed}))


def golden_clip(case: dict[str, Any], folder: Path) -> CLIP:
    """The small CLIP of the golden folder; words that its texts do not use are NaN."""
    cfg = case["model"]
    vision, text = cfg["vision"], cfg["text"]
    model = CLIP(
        cfg["embed_dim"],
        CLIPVisionCfg(
            layers=vision["layers"],
            width=vision["width"],
            head_width=16,
            patch_size=cfg["patch_size"],
            image_size=cfg["image_size"],
        ),
        CLIPTextCfg(width=text["width"], heads=text["heads"], layers=text["layers"]),
        quick_gelu=True,
    )
    state = load_file(folder / "clip-small.safetensors")
    table = torch.full((49408, text["width"]), torch.nan)
    table[state.pop("token_embedding.ids").long()] = state.pop("token_embedding.rows")
    model.load_state_dict({**state, "token_embedding.weight": table}, strict=False)
    return model.eval()


def as_the_authors_save(recorded: dict[str, Tensor], suffix: Tensor) -> dict[str, Tensor]:
    """Recorded initial values under the keys of the authors' files."""
    if "init.ctx" in recorded:
        return {"ctx": recorded["init.ctx"]}
    text, image = recorded["init.text_prompts"], recorded.get("init.visual_prompts")
    state = {"prompt_learner.ctx": text[0], "prompt_learner.token_suffix": suffix[:, 1 + text.shape[1] :]}
    for i in range(1, len(text)):
        key = f"text_encoder.transformer.resblocks.{i}.VPT_shallow"
        maple = f"prompt_learner.compound_prompts_text.{i - 1}"
        state[key if image is not None else maple] = text[i]
    if image is not None:
        deep = {
            f"image_encoder.transformer.resblocks.{i}.VPT_shallow": image[i] for i in range(1, len(image))
        }
        return {**state, "image_encoder.VPT": image[0], **deep}
    for part in ("weight", "bias"):
        first, *above = recorded[f"init.coupling.{part}"]
        state[f"prompt_learner.proj.{part}"] = first
        state |= {f"prompt_learner.compound_prompt_projections.{i}.{part}": t for i, t in enumerate(above)}
    return state


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("coop-end-n4-csc", None),
        ("coop-middle-n4-random", "<ctx*2> {} <ctx*2>."),
        ("ivlp-deep-words", None),
        ("maple-depth3-words", None),
        ("maple-depth3-random", None),
    ],
)
def test_an_imported_file_gives_the_logits_of_the_authors_code(
    tmp_path: Path, name: str, sentence: str | None
) -> None:
    folder = Path(__file__).parents[1] / "golden"
    case, recorded = (
        json.loads((folder / f"{name}.json").read_text()),
        load_file(folder / f"{name}.safetensors"),
    )
    model = golden_clip(case, folder)
    towers, names = open_clip_model(model), [readable(n) for n in case["classes"]["names"]]
    suffix = model.token_embedding(torch.tensor(case["classes"]["token_ids"])).detach()
    state = {key: value.clone() for key, value in as_the_authors_save(recorded, suffix).items()}
    backbone = Backbone(towers, {})
    made = import_clip_prompts(saved(tmp_path / "a.pth", state), backbone, classes=names, sentence=sentence)
    tokens, grouped = (
        of_open_clip(open_clip.get_tokenizer("ViT-B-16"), towers["text"]),
        made.about["names"]["class_specific"],
    )
    said = [
        tokens.sentence(made.about["names"]["sentence"], n, k if grouped else 0) for k, n in enumerate(names)
    ]
    pictures = load_file(folder / case["tensors"]["input.images"]["file"])["images"]
    with torch.no_grad():
        text = encode_text(towers["text"], lay(towers["text"], said), made.rows)
        image = encode(towers["image"], pictures, made.rows)
        logits = model.logit_scale.exp() * F.normalize(image, dim=-1) @ F.normalize(text, dim=-1).mT
    torch.testing.assert_close(logits, recorded["out.logits"], rtol=0, atol=5e-5)
