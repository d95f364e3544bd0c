"""Starts from data against scikit-learn, and VIPAMIN written out head by head."""

from collections.abc import Iterator

import numpy as np
import pytest
import timm
import torch
from sklearn.cluster import MiniBatchKMeans
from threadpoolctl import threadpool_limits
from timm.models.eva import Eva
from torch import Tensor

from vpt.methods.vpt import VPT
from vpt.prompt import Context, Prompt
from vpt.start import rows_from_data
from vpt.tower import Tower
from vpt.towers.vit import open_timm, tiny

PICTURES = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.fixture(autouse=True)
def calm() -> Iterator[None]:
    torch.manual_seed(0)
    with threadpool_limits(1):
        yield


def block_inputs(image: Tower, pictures: Tensor, rows: list[Tensor] | None = None) -> list[Tensor]:
    """What each block reads, by timm's own modules; with rows, replaced before every block."""
    m, found = image.model, []
    x = m._pos_embed(m.patch_embed(pictures))
    for i, block in enumerate(m.blocks):
        if rows is not None:
            behind = x[:, 1:] if i == 0 else x[:, 1 + len(rows[i]) :]
            x = torch.cat([x[:, :1], rows[i].expand(len(x), -1, -1), behind], 1)
        found.append(x)
        x = block(x)
    return found


@torch.no_grad()
def test_kmeans_finds_the_centres_of_each_layers_patches() -> None:
    image = tiny()
    prompt = Prompt("image", "prefix", [0, 2], 4, 32)
    got = rows_from_data(image, prompt, PICTURES, "kmeans")
    assert got.shape == (2, 4, 32)
    inputs = block_inputs(image, PICTURES)
    for rows, tokens in zip(got, (inputs[0], inputs[2]), strict=True):
        patches = tokens[:, 1:].reshape(-1, 32).numpy()
        wanted = MiniBatchKMeans(4, random_state=0, n_init=1, batch_size=4096).fit(patches)
        np.testing.assert_allclose(rows.numpy(), wanted.cluster_centers_, atol=1e-4)
    assert torch.equal(got, rows_from_data(image, prompt, PICTURES, "kmeans"))  # the seed is fixed


def test_more_rows_than_tokens_are_refused() -> None:
    prompt = Prompt("image", "prefix", [0], 17, 32)
    with pytest.raises(ValueError, match="17 rows cannot start from 16 patch tokens"):
        rows_from_data(tiny(), prompt, PICTURES[:1], "kmeans")


def parts(image: Tower, layer: int, x: Tensor) -> list[Tensor]:
    """Queries, keys, values of one block by slicing its weight; each [heads, batch, length, channels]."""
    block = image.model.blocks[layer]
    h, width, heads = block.norm1(x), x.shape[-1], block.attn.num_heads
    made = []
    for i in range(3):
        part = slice(i * width, (i + 1) * width)
        y = h @ block.attn.qkv.weight[part].mT + block.attn.qkv.bias[part]
        made.append(torch.stack(y.split(width // heads, -1)))
    return made


@torch.no_grad()
@pytest.mark.parametrize("size", [32, 24])
def test_vipamin_is_the_papers_recipe(size: int) -> None:
    """At 24 pixels 10 tokens leave directions open; at 32 and 16 channels they do not, and only the match is
    left."""
    image = tiny(img_size=size, **({"embed_dim": 16} if size == 32 else {}))
    for block in image.model.blocks:
        torch.nn.init.normal_(block.attn.qkv.weight, std=0.3)
        torch.nn.init.normal_(block.attn.qkv.bias)
    pictures = PICTURES[..., :size, :size]
    method = VPT(image, length=3)
    start = list(method(Context()).values())
    got = rows_from_data(image, method.image_prompt, pictures, "vipamin")
    prompted, plain = block_inputs(image, pictures, start), block_inputs(image, pictures)
    for layer in range(3):
        keys = parts(image, layer, prompted[layer])[1].mean((0, 1))
        tokens = prompted[layer].mean(0)
        matched = []
        for row in range(3):
            cosines = torch.cosine_similarity(keys[1 + row], keys[4:], dim=-1)
            matched.append(tokens[4:][cosines.argsort(descending=True)[:8]].mean(0))
        wanted = torch.stack(matched)
        q, k, v = parts(image, layer, plain[layer])
        heads = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1) @ v
        reached = torch.cat(list(heads), -1).mean(0)
        if len(reached) < reached.shape[1]:
            projection = torch.eye(reached.shape[1]) - torch.linalg.pinv(reached) @ reached
            attention = image.model.blocks[layer].attn
            weight, bias = attention.qkv.weight[-image.width :], attention.qkv.bias[-image.width :]
            values = start[layer] @ weight.mT + bias
            new = torch.linalg.solve(weight, (values @ projection - bias).mT).mT
            wanted = (wanted + new) / 2
        torch.testing.assert_close(got[layer], wanted, rtol=1e-3, atol=1e-3)


def test_rows_start_at_the_same_place_whatever_the_mode() -> None:
    method = VPT(tiny(), length=3, dropout=0.5)
    training = rows_from_data(tiny(), method.train().image_prompt, PICTURES, "kmeans").shape
    assert training == (3, 3, 32)
    image = tiny()
    one = rows_from_data(image, method.train().image_prompt, PICTURES, "vipamin")
    two = rows_from_data(image, method.eval().image_prompt, PICTURES, "vipamin")
    assert torch.equal(one, two)
    assert not one.requires_grad


def test_vipamin_refuses_rotary_blocks_by_name() -> None:
    image = open_timm(Eva(img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=2, num_classes=0))
    with pytest.raises(ValueError, match=r"image/0.*Eva.*Use init='kmeans'"):
        rows_from_data(image, Prompt("image", "prefix", [0], 2, 32), PICTURES, "vipamin")
    assert rows_from_data(image, Prompt("image", "prefix", [1], 2, 32), PICTURES, "kmeans").shape == (
        1,
        2,
        32,
    )


def test_registers_are_no_patches() -> None:
    image = open_timm(
        timm.models.VisionTransformer(
            img_size=32, patch_size=8, embed_dim=32, depth=1, num_heads=2, num_classes=0, reg_tokens=3
        )
    )
    torch.nn.init.constant_(image.model.reg_token, 1e3)  # would pull a centre to themselves
    got = rows_from_data(image, Prompt("image", "prefix", [0], 2, 32), PICTURES, "kmeans")
    assert got.abs().max() < 100
