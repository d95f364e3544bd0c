"""open_clip's models: every architecture opens, features equal the library's to the bit, live is as plain."""

import logging
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import open_clip
import pytest
import timm
import torch
from open_clip.coca_model import CoCa
from open_clip.model import CLIP, CustomTextCLIP
from open_clip.transformer import TextTransformer, VisionTransformer
from torch import Tensor, nn
from transformers import M2M100Config, MT5Config, RobertaConfig, XLMRobertaConfig

from vpt.encode import encode
from vpt.prompt import Site
from vpt.promptset import fingerprint
from vpt.tower import Block, Tower
from vpt.towers.clip import open_clip_model, open_image, open_text

VISION: dict[str, Any] = {"layers": 2, "width": 32, "head_width": 16, "patch_size": 8, "image_size": 32}
TEXT: dict[str, Any] = {"context_length": 12, "vocab_size": 40, "width": 24, "heads": 2, "layers": 2}
END = 39
IDS = torch.tensor(
    [[38, 3, 4, 5, END, *[0] * 7], [38, 6, END, *[0] * 9], [38, *range(7, 17), END]]
)  # three sentences, the last without padding


@pytest.fixture
def small_timm(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """small_timm(depth=2): open_clip's towers of timm are built so, where the network takes these options."""

    def shrink(**options: Any) -> None:
        real = timm.create_model

        def create(name: str, **given: Any) -> nn.Module:
            try:
                return real(name, **{**given, **options})
            except TypeError:  # a convolutional network has no such option
                return real(name, **given)

        monkeypatch.setattr(timm, "create_model", create)

    return shrink


IMAGE_TOWERS: dict[str, dict[str, Any]] = {
    "class token": {},
    "mean": {"pool_type": "avg", "no_ln_pre": True, "final_ln_after_pool": True},
    "mean of normed": {"pool_type": "avg", "ls_init_value": 0.5},
    "late norm": {"final_ln_after_pool": True},
    "attention pool": {"attentional_pool": True, "attn_pooler_heads": 2, "attn_pooler_queries": 4},
    "fixed positions": {"pos_embed_type": "sin_cos_2d", "patch_dropout": 0.5},
    "custom blocks": {"block_type": "custom", "qk_norm": True, "scale_attn_inner": True},
}


@pytest.mark.parametrize("kind", IMAGE_TOWERS)
@pytest.mark.parametrize("quick", [False, True], ids=["gelu", "quickgelu"])
def test_an_image_tower_equals_encode_image(kind: str, quick: bool, images: Tensor, shaken: Any) -> None:
    m = shaken(CLIP(16, {**VISION, **IMAGE_TOWERS[kind]}, TEXT, quick_gelu=quick), 0.5)
    tower = open_clip_model(m)["image"]
    with torch.no_grad():
        assert torch.equal(encode(tower, images), m.encode_image(images))
    assert tower.out == 16
    assert tower.traits["activation"] == ("QuickGELU" if quick else "GELU")
    rows = {
        Site("image", stage, "suffix"): torch.randn(3, 32, requires_grad=True) for stage in ("placed", "1")
    }
    live, plain = (encode(tower, images, rows, live=live) for live in (True, False))
    torch.testing.assert_close(live, plain, rtol=1e-5, atol=1e-5)
    grads = [torch.autograd.grad((f * f.detach().roll(1)).sum(), list(rows.values())) for f in (live, plain)]
    for ours, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    assert isinstance(tower.steps[4], Block) == (kind != "custom blocks")


def test_rows_enter_in_front_of_the_pre_norm(images: Tensor, shaken: Any) -> None:
    m = shaken(CLIP(16, VISION, TEXT), 0.5)
    v, rows = m.visual.eval(), torch.randn(4, 32)
    x = v.conv1(images).flatten(2).mT
    x = torch.cat([v.class_embedding.expand(3, 1, -1), x], 1) + v.positional_embedding
    x = v.ln_pre(torch.cat([x, rows.expand(3, -1, -1)], 1))
    for block in v.transformer.resblocks:
        x = block(x)
    want = v.ln_post(x[:, 0]) @ v.proj
    got = encode(open_clip_model(m)["image"], images, {Site("image", "placed", "suffix"): rows}, live=False)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


TEXT_TOWERS: dict[str, tuple[dict[str, Any], bool, bool]] = {  # options, causal and packed, cut
    "argmax": ({}, True, True),
    "eos": ({"pool_type": "eos", "eos_id": END}, True, True),
    "biased projection": ({"proj_bias": True, "ls_init_value": 0.5}, True, True),
    "no projection": ({"proj_type": "none"}, True, True),
    "custom blocks": ({"block_type": "custom", "scale_heads": True}, True, True),
    "siglip": ({"no_causal_mask": True, "pool_type": "last", "proj_bias": True}, False, False),
    "mobileclip": ({"no_causal_mask": True}, False, False),
    "first": ({"no_causal_mask": True, "pool_type": "first"}, False, False),
    "causal, last": ({"pool_type": "last"}, False, False),
    "padding unseen": ({"no_causal_mask": True, "use_pad_mask": True, "pool_type": "first"}, False, False),
    "coca": ({"embed_cls": True}, False, False),
    "coca, mask put right": ({"embed_cls": True, "correct_cls_mask": True}, False, False),
    "coca, bidirectional": (
        {"embed_cls": True, "no_causal_mask": True, "correct_cls_mask": True},
        False,
        False,
    ),
}


@pytest.mark.parametrize("kind", TEXT_TOWERS)
def test_a_text_tower_equals_encode_text(kind: str, shaken: Any) -> None:
    options, causal, cuts = TEXT_TOWERS[kind]
    t = shaken(TextTransformer(**TEXT, output_dim=16, **options), 0.5)
    tower = open_text(t)
    assert tower.reading is not None
    assert (tower.reading.context, tower.reading.causal, tower.reading.cuts) == (12, causal, cuts)
    with torch.no_grad():
        assert torch.equal(encode(tower, IDS), t(IDS))
    assert encode(tower, IDS).shape == (3, tower.out)
    s = tower.begin(IDS)
    s = type(s)(s.x, places={**s.places, "<ctx>": torch.tensor([[1, 2]])})
    rows = {
        Site("text", stage, "<ctx>"): torch.randn(2, 24, requires_grad=True) for stage in ("embedded", "1")
    }
    live, plain = (encode(tower, s, rows, live=live) for live in (True, False))
    torch.testing.assert_close(live, plain, rtol=1e-5, atol=1e-5)
    assert (live - encode(tower, IDS)).abs().max() > 1e-2
    with torch.no_grad():  # the library's own forward, its table of words holding the rows of the lower site
        table = t.token_embedding.weight.clone()
        own = {Site("text", "embedded", "<ctx>"): next(iter(rows.values()))}
        t.token_embedding.weight[[20, 21]] = next(iter(rows.values()))
        ids = IDS.clone()
        ids[:, 1:3] = torch.tensor([20, 21])
        ends = IDS.argmax(1)
        if ends[1] == 2:  # the row of the shortest sentence would overwrite its end
            ids, s = ids[[0, 2]], s.samples(lambda x: x[[0, 2]])
        assert torch.equal(encode(tower, s, own, live=False), t(ids))
        t.token_embedding.weight.copy_(table)


def test_a_sentence_without_its_own_feature_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"pools by 'none', so it has no feature.*argmax, eos, first or last"
    ):
        open_text(TextTransformer(**TEXT, output_dim=16, pool_type="none"))
    with pytest.raises(
        ValueError, match=r"Linear cannot be opened: vpt knows the CLIP, CustomTextCLIP and CoCa"
    ):
        open_clip_model(nn.Linear(2, 2))


