"""Pictures under autograd are those of the pipeline's public call, and gradients are those of the plain loop."""

from __future__ import annotations

import inspect

import pytest
import torch
from pipelines import FAMILIES, SMALL, sd, shared
from torch import Tensor

from vpt.prompt import Rows, Site
from vpt.towers.diffusion import Diffusion, open_pipeline
from vpt.towers.drawing import draw, guidance_of

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of schedulers
WORD = Site("text", "embedded", "<my-dog>")
SIZE = (16, 16)


def word(backbone: Diffusion) -> Tensor:
    encoder = next(iter(backbone.encoders))
    return backbone.vectors(encoder, "dog").to(next(backbone.image.model.parameters()).dtype)


def rewarded(backbone: Diffusion, rows: Rows, last: int, steps: int = 2, **more: float) -> Tensor:
    """A number of one picture: red less green."""
    picture = draw(backbone, backbone.embeds("a <my-dog>", rows), [5], SIZE, steps=steps, last=last, **more)
    return picture[:, 0].mean() - picture[:, 1].mean()


def double() -> Diffusion:
    return open_pipeline(sd().to(torch.float64), "diffusers/tiny", size=16)


@pytest.mark.parametrize("family", ["sd", "sdxl", "sd3", "flux", "pixart_sigma", "wan"])
def test_what_is_drawn_is_what_the_pipeline_draws(family: str) -> None:
    pipe = shared(family)
    side = SMALL[family]["height"]
    backbone = open_pipeline(pipe, family, size=side)
    site = WORD._replace(tower=next(iter(backbone.encoders)))
    rows = {site: word(backbone).requires_grad_()}
    words = {"<my-dog>": "dog"}
    prompts = ["a <my-dog> in rain", "a <my-dog>"]
    given = backbone.embeds(prompts, rows, words=words)
    ours = draw(backbone, given, [3, 4], (side, side), steps=2, last=1)
    assert ours.shape == (2, 3, side, side)
    assert torch.isfinite(torch.autograd.grad(ours.sum(), rows[site])[0]).all()
    takes = inspect.signature(type(pipe).__call__).parameters
    call = {**SMALL[family], "num_inference_steps": 2, "output_type": "pt", "return_dict": False}
    call |= {"num_frames": 1} if "num_frames" in takes else {}
    generators = [torch.Generator().manual_seed(seed) for seed in (3, 4)]
    with torch.no_grad():
        theirs = pipe(**backbone.embeds(prompts, rows, words=words), **call, generator=generators)[0]
    assert torch.equal(ours, theirs[:, 0] if theirs.ndim == 5 else theirs)


def test_the_gradient_of_all_steps_is_that_of_finite_differences() -> None:
    backbone = double()
    rows = word(backbone).requires_grad_()
    (gradient,) = torch.autograd.grad(rewarded(backbone, {WORD: rows}, last=2), rows)
    for seed in range(2):
        way = torch.randn(rows.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        near = [float(rewarded(backbone, {WORD: rows.detach() + h * way}, last=0)) for h in (1e-5, -1e-5)]
        assert (near[0] - near[1]) / 2e-5 == pytest.approx(float((gradient * way).sum()), rel=1e-4)


def test_the_gradient_of_the_last_step_is_that_of_the_loop_by_hand() -> None:
    """Latents before the last step are constants; guidance and decoder are written out."""
    backbone = double()
    pipe, rows = backbone.pipe, word(backbone).requires_grad_()
    (gradient,) = torch.autograd.grad(rewarded(backbone, {WORD: rows}, last=1, guidance=3.0), rows)
    given = backbone.embeds("a <my-dog>", {WORD: rows})
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    pipe.scheduler.set_timesteps(2)
    for i, t in enumerate(pipe.scheduler.timesteps):
        with torch.set_grad_enabled(i == 1):
            away, to = (
                pipe.unet(x, t, encoder_hidden_states=given[name]).sample
                for name in ("negative_prompt_embeds", "prompt_embeds")
            )
            x = pipe.scheduler.step(away + 3.0 * (to - away), t, x).prev_sample
    picture = (pipe.vae.decode(x / pipe.vae.config.scaling_factor).sample / 2 + 0.5).clamp(0, 1)
    (by_hand,) = torch.autograd.grad(picture[:, 0].mean() - picture[:, 1].mean(), rows)
    assert by_hand.abs().max() > 0
    torch.testing.assert_close(gradient, by_hand, rtol=1e-9, atol=1e-15)


def test_fewer_steps_under_autograd_are_another_gradient_of_the_same_picture() -> None:
    backbone = double()
    rows = word(backbone).requires_grad_()
    found = [rewarded(backbone, {WORD: rows}, last=last, steps=3) for last in (1, 2, 3, 9)]
    assert len({float(value.detach()) for value in found}) == 1
    gradients = [torch.autograd.grad(value, rows)[0] for value in found]
    assert not torch.allclose(gradients[0], gradients[1])
    assert not torch.allclose(gradients[1], gradients[2])
    assert torch.equal(gradients[2], gradients[3])
    assert not rewarded(backbone, {WORD: rows}, last=0).requires_grad


def test_the_users_pipeline_stays_as_it_is() -> None:
    pipe = sd()
    backbone = open_pipeline(pipe, "diffusers/tiny", size=16)
    before = {**vars(pipe)}, pipe.scheduler.timesteps.clone(), dict(pipe.config)
    pipe.safety_checker = watcher = torch.nn.Identity()  # would be asked for tensors under autograd
    rewarded(backbone, {WORD: word(backbone).requires_grad_()}, last=1)
    assert pipe.safety_checker is watcher
    pipe.safety_checker = None
    assert {**vars(pipe)}.keys() == before[0].keys()
    assert all(v is before[0][k] for k, v in vars(pipe).items() if k != "_internal_dict")
    assert torch.equal(pipe.scheduler.timesteps, before[1])
    assert torch.is_grad_enabled()
    with pytest.raises(ValueError, match="divisible by 8"):
        draw(backbone, backbone.embeds("a dog"), [1], (15, 15), steps=2, last=1)
    assert torch.is_grad_enabled()
    with torch.no_grad():
        rewarded(backbone, {WORD: word(backbone)}, last=1)
        assert not torch.is_grad_enabled()


def test_guidance_is_named_as_the_family_names_it() -> None:
    of = {name: open_pipeline(shared(name), name, size=16) for name in ("sd", "flux")}
    assert guidance_of(of["sd"], 0, True) == ("guidance_scale", 7.5)
    assert guidance_of(of["sd"], 3, False) == ("guidance_scale", 3.0)
    assert guidance_of(of["flux"], 2, True) == ("true_cfg_scale", 2.0)
    assert guidance_of(of["flux"], 2, False) == ("guidance_scale", 2.0)
    assert set(FAMILIES) >= set(of)
