"""Every family of diffusion pipelines: strings, rows and gradients against the pipeline's own calls."""

import copy
from collections.abc import Mapping
from functools import cache
from typing import Any

import pytest
import torch
from pipelines import FAMILIES, SMALL, shared, variants
from torch import Tensor

from vpt.encode import encode
from vpt.prompt import Site
from vpt.towers.diffusion import Diffusion, open_pipeline
from vpt.towers.families import family_of

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of schedulers
every = pytest.mark.parametrize("family", FAMILIES)

PLAIN = ["a red dog in the rain", "the photo of a red dog"]
WORD = ["a <My-Dog> in the rain", "the photo of a <My-Dog>"]  # some families write prompts in small letters
AGAINST = "a blue cat"
UNTIL = {"flux": {"true_cfg_scale": 2.0}}  # what a call needs so that its negative prompt counts


@cache
def backbone(family: str) -> Diffusion:
    return open_pipeline(shared(family), f"diffusers/tiny-{family}")


def drawn(pipe: Any, call: Mapping[str, Any], **prompt: Any) -> Tensor:
    noise = torch.Generator().manual_seed(0)
    given = {"generator": noise, "num_inference_steps": 2, "output_type": "latent", "return_dict": False}
    return pipe(**given, **call, **prompt)[0]


@cache
def plain(family: str) -> Tensor:
    return drawn(shared(family), SMALL[family], prompt=list(PLAIN))


def frozen(family: str, words: str) -> dict[Site, Tensor]:
    """The embeddings of words as rows, in every text encoder."""
    opened = backbone(family)
    return {Site(name, "embedded", "<My-Dog>"): opened.vectors(name, words) for name in opened.encoders}


@every
def test_an_unprompted_picture_is_that_of_the_plain_strings(family: str) -> None:
    assert torch.equal(drawn(shared(family), SMALL[family], **backbone(family).embeds(PLAIN)), plain(family))


@every
def test_a_negative_prompt_is_that_of_the_plain_strings(family: str) -> None:
    opened, call = backbone(family), SMALL[family] | UNTIL.get(family, {})
    if family == "flux2":
        with pytest.raises(ValueError, match="Flux2Pipeline takes no negative prompt"):
            opened.embeds(PLAIN, negative=AGAINST)
        return
    found = drawn(shared(family), call, **opened.embeds(PLAIN, negative=AGAINST))
    assert not torch.equal(found, plain(family))
    if family != "flux2_klein":  # which takes embeddings only
        strings = {"prompt": list(PLAIN), "negative_prompt": [AGAINST] * 2}
        assert torch.equal(found, drawn(shared(family), call, **strings))


@every
def test_rows_of_words_draw_the_picture_of_the_words(family: str) -> None:
    pipe, opened = shared(family), backbone(family)
    parts, known = dict(pipe.components), words_of(pipe)
    same = drawn(pipe, SMALL[family], **opened.embeds(WORD, frozen(family, "red dog")))
    assert torch.equal(same, plain(family))
    other = drawn(pipe, SMALL[family], **opened.embeds(WORD, frozen(family, "blue cat")))
    assert not torch.equal(other, plain(family))
    assert all(pipe.components[name] is part for name, part in parts.items())
    assert words_of(pipe) == known


@every
def test_signs_behind_a_placeholder_are_read_as_behind_a_word(family: str) -> None:
    opened = backbone(family)
    told = opened.embeds("a <My-Dog>, the rain", frozen(family, "red dog"), guided=False)
    wanted = opened.embeds("a red dog, the rain", guided=False)
    assert told.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(told[name], value, rtol=0, atol=0)


def words_of(pipe: Any) -> list[int]:
    """How many words each tokenizer knows."""
    found = [part for name, part in pipe.components.items() if name.startswith("tokenizer")]
    return [len(getattr(tokenizer, "tokenizer", tokenizer)) for tokenizer in found]


@every
def test_the_prediction_has_gradients_to_the_rows_of_every_encoder(family: str) -> None:
    opened = backbone(family)
    rows = {site: r.requires_grad_() for site, r in frozen(family, "red dog").items()}
    noisy, t, size = noise_of(family)
    found = opened.predict(noisy, t, opened.embeds(WORD, rows, guided=False), size)
    assert found.shape == noisy.shape
    (found * torch.randn_like(found)).sum().backward()
    assert all(r.grad is not None and r.grad.abs().sum() > 0 for r in rows.values())
    for part in opened.pipe.components.values():
        if isinstance(part, torch.nn.Module):
            assert all(p.grad is None for p in part.parameters())


