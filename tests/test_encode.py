"""The one loop against loops by hand over timm's own modules: prompts, liveness, caches, gradients."""

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from vpt.encode import advance, encode, encode_grid, first, tap, write
from vpt.prompt import Context, Prompt, Site
from vpt.tower import Stream, Tower
from vpt.towers.vit import open_timm, tiny

SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2, "num_classes": 5}
KINDS: dict[str, Callable[[], nn.Module]] = {
    "class": lambda: VisionTransformer(**SMALL, init_values=0.5),
    "registers": lambda: VisionTransformer(
        **SMALL, reg_tokens=3, no_embed_class=True, pre_norm=True, qk_norm=True
    ),
    "average": lambda: VisionTransformer(**SMALL, global_pool="avg", class_token=False, qkv_bias=False),
    "map": lambda: VisionTransformer(**SMALL, global_pool="map", class_token=False),
    "eva02": lambda: Eva(
        **SMALL, use_rot_pos_emb=True, swiglu_mlp=True, scale_mlp=True, scale_attn_inner=True, qkv_fused=False
    ),
    "dinov3": lambda: Eva(
        **SMALL,
        use_rot_pos_emb=True,
        use_abs_pos_emb=False,
        rope_type="dinov3",
        rope_rotate_half=True,
        num_reg_tokens=2,
        global_pool="token",
        init_values=0.7,
    ),
    "mixed": lambda: Eva(
        **SMALL, use_rot_pos_emb=True, rope_type="mixed", attn_type="rope", global_pool="token"
    ),
}


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest, shaken: Callable) -> Tower:
    return open_timm(shaken(KINDS[request.param]()))


def prefix(layer: int | str) -> Site:
    return Site("image", str(layer), "prefix")


def deep(
    layers: tuple[int, ...], n: int = 4, batch: tuple[int, ...] = (), slot: str = "prefix"
) -> dict[Site, Tensor]:
    """Learned rows at these layers, as large as what they stand beside."""
    return {Site("image", str(i), slot): torch.randn(*batch, n, 32, requires_grad=True) for i in layers}


def by_hand(tower: Tower, x: Tensor, rows: dict[Site, Tensor]) -> Tensor:
    """VPT as its authors write it: cut the sequence, put the rows in, run the whole block, take them out.

    A suffix stands behind the prefix here: attention sees a set. Rotary blocks are told that their prefix has
    grown, the way that changes a (copied) model.
    """
    m = copy.deepcopy(tower.model)
    own, n, end = m.num_prefix_tokens, 0, 0
    x, rope = m._pos_embed(m.patch_embed(x)) if isinstance(m, Eva) else (m._pos_embed(m.patch_embed(x)), None)
    x = m.norm_pre(x)
    for i, block in enumerate(m.blocks):
        if (r := rows.get(prefix(i))) is not None:
            x, n = torch.cat([x[:, :own], r.expand(len(x), -1, -1), x[:, own + n :]], 1), len(r)
        if (r := rows.get(Site("image", str(i), "suffix"))) is not None:
            at = own + n
            x, end = torch.cat([x[:, :at], r.expand(len(x), -1, -1), x[:, at + end :]], 1), len(r)
        if rope is None:
            x = block(x)
        else:
            block.attn.num_prefix_tokens = own + n + end
            x = block(x, rope=rope[i] if m.rope_mixed else rope)
    x = m.norm(x)
    return m.forward_head(torch.cat([x[:, :own], x[:, own + n + end :]], 1), pre_logits=True)


def gradients(out: Tensor, rows: dict[Site, Tensor]) -> Tensor:
    weight = torch.randn(
        out.shape, generator=torch.Generator().manual_seed(3)
    )  # a plain sum is nearly constant
    return torch.cat([g.flatten() for g in torch.autograd.grad((out * weight).sum(), list(rows.values()))])


