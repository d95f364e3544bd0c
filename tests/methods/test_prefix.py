"""Prefix tuning against attention written out."""

import math

import pytest
import torch
from timm.models.eva import Eva
from torch import Tensor

from vpt.encode import encode
from vpt.methods.prefix import Prefix
from vpt.prompt import Context
from vpt.tower import Tower
from vpt.towers.vit import open_timm, tiny


def by_hand(image: Tower, pictures: Tensor, rows: list[Tensor]) -> Tensor:
    """Class features, with keys and values joined to each block's own by plain matrix products."""
    m = image.model
    x = m._pos_embed(m.patch_embed(pictures))
    for block, pairs in zip(m.blocks, rows, strict=True):
        a = block.attn
        batch, _, width = x.shape
        q, k, v = a.qkv(block.norm1(x)).chunk(3, -1)
        k = torch.cat([k, pairs[:, :width].expand(batch, -1, -1)], 1)
        v = torch.cat([v, pairs[:, width:].expand(batch, -1, -1)], 1)
        out, size = torch.empty_like(q), width // a.num_heads
        for head in range(a.num_heads):
            at = slice(head * size, (head + 1) * size)
            weights = (q[..., at] @ k[..., at].mT / math.sqrt(size)).softmax(-1)
            out[..., at] = weights @ v[..., at]
        x = x + a.proj(out)
        x = x + block.mlp(block.norm2(x))
    return m.norm(x)[:, 0]


@pytest.mark.parametrize("live", [True, False])
def test_pairs_join_every_blocks_keys_and_values(live: bool) -> None:
    torch.manual_seed(0)
    image, pictures = tiny(), torch.randn(3, 3, 32, 32)
    method = Prefix(image, length=4)
    with torch.no_grad():
        method.image_prompt.table.rows.normal_()
    rows = method(Context())
    got = encode(image, pictures, rows, live=live)
    torch.testing.assert_close(got, by_hand(image, pictures, list(rows.values())), rtol=0, atol=5e-6)
    assert (got - encode(image, pictures)).abs().max() > 1e-3


def test_every_pair_learns() -> None:
    image = tiny()
    method = Prefix(image, length=4)
    encode(image, torch.randn(2, 3, 32, 32), method(Context()))[:, 0].sum().backward()
    assert (method.image_prompt.table.rows.grad != 0).float().mean() > 0.99


def test_start_is_xavier_uniform() -> None:
    method = Prefix(tiny(), length=40)
    table = method.image_prompt.table.rows
    like = torch.nn.init.xavier_uniform_(torch.empty(1, 40, 32))
    bound = math.sqrt(6 / (32 * 41))
    assert table.shape == (3, 40, 64)
    assert table.abs().max() <= bound
    assert abs(table.std() / like.std() - 1) < 0.1


def test_blocks_that_cannot_be_opened_are_refused_before_data() -> None:
    odd = tiny(depth=2)
    odd.model.blocks[1].attn.qkv = torch.nn.Sequential(torch.nn.Linear(32, 96))  # as an adapter would
    with pytest.raises(ValueError, match="slot 'prefix'"):
        Prefix(open_timm(odd.model))


def test_rotary_towers_take_pairs() -> None:
    torch.manual_seed(0)
    image = open_timm(
        Eva(
            img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=2, use_rot_pos_emb=True, num_classes=0
        )
    )
    pictures = torch.randn(2, 3, 32, 32)
    method = Prefix(image, length=2)
    dead = {site: rows.clone() for site, rows in method(Context()).items()}
    for rows in dead.values():
        rows.data[:, :32], rows.data[:, 32:] = (
            0,
            0,
        )  # a key of zeros draws attention, a value of zeros adds none
    assert (encode(image, pictures, dead) - encode(image, pictures)).abs().max() > 1e-5