def noise_of(family: str) -> tuple[Tensor, Tensor, tuple[int, int]]:
    """Two noisy pictures as the pipeline takes them, a timestep for each, and their size."""
    height, width = SMALL[family]["height"], SMALL[family]["width"]
    opened = backbone(family)
    noisy = opened.latents(encode(opened.image, torch.randn(2, 3, height, width)))
    t = torch.tensor([700, 40])
    return torch.randn_like(noisy), t.float() if opened.prediction == "flow" else t, (height, width)


@every
def test_each_sample_is_asked_at_its_own_timestep(family: str) -> None:
    opened = backbone(family)
    noisy, t, size = noise_of(family)
    with torch.no_grad():
        both = opened.predict(noisy, t, opened.embeds([PLAIN[0]] * 2, guided=False), size)
        for i in range(2):
            one = opened.predict(noisy[i : i + 1], t[i : i + 1], opened.embeds(PLAIN[0], guided=False), size)
            torch.testing.assert_close(one, both[i : i + 1], rtol=1e-4, atol=1e-4)
        swapped = opened.predict(noisy, t.flip(0), opened.embeds([PLAIN[0]] * 2, guided=False), size)
    assert (swapped - both).abs().max() > 1e-3 * both.abs().max()


class Still:
    """A scheduler that leaves latents as they are."""

    def __init__(self, scheduler: Any) -> None:
        self.scheduler = scheduler

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["scheduler"], name)

    init_noise_sigma = 1.0

    def step(self, prediction: Tensor, t: Tensor, sample: Tensor, *_: Any, **more: Any) -> tuple[Tensor]:
        return (sample,)


@every
def test_the_pipeline_decodes_latents_of_pictures_to_what_the_vae_makes_of_them(family: str) -> None:
    opened, pipe = backbone(family), copy.copy(shared(family))
    pipe.scheduler = Still(pipe.scheduler)
    call = SMALL[family] | ({"num_frames": 1} if "num_frames" in SMALL[family] else {})
    picture = torch.rand(1, 3, call["height"], call["width"]) * 2 - 1
    z = opened.latents(encode(opened.image, picture), drawn=False)
    given = {"prompt": PLAIN[0], "num_inference_steps": 2, "output_type": "pt", "return_dict": False}
    found = pipe(**given, **call, latents=z)[0]
    with torch.no_grad():
        told = pipe.vae.encode(picture[:, :, None] if opened.family.video else picture)
        mean = told.latent_dist.mode() if hasattr(told, "latent_dist") else told.latent
        wanted = pipe.vae.decode(mean, return_dict=False)[0]
    if opened.family.video:
        wanted = wanted.transpose(1, 2).flatten(0, 1)[:1]
    torch.testing.assert_close(
        found.reshape(wanted.shape), (wanted / 2 + 0.5).clamp(0, 1), rtol=1e-4, atol=1e-4
    )


@every
def test_rows_of_the_context_reach_the_picture(family: str) -> None:
    opened = backbone(family)
    rows = torch.randn(2, opened.towers["context"].width, requires_grad=True)
    site = Site("context", "embedded", "positive")
    assert not torch.equal(
        drawn(shared(family), SMALL[family], **opened.embeds(PLAIN, {site: rows.detach()})), plain(family)
    )
    noisy, t, size = noise_of(family)
    (grad,) = torch.autograd.grad(
        opened.predict(noisy, t, opened.embeds(PLAIN, {site: rows}, guided=False), size).square().sum(), rows
    )
    assert (grad.abs().sum(-1) > 0).all()


@pytest.mark.parametrize("name", ["image-to-image", "inpainting", "controlnet"])
def test_other_pipelines_of_the_family_take_the_same_arguments(name: str) -> None:
    opened = backbone("sd")
    pipe, call = variants(shared("sd"))[name]
    told = opened.embeds(WORD[0], frozen("sd", "red dog"), negative=AGAINST)
    found = drawn(pipe, call, **told)
    assert torch.equal(found, drawn(pipe, call, prompt=PLAIN[0], negative_prompt=AGAINST))
    assert not torch.equal(found, drawn(pipe, call, prompt=AGAINST))
    assert family_of(pipe) == family_of(shared("sd"))


@pytest.mark.parametrize("name", ["KandinskyV22Pipeline", "LTX2Pipeline", "Flux3Pipeline"])
def test_an_unknown_family_is_refused_with_the_list(name: str) -> None:
    pipe = type(name, (), {"encode_prompt": None})()
    with pytest.raises(
        ValueError, match=f"{name} is no pipeline that vpt prompts.*StableDiffusionXL.*ZImage"
    ):
        family_of(pipe)