@pytest.mark.parametrize("layers", [(0,), (0, 1, 2), (1, 2), (0, 1), (2,), (0, 2)], ids=str)
def test_rows_behind_the_prefix_equal_the_loop_by_hand(
    kind: Tower, images: Tensor, layers: tuple[int, ...]
) -> None:
    rows = deep(layers)
    want = by_hand(kind, images, rows)
    plain, live = (encode(kind, images, rows, live=on) for on in (False, True))
    assert torch.equal(plain, want)
    assert torch.allclose(live, want, atol=2e-5)
    wanted = gradients(want, rows)
    assert torch.allclose(gradients(plain, rows), wanted, atol=1e-6)
    assert (gradients(live, rows) - wanted).norm() < 2e-5 * wanted.norm()
    assert (want - encode(kind, images)).abs().max() > 1e-2  # the rows do something


def test_a_suffix_stands_at_the_end_of_the_sequence(kind: Tower, images: Tensor) -> None:
    rows = deep((1,), slot="suffix")
    found = tap(kind, images, rows, at=[1])["1"].x
    assert torch.equal(found[:, -4:], rows[Site("image", "1", "suffix")].expand(3, -1, -1))
    assert torch.equal(found[:, :-4], advance(kind, images, {}, 1).x)
    for layers in ((0,), (0, 1, 2), (1,)):
        rows = deep(layers, slot="suffix")
        for live in (False, True):
            assert torch.allclose(
                encode(kind, images, rows, live=live), by_hand(kind, images, rows), atol=2e-5
            )


def test_two_slots_live_side_by_side(kind: Tower, images: Tensor) -> None:
    for rows in (deep((0, 1, 2)) | deep((1,), 2, slot="suffix"), deep((1,)) | deep((0, 1), 2, slot="suffix")):
        for live in (False, True):
            assert torch.allclose(
                encode(kind, images, rows, live=live), by_hand(kind, images, rows), atol=2e-5
            )


@pytest.mark.parametrize("live", [False, True])
def test_each_sample_gets_its_own_rows(kind: Tower, images: Tensor, live: bool) -> None:
    shared = deep((0, 1, 2))
    repeated = {k: r.expand(3, -1, -1) for k, r in shared.items()}
    out = encode(kind, images, shared, live=live)
    assert torch.allclose(encode(kind, images, repeated, live=live), out, atol=1e-6)
    own = deep((0, 1, 2), batch=(3,))
    out = encode(kind, images, own, live=live)
    for i in range(3):
        alone = by_hand(kind, images[i : i + 1], {k: r[i] for k, r in own.items()})
        assert torch.allclose(out[i : i + 1], alone, atol=2e-5)


@pytest.mark.parametrize("layers", [(2,), (1, 2), (1,)], ids=str)
def test_training_can_start_from_the_stored_static_part(
    kind: Tower, images: Tensor, layers: tuple[int, ...]
) -> None:
    rows = deep(layers)
    start = first(kind, rows)
    assert start == str(layers[0])
    stored = advance(kind, images, {}, start)
    assert (stored.stage, stored.x.requires_grad, stored.grown) == (start, False, frozenset())
    for live in (False, True):
        assert torch.equal(encode(kind, stored, rows, live=live), encode(kind, images, rows, live=live))
    some = stored.samples(lambda t: t[[2, 0]])
    assert torch.allclose(encode(kind, some, rows), encode(kind, images[[2, 0]], rows), atol=1e-5)


def test_a_stream_above_the_first_rows_is_refused(tower: Tower, images: Tensor) -> None:
    stored = advance(tower, images, {}, 2)
    with pytest.raises(
        ValueError, match=r"stopped at stage 2, above the first rows \(stage 1\)\. Make the cache"
    ):
        encode(tower, stored, deep((1, 2)))
    with pytest.raises(ValueError, match="at stage 2 already, above 1"):
        advance(tower, stored, {}, 1)


def test_below_the_first_site_nothing_is_recorded_and_the_network_never_learns(
    tower: Tower, images: Tensor
) -> None:
    rows = deep((2,))
    assert advance(tower, images, rows, 1).x.grad_fn is None
    stopped = advance(tower, images, rows, 2)
    assert stopped.x.grad_fn is not None
    assert stopped.written == {prefix(2)}
    out = encode(tower, images, rows)
    out[:, 0].sum().backward()
    assert all(r.grad.abs().sum() > 0 for r in rows.values())
    assert all(p.grad is None and not p.requires_grad for p in tower.model.parameters())
    assert encode(tower, images).grad_fn is None
    with torch.no_grad():
        assert encode(tower, images, rows).grad_fn is None


