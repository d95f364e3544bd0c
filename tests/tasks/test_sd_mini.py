"""Training of sd-mini on a few small shards: what it sees and keeps, its losses, and that a killed run goes on."""

import json

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from safetensors.torch import load_file

from vpt.data import characters, painted, scenes
from vpt.data.painted import Look
from vpt.tasks.starters import sd_mini as script
from vpt.tasks.starters import sd_pictures
from vpt.tasks.starters.sd_evaluate import evaluate, sheet
from vpt.tasks.starters.sd_mini import Pool, Recipe, as_input, denoising_loss, see, train
from vpt.tasks.starters.sd_pictures import LEARN, SEE, Captioned
from vpt.towers.starter.sd_mini import sd_mini

RECIPE = Recipe(vae_steps=4, steps=5, batch=2, fresh=2)


class FakePictures:
    """Grey pictures whose caption is their number."""

    def __init__(self, *_):
        pass

    def __call__(self, seed, index):
        return Captioned(np.full((64, 64, 3), (37 * index + 11 * seed) % 256, np.uint8), f"number {index}")


@pytest.fixture(scope="module", autouse=True)
def small_runs():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(script, "CHUNK", 64)
        patch.setattr(script, "VAE_BATCH", 1)
        patch.setattr(script, "FIRST", 1)
        patch.setattr(script, "LAST", 2)
        patch.setattr(script, "Pictures", FakePictures)
        patch.setattr("vpt.tasks.starters.loop.EVERY", 2)
        yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def pipe():
    torch.manual_seed(0)
    return sd_mini()


def test_shares_add_up():
    for shares in (SEE, LEARN):
        assert sum(shares) == pytest.approx(1)


def test_nothing_that_is_held_out_is_drawn(monkeypatch):
    told = []
    for module, name in ((painted, "draw"), (scenes, "draw"), (characters, "draw_character")):
        real = getattr(module, name)
        monkeypatch.setattr(
            module, name, lambda one, *a, real=real, **k: (told.append(one), real(one, *a, **k))[1]
        )
    source = sd_pictures.Pictures.__new__(sd_pictures.Pictures)
    source.ends = np.cumsum((0.4, 0.3, 0.3, 0, 0))
    found = [source(0, i) for i in range(60)]
    assert {type(one) for one in told} == {painted.Painting, scenes.Scene, characters.Character}
    for one in told:
        if isinstance(one, painted.Painting):
            assert not painted.is_held_out(Look(one.colour, one.shape, one.setting.background))
        elif isinstance(one, scenes.Scene):
            assert not scenes.is_held_out(one.kind)
        else:
            assert not characters.is_held_out(one)
    again = [source(0, i) for i in range(60)]
    assert all(
        a.caption == b.caption and np.array_equal(a.picture, b.picture)
        for a, b in zip(found, again, strict=True)
    )
    assert len({one.caption for one in found}) > 50


def test_the_denoising_loss_is_the_weighted_velocity_error(pipe):
    """Against diffusers' DDPM scheduler and the published weight min(SNR + 1, 5) / (SNR + 1), sample by sample."""
    latents, states = torch.randn(3, 4, 16, 16), torch.randn(3, 77, 256)
    with torch.no_grad():
        loss = denoising_loss(pipe.unet, pipe.scheduler, latents, states, torch.Generator().manual_seed(1))
    plain = DDPMScheduler.from_config(pipe.scheduler.config)
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(latents.shape, generator=generator)
    times = []  # 40% of a batch below 350, half from there to 850, 10% above
    for share in ((torch.arange(3) + torch.rand(1, generator=generator)) / 3).double().tolist():
        if share < 0.4:
            times.append(int(1000 * share / 0.4 * 0.35))
        elif share < 0.9:
            times.append(int(1000 * (0.35 + (share - 0.4) / 0.5 * 0.5)))
        else:
            times.append(int(1000 * (0.85 + (share - 0.9) / 0.1 * 0.15)))
    errors = []
    for x, n, t, state in zip(latents, noise, times, states, strict=True):
        signal = plain.alphas_cumprod[t]
        with torch.no_grad():
            noisy = signal.sqrt() * x + (1 - signal).sqrt() * n
            found = pipe.unet(noisy[None], torch.tensor(t), state[None]).sample[0]
        snr = signal / (1 - signal)
        errors.append(
            min(snr + 1, 5.0)
            / (snr + 1)
            * (found - (signal.sqrt() * n - (1 - signal).sqrt() * x)).square().mean()
        )
    torch.testing.assert_close(loss, torch.stack(errors).mean(), atol=1e-5, rtol=1e-4)


