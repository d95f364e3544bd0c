"""A context of its own for every cross-attention, against processors that hold theirs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor2_0
from pipelines import shared

from vpt.towers.layered import cross_attentions, layered


class Own(AttnProcessor2_0):
    """Reads its own context in place of the one that it is handed."""

    def __init__(self, context: torch.Tensor) -> None:
        super().__init__()
        self.context = context

    def __call__(self, attn: Any, hidden_states: Any, encoder_hidden_states: Any = None, **more: Any) -> Any:
        return super().__call__(attn, hidden_states, self.context, **more)


@pytest.fixture
def unet() -> Any:
    return shared("sd").unet


X, T = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1)), torch.tensor([10, 900])


def test_the_cross_attentions_are_those_of_the_u_net(unet):
    names = cross_attentions(unet)
    assert len(names) == 4
    assert [n.split(".")[0] for n in names] == ["down_blocks", "up_blocks", "up_blocks", "mid_block"]
    assert cross_attentions(shared("pixart_sigma").transformer) == []


def test_each_cross_attention_reads_its_own_part(unet):
    names = cross_attentions(unet)
    contexts = torch.randn(4, 2, 7, 32)
    before = dict(unet.attn_processors)
    own = {name: Own(c) for name, c in zip(names, contexts, strict=True)}
    unet.set_attn_processor({**before, **own})
    want = unet(X, T, contexts[0]).sample
    unet.set_attn_processor(before)
    with layered(unet, 4):
        found = unet(X, T, torch.cat(list(contexts), 1)).sample
        swapped = unet(X, T, torch.cat(list(contexts.flip(0)), 1)).sample
    assert torch.equal(found, want)
    assert not torch.allclose(swapped, want, atol=1e-4)


def test_equal_parts_are_one_context(unet):
    context = torch.randn(2, 7, 32)
    with layered(unet, 4):
        found = unet(X, T, context.repeat(1, 4, 1)).sample
    assert torch.equal(found, unet(X, T, context).sample)


def test_processors_are_the_same_objects_afterwards(unet):
    before = dict(unet.attn_processors)

    def fails() -> None:
        with layered(unet, 4):
            assert all(unet.attn_processors[name] is not before[name] for name in cross_attentions(unet))
            unet(X, T, torch.randn(2, 4 * 7, 31))  # of another width

    with pytest.raises(RuntimeError, match="size"):
        fails()
    assert before.keys() == unet.attn_processors.keys()
    assert all(unet.attn_processors[name] is own for name, own in before.items())


def test_another_number_of_parts_is_refused(unet):
    with layered(unet, 1):
        pass
    with (
        pytest.raises(ValueError, match=r"3 sets.*has 4 cross-attentions.*textual-inversion"),
        layered(unet, 3),
    ):
        pass
    network = shared("pixart_sigma").transformer
    with pytest.raises(ValueError, match=r"PixArtTransformer2DModel is no U-Net"), layered(network, 3):
        pass
