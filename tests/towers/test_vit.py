"""Every open family equals timm to the bit without rows, and live equals plain with them; closed ones refuse."""

import inspect
import sys
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from timm.models.naflexvit import NaFlexVit, NaFlexVitCfg
from torch import Tensor, nn

from vpt.encode import advance, encode
from vpt.prompt import Site
from vpt.promptset import fingerprint
from vpt.tower import Block, Tower
from vpt.towers.vit import open_timm

CUT: dict[str, Any] = {"depth": 2, "num_classes": 7}
SMALL = {**CUT, "embed_dim": 64, "num_heads": 2}

# name: (options, another size, whether its blocks can leave work out)
FAMILIES: dict[str, tuple[dict[str, Any], int, bool]] = {
    "vit_tiny_patch16_224": (SMALL, 96, True),
    "deit_tiny_patch16_224": (SMALL, 96, True),
    "deit_tiny_distilled_patch16_224": (SMALL, 96, True),
    "deit3_small_patch16_224": (SMALL, 96, True),
    "vit_small_patch14_dinov2": ({**SMALL, "img_size": 126}, 98, True),
    "vit_small_patch14_reg4_dinov2": ({**SMALL, "img_size": 126}, 98, True),
    "vit_base_patch32_clip_224": (SMALL, 96, True),
    "vit_base_patch16_siglip_224": (SMALL, 96, True),
    "vit_base_patch16_siglip_gap_224": (SMALL, 96, True),
    "vit_so150m2_patch16_reg1_gap_256": (SMALL, 96, True),
    "flexivit_small": (SMALL, 96, True),
    "aimv2_large_patch14_224": (SMALL, 98, True),
    "vit_tiny_r_s16_p8_224": (CUT, 96, True),
    "vit_base_patch16_xp_224": (SMALL, 96, False),  # attention and MLP side by side
    "vit_base_patch16_18x2_224": (SMALL, 96, False),  # two attentions side by side
    "vit_base_patch16_rpn_224": (SMALL, 96, False),  # norms behind the residuals
    "eva02_tiny_patch14_224": (SMALL, 98, True),
    "eva02_base_patch16_clip_224": (SMALL, 96, True),
    "eva02_enormous_patch14_clip_224": (SMALL, 98, False),  # norms behind the residuals
    "vit_small_patch16_dinov3": ({**SMALL, "img_size": 128}, 96, True),
    "vit_small_patch16_rope_mixed_224": (SMALL, 96, True),
    "vit_pe_core_tiny_patch16_384": ({**SMALL, "img_size": 128}, 96, True),
    "naflexvit_base_patch16_gap": ({**SMALL, "img_size": 128}, 96, True),
    "naflexvit_base_patch16_map": ({**SMALL, "img_size": 128}, 96, True),
    "naflexvit_so150m2_patch16_reg1_gap": ({**SMALL, "img_size": 128}, 96, True),
}
NAFLEX = {"embed_dim": 64, "depth": 2, "num_heads": 2, "patch_size": 16, "pos_embed_grid_size": (8, 8)}
ROTARY: dict[str, dict[str, Any]] = {
    "naflex-axial": {"rope_type": "axial", "reg_tokens": 2, "global_pool": "avg"},
    "naflex-mixed": {"rope_type": "mixed", "class_token": True, "global_pool": "token"},
    "naflex-dinov3": {
        "rope_type": "dinov3",
        "rope_rotate_half": True,
        "qkv_fused": False,
        "attn_gated": True,
    },
    "naflex-grouped": {"attn_type": "rope", "num_kv_heads": 1, "qkv_fused": False, "swiglu_mlp": True},
}


def build(name: str, **more: Any) -> nn.Module:
    if name in ROTARY:
        options = {"class_token": True, "global_pool": "token", **ROTARY[name]}
        return NaFlexVit(NaFlexVitCfg(**NAFLEX, **options), num_classes=7)
    return timm.create_model(name, **{**FAMILIES[name][0], **more})


def side(model: nn.Module, name: str) -> int:
    return 128 if name in ROTARY else FAMILIES[name][0].get("img_size", model.default_cfg["input_size"][-1])


def pictures(size: int, batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(size))


def assert_equals_timm(tower: Tower, x: Tensor) -> None:
    m = tower.model
    for grad in (False, True):
        with torch.set_grad_enabled(grad):
            features = m.forward_features(x)
            normed = advance(tower, x, {}, "normed")
            assert torch.equal(normed.x, features)
            assert torch.equal(tower.logits(normed), m(x))
            assert torch.equal(encode(tower, x), m.forward_head(features, pre_logits=True))
    assert encode(tower, x).shape == (len(x), tower.out)
    assert m(x).shape == (len(x), 7)


