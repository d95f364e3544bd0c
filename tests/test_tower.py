"""Streams and towers: what they carry along, and what they refuse."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from vpt.encode import advance, encode
from vpt.prompt import Site
from vpt.tower import Block, Stream, Tower
from vpt.towers.vit import open_closed, tiny


@pytest.fixture
def stream() -> Stream:
    """Two samples, ten tokens, two slots that grew."""
    return Stream(
        torch.arange(2 * 10 * 4.0).view(2, 10, 4),
        "1",
        places={
            "prefix": torch.tensor([[1, 2]]),
            "suffix": torch.tensor([[9]]),
            "end": torch.tensor([[8], [5]]),
        },
        source={"end": torch.tensor([[0], [1]])},
        grown=frozenset({"prefix", "suffix"}),
        positions=torch.arange(10)[None],
        mask=torch.randn(10, 10),
        extra={"rope": torch.randn(9, 6)},
    )


def test_the_networks_own_tokens_are_those_that_no_slot_added(stream: Stream) -> None:
    assert torch.equal(stream.own(), stream.x[:, [0, 3, 4, 5, 6, 7, 8]])
    bare = replace(stream, grown=frozenset())
    assert bare.own() is bare.x


def test_taking_a_slot_out_moves_everything_behind_it(stream: Stream) -> None:
    left = stream.without(["prefix"])
    kept = [0, 3, 4, 5, 6, 7, 8, 9]
    assert torch.equal(left.x, stream.x[:, kept])
    assert left.places.keys() == {"suffix", "end"}
    assert left.places["suffix"].tolist() == [[7]]
    assert left.places["end"].tolist() == [[6], [3]]
    assert left.grown == {"suffix"}
    assert torch.equal(left.positions, stream.positions[:, kept])
    assert torch.equal(left.mask, stream.mask[kept][:, kept])


def test_moving_a_stream_casts_what_is_floating_and_nothing_else(stream: Stream) -> None:
    for half in (stream.to(torch.float16), stream.to("cpu", dtype=torch.float16)):
        assert half.x.dtype == half.mask.dtype == half.extra["rope"].dtype == torch.float16
        assert half.places["end"].dtype == half.source["end"].dtype == half.positions.dtype == torch.int64
    assert stream.to("cpu").x.dtype == torch.float32
    meta = stream.to("meta")
    tensors = [
        meta.x,
        meta.mask,
        meta.positions,
        meta.extra["rope"],
        *meta.places.values(),
        *meta.source.values(),
    ]
    assert all(t.is_meta for t in tensors)


def test_repeating_samples_leaves_alone_what_they_share(stream: Stream) -> None:
    twice = stream.samples(lambda t: t.repeat(3, *[1] * (t.ndim - 1)))
    assert twice.x.shape == (6, 10, 4)
    assert twice.places["end"].tolist() == [[8], [5]] * 3
    assert twice.source["end"].shape == (6, 1)
    assert twice.places["prefix"] is stream.places["prefix"]
    assert twice.mask is stream.mask
    assert twice.extra["rope"] is stream.extra["rope"]
    own_masks = replace(stream, mask=torch.randn(2, 1, 10, 10))
    assert own_masks.samples(lambda t: t[:1]).mask.shape == (1, 1, 10, 10)


def test_stages_have_names_and_an_unknown_one_is_refused_with_the_list(tower: Tower) -> None:
    assert tower.stages == ("input", "embedded", "placed", "0", "1", "2", "3", "normed", "pooled")
    assert (tower.depth, tower.stages[tower.top], len(tower.steps)) == (3, "3", len(tower.stages) - 1)
    assert [isinstance(s, Block) for s in tower.steps] == [False] * 3 + [True] * 3 + [False] * 2
    assert tower.index(2) == tower.index("2") == 5
    with pytest.raises(
        ValueError, match="no stage '4', only input, embedded, placed, 0, 1, 2, 3, normed, pooled"
    ):
        tower.index(4)


@pytest.mark.parametrize(
    ("site", "message"),
    [
        (Site("image", "placed", "kv"), "no attention block"),
        (Site("image", "3", "kv"), "no attention block"),
        (Site("image", "12", "prefix"), "no stage '12', only input"),
        (Site("image", "pooled", "prefix"), "it is what the 'image' tower gives back"),
    ],
)
def test_sites_that_a_tower_cannot_take_are_refused_before_any_data(
    tower: Tower, site: Site, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        tower.check([site])
    tower.check([Site("text", "99", "kv"), Site("image", "2", "kv"), Site("image", "input", "border")])


def test_a_closed_tower_takes_pixels_and_says_why_it_takes_nothing_else() -> None:
    import timm

    closed = open_closed(timm.create_model("test_resnet"))
    assert (closed.depth, closed.top) == (0, -1)
    closed.check([Site("image", "input", "border")])
    for refused in (
        lambda: closed.check([Site("image", "0", "prefix")]),
        lambda: closed.pooling("image"),
        lambda: closed.index("0"),
    ):
        with pytest.raises(ValueError, match="ResNet is a closed tower: it is no plain sequence"):
            refused()


def plain(tower: Tower, x: Tensor, rows: dict[Site, Tensor]) -> Tensor:
    """The whole normed sequence, rows behind the class token, by timm's own modules."""
    m = tower.model
    x = m.norm_pre(m._pos_embed(m.patch_embed(x)))
    n = 0
    for i, block in enumerate(m.blocks):
        if (r := rows.get(Site("image", str(i), "prefix"))) is not None:
            x, n = torch.cat([x[:, :1], r.expand(len(x), -1, -1), x[:, 1 + n :]], 1), len(r)
        x = block(x)
    return m.norm(x)


