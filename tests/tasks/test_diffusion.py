"""A method on a pipeline: what is predicted, what has a gradient, what a checkpoint keeps."""

from __future__ import annotations

import pytest
import torch
from pipelines import sd, shared

from vpt.methods.context import ContextRows
from vpt.methods.textual_inversion import PPlus, TextualInversion
from vpt.prompt import Site
from vpt.tasks.diffusion import DiffusionLearner, Started, moved
from vpt.tower import Stream
from vpt.towers.diffusion import open_pipeline
from vpt.towers.layered import sets_of

X, T = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1)), torch.tensor([10, 900])
SAID = ["a photo of <my-mug>", "<my-mug> in rain"]
WORDS = {"concept": "my-mug", "word": "dog"}


@pytest.fixture(scope="module")
def backbone():
    return open_pipeline(shared("sd"), "diffusers/tiny", size=16)


@pytest.mark.parametrize("method", [TextualInversion, PPlus])
def test_at_its_start_a_word_paints_what_its_word_does(backbone, method):
    learner = DiffusionLearner(method(backbone, **WORDS), backbone)
    given = backbone.embeds([text.replace("<my-mug>", "dog") for text in SAID], guided=False)
    with torch.no_grad():
        want = backbone.pipe.unet(X, T, given["prompt_embeds"]).sample
        assert torch.allclose(learner.paint(X, T, SAID), want, atol=1e-5)
        assert torch.allclose(Started(learner).paint(X, T, SAID), want, atol=1e-5)


def test_the_start_is_kept_while_the_rows_learn(backbone):
    learner = DiffusionLearner(TextualInversion(backbone, **WORDS), backbone)
    with torch.no_grad():
        before = learner.paint(X, T, SAID)
        for p in learner.parameters():
            p.normal_()
        assert torch.equal(Started(learner).paint(X, T, SAID), before)
        assert not torch.allclose(learner.paint(X, T, SAID), before, atol=1e-5)
        rows = learner.method(learner.context())
    site, start = next(iter(learner.start.items()))
    far = float((rows[site].detach() - start).norm())
    assert moved(learner.start, rows) == pytest.approx(far / float(start.norm()), rel=1e-4)
    assert moved(learner.start, {site: start}) == 0.0


def test_the_gradient_reaches_the_rows_and_nothing_else():
    backbone = open_pipeline(sd(), "diffusers/tiny", size=16)
    learner = DiffusionLearner(TextualInversion(backbone, **WORDS), backbone).train()
    learner.paint(X, T, SAID).square().mean().backward()
    (row,) = learner.parameters()
    assert row.grad.abs().sum() > 0
    assert all(p.grad is None for t in backbone.towers.values() for p in t.model.parameters())
    plain = row.detach().reshape(1, 32).clone().requires_grad_()
    given = backbone.embeds(SAID, {Site("text", "embedded", "<my-mug>"): plain}, guided=False)
    other = open_pipeline(sd(), "diffusers/tiny", size=16).pipe.unet
    other(X, T, given["prompt_embeds"]).sample.square().mean().backward()
    assert torch.allclose(row.grad.view(-1), plain.grad.view(-1), rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("method", [TextualInversion, PPlus])
def test_activations_computed_anew_give_the_same_gradient(method):
    """And the pipeline's own network is not told to."""
    backbone = open_pipeline(sd(), "diffusers/tiny", size=16)
    grads = []
    for remat in (False, True):
        learner = DiffusionLearner(method(backbone, **WORDS), backbone, remat=remat).train()
        predicted = learner.paint(X, T, SAID)
        predicted.square().mean().backward()
        (rows,) = learner.parameters()
        grads.append((predicted.detach(), rows.grad.clone()))
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-8) for a, b in zip(*grads, strict=True))
    assert learner.towers[1].model.is_gradient_checkpointing
    assert not backbone.pipe.unet.is_gradient_checkpointing
    held = {id(p) for p in backbone.pipe.unet.parameters()}
    assert {id(p) for p in learner.towers[1].model.parameters()} == held


def test_pictures_pass_the_vae_alone(backbone):
    """So the static part is all that the VAE says: stored moments give the latents of the pictures."""
    learner = DiffusionLearner(ContextRows(backbone, length=2, **WORDS), backbone)
    assert learner.low == learner.tower.stages[-1] == "pooled"
    pictures = torch.rand(2, 3, 16, 16) * 2 - 1
    with torch.no_grad():
        moments = backbone.pipe.vae.encode(pictures).latent_dist.parameters.contiguous()
    for drawn in (False, True):
        torch.manual_seed(2)
        fresh = learner.latents(pictures, drawn=drawn)
        torch.manual_seed(2)
        assert torch.equal(learner.latents(Stream(moments, stage="pooled"), drawn=drawn), fresh)


def test_a_checkpoint_holds_rows_and_the_file_their_shape(backbone):
    learner = DiffusionLearner(PPlus(backbone, **WORDS), backbone)
    assert {k: tuple(t.shape) for k, t in learner.learned().items()} == {"method.rows.text": (4, 1, 32)}
    made = learner.export({})
    assert {str(site): tuple(r.shape) for site, r in made.rows.items()} == {
        "text/embedded/<my-mug>": (4, 1, 32)
    }
    assert (made.about["family"], made.about["axis"]) == ("StableDiffusion", "cross-attention")
    assert sets_of(made.rows) == 4
    assert "epsilon" in learner.layout()


def test_a_sentence_without_room_for_the_word_stops_training(backbone):
    learner = DiffusionLearner(TextualInversion(backbone, **WORDS), backbone)
    with pytest.raises(ValueError, match=r"longer than .* lost <my-mug>"):
        learner.paint(X[:1], T[:1], ["a dog " * 60 + "<my-mug>"])