@pytest.fixture(params=[*FAMILIES, *ROTARY], scope="module")
def named(request: pytest.FixtureRequest, shaken: Callable) -> tuple[str, Tower]:
    return request.param, open_timm(shaken(build(request.param)))


def deep(tower: Tower, n: int = 3, **at: Any) -> dict[Site, Tensor]:
    stages = map(str, range(tower.depth))
    return {Site("image", i, "prefix"): torch.randn(n, tower.width, requires_grad=True) for i in stages}


def test_without_rows_features_and_logits_are_timms(named: tuple[str, Tower]) -> None:
    name, tower = named
    assert not tower.closed
    assert tower.depth == 2
    assert isinstance(tower.steps[tower.index("0")], Block) is (name in ROTARY or FAMILIES[name][2]) or (
        name == "naflex-grouped"
    )
    assert_equals_timm(tower, pictures(side(tower.model, name)))


def test_live_equals_plain_and_nothing_frozen_moves(named: tuple[str, Tower]) -> None:
    name, tower = named
    before = {k: v.clone() for k, v in tower.model.state_dict().items()}
    mark, x, rows = fingerprint(tower), pictures(side(tower.model, name)), deep(tower)
    plain, live = (encode(tower, x, rows, live=on) for on in (False, True))
    scale = plain.abs().max()
    assert (plain - encode(tower, x)).abs().max() > 1e-3 * scale  # the rows are seen
    assert (live - plain).abs().max() < 2e-5 * scale
    weight = torch.randn_like(plain)
    a, b = (torch.autograd.grad((out * weight).sum(), list(rows.values())) for out in (plain, live))
    assert all((p - q).norm() <= 5e-5 * p.norm() and p.norm() > 0 for p, q in zip(a, b, strict=True))
    after = tower.model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[k], after[k]) for k in before)
    assert fingerprint(tower) == mark
    assert not tower.model.training
    assert all(p.grad is None for p in tower.model.parameters())


@pytest.mark.parametrize("name", FAMILIES)
def test_another_picture_size_equals_timm_too(name: str, shaken: Callable) -> None:
    size = FAMILIES[name][1]
    assert_equals_timm(open_timm(shaken(build(name, img_size=size))), pictures(size))


@pytest.mark.parametrize(
    "name", ["vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224", "deit3_small_patch16_224",
             "vit_small_patch14_reg4_dinov2", "eva02_tiny_patch14_224", "vit_small_patch16_rope_mixed_224"]
)  # fmt: skip
def test_a_size_chosen_at_run_time_equals_timm_too(name: str, shaken: Callable) -> None:
    tower = open_timm(shaken(build(name, dynamic_img_size=True)))
    x = pictures(FAMILIES[name][1])
    assert_equals_timm(tower, x)
    rows = deep(tower)
    assert torch.allclose(encode(tower, x, rows), encode(tower, x, rows, live=False), atol=1e-4)


@pytest.mark.parametrize("name", ["vit_small_patch16_dinov3", "naflex-axial", "naflexvit_base_patch16_map"])
def test_towers_that_take_any_size_take_oblong_pictures(name: str, shaken: Callable) -> None:
    tower = open_timm(shaken(build(name)))
    assert_equals_timm(tower, torch.randn(2, 3, 96, 64))


@pytest.mark.parametrize(
    "name", ["vit_tiny_patch16_224", "vit_small_patch14_reg4_dinov2", "vit_base_patch16_siglip_224",
             "vit_small_patch16_dinov3", "eva02_tiny_patch14_224"]
)  # fmt: skip
def test_bfloat16_runs_are_as_near_to_float32_live_as_plain(name: str, shaken: Callable) -> None:
    tower = open_timm(shaken(build(name)))
    x, rows = pictures(side(tower.model, name)), deep(tower)
    exact = encode(tower, x, rows)
    with torch.autocast("cpu", torch.bfloat16):
        plain, live = (encode(tower, x, rows, live=on).float() for on in (False, True))
    errors = [(out - exact).norm() / exact.norm() for out in (plain, live)]
    assert 0 < errors[0] < 0.05
    assert errors[1] < 1.5 * errors[0] + 2e-3


def small(name: str, **options: Any) -> nn.Module:
    return timm.create_model(name, num_classes=7, **options)