def test_a_stream_that_carries_gradients_keeps_them(tower: Tower, images: Tensor) -> None:
    rows = deep((0,))
    stopped = advance(tower, images, rows, 1, live=False)
    out = encode(tower, stopped)  # the rows are in the stream: they need not be given again
    assert torch.allclose(out, encode(tower, images, rows), atol=2e-6)
    assert torch.allclose(gradients(out, rows), gradients(by_hand(tower, images, rows), rows), atol=1e-5)
    assert torch.allclose(encode(tower, stopped, rows), out)  # and are not written twice if they are
    pixels = images.clone().requires_grad_()
    assert torch.autograd.grad(encode(tower, pixels)[:, 0].sum(), pixels)[0].abs().sum() > 0


def attention_with(tower: Tower, x: Tensor, kv: dict[int, Tensor]) -> Tensor:
    """timm's ViT with given keys and values, its softmax written out."""
    m = tower.model
    x = m.norm_pre(m._pos_embed(m.patch_embed(x)))
    for i, b in enumerate(m.blocks):
        q, k, v = (t.unflatten(-1, (2, 16)).transpose(1, 2) for t in b.attn.qkv(b.norm1(x)).chunk(3, -1))
        if i in kv:
            more_k, more_v = (
                t.unflatten(-1, (2, 16)).transpose(-2, -3).expand(len(x), -1, -1, -1)
                for t in kv[i].chunk(2, -1)
            )
            k, v = torch.cat([k, more_k], 2), torch.cat([v, more_v], 2)
        a = torch.softmax(q @ k.mT / 4, -1) @ v
        x = x + b.ls1(b.attn.proj(a.transpose(1, 2).flatten(2)))
        x = x + b.ls2(b.mlp(b.norm2(x)))
    return m.norm(x)[:, 0]


@pytest.mark.parametrize("batch", [(), (3,)], ids=["shared", "own"])
def test_a_kv_slot_adds_keys_and_values_of_its_own(
    tower: Tower, images: Tensor, batch: tuple[int, ...]
) -> None:
    kv = {i: torch.randn(*batch, 5, 64, requires_grad=True) for i in (0, 2)}
    rows = {Site("image", str(i), "kv"): t for i, t in kv.items()}
    want = attention_with(tower, images, kv)
    wanted = gradients(want, rows)
    for live in (False, True):
        out = encode(tower, images, rows, live=live)
        assert torch.allclose(out, want, atol=5e-6)
        assert torch.allclose(gradients(out, rows), wanted, atol=1e-5)
    both = rows | deep((0, 1, 2))
    assert torch.allclose(encode(tower, images, both), encode(tower, images, both, live=False), atol=5e-6)


def test_kv_rows_that_are_projected_rows_equal_a_prefix_that_is_only_seen(
    kind: Tower, images: Tensor
) -> None:
    """Prefix tuning and a deep prompt meet: the projections of deep rows, given as keys and values."""
    rows, given = deep((0, 1, 2)), {}
    for i, block in enumerate(kind.model.blocks):
        a, h = block.attn, block.norm1(rows[prefix(i)])
        if a.qkv is None:
            k, v = a.k_proj(h), a.v_proj(h)
        else:
            bias = a.qkv.bias
            if getattr(a, "q_bias", None) is not None:
                bias = torch.cat([a.q_bias, a.k_bias, a.v_bias])
            _, k, v = F.linear(h, a.qkv.weight, bias).chunk(3, -1)
        k = a.k_norm(k.unflatten(-1, (2, 16))).flatten(-2)
        given[Site("image", str(i), "kv")] = torch.cat([k, v], -1)
    assert torch.allclose(encode(kind, images, given), encode(kind, images, rows, live=False), atol=2e-5)


