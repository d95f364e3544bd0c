"""The chosen attention path changes no result, and a cast twin is equal to the bit under autocast."""

import pytest
import torch
import torch.nn.functional as F
from timm.models.eva import Eva
from torch.nn.attention import SDPBackend, sdpa_kernel

import vpt.attention
from vpt.attention import attention_path, bf16_supported, cast_frozen, fastest_attention
from vpt.encode import encode
from vpt.prompt import Site
from vpt.tower import Tower
from vpt.towers.vit import open_timm, tiny

SHAPE = {"batch": 2, "heads": 2, "length": 17, "head_width": 16}


@pytest.fixture(autouse=True)
def _measure_again():
    vpt.attention._faster_path.cache_clear()
    vpt.attention._bf16_on_cpu.cache_clear()


def faster(monkeypatch, index: int) -> list[int]:
    """Makes one of the two works the faster one; returns how many works were timed, call by call."""
    calls = []

    def seconds(works, device, repeats=4):
        for work in works:
            work()
        calls.append(len(works))
        return [1.0 if i == index else 2.0 for i in range(len(works))]

    monkeypatch.setattr(vpt.attention, "_seconds", seconds)
    return calls


def attend(dtype: torch.dtype) -> list[torch.Tensor]:
    q, k, v = (
        torch.randn(2, 2, 17, 16, generator=torch.Generator().manual_seed(i)).to(dtype) for i in range(3)
    )
    q, k, v = (t.requires_grad_() for t in (q, k, v))
    out = F.scaled_dot_product_attention(q, k, v)
    return [out, *torch.autograd.grad(out.float().square().sum(), (q, k, v))]


def test_the_faster_path_is_taken_and_left_again(monkeypatch):
    calls = faster(monkeypatch, 1)
    with sdpa_kernel(SDPBackend.MATH):
        by_hand = attend(torch.bfloat16)
    default, exact = attend(torch.bfloat16), attend(torch.float32)
    before = torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed()
    with fastest_attention(torch.bfloat16, "cpu", **SHAPE) as path:
        assert path == "math"
        assert not torch.backends.cuda.flash_sdp_enabled()
        chosen = attend(torch.bfloat16)
    assert torch.backends.cuda.flash_sdp_enabled()
    assert torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed() == before
    for ours, hand, usual, full in zip(chosen, by_hand, default, exact, strict=True):
        # within a few roundings of bfloat16 (2^-8) of the largest value; by_hand reduces in float32
        tolerance = 0.03 * full.abs().max().item()
        for other in (hand.float(), usual.float(), full):
            torch.testing.assert_close(ours.float(), other, rtol=0, atol=tolerance)
    attention_path(torch.bfloat16, "cpu", **SHAPE)
    assert calls == [2]  # measured once a shape class


def test_the_default_path_is_bit_equal(monkeypatch):
    faster(monkeypatch, 0)
    with fastest_attention(torch.bfloat16, torch.device("cpu"), **SHAPE) as path:
        assert path == "default"
        chosen = attend(torch.bfloat16)
    assert all(torch.equal(a, b) for a, b in zip(chosen, attend(torch.bfloat16), strict=True))


def test_float32_is_never_measured(monkeypatch):
    calls = faster(monkeypatch, 1)
    with fastest_attention(torch.float32, "cpu", **SHAPE) as path:
        assert path == "default"
    assert calls == []


def test_gradients_and_their_absence_are_measured_apart(monkeypatch):
    calls = faster(monkeypatch, 1)
    attention_path(torch.bfloat16, "cpu", **SHAPE)
    with torch.no_grad():
        attention_path(torch.bfloat16, "cpu", **SHAPE)
    with torch.inference_mode():
        attention_path(torch.bfloat16, "cpu", **SHAPE)
    assert calls == [2, 2]


def test_measuring_moves_no_random_state():
    state = torch.get_rng_state()
    assert attention_path(torch.bfloat16, "cpu", **SHAPE) in ("default", "math")
    assert torch.equal(torch.get_rng_state(), state)