def test_the_autoencoders_losses(pipe):
    x = torch.rand(2, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        terms = see(pipe.vae, x, torch.Generator().manual_seed(0))
        latents = pipe.vae.encode(x).latent_dist
        made = pipe.vae.decode(latents.sample(torch.Generator().manual_seed(0))).sample
    torch.testing.assert_close(terms["pixels"], (made - x).abs().mean())
    normal = torch.distributions.Normal(latents.mean, latents.std)
    distance = torch.distributions.kl_divergence(normal, torch.distributions.Normal(0.0, 1.0)).mean()
    torch.testing.assert_close(terms["latents"], script.KL * distance, atol=1e-8, rtol=1e-4)
    across = (made[..., 1:] - made[..., :-1] - x[..., 1:] + x[..., :-1]).abs().mean()
    down = (made[..., 1:, :] - made[..., :-1, :] - x[..., 1:, :] + x[..., :-1, :]).abs().mean()
    torch.testing.assert_close(terms["edges"], across + down)


def test_the_pool_gives_what_the_pipeline_makes_and_drops_captions(pipe, tmp_path):
    pool = Pool(tmp_path, pipe, FakePictures(), RECIPE._replace(batch=40, dropped=0.5))
    latents, states = pool.draw(0, np.random.default_rng(0))
    source = FakePictures()
    with torch.no_grad():
        x = as_input(np.stack([source(1, i).picture for i in range(64)]))
        every = pipe.vae.encode(x).latent_dist.mean * pipe.vae.config.scaling_factor
        said = pipe.encode_prompt([f"number {i}" for i in range(64)], "cpu", 1, False)[0]
        nothing = pipe.encode_prompt([""], "cpu", 1, False)[0][0]
    unsaid = 0
    for latent, state in zip(latents, states, strict=True):
        number = int((every - latent).abs().amax((1, 2, 3)).argmin())
        torch.testing.assert_close(latent, every[number], atol=2e-2, rtol=1e-2)
        unsaid += (state - nothing).abs().max() < 1e-2
        assert min((state - s).abs().max() for s in (nothing, said[number])) < 1e-2
    assert 10 < unsaid < 30
    pool.draw(2 * RECIPE.fresh, np.random.default_rng(0))
    assert not (tmp_path / "latents-00000.npy").exists()
    assert (tmp_path / "latents-00002.npy").exists()
    made = {file: file.stat().st_mtime_ns for file in tmp_path.iterdir()}
    for number in range(5):  # what is in use is not made again
        pool.draw(2 * RECIPE.fresh, np.random.default_rng(number))
    assert {file: file.stat().st_mtime_ns for file in tmp_path.iterdir()} == made


def test_a_killed_run_goes_on_to_the_same_weights(tmp_path, monkeypatch):
    whole = train(tmp_path, tmp_path / "whole", RECIPE, progress=False)
    taken = []
    real = script.denoising_loss

    def dies(*args):
        taken.append(1)
        if len(taken) == 4:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(script, "denoising_loss", dies)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, tmp_path / "cut", RECIPE, progress=False)
    cut = train(tmp_path, tmp_path / "cut", RECIPE, progress=False)
    for part in ("unet", "vae"):
        file = f"{part}/diffusion_pytorch_model.safetensors"
        one, other = load_file(whole / file), load_file(cut / file)
        assert all(t.dtype == torch.float16 for t in one.values())
        assert all(torch.equal(one[name], other[name]) for name in one)
    config = json.loads((cut / "vae" / "config.json").read_text())
    assert config["scaling_factor"] not in (0.18215, 1.0)
    with pytest.raises(ValueError, match=r"holds a run with lr = 0\.002, this one has 0\.5"):
        train(tmp_path, tmp_path / "cut", RECIPE._replace(lr=0.5), progress=False)
    lines = list(evaluate(cut, out=tmp_path / "sheets", count=12, steps=1))
    assert "12 held-out captions" in lines[0]
    assert {f.name for f in (tmp_path / "sheets").iterdir()} == {"held-out.png", "characters.png"}


def test_a_sheet_holds_its_pictures():
    from PIL import Image

    red, blue = (Image.new("RGB", (8, 8), colour) for colour in ("red", "blue"))
    made = sheet([[red, blue], [blue, red]], zoom=2)
    assert made.size == (40, 40)
    assert made.getpixel((1, 1)) == made.getpixel((21, 21)) == (255, 0, 0)
    assert made.getpixel((21, 1)) == (0, 0, 255)


def test_the_command_says_what_it_lacks(capsys):
    with pytest.raises(SystemExit):
        script.main(["--data", "x"])
    assert "--out, a folder for the run" in capsys.readouterr().err