CLOSED: dict[str, tuple[Callable[[], nn.Module], int, str]] = {
    "swin": (
        lambda: small("swin_tiny_patch4_window7_224", embed_dim=24, depths=(1, 1), num_heads=(2, 2)),
        224,
        "Swin attends inside windows",
    ),
    "beit": (
        lambda: small("beit_base_patch16_224", embed_dim=64, depth=2, num_heads=2),
        224,
        "relative position bias is sized to its grid",
    ),
    "relpos": (lambda: small("test_vit_relpos"), 160, "relative position bias is sized to its grid"),
    "resnet": (lambda: small("test_resnet"), 64, "no plain sequence"),
    "convnext": (lambda: small("test_convnext"), 64, "no plain sequence"),
    "efficientnet": (lambda: small("test_efficientnet"), 64, "no plain sequence"),
    "mobilenet": (lambda: small("mobilenetv3_small_050"), 64, "no plain sequence"),
    "cait": (
        lambda: small("cait_xxs24_224", embed_dim=48, depth=1, num_heads=4),
        224,
        "CaiT lets the class token",
    ),
}


@pytest.mark.parametrize("kind", CLOSED)
def test_closed_towers_give_timms_features_take_pixels_and_refuse_the_rest(kind: str) -> None:
    build, size, reason = CLOSED[kind]
    tower, x = open_timm(build()), pictures(size)
    assert_equals_timm(tower, x)
    rows = {Site("image", "input", "corner"): torch.randn(16, 3, requires_grad=True)}
    out = encode(tower, x, rows)
    corner = torch.zeros(3, size, size)
    corner[:, :4, :4] = rows[Site("image", "input", "corner")].detach().T.view(3, 4, 4)
    assert torch.allclose(out, encode(tower, x + corner), atol=1e-5)
    assert torch.autograd.grad(out.square().sum(), list(rows.values()))[0].norm() > 0
    for site in (Site("image", "0", "prefix"), Site("image", "normed", "suffix")):
        with pytest.raises(
            ValueError, match=f"rows cannot enter at {site}: .* is a closed tower: .*{reason}"
        ):
            encode(tower, x, {site: torch.zeros(2, tower.width)})


def test_every_network_of_timm_can_be_opened_closed_or_is_refused_by_name() -> None:
    """By class: what the closed tower calls is there. One network in seven is built and run, without memory."""
    networks = {
        cls
        for name, module in list(sys.modules.items())
        if name.startswith("timm.models.")
        for cls in vars(module).values()
        if inspect.isclass(cls) and cls.__module__ == name and hasattr(cls, "forward_features")
    }
    assert len(networks) > 80
    parts = {c for c in networks if not hasattr(c, "get_classifier")}
    assert {c.__name__ for c in parts} <= {
        "DeepseekVitEncoder", "Gemma4VitEncoder", "Qwen3VitEncoder", "MobileNetV5Encoder"
    }  # fmt: skip
    for cls in networks - parts:
        assert "pre_logits" in inspect.signature(cls.forward_head).parameters, cls


MODULES = sorted({timm.models._registry._model_to_module[n] for n in timm.list_models()})


@pytest.mark.parametrize("module", MODULES[::7])
def test_one_network_of_a_module_opens_and_runs(module: str) -> None:
    words = (
        "test_",
        "atto",
        "pico",
        "nano",
        "tiny",
        "small",
        "18",
    )  # the smallest first: this is about the class
    name = min(timm.list_models(module=module), key=lambda n: (not any(w in n for w in words), len(n), n))
    with torch.device("meta"):
        tower = open_timm(timm.create_model(name))
        x = torch.zeros(1, *tower.model.default_cfg["input_size"])
        if tower.closed:
            assert type(tower.model).__name__ in tower.closed
        assert encode(tower, x).shape == (1, tower.out)
        assert (tower.logits is None) is (tower.model.num_classes == 0)


def test_a_network_without_pooled_features_is_refused() -> None:
    with torch.device("meta"):
        encoder = timm.create_model("mobilenetv5_300m_enc")
    with pytest.raises(
        ValueError, match=r"MobileNetV5Encoder gives no pooled features.*Choose a network with"
    ):
        open_timm(encoder)


def test_a_block_that_was_changed_runs_whole() -> None:
    """peft puts its own module in place of a projection: arithmetic on the weights would leave it out."""

    class Adapted(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * 2

    m = build("vit_tiny_patch16_224")
    m.blocks[0].attn.qkv.__class__ = Adapted
    tower = open_timm(m)
    first, second = (tower.steps[tower.index(i)] for i in "01")
    assert (isinstance(first, Block), isinstance(second, Block)) == (False, True)
    x, rows = pictures(224), deep(tower)
    assert torch.allclose(encode(tower, x, rows), encode(tower, x, rows, live=False), atol=1e-5)
    with pytest.raises(ValueError, match="no attention block whose keys and values"):
        tower.check([Site("image", "0", "kv")])