def test_coca_equals_the_library(images: Tensor, shaken: Any) -> None:
    vision = {**VISION, "attentional_pool": True, "attn_pooler_heads": 2, "attn_pooler_queries": 4}
    several = {"context_length": 12, "vocab_size": 40, "width": 24, "heads": 2, "layers": 1}
    text = {**TEXT, "embed_cls": True, "output_tokens": True}
    m = shaken(CoCa(16, several, text, {**vision, "output_tokens": True}), 0.5)
    towers = open_clip_model(m)
    with torch.no_grad():
        assert torch.equal(encode(towers["image"], images), m.encode_image(images, normalize=False))
        assert torch.equal(encode(towers["text"], IDS), m.encode_text(IDS, normalize=False))


RESNET: dict[str, Any] = {"layers": [1, 1, 1, 1], "width": 8, "head_width": 32, "image_size": 64}


def test_a_convolutional_clip_is_closed_for_pictures_and_open_for_text(shaken: Any) -> None:
    m = shaken(CLIP(16, RESNET, TEXT, quick_gelu=True), 0.1)
    towers, pictures = open_clip_model(m), torch.randn(2, 3, 64, 64)
    image = towers["image"]
    with torch.no_grad():
        assert torch.equal(encode(image, pictures), m.encode_image(pictures))
        assert torch.equal(encode(towers["text"], IDS), m.encode_text(IDS))
    assert (image.out, image.depth) == (16, 0)
    with pytest.raises(
        ValueError, match=r"rows cannot enter at image/0/prefix: ModifiedResNet is a closed tower"
    ):
        image.check([Site("image", "0", "prefix")])
    rows = {Site("image", "input", "border"): torch.randn(4 * 60 * 4, 3)}
    assert (encode(image, pictures, rows) - encode(image, pictures)).abs().max() > 1e-5
    rows = {Site("text", "embedded", "<ctx>"): torch.randn(2, 24)}
    s = towers["text"].begin(IDS[:1])
    s = type(s)(s.x, places={**s.places, "<ctx>": torch.tensor([[1, 2]])})
    assert (encode(towers["text"], s, rows) - encode(towers["text"], IDS[:1])).abs().max() > 1e-2