@pytest.mark.parametrize("slot", ["border", "corner"])
def test_pixel_rows_are_added_to_their_pixels_and_learn(tower: Tower, images: Tensor, slot: str) -> None:
    mask = torch.zeros(32, 32, dtype=torch.bool)
    mask[:4] = mask[-4:] = mask[:, :4] = mask[:, -4:] = slot == "border"
    mask[:8, :8] |= slot == "corner"
    site, n = Site("image", "input", slot), int(mask.sum())
    for batch in ((), (3,)):
        rows = {site: torch.randn(*batch, n, 3, requires_grad=True)}
        frame = torch.zeros(*batch, 3, 32, 32).masked_scatter(mask.expand(*batch, 3, 32, 32), rows[site].mT)
        out, want = encode(tower, images, rows), encode(tower, images + frame, {})
        assert torch.allclose(out, want, atol=1e-5)
        wanted = torch.autograd.grad(encode(tower, images + frame, {})[:, 0].sum(), rows[site])[0]
        assert torch.allclose(torch.autograd.grad(out[:, 0].sum(), rows[site])[0], wanted, atol=1e-5)


def test_a_patch_anywhere_moves_from_step_to_step(tower: Tower, images: Tensor) -> None:
    site = Site("image", "input", "anywhere")
    seen = set()
    for _ in range(6):
        added = write(tower, Stream(images), site, torch.ones(9, 3)).x - images
        assert torch.allclose(added.sum((2, 3)), torch.full((3, 3), 9.0), atol=1e-4)
        seen.add(tuple(added[0, 0].nonzero()[0].tolist()))
    assert len(seen) > 1


def test_several_stages_of_one_pass_can_be_tapped(kind: Tower, images: Tensor) -> None:
    rows = deep((0, 1, 2))
    found = tap(kind, images, rows, at=["pooled", 2, "3", 2])
    assert found.keys() == {"2", "3", "pooled"}
    assert torch.equal(found["pooled"].x, by_hand(kind, images, rows))
    own = kind.prefix
    assert torch.equal(
        found["2"].x[:, own : own + 4], rows[prefix(2)].expand(3, -1, -1)
    )  # its rows are written
    assert found["3"].x.shape[1] == found["2"].x.shape[1] == 4 + found["3"].own().shape[1]
    assert torch.equal(encode(kind, found["2"], rows, live=False), found["pooled"].x)


def test_a_grid_is_every_set_of_rows_with_every_picture(kind: Tower, images: Tensor) -> None:
    rows = deep((0, 2), batch=(2,)) | deep((1,))
    grid = encode_grid(kind, Stream(images), rows)
    assert grid.shape[:2] == (2, 3)
    for k in range(2):
        one = {site: r[k] if r.ndim == 3 else r for site, r in rows.items()}
        assert torch.allclose(grid[k], encode(kind, images, one), atol=1e-5)
    alone = deep((0,))
    assert torch.allclose(encode_grid(kind, Stream(images), alone)[0], encode(kind, images, alone), atol=1e-5)


def test_rows_after_the_blocks_keep_their_place(tower: Tower, images: Tensor) -> None:
    pooled, early, late = tower.pooling("prompt"), deep((0, 1, 2)), torch.randn(4, 32)
    for stage in ("3", "normed"):
        rows = early | {prefix(stage): late}
        want = late if stage == "normed" else tower.model.norm(late)
        for live in (False, True):
            assert torch.allclose(
                encode(pooled, images, rows, live=live), want.mean(0).expand(3, -1), atol=1e-6
            )
            assert torch.allclose(
                encode(tower, images, rows, live=live), encode(tower, images, early), atol=5e-6
            )


def test_dropout_on_a_deep_slot_reaches_the_features_sample_by_sample(tower: Tower, images: Tensor) -> None:
    prompt = Prompt("image", "prefix", (0, 1), 6, 32, dropout=0.5, init=nn.init.normal_).train()
    rows = prompt(Context(batch=3))  # the rows of layer 1 flow on through layer 2
    assert all(r.shape == (3, 6, 32) for r in rows.values())
    want = torch.cat(
        [by_hand(tower, images[i : i + 1], {k: r[i] for k, r in rows.items()}) for i in range(3)]
    )
    for live in (False, True):
        assert torch.allclose(encode(tower, images, rows, live=live), want, atol=5e-6)