def test_a_processor_without_bfloat16_says_so(monkeypatch):
    monkeypatch.setattr(vpt.attention, "_has_bf16_instructions", lambda: False)
    pays, why = bf16_supported("cpu")
    assert not pays
    assert "no bfloat16 instructions" in why
    assert torch.backends.cpu.get_cpu_capability() in why


@pytest.mark.parametrize(("times", "pays"), [(0.5, False), (2.0, True)])
def test_bfloat16_instructions_must_also_be_fast(monkeypatch, times, pays):
    monkeypatch.setattr(vpt.attention, "_has_bf16_instructions", lambda: True)
    monkeypatch.setattr(vpt.attention, "_seconds", lambda works, device, repeats: [times, 1.0])
    said, why = bf16_supported("cpu")
    assert said is pays
    assert f"{times:.1f}x as fast" in why


def test_bfloat16_is_judged_on_this_processor():
    pays, why = bf16_supported(torch.device("cpu"))
    assert isinstance(pays, bool)
    assert torch.backends.cpu.get_cpu_capability() in why


def towers() -> dict[str, Tower]:
    eva = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 0}
    return {
        "vit": tiny(),
        "vit, layer scale, mean": tiny(init_values=0.5, global_pool="avg", pre_norm=True),
        "vit, attention pool": tiny(global_pool="map", class_token=False),
        "eva": open_timm(Eva(**eva, use_rot_pos_emb=True, global_pool="token")),
    }


@pytest.mark.parametrize("kind", list(towers()))
@pytest.mark.parametrize("live", [True, False])
@torch.no_grad()
def test_a_cast_twin_equals_its_tower_under_autocast(kind, live):
    torch.manual_seed(0)
    tower = towers()[kind]
    for p in tower.model.parameters():
        p.add_(torch.randn_like(p) * 0.1)  # biases that are not zero
    images = torch.randn(2, 3, 32, 32)
    rows = {Site("image", str(i), "prefix"): torch.randn(4, 32) for i in range(tower.depth)}
    twin = cast_frozen(tower)
    with torch.autocast("cpu", torch.bfloat16):
        for given in ({}, rows):
            assert torch.equal(
                encode(twin, images, given, live=live), encode(tower, images, given, live=live)
            )


def test_a_cast_twin_gives_equal_gradients():
    tower, images = tiny(), torch.randn(2, 3, 32, 32)
    table = torch.randn(3, 4, 32, requires_grad=True)
    grads = []
    for t in (tower, cast_frozen(tower)):
        with torch.autocast("cpu", torch.bfloat16):
            rows = {Site("image", str(i), "prefix"): r for i, r in enumerate(table)}
            loss = encode(t, images, rows)[:, :7].float().square().sum()
        grads += torch.autograd.grad(loss, table)
    assert grads[0].abs().max() > 0
    assert torch.equal(*grads)


def test_what_is_cast_and_what_is_not():
    tower = tiny(init_values=0.5)
    before = {k: v.clone() for k, v in tower.model.state_dict().items()}
    twin = cast_frozen(tower)
    low = {k for k, v in twin.model.state_dict().items() if v.dtype == torch.bfloat16}
    want = {"patch_embed.proj", "head"}
    want |= {f"blocks.{i}.{m}" for i in range(3) for m in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")}
    assert low == {f"{m}.{kind}" for m in want for kind in ("weight", "bias")}
    assert all(torch.equal(v, before[k]) for k, v in tower.model.state_dict().items())
    assert not any(p.requires_grad for p in twin.model.parameters())


def test_towers_that_cannot_be_cast_are_refused():
    with pytest.raises(ValueError, match="weights that learn stay in float32"):
        cast_frozen(tiny().learning(lambda name: "bias" in name, "input"))
    with pytest.raises(ValueError, match="pooling"):
        cast_frozen(tiny().pooling("image"))
    with torch.autocast("cpu", torch.bfloat16):
        assert encode(cast_frozen(tiny()).pooling("image"), torch.randn(2, 3, 32, 32)).shape == (2, 32)