# name in timm, pooling, projection: as open_clip's EVA, PE, MobileCLIP, SigLIP, gap, ViTamin and CNN towers have them
TRUNKS: list[tuple[str, str, str | None]] = [
    ("eva02_base_patch16_clip_224", "token", None),
    ("vit_pe_core_base_patch16_224", "map", None),
    ("vit_base_mci_224", "token", None),
    ("vit_base_patch16_siglip_224", "map", "none"),
    ("vit_medium_patch16_gap_256", "", "linear"),
    ("vitamin_small_224", "", "linear"),
    ("vit_base_patch32_clip_224", "token", "mlp"),
    ("test_convnext", "", "linear"),
    ("test_convnext", "avg", None),
    ("resnet10t", "rot_attn", ""),
    ("resnet10t", "abs_attn", "linear"),
    ("vit_relpos_medium_patch16_cls_224", "", "linear"),
]


@pytest.mark.parametrize(("name", "pool", "proj"), TRUNKS)
def test_a_tower_of_timm_equals_encode_image(
    name: str, pool: str, proj: str | None, small_timm: Any, shaken: Any
) -> None:
    stem = name.startswith(("vit_base_mci", "vitamin"))  # its width is the network's
    small_timm(depth=2, **{} if stem else {"embed_dim": 64, "num_heads": 2})
    vision = {"timm_model_name": name, "timm_pool": pool, "timm_proj": proj, "image_size": 224}
    out = 64 if proj == "none" else 16
    m = shaken(CustomTextCLIP(out, vision, TEXT), 0.3)
    tower = open_clip_model(m)["image"]
    size = m.visual.trunk.default_cfg["input_size"][-1]
    pictures = torch.randn(2, 3, size, size)
    with torch.no_grad():
        want = m.encode_image(pictures)
        assert torch.equal(encode(tower, pictures), want)
    assert want.shape == (2, tower.out) == (2, out)
    assert tower.logits is None
    before = fingerprint(tower)
    with torch.no_grad():  # the projection is part of the tower, wherever it is
        last = [p for n, p in m.visual.named_parameters() if n.startswith(("head", "trunk.head", "trunk.fc"))]
        if proj != "none":
            last[0].add_(0.1)
            assert fingerprint(tower) != before
    if tower.closed:
        with pytest.raises(ValueError, match="closed tower"):
            tower.check([Site("image", "0", "prefix")])
        return
    rows = {Site("image", stage, "prefix"): torch.randn(3, tower.width) for stage in ("0", "1")}
    live, plain = (encode(tower, pictures, rows, live=live) for live in (True, False))
    torch.testing.assert_close(live, plain, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["ViT-S-32-alt"])
def test_a_model_of_real_size_equals_the_library(name: str) -> None:
    m = open_clip.create_model(name, pretrained=None, load_weights=False).eval()
    towers = open_clip_model(m)
    pictures, ids = torch.randn(2, 3, 224, 224), open_clip.get_tokenizer(name)(["a photo of a cat.", "red"])
    with torch.no_grad():
        assert torch.equal(encode(towers["image"], pictures), m.encode_image(pictures))
        assert torch.equal(encode(towers["text"], ids), m.encode_text(ids))
        assert torch.allclose(encode(towers["text"], ids[:, :9]), m.encode_text(ids), atol=1e-5)


