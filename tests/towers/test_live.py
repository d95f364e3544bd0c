"""Attention of a few tokens without keys and values of the sequence, against timm's own blocks."""

import pytest
import torch
from timm.models.eva import EvaBlock
from timm.models.vision_transformer import Block
from torch import nn

import vpt.towers.live as live
from vpt.tower import Live, Stream

KINDS = {
    "bias": lambda: Block(32, 2, qkv_bias=True),
    "no bias": lambda: Block(32, 2),
    "norm of the result": lambda: Block(32, 2, qkv_bias=True, scale_attn_norm=True),
    "norm of queries and keys": lambda: Block(32, 2, qkv_bias=True, qk_norm=True),
    "layer scale": lambda: Block(32, 2, qkv_bias=True, init_values=0.3),
    "eva": lambda: EvaBlock(32, 2, qkv_bias=True),
    "eva, fused bias": lambda: EvaBlock(32, 2, qkv_fused=True, qkv_bias=True, scale_norm=True),
}


def opened(kind: str) -> tuple[nn.Module, live.LiveBlock]:
    torch.manual_seed(0)
    block = KINDS[kind]().eval()
    with torch.no_grad():
        for p in block.parameters():
            p.add_(torch.randn_like(p) * 0.2)  # biases of queries, keys and values that count
    step = live.open_block(block, 0, None)
    assert isinstance(step, live.LiveBlock)
    return block, step


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize(
    "sets", [(), ((4, 32),), ((2, 4, 32), (3, 32))], ids=["none", "shared", "own and shared"]
)
@pytest.mark.parametrize("read", [1, torch.tensor([[3], [7]])], ids=["first", "places"])
def test_few_tokens_equal_the_whole_block(monkeypatch, kind, sets, read):
    block, step = opened(kind)
    x = torch.randn(2, 9, 32, requires_grad=True)
    rows = [torch.randn(shape, requires_grad=True) for shape in sets]
    whole = block(torch.cat([x, *[r.expand(2, -1, -1) for r in rows]], 1))
    want = live._take(whole, read)
    monkeypatch.setattr(live, "project", lambda *_: pytest.fail("keys and values were computed"))
    if block.attn.qkv is None or type(block.attn.k_norm) is not nn.Identity:
        monkeypatch.undo()  # such blocks compute them
    got = step.live(Stream(x), Live(tuple(rows), None, read)).x
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    weights = torch.linspace(-1, 1, 32)
    pairs = (
        torch.autograd.grad((t * weights).square().sum(), [x, *rows], retain_graph=True) for t in (got, want)
    )
    for ours, theirs in zip(*pairs, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("read", [2, 8])
def test_many_tokens_take_the_usual_way(monkeypatch, read):
    block, step = opened("bias")
    monkeypatch.setattr(live, "_attend_few", lambda *_: torch.zeros(2, read, 32))
    x = torch.randn(2, 9, 32)
    same = torch.allclose(step.live(Stream(x), Live((), None, read)).x, block(x)[:, :read], atol=1e-5)
    assert same is (read == 8)  # 8 tokens of 2 heads ask as much as the projections cost


@pytest.mark.parametrize("count", [6, 7, 8])  # with 9 tokens: 15, 16 and 17 keys
def test_keys_that_fill_the_vectors_change_nothing(monkeypatch, count):
    block, step = opened("bias")
    attend, seen = live.F.scaled_dot_product_attention, []

    def watch(q, k, v, **options):
        seen.append(k.shape[-2])
        return attend(q, k, v, **options)

    monkeypatch.setattr(live.F, "scaled_dot_product_attention", watch)
    x, rows = torch.randn(2, 9, 32, requires_grad=True), torch.randn(count, 32, requires_grad=True)
    got = step.live(Stream(x), Live((rows,))).x
    assert seen == [live.LANES if count < 8 else 2 * live.LANES]
    want = block(torch.cat([x, rows.expand(2, -1, -1)], 1))[:, :9]
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    weights = torch.linspace(-1, 1, 32)
    pairs = [torch.autograd.grad((t * weights).square().sum(), [x, rows]) for t in (got, want)]
    for ours, theirs in zip(*pairs, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_vectors_are_filled_only_where_it_pays():
    def keys(dtype, *lengths):
        return [torch.zeros(1, 1, n, 4, dtype=dtype) for n in lengths]

    for given in (keys(torch.float32, 9), keys(torch.float32, 9, 7), keys(torch.bfloat16, 9, 6)):
        before = len(given)
        assert live._fill_lanes(given, list(given)) is None
        assert len(given) == before
