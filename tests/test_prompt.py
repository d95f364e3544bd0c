"""Tables, their starts and what a prompt does to them, against the formulas written out."""

import math
from functools import partial

import pytest
import torch
from torch import nn

from vpt.prompt import (
    Context,
    LowRank,
    Prompt,
    Shared,
    Site,
    Table,
    fourier,
    given,
    normal,
    uniform,
    xavier,
)


def test_a_site_prints_hashes_and_sorts() -> None:
    a, b = Site("image", "3", "prefix"), Site("image", "3", "suffix")
    assert str(a) == "image/3/prefix"
    assert sorted([b, a]) == [a, b]
    assert {a: 1}[Site("image", "3", "prefix")] == 1


def test_a_prompt_gives_each_stage_its_rows_of_the_table() -> None:
    prompt = Prompt("image", "prefix", [1, "4"], 3, 8)
    rows = prompt()
    assert list(rows) == [Site("image", "1", "prefix"), Site("image", "4", "prefix")]
    for i, r in enumerate(rows.values()):
        assert torch.equal(r, prompt.table.rows[i])
        assert r.shape == (3, 8)
    assert [n for n, _ in prompt.named_parameters()] == ["table.rows"]


@pytest.mark.parametrize(
    ("init", "bound", "std"),
    [
        (None, math.inf, 0.02),
        (normal(0.3), math.inf, 0.3),
        (uniform(0.5), 0.5, 0.5 / math.sqrt(3)),
        (xavier((14, 16), 768), math.sqrt(6 / (3 * 14 * 16 + 768)), math.sqrt(2 / (3 * 14 * 16 + 768))),
    ],
)
def test_starts_have_their_published_spread(init, bound: float, std: float) -> None:
    table = Prompt("image", "prefix", range(4), 50, 64, init=init).table.rows
    assert table.abs().max() <= bound
    assert table.std().item() == pytest.approx(std, rel=0.05)
    assert abs(table.mean().item()) < 0.05 * std


def test_given_vectors_fill_every_layer_or_each_its_own() -> None:
    one, each = torch.randn(3, 8), torch.randn(2, 3, 8)
    assert torch.equal(Table(2, 3, 8, given(one))(), one.expand(2, 3, 8))
    assert torch.equal(Table(2, 3, 8, given(each))(), each)
    for wrong in (torch.randn(4, 8), torch.randn(3, 3, 8), torch.randn(3, 9)):
        with pytest.raises(ValueError, match=r"these vectors are .* the table is \(2, 3, 8\)"):
            Table(2, 3, 8, given(wrong))


def test_shared_rows_are_one_parameter_whose_gradient_is_the_sum_over_layers() -> None:
    table = Shared(4, 3, 8, normal())
    assert sum(p.numel() for p in table.parameters()) == 24
    weight = torch.randn(4, 3, 8)
    (table() * weight).sum().backward()
    assert torch.allclose(table.rows.grad[0], weight.sum(0))
    rows = torch.randn(4, 3, 8)
    table.fill(rows)
    assert torch.equal(table(), rows.mean(0).expand(4, 3, 8))


def test_a_low_rank_table_is_a_product_and_starts_like_its_basis() -> None:
    table = LowRank(12, 40, 64, normal(0.1), rank=4)
    assert torch.equal(table(), table.mix @ table.basis)
    assert torch.linalg.matrix_rank(table().detach().flatten(0, 1)) == 4
    assert table().std().item() == pytest.approx(0.1, rel=0.25)
    assert sum(p.numel() for p in table.parameters()) == 12 * 40 * 4 + 4 * 64


@pytest.mark.parametrize("rank", [1, 3, 7])
def test_a_low_rank_table_is_filled_with_the_best_of_its_rank(rank: int) -> None:
    table, rows = LowRank(2, 3, 8, normal(), rank=rank), torch.randn(2, 3, 8)
    table.fill(rows)
    left = torch.linalg.svdvals(rows.flatten(0, 1))[rank:]  # Eckart and Young: what no such table can hold
    assert (table() - rows).norm().item() == pytest.approx(left.norm().item(), abs=1e-5)


@pytest.mark.parametrize("rank", [0, 8])
def test_a_rank_that_saves_nothing_is_refused(rank: int) -> None:
    with pytest.raises(ValueError, match=f"rank from 1 to 7, not {rank}"):
        LowRank(1, 2, 8, normal(), rank=rank)


def test_rows_pass_through_the_projection_and_then_the_transform() -> None:
    through = nn.Linear(4, 8)
    flip = partial(torch.flip, dims=(-2,))
    prompt = Prompt("image", "prefix", range(2), 3, 8, inner=4, through=through, transform=flip)
    assert prompt.table.rows.shape == (2, 3, 4)
    want = (prompt.table.rows @ through.weight.T + through.bias).flip(-2)
    assert torch.allclose(torch.stack(list(prompt().values())), want, atol=1e-6)


def test_dropout_is_drawn_for_every_sample_and_only_in_training() -> None:
    prompt = Prompt("image", "prefix", range(2), 30, 8, dropout=0.5, init=uniform(1))
    assert all(r.shape == (30, 8) for r in prompt.eval()().values())
    rows = torch.stack(list(prompt.train()(Context(batch=5)).values()))
    assert rows.shape == (2, 5, 30, 8)
    kept = rows != 0
    assert torch.equal(rows[kept], (2 * prompt.table.rows)[:, None].expand_as(rows)[kept])
    assert kept.float().mean().item() == pytest.approx(0.5, abs=0.05)
    patterns = {tuple(kept[layer, sample].flatten().tolist()) for layer in range(2) for sample in range(5)}
    assert len(patterns) == 10


@pytest.mark.parametrize(("fraction", "waves"), [(0.0, 0), (0.3, 1), (0.5, 2), (1.0, 5)])
def test_fourier_rows_are_two_transforms_one_after_the_other(fraction: float, waves: int) -> None:
    rows = torch.randn(2, 5, 8, dtype=torch.float64)
    n, k = torch.arange(waves).double(), torch.arange(8).double()
    over_rows = torch.exp(-2j * math.pi * n[:, None] * n / max(waves, 1))
    over_channels = torch.exp(-2j * math.pi * k[:, None] * k / 8)
    out = fourier(fraction)(rows)
    for layer in range(2):
        want = (over_rows @ rows[layer, :waves].to(torch.complex128) @ over_channels).real
        assert torch.allclose(out[layer, :waves], want, atol=1e-10)
    assert torch.equal(out[:, waves:], rows[:, waves:])


def test_impossible_prompts_are_refused() -> None:
    with pytest.raises(ValueError, match="stages that differ"):
        Prompt("image", "prefix", [1, "1"], 3, 8)
    with pytest.raises(ValueError, match="stages that differ"):
        Prompt("image", "prefix", [], 3, 8)
    with pytest.raises(ValueError, match="at least 1 row, got length=0"):
        Prompt("image", "prefix", [0], 0, 8)


def test_every_kind_of_table_learns() -> None:
    for kind in (Table, Shared, partial(LowRank, rank=2)):
        prompt = Prompt("image", "prefix", range(3), 4, 8, table=kind)
        sum(r.square().sum() for r in prompt().values()).backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in prompt.parameters())
