"""Captions that several pictures share are true of each; the draw shows every caption in turn."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from vpt.objectives.captions import Captions

CAPTIONS = st.lists(st.lists(st.sampled_from("abcdefg"), min_size=1, max_size=4), min_size=1, max_size=8)


@given(CAPTIONS)
def test_true_is_what_the_lists_say(told):
    captions = Captions.gather(told)
    want = torch.tensor([[text in own for text in captions.texts] for own in told])
    assert torch.equal(captions.true(None, None), want)
    some, chosen = torch.arange(0, len(told), 2), torch.arange(0, len(captions.texts), 2)
    assert torch.equal(captions.true(some, None), want[::2])
    assert torch.equal(captions.true(None, chosen), want[:, ::2])
    assert torch.equal(captions.true(some, chosen), want[::2, ::2])


@given(CAPTIONS, st.integers(1, 3))
def test_epochs_bring_every_caption_in_turn(told, each):
    captions = Captions.gather(told)
    for picture, own in enumerate(captions.of):
        seen: list[int] = []
        for epoch in range(-(-len(own) // each)):
            drawn = captions.drawn([picture], epoch, each, seed=3).tolist()
            assert len(drawn) == min(each, len(own))
            seen += drawn
        assert set(seen) == set(own)
    every = captions.drawn(range(len(told)), 0, 0, seed=3)
    assert every.tolist() == list(range(len(captions.texts)))


def test_the_draw_depends_on_seed_and_picture_alone():
    captions = Captions.gather([[f"{i} {k}" for k in range(5)] for i in range(40)])
    one = captions.drawn(range(40), 2, 1, seed=1)
    apart = [n for i in reversed(range(40)) for n in captions.drawn([i], 2, 1, seed=1).tolist()]
    assert sorted(apart) == one.tolist()
    assert captions.drawn(range(40), 2, 1, seed=2).tolist() != one.tolist()