@pytest.mark.parametrize("live", [False, True])
@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({prefix(0): (4, 32), prefix(1): (5, 32)}, r"5 rows for image/1/prefix, and 4 for the same slot"),
        ({prefix(0): (2, 4, 32)}, "for 2 samples, the batch has 3"),
        ({prefix(0): (32,)}, r"are \(32,\), wanted \[n, width\]"),
        ({prefix(1): (4, 16)}, "are 16 wide, the sequence is 32 wide"),
        ({Site("image", "1", "<ctx>"): (4, 32)}, "no slot '<ctx>', only none. Give its positions"),
        ({Site("image", "embedded", "prefix"): (4, 32)}, "no slot can be opened at image/embedded"),
        ({Site("image", "input", "border"): (112, 4)}, "are 4 wide, the input is"),
        ({Site("image", "9", "prefix"): (4, 32)}, "no stage '9'"),
    ],
    ids=str,
)
def test_rows_that_fit_nowhere_are_refused(
    tower: Tower, images: Tensor, rows: dict[Site, tuple[int, ...]], message: str, live: bool
) -> None:
    with pytest.raises(ValueError, match=message):
        encode(tower, images, {k: torch.zeros(shape) for k, shape in rows.items()}, live=live)


def test_a_slot_that_is_open_keeps_its_length(tower: Tower, images: Tensor) -> None:
    stopped = advance(tower, images, deep((0,)), 1)
    with pytest.raises(ValueError, match="5 rows for image/1/prefix, and 4 for the same slot"):
        encode(tower, stopped, deep((1,), 5))
    with pytest.raises(ValueError, match="slot has 4 places"):
        write(tower, stopped, prefix(1), torch.zeros(5, 32))


def test_a_key_mask_hides_what_it_covers_live_or_plain(tower: Tower, images: Tensor) -> None:
    s = advance(tower, images, {}, 0)
    hidden = torch.zeros(3, 1, 1, s.x.shape[1])
    hidden[..., -3:] = -torch.inf
    masked = Stream(s.x, "0", mask=hidden.expand(-1, -1, s.x.shape[1], -1).contiguous())
    alone = Stream(s.x[:, :-3], "0")
    for rows in ({}, deep((0, 1, 2))):
        want = encode(tower, alone, rows, live=False)
        for live in (False, True):
            assert torch.allclose(encode(tower, masked, rows, live=live), want, atol=5e-6)
    with pytest.raises(ValueError, match="keys and values cannot join image/0"):
        encode(tower, masked, {Site("image", "0", "kv"): torch.zeros(2, 64)})


def test_rows_of_other_towers_pass_by(tower: Tower, images: Tensor) -> None:
    rows = {Site("text", "99", "<ctx>"): torch.zeros(2, 7)}
    assert torch.equal(encode(tower, images, rows), encode(tower, images))
    assert first(tower, rows) == "pooled"


def test_a_tower_in_half_precision_takes_float32_rows(images: Tensor) -> None:
    half = tiny()
    half.model.bfloat16()
    rows = deep((0, 1, 2))
    outs = [encode(half, images.bfloat16(), rows, live=live) for live in (False, True)]
    assert outs[0].dtype == outs[1].dtype == torch.bfloat16
    assert torch.allclose(outs[0].float(), outs[1].float(), atol=0.05)


def test_what_nobody_reads_is_not_computed(images: Tensor) -> None:
    tower, seen = tiny(), []
    for block in tower.model.blocks:
        block.mlp.register_forward_hook(lambda module, given, out: seen.append(given[0].shape[1]))
    rows = deep((0, 1, 2))
    for live, lengths in ((False, [21, 21, 21]), (True, [17, 17, 1])):
        seen.clear()
        encode(tower, images, rows, live=live)
        assert seen == lengths  # 16 patches, the class token, 4 rows
    seen.clear()
    encode(tower, images, deep((0,)))
    assert seen == [21, 21, 1]  # shallow rows flow on: only the end can be spared
    seen.clear()
    encode(tower.pooling("prompt"), images, rows)
    assert seen == [17, 17, 21]  # rows that are read live to the end