def test_a_copy_learns_and_the_frozen_towers_stay(shaken: Any, images: Tensor) -> None:
    m = shaken(CLIP(16, VISION, TEXT), 0.5)
    for name, tower in open_clip_model(m).items():
        before = fingerprint(tower)
        twin = tower.learning(lambda p: "ln_2" in p, "0")
        encode(twin, images if name == "image" else IDS).sum().backward()
        learned = [p for p in twin.model.parameters() if p.requires_grad]
        assert learned
        assert all(p.grad is not None for p in learned)
        with torch.no_grad():
            learned[0].add_(0.1)
        assert fingerprint(twin) != before
        assert fingerprint(tower) == before


def test_half_precision_and_another_device_follow_the_model(shaken: Any, images: Tensor) -> None:
    m = shaken(CLIP(16, VISION, TEXT), 0.5)
    towers = open_clip_model(m)
    want = {n: encode(t, images if n == "image" else IDS) for n, t in towers.items()}
    m.to(torch.bfloat16)
    for name, tower in towers.items():
        got = encode(tower, images.bfloat16() if name == "image" else IDS)
        assert got.dtype == torch.bfloat16
        assert torch.nn.functional.cosine_similarity(got.float(), want[name]).min() > 0.99


# the sizes of Hugging Face's text encoders do not matter on the meta device; their kinds do
HUB = {"roberta": RobertaConfig, "xlm": XLMRobertaConfig, "google": MT5Config, "facebook": M2M100Config}
CLOSED = ("convnext", "RN", "swin", "MobileCLIP2-S", "MobileCLIP-S", "vit_relpos")


@pytest.fixture
def shallow(monkeypatch: pytest.MonkeyPatch, small_timm: Any) -> None:
    """open_clip's architectures two blocks deep."""
    small_timm(depth=2)
    real = open_clip.get_model_config

    def cut(name: str) -> dict[str, Any]:
        config = deepcopy(real(name))
        for part in ("vision_cfg", "text_cfg", "multimodal_cfg"):
            if isinstance(config.get(part, {}).get("layers"), int):
                config[part]["layers"] = 2
        return config

    def config_of(name: str) -> Any:
        kind = HUB[name.split("/")[0].split("-")[0]]
        return kind(num_hidden_layers=2, encoder_layers=2, num_layers=2, decoder_layers=1)

    # weights on the meta device have no values to start from, and it takes half of the time
    monkeypatch.setattr("timm.layers.weight_init._trunc_normal_", lambda tensor, *_: tensor)
    monkeypatch.setattr("open_clip.factory.get_model_config", cut)
    monkeypatch.setattr("open_clip.hf_model.AutoConfig.from_pretrained", config_of)


def _opened_on_meta(name: str) -> tuple[nn.Module, dict[str, Tower]]:
    with torch.device("meta"):
        model = open_clip.create_model(name, load_weights=False, pretrained_text=False, device="meta")
    return model, open_clip_model(model)


@pytest.mark.usefixtures("shallow")
def test_every_architecture_that_open_clip_lists_opens(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR)
    names = open_clip.list_models()
    assert len(names) > 100
    for name in names:
        model, towers = _opened_on_meta(name)
        image, text = towers["image"], towers["text"]
        out = open_clip.get_model_config(name)["embed_dim"]
        assert (image.out, text.out) == (out, out), name
        assert bool(image.closed) == name.startswith(CLOSED), name
        assert text.reading is not None
        assert not text.closed
        assert text.depth >= 2
        if image.closed:
            with pytest.raises(ValueError, match="closed tower"):
                image.check([Site("image", "0", "prefix")])
        else:
            image.check([Site("image", "placed", "suffix"), Site("image", "1", "prefix")])
            side = model.visual.image_size  # type: ignore[union-attr]
            height, width = (side, side) if isinstance(side, int) else side
            made = encode(image, torch.empty(1, 3, height, width, device="meta"))
            assert made.shape == (1, out), name
        text.check([Site("text", "embedded", "<ctx>"), Site("text", "1", "<ctx>")])
        if (
            "hf_model_name" not in open_clip.get_model_config(name)["text_cfg"]
        ):  # its masks ask what is in a tensor
            ids = torch.zeros(1, text.reading.context, dtype=torch.long, device="meta")
            assert encode(text, ids).shape == (1, out), name


def test_the_own_towers_have_the_types_that_are_opened_exactly() -> None:
    m = CLIP(16, VISION, TEXT)
    assert type(m.visual) is VisionTransformer
    assert open_image(m.visual).name == "image"
