"""A pipeline as a backbone: its network asked as the pipeline asks it, its latents, its words."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDPMScheduler
from pipelines import sd, shared

from vpt.encode import encode
from vpt.prompt import Site
from vpt.towers.diffusion import open_pipeline

X, T = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1)), torch.tensor([10, 900])


@pytest.fixture(scope="module")
def backbone():
    return open_pipeline(shared("sd"), "diffusers/tiny", size=16)


def test_the_prediction_is_that_of_the_u_net(backbone):
    """With a time a sample, to the bit, whatever was asked before."""
    given = backbone.embeds(["a dog", "a red mug"], guided=False)
    for t in (T, T.flip(0)):
        want = backbone.pipe.unet(X, t, given["prompt_embeds"]).sample
        assert torch.equal(backbone.predict(X, t, given, (16, 16)), want)
    assert type(backbone.pipe.scheduler).__name__ == "DDIMScheduler"


def test_the_prediction_of_sdxl_has_pooled_states_and_time_ids():
    backbone = open_pipeline(shared("sdxl"), "diffusers/tiny", size=16)
    given = backbone.embeds(["a dog", "a red mug"], guided=False)
    ids = torch.tensor([[16.0, 16, 0, 0, 16, 16]] * 2)
    want = backbone.pipe.unet(
        X,
        T,
        given["prompt_embeds"],
        added_cond_kwargs={"text_embeds": given["pooled_prompt_embeds"], "time_ids": ids},
    ).sample
    assert torch.equal(backbone.predict(X, T, given, (16, 16)), want)


def test_a_network_that_learns_is_asked_in_place_of_the_frozen_one(backbone):
    other = sd().unet
    with torch.no_grad():
        other.conv_out.bias.add_(1.0)
    tower = backbone.towers["denoiser"]
    given = backbone.embeds(["a dog"] * 2, guided=False)
    learned = type(tower)(**{**vars(tower), "model": other})
    found = backbone.predict(X, T, given, (16, 16), network=learned)
    plain = backbone.predict(X, T, given, (16, 16))
    assert torch.allclose(found, plain + 1.0, atol=1e-5)
    assert backbone.pipe.unet is tower.model


def test_latents_are_those_of_the_vae(backbone):
    pictures = torch.rand(2, 3, 16, 16) * 2 - 1
    vae = backbone.pipe.vae
    moments = encode(backbone.image, pictures)
    want = vae.encode(pictures).latent_dist
    assert torch.equal(backbone.latents(moments, drawn=False), want.mode() * vae.config.scaling_factor)
    torch.manual_seed(5)
    found = backbone.latents(moments)
    torch.manual_seed(5)
    noise = torch.randn(want.mean.shape)
    assert torch.allclose(found, (want.mean + want.std * noise) * vae.config.scaling_factor, atol=1e-6)


def test_words_are_the_encoders_own(backbone):
    table, tokenizer = backbone.pipe.text_encoder.get_input_embeddings().weight, backbone.pipe.tokenizer
    for word in ("dog", "red mug"):
        ids = tokenizer(word, add_special_tokens=False).input_ids
        assert torch.equal(backbone.vectors("text", word), table[ids])
    assert backbone.length("text") == pytest.approx(float(table.norm(dim=1).mean()), rel=1e-6)


def test_what_the_network_predicts_is_its_schedulers():
    assert open_pipeline(shared("sd"), "tiny").prediction == "epsilon"
    velocity = open_pipeline(shared("sd2"), "tiny")
    assert velocity.prediction == "v_prediction"
    assert torch.equal(
        velocity.alphas, DDPMScheduler.from_config(shared("sd2").scheduler.config).alphas_cumprod
    )
    flow = open_pipeline(shared("sd3"), "tiny")
    assert (flow.prediction, flow.alphas) == ("flow", None)


def test_p_plus_with_equal_sets_is_textual_inversion(backbone):
    row = torch.randn(1, 32)
    site = Site("text", "embedded", "<my-mug>")
    one = backbone.embeds(["a <my-mug>", "a cat"], {site: row}, guided=False)
    sets = backbone.embeds(["a <my-mug>", "a cat"], {site: row.expand(4, 1, 32)}, guided=False)
    assert torch.equal(sets["prompt_embeds"], one["prompt_embeds"].repeat(1, 4, 1))
    found = backbone.predict(X, T, sets, (16, 16), layers=4)
    assert torch.equal(found, backbone.predict(X, T, one, (16, 16)))


def test_the_towers_say_what_they_take(backbone):
    assert list(backbone.encoders) == ["text"]
    for name in ("denoiser", "image"):
        with pytest.raises(ValueError, match="takes no rows; its text encoders and its context do"):
            backbone.towers[name].check([Site(name, "0", "prefix")])
    assert backbone.fingerprints.keys() == {"text"}
    assert not any(p.requires_grad for t in backbone.towers.values() for p in t.model.parameters())
