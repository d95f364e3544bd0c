"""Rows of the context start as what stands there."""

from __future__ import annotations

import pytest
import torch
from pipelines import shared

from vpt.methods.context import ContextRows
from vpt.prompt import Context, Site
from vpt.towers.diffusion import open_pipeline

WORDS = {"concept": "my-mug", "word": "dog"}


@pytest.fixture(scope="module")
def backbone():
    return open_pipeline(shared("sd"), "diffusers/tiny")


def test_rows_start_as_the_last_states_of_the_words(backbone):
    """So before training a picture of those words is the same with them."""
    method = ContextRows(backbone, length=5, words="a dog", **WORDS)
    rows = method(Context())
    plain = backbone.embeds("a dog", guided=False)["prompt_embeds"]
    assert torch.equal(rows[Site("context", "embedded", "positive")], plain[0, -5:])
    assert torch.equal(backbone.embeds("a dog", rows, guided=False)["prompt_embeds"], plain)


def test_a_negative_at_every_place_starts_as_the_empty_prompt(backbone):
    rows = ContextRows(backbone, length=0, side="negative", **WORDS)(Context())
    plain = backbone.embeds("a dog")
    assert rows[Site("context", "embedded", "negative")].shape == (77, 32)
    found = backbone.embeds("a dog", rows)
    assert torch.equal(found["negative_prompt_embeds"], plain["negative_prompt_embeds"])
    assert torch.equal(found["prompt_embeds"], plain["prompt_embeds"])


def test_captions_may_say_a_concept(backbone):
    assert ContextRows(backbone, **WORDS).placeholders == {"<my-mug>": "dog"}


def test_more_rows_than_places_are_refused(backbone):
    with pytest.raises(
        ValueError, match=r"length=78 rows do not fit the 77 places of StableDiffusion's context"
    ):
        ContextRows(backbone, length=78, **WORDS)
