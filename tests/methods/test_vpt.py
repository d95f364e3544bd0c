"""VPT against the loop that anyone would write over timm's own modules."""

import math

import pytest
import torch
from torch import Tensor

from vpt.encode import encode, tap
from vpt.methods.vpt import VPT
from vpt.prompt import Context, LowRank, Shared
from vpt.tower import Tower
from vpt.towers.vit import open_timm, tiny


@pytest.fixture
def image() -> Tower:
    torch.manual_seed(0)
    return tiny()


@pytest.fixture
def pictures() -> Tensor:
    return torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def by_hand(image: Tower, pictures: Tensor, rows: dict[int, Tensor]) -> Tensor:
    """All tokens after the norm; rows stand behind the class token and give way to the next block's."""
    m, there = image.model, 0
    x = m.norm_pre(m._pos_embed(m.patch_embed(pictures)))
    for i, block in enumerate(m.blocks):
        if i in rows:
            new = rows[i].expand(len(x), -1, -1)
            x = torch.cat([x[:, :1], new, x[:, 1 + there :]], 1)
            there = new.shape[1]
        x = block(x)
    return m.norm(x)


@pytest.mark.parametrize("layers", ["first", "all", "last-third", "1..2", "0,2"])
@pytest.mark.parametrize("live", [True, False])
def test_rows_enter_as_in_a_loop_by_hand(image: Tower, pictures: Tensor, layers: str, live: bool) -> None:
    method = VPT(image, length=5, layers=layers, init="normal")
    rows = method(Context(len(pictures)))
    tokens = by_hand(image, pictures, {int(site.stage): r for site, r in rows.items()})
    torch.testing.assert_close(encode(image, pictures, rows, live=live), tokens[:, 0], rtol=0, atol=2e-6)
    stream = tap(image, pictures, rows, at=["normed"])["normed"]
    torch.testing.assert_close(stream.x, tokens, rtol=0, atol=2e-6)


def test_gradients_are_those_of_the_loop_by_hand(image: Tower, pictures: Tensor) -> None:
    method = VPT(image, length=3, project=8)
    wanted = torch.autograd.grad(
        by_hand(image, pictures, {int(s.stage): r for s, r in method(Context()).items()})[:, 0]
        .square()
        .sum(),
        list(method.parameters()),
    )
    encode(image, pictures, method(Context())).square().sum().backward()
    for parameter, gradient in zip(method.parameters(), wanted, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-5)
    assert all(p.grad is None for p in image.model.parameters())


def test_start_is_the_published_one(image: Tower) -> None:
    for project, inner in ((None, 32), (6, 6)):
        bound = math.sqrt(6 / (3 * 8 * 8 + inner))
        table = VPT(image, length=200, project=project).image_prompt.table.rows
        assert table.shape == (3, 200, inner)
        assert table.abs().max() <= bound
        assert table.abs().max() > 0.99 * bound
        assert abs(table.std() - bound / math.sqrt(3)) < 0.02 * bound


def test_dropout_is_drawn_for_each_sample_and_off_in_eval(image: Tower) -> None:
    method = VPT(image, length=50, dropout=0.5)
    rows = method.train()(Context(4))
    first = next(iter(rows.values()))
    assert first.shape == (4, 50, 32)
    assert not torch.equal(first[0] == 0, first[1] == 0)
    assert abs((first == 0).float().mean() - 0.5) < 0.05
    assert next(iter(method.eval()(Context(4)).values())).shape == (50, 32)


def test_shared_and_low_rank_tables(image: Tower) -> None:
    shared = VPT(image, length=4, shared=True)
    assert isinstance(shared.image_prompt.table, Shared)
    a, b, c = shared(Context()).values()
    assert torch.equal(a, b)
    assert torch.equal(b, c)
    thin = VPT(image, length=4, rank=2)
    assert isinstance(thin.image_prompt.table, LowRank)
    assert all(torch.linalg.matrix_rank(rows) == 2 for rows in thin(Context()).values())
    with pytest.raises(ValueError, match="shared or rank, not both"):
        VPT(image, shared=True, rank=2)


@pytest.mark.parametrize("pool", ["image", "prompt", "global"])
def test_pooling_variants(image: Tower, pictures: Tensor, pool: str) -> None:
    method = VPT(image, length=5, pool=pool)
    rows = method(Context())
    tokens = by_hand(image, pictures, {int(s.stage): r for s, r in rows.items()})
    part = {"image": tokens[:, 6:], "prompt": tokens[:, 1:6], "global": tokens[:, 1:]}[pool]
    for live in (True, False):
        got = encode(image.pooling(method.pool), pictures, rows, live=live)
        torch.testing.assert_close(got, part.mean(1), rtol=0, atol=2e-6)


@pytest.mark.parametrize("init", ["kmeans", "vipamin"])
def test_starts_from_data_fill_the_table(image: Tower, pictures: Tensor, init: str) -> None:
    method = VPT(image, length=3, init=init)
    before = method.image_prompt.table.rows.clone()
    method.start(image, lambda: [{"image": pictures, "label": torch.zeros(4)}], torch.nn.Linear(1, 1))
    assert not torch.equal(method.image_prompt.table.rows, before)
    with pytest.raises(ValueError, match="cannot start project=8"):
        VPT(image, project=8, init=init)


@pytest.mark.parametrize("layers", ["0..3", "2..1", "4", "some", "", "-1"])
def test_layers_that_are_not_there_are_refused(image: Tower, layers: str) -> None:
    with pytest.raises(ValueError, match=r"3 deep.*0\.\.2"):
        VPT(image, layers=layers)


def test_a_closed_tower_is_refused_with_the_reason() -> None:
    timm = pytest.importorskip("timm")
    with pytest.raises(ValueError, match="closed tower"):
        VPT(open_timm(timm.create_model("test_resnet", pretrained=False)))
