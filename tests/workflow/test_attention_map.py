"""Attention maps against the arithmetic written out, and against what the block itself gives back."""

import pytest
import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from vpt.encode import advance
from vpt.prompt import Site
from vpt.tower import Tower
from vpt.towers.vit import open_timm, tiny
from vpt.workflow.attention_map import attention, upsample


def rows_of(tower: Tower, n: int = 3) -> dict[Site, Tensor]:
    generator = torch.Generator().manual_seed(3)
    sites = [Site("image", str(i), "prefix") for i in range(tower.depth)]
    return {site: torch.randn(n, tower.width, generator=generator) for site in sites}


def by_hand(block: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Weights [batch, heads, length, length] and the attention's output, token by token."""
    a = block.attn
    b, n, width = x.shape
    h, d = a.num_heads, width // a.num_heads
    q, k, v = (part.reshape(b, n, h, d) for part in a.qkv(block.norm1(x)).split(width, -1))
    weights = torch.empty(b, h, n, n)
    for head in range(h):
        for i in range(n):
            scores = torch.stack([(q[:, i, head] * k[:, j, head]).sum(-1) for j in range(n)], -1) / d**0.5
            weights[:, head, i] = scores.exp() / scores.exp().sum(-1, keepdim=True)
    out = torch.einsum("bhij,bjhd->bihd", weights, v).reshape(b, n, width)
    return weights, a.proj(out)


@pytest.mark.parametrize("stage", ["0", "2"])
def test_weights_are_those_of_the_block(tower: Tower, images: Tensor, stage: str) -> None:
    rows = rows_of(tower)
    found = attention(tower, images, rows, stage)
    s = advance(tower, images, rows, stage, live=False)
    block = tower.model.blocks[int(stage)]
    weights, attended = by_hand(block, s.x)
    torch.testing.assert_close(found.weights, weights, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(attended, block.attn(block.norm1(s.x)), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found.weights.sum(-1), torch.ones(3, 2, 20))
    assert found.rows.tolist() == [1, 2, 3]
    assert found.patches.tolist() == list(range(4, 20))
    assert found.grid == (4, 4)


def test_maps_are_parts_of_the_weights(tower: Tower, images: Tensor) -> None:
    found = attention(tower, images, rows_of(tower), 1)
    w = found.weights.mean(1)
    for i in range(3):
        torch.testing.assert_close(found.of_class()[i].flatten(), w[i, 0, 4:])
        torch.testing.assert_close(found.of_rows()[i].flatten(), w[i, 1:4, 4:].mean(0))
        torch.testing.assert_close(found.readers()[i].flatten(), w[i, 4:, 1:4].sum(-1))
        torch.testing.assert_close(found.to_rows()[i], w[i, 0, 1:4].sum())
    whole = w[:, 0, 0] + found.to_rows() + found.of_class().sum((1, 2))
    torch.testing.assert_close(whole, torch.ones(3))


def test_without_rows_the_class_token_reads_itself_and_the_patches(tower: Tower, images: Tensor) -> None:
    found = attention(tower, images, {}, 0)
    assert len(found.rows) == 0
    assert found.to_rows().tolist() == [0, 0, 0]
    assert not found.of_rows().any()
    torch.testing.assert_close(
        found.of_class().sum((1, 2)) + found.weights[:, :, 0, 0].mean(1), torch.ones(3)
    )


def test_shallow_rows_travel(tower: Tower, images: Tensor) -> None:
    rows = {Site("image", "0", "prefix"): torch.randn(2, tower.width)}
    found = attention(tower, images, rows, 2)
    x = advance(tower, images, rows, 2, live=False).x
    torch.testing.assert_close(found.weights, by_hand(tower.model.blocks[2], x)[0], atol=1e-5, rtol=1e-4)


def test_rotary_blocks_attend_by_these_weights() -> None:
    m = timm.create_model("eva02_tiny_patch14_224", img_size=28, depth=2)
    tower, x = open_timm(m), torch.randn(2, 3, 28, 28)
    rows = rows_of(tower)
    s = advance(tower, x, rows, 1, live=False)
    a, h = m.blocks[1].attn, m.blocks[1].norm1(s.x)
    values = a.v_proj(h) if a.qkv is None else a.qkv(h).chunk(3, -1)[2]
    mixed = attention(tower, x, rows, 1).weights @ values.unflatten(-1, (a.num_heads, -1)).transpose(1, 2)
    out = a.proj(a.norm(mixed.transpose(1, 2).flatten(2)))
    torch.testing.assert_close(out, a(h, rope=s.extra["rope"]), atol=1e-5, rtol=1e-4)


def test_what_cannot_be_drawn_is_refused(images: Tensor) -> None:
    tower = tiny()
    with pytest.raises(ValueError, match=r"placed is no attention block.*here: 0, 1, 2"):
        attention(tower, images, {}, "placed")
    with pytest.raises(ValueError, match=r"pooled is no attention block"):
        attention(tower, images, {}, "pooled")
    with pytest.raises(ValueError, match="slot 'kv'"):
        attention(tower, images, {Site("image", "0", "kv"): torch.zeros(2, 64)}, 0)
    with pytest.raises(ValueError, match="closed tower"):
        attention(open_timm(timm.create_model("resnet10t")), images, {}, "0")


def test_a_grid_that_is_no_square(images: Tensor) -> None:
    m = VisionTransformer(img_size=(32, 16), patch_size=8, embed_dim=32, depth=1, num_heads=2)
    found = attention(open_timm(m), images[..., :16], {}, 0)
    assert found.grid == (4, 2)
    assert found.of_class().shape == (3, 4, 2)


def test_maps_are_stretched_to_their_own_range() -> None:
    maps = torch.tensor([[[0.1, 0.2], [0.3, 0.4]], [[5.0, 5.0], [5.0, 5.0]]])
    large = upsample(maps, (8, 12))
    assert large.shape == (2, 8, 12)
    assert large[0].min() == 0
    assert large[0].max() == 1
    assert large[0, 0, 0] < large[0, 0, -1] < large[0, -1, -1]
    assert not large[1].any()
