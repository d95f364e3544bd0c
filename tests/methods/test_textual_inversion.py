"""Where the rows of a new word start, in which encoders, and what they are refused for."""

from __future__ import annotations

import pytest
import torch
from pipelines import shared

from vpt.methods.textual_inversion import PPlus, TextualInversion, check_word
from vpt.prompt import Context, Site
from vpt.towers.diffusion import open_pipeline

WORDS = {"concept": "my-mug", "word": "dog"}


def backbone(family: str = "sd"):
    return open_pipeline(shared(family), f"diffusers/{family}")


def rows_of(method) -> dict[str, torch.Tensor]:
    return {str(site): r for site, r in method(Context()).items()}


def test_rows_start_as_the_word():
    pipe = shared("sd")
    (dog,) = pipe.tokenizer("dog", add_special_tokens=False).input_ids
    word = pipe.text_encoder.get_input_embeddings().weight[dog]
    found = rows_of(TextualInversion(backbone(), length=3, **WORDS))
    assert found.keys() == {"text/embedded/<my-mug>"}
    assert torch.equal(found["text/embedded/<my-mug>"], word.expand(3, 32))
    ids = pipe.tokenizer("red mug", add_special_tokens=False).input_ids
    words = pipe.text_encoder.get_input_embeddings().weight[ids]
    found = rows_of(TextualInversion(backbone(), length=3, concept="<my-mug>", word="red mug"))
    assert torch.equal(found["text/embedded/<my-mug>"], words[torch.arange(3) % len(ids)])


@pytest.mark.parametrize(
    ("family", "options", "towers"),
    [
        ("sdxl", {}, ["text", "text_2"]),
        ("sd3", {}, ["text", "text_2"]),
        ("sd3", {"encoders": "text_2, text_3"}, ["text_2", "text_3"]),
        ("flux", {}, ["text"]),
        ("pixart_sigma", {}, ["text"]),
    ],
)
def test_rows_are_in_clips_encoders_or_in_those_asked_for(family, options, towers):
    method = TextualInversion(backbone(family), **options, **WORDS)
    assert sorted(site.tower for site in method(Context())) == towers
    assert all(r.shape[-1] == backbone(family).towers[s.tower].width for s, r in method(Context()).items())


def test_deep_rows_are_the_layers_own():
    found = rows_of(TextualInversion(backbone(), length=2, layers=3, **WORDS))
    assert list(found) == [f"text/{stage}/<my-mug>" for stage in ("embedded", "1", "2")]
    first, second, third = found.values()
    assert torch.equal(first[0], first[1])
    assert not torch.equal(second, third)
    for family, layers in (("sd", 4), ("pixart_sigma", 2)):
        with pytest.raises(
            ValueError, match=rf"layers={layers} does not fit the encoder 'text'.*CLIP's encoders"
        ):
            TextualInversion(backbone(family), layers=layers, **WORDS)


def test_fixed_rows_keep_the_vocabularys_length_and_point_to_the_word():
    plain = rows_of(TextualInversion(backbone(), length=2, **WORDS))["text/embedded/<my-mug>"]
    method = TextualInversion(backbone(), length=2, norm="fixed", **WORDS)
    usual = backbone().length("text")
    for _ in range(2):
        found = method(Context())[Site("text", "embedded", "<my-mug>")]
        assert torch.allclose(found.norm(dim=-1), torch.full((2,), usual), rtol=1e-5)
        with torch.no_grad():  # whatever an optimiser does to the table
            next(method.parameters()).mul_(7.0)
    assert torch.allclose(torch.cosine_similarity(found, plain), torch.ones(2), atol=1e-5)


def test_p_plus_has_a_set_a_cross_attention():
    found = rows_of(PPlus(backbone(), length=2, **WORDS))["text/embedded/<my-mug>"]
    plain = rows_of(TextualInversion(backbone(), length=2, **WORDS))["text/embedded/<my-mug>"]
    assert torch.equal(found, plain.expand(4, 2, 32))
    assert {s.tower for s in PPlus(backbone("sdxl"), **WORDS)(Context())} == {"text", "text_2"}
    with pytest.raises(ValueError, match=r"P\+ .* PixArtSigma pipeline without one. Use textual-inversion"):
        PPlus(backbone("pixart_sigma"), **WORDS)


@pytest.mark.parametrize("name", ["", "my mug", "ctx", "my-mug*4", "<a><b>"])
def test_names_that_cannot_stand_in_a_sentence_are_refused(name):
    with pytest.raises(ValueError, match="a concept cannot be called"):
        check_word(name, "mug")


def test_other_mistakes_say_what_there_is():
    with pytest.raises(ValueError, match="word is empty"):
        check_word("my-mug", " ")
    with pytest.raises(ValueError, match=r"diffusers/sd has no encoder 'text_2', but text\."):
        TextualInversion(backbone(), encoders="text_2", **WORDS)