@pytest.mark.parametrize("layers", [(0,), (0, 1, 2), (1,)])
@pytest.mark.parametrize("live", [False, True])
def test_pooling_variants_are_means_over_patches_rows_or_both(
    tower: Tower, images: Tensor, layers: tuple[int, ...], live: bool
) -> None:
    rows = {Site("image", str(i), "prefix"): torch.randn(4, 32) for i in layers}
    whole = plain(tower, images, rows)
    want = {"image": whole[:, 5:].mean(1), "prompt": whole[:, 1:5].mean(1), "global": whole[:, 1:].mean(1)}
    for how, mean in want.items():
        assert torch.allclose(encode(tower.pooling(how), images, rows, live=live), mean, atol=2e-6)
    assert tower.pooling("own") is tower
    assert torch.allclose(
        encode(tower.pooling("image"), images), plain(tower, images, {})[:, 1:].mean(1), atol=2e-6
    )


def test_pooling_of_rows_that_are_not_there_or_of_another_name_is_refused(
    tower: Tower, images: Tensor
) -> None:
    with pytest.raises(ValueError, match="none were written"):
        encode(tower.pooling("prompt"), images)
    with pytest.raises(ValueError, match=r"no pooling 'mean'\. Choose own, image, prompt or global"):
        tower.pooling("mean")


def test_a_learning_copy_learns_what_was_named_and_leaves_the_frozen_tower_alone(images: Tensor) -> None:
    frozen = tiny()
    twin = frozen.learning(lambda name: name.startswith("blocks.2") and name.endswith("bias"), "2")
    assert twin.name == frozen.name
    assert torch.equal(encode(twin, images), encode(frozen, images))
    encode(twin, images)[:, 0].sum().backward()
    learned = {n for n, p in twin.model.named_parameters() if p.grad is not None}
    assert learned == {n for n, p in twin.model.named_parameters() if p.requires_grad}
    assert learned == {
        f"blocks.2.{n}.bias" for n in ("norm1", "norm2", "attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    }
    assert advance(twin, images, {}, "2").x.grad_fn is None
    assert not any(p.requires_grad for p in frozen.model.parameters())
    assert not {p.data_ptr() for p in twin.model.parameters()} & {
        p.data_ptr() for p in frozen.model.parameters()
    }


def test_a_learning_copy_keeps_its_pooling_and_refuses_to_learn_nothing(images: Tensor) -> None:
    frozen = tiny().pooling("image")
    twin = frozen.learning(lambda name: True, "input")
    assert torch.equal(encode(twin, images), encode(frozen, images))
    with pytest.raises(ValueError, match="no parameter of VisionTransformer was chosen to learn"):
        frozen.learning(lambda name: False, "0")
    with pytest.raises(ValueError, match="'image' tower cannot be opened again"):
        replace(frozen, reopen=None).learning(lambda name: True, "0")
