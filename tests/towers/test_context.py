"""Rows in the sequence that a denoiser reads: what stood there gives the same picture, and both sides of guidance."""

from __future__ import annotations

import pytest
import torch
from pipelines import shared

from vpt.prompt import Site
from vpt.towers.context import join_context, open_context
from vpt.towers.diffusion import open_pipeline
from vpt.towers.families import Family

POSITIVE, NEGATIVE = (Site("context", "embedded", side) for side in ("positive", "negative"))


@pytest.fixture(scope="module")
def backbone():
    return open_pipeline(shared("sd"), "diffusers/tiny", size=16)


def drawn(backbone, **given):
    call = {"height": 16, "width": 16, "num_inference_steps": 2, "output_type": "pt"}
    return backbone.pipe(**given, **call, generator=torch.Generator().manual_seed(1)).images


def test_what_stood_there_draws_the_same_picture(backbone):
    plain = backbone.embeds("a dog", negative="a cat")
    rows = {
        POSITIVE: plain["prompt_embeds"][0, -5:].clone(),
        NEGATIVE: plain["negative_prompt_embeds"][0].clone(),  # at every place, as ReNeg's
    }
    found = backbone.embeds("a dog", rows, negative="in rain")
    assert torch.equal(drawn(backbone, **found), drawn(backbone, **plain))


def test_rows_take_the_last_places_of_their_own_side(backbone):
    plain, rows = backbone.embeds(["a dog", "a cat"]), torch.randn(3, 32)
    for site, own, other in (
        (POSITIVE, "prompt_embeds", "negative_prompt_embeds"),
        (NEGATIVE, "negative_prompt_embeds", "prompt_embeds"),
    ):
        found = backbone.embeds(["a dog", "a cat"], {site: rows})
        assert torch.equal(found[other], plain[other])
        assert torch.equal(found[own][:, :-3], plain[own][:, :-3])
        assert torch.equal(found[own][:, -3:], rows.expand(2, 3, 32))
    assert torch.equal(plain["prompt_embeds"], backbone.embeds(["a dog", "a cat"])["prompt_embeds"])


def test_where_places_are_masked_rows_stand_behind_the_sentence():
    tower, rows = open_context(shared("pixart_sigma").transformer), torch.randn(2, 24)
    family = Family(("prompt_embeds", "prompt_attention_mask"), mask="prompt_attention_mask")
    x = torch.randn(3, 6, 24)
    mask = torch.tensor([[1, 1, 0, 0, 0, 0], [1, 1, 1, 1, 1, 0], [1] * 6])
    found = join_context(tower, family, {"prompt_embeds": x, "prompt_attention_mask": mask}, {POSITIVE: rows})
    for i, start in enumerate((2, 4, 4)):  # full sentences lose their end
        want = x[i].clone()
        want[start : start + 2] = rows
        assert torch.equal(found["prompt_embeds"][i], want)
    assert found["prompt_attention_mask"].sum(1).tolist() == [4, 6, 6]


def test_where_lengths_are_free_rows_are_added():
    tower, rows = open_context(shared("pixart_sigma").transformer), torch.randn(2, 24)
    family = Family(("prompt_embeds",), fixed=False)
    x = torch.randn(3, 5, 24)
    found = join_context(tower, family, {"prompt_embeds": x}, {POSITIVE: rows})["prompt_embeds"]
    assert torch.equal(found, torch.cat([x, rows.expand(3, 2, 24)], 1))
    ragged = [torch.randn(n, 24) for n in (2, 5)]
    found = join_context(tower, family, {"prompt_embeds": list(ragged)}, {POSITIVE: rows})["prompt_embeds"]
    assert [torch.equal(f, torch.cat([r, rows])) for f, r in zip(found, ragged, strict=True)] == [True, True]


def test_more_rows_than_places_are_refused(backbone):
    with pytest.raises(ValueError, match=r"78 rows for context/embedded/positive.*77 places. Learn fewer"):
        backbone.embeds("a dog", {POSITIVE: torch.randn(78, 32)})


def test_the_gradient_reaches_the_rows(backbone):
    rows = torch.randn(3, 32, requires_grad=True)
    given = backbone.embeds("a dog", {POSITIVE: rows}, guided=False)
    backbone.predict(torch.randn(1, 4, 8, 8), torch.tensor([500]), given, (16, 16)).sum().backward()
    assert rows.grad.abs().sum() > 0
