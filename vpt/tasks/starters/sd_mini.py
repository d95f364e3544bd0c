"""Trains sd-mini, and measures the committed weights.

    python -m vpt.tasks.starters.sd_mini --data DIR --out DIR
    python -m vpt.tasks.starters.sd_mini --evaluate

DIR holds the folders tiny-imagenet and emoji. First the autoencoder learns, for the first steps on parts of pictures,
which cost a quarter and show as much. Then the U-Net learns what captions say, on latents and text states that are
computed once and kept while they are of use; fresh pictures join them all the time. The text encoder is clip-mini's
and stays as it is. Killed at any moment, the same command goes on.
"""

import argparse
import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn

from vpt.tasks.starters.loop import Training
from vpt.tasks.starters.sd_evaluate import evaluate
from vpt.tasks.starters.sd_pictures import LEARN, SEE, Pictures
from vpt.towers.starter.sd_mini import sd_mini

__all__ = ["Pool", "Recipe", "denoising_loss", "main", "see", "train"]

PART = 32  # side of the parts of pictures that the autoencoder sees first
PARTS = 4  # of each picture
VAE_BATCH = 8  # pictures a step of the autoencoder
KL = 5e-4  # weight of the distance of latents to a normal distribution, a number
SHARES, TIMES = (0.0, 0.4, 0.9, 1.0), (0.0, 0.35, 0.85, 1.0)  # of a batch, up to which part of all times
GAMMA = 5.0  # of min-SNR weighting (arXiv 2303.09556)
CHUNK = 1024  # pictures that are kept in one file
FIRST, LAST = 6, 16  # chunks to begin with, and at most in use


class Recipe(NamedTuple):
    """What the committed weights were made with."""

    vae_steps: int = 2000
    vae_lr: float = 3e-3
    steps: int = 6500  # may be changed on the way: the learning rate follows
    lr: float = 2e-3
    batch: int = 32
    fresh: int = 100  # steps after which a new chunk joins
    dropped: float = 0.1  # captions, for classifier-free guidance
    seed: int = 0


def see(vae: AutoencoderKL, x: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
    """Losses of pictures [B, 3, H, W] in [-1, 1] that pass the autoencoder: pixels, edges, size of the latents."""
    latents = vae.encode(x).latent_dist
    made = vae.decode(latents.sample(generator)).sample
    edges = sum(F.l1_loss(made.diff(dim=d), x.diff(dim=d)) for d in (2, 3))
    return {
        "pixels": F.l1_loss(made, x),
        "edges": torch.as_tensor(edges),
        "latents": KL * latents.kl().mean() / latents.mean[0].numel(),
    }


def denoising_loss(
    unet: nn.Module, scheduler: DDIMScheduler, latents: Tensor, states: Tensor, generator: torch.Generator
) -> Tensor:
    """Mean squared error of the velocity, weighted by min-SNR; latents [B, 4, h, w], text states [B, 77, 256].

    Times are spread evenly over the batch, most of them where a thing's shape is decided: with little noise it is seen
    in what is given, with much it is not seen at all.
    """
    b, total = len(latents), scheduler.config.num_train_timesteps
    noise = torch.randn(latents.shape, generator=generator)
    share = (torch.arange(b) + torch.rand(1, generator=generator)) / b
    times = torch.from_numpy(np.interp(share.numpy(), SHARES, TIMES) * total).long().clamp_(max=total - 1)
    found = unet(scheduler.add_noise(latents, noise, times), times, states).sample
    signal = scheduler.alphas_cumprod[times]
    snr = signal / (1 - signal)
    weight = (snr + 1).clamp(max=GAMMA) / (snr + 1)
    error = F.mse_loss(found, scheduler.get_velocity(latents, noise, times), reduction="none")
    return (weight * error.mean(dim=(1, 2, 3))).mean()


class Pool:
    """Latents and text states of pictures, kept by the thousand; the oldest files go when new ones join."""

    def __init__(self, folder: Path, pipe: StableDiffusionPipeline, pictures: Pictures, recipe: Recipe):
        self.folder, self.pipe, self.pictures, self.recipe = folder, pipe, pictures, recipe
        self.opened: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self.nothing = self._read([""])[0]

    def draw(self, step: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """A batch of a step: latents [B, 4, 16, 16] and text states [B, 77, 256], float32."""
        newest = FIRST + step // self.recipe.fresh
        for number in [n for n in self.opened if n < newest - LAST]:
            del self.opened[number]
            for file in self._files(number):
                file.unlink(missing_ok=True)
        window = range(max(0, newest - LAST), newest)
        picked = [(int(rng.choice(window)), int(rng.integers(CHUNK))) for _ in range(self.recipe.batch)]
        rows = [[kept[i] for kept in self._open(number)] for number, i in picked]
        latents, states = (torch.from_numpy(np.stack(part)).float() for part in zip(*rows, strict=True))
        unsaid = torch.from_numpy(rng.random(len(picked)) < self.recipe.dropped)
        return latents, torch.where(unsaid[:, None, None], self.nothing, states)

    def _files(self, number: int) -> list[Path]:
        return [self.folder / f"{kind}-{number:05}.npy" for kind in ("latents", "states")]

    def _open(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        if number not in self.opened:
            files = self._files(number)
            if not all(file.exists() for file in files):
                self._make(number, files)
            self.opened[number] = (np.load(files[0]), np.load(files[1], mmap_mode="r"))
        return self.opened[number]

    @torch.inference_mode()
    def _make(self, number: int, files: list[Path]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        kept: tuple[list[Tensor], list[Tensor]] = ([], [])
        for start in range(number * CHUNK, (number + 1) * CHUNK, 64):
            shown = [self.pictures(self.recipe.seed + 1, i) for i in range(start, start + 64)]
            x = as_input(np.stack([s.picture for s in shown]))
            latents = self.pipe.vae.encode(x).latent_dist.mean * self.pipe.vae.config.scaling_factor
            kept[0].append(latents.half())
            kept[1].append(self._read([s.caption for s in shown]).half())
        for file, rows in zip(files, kept, strict=True):
            part = file.with_suffix(".part")
            with part.open("wb") as stream:
                np.save(stream, torch.cat(rows).contiguous().numpy())
            os.replace(part, file)

    @torch.inference_mode()
    def _read(self, captions: list[str]) -> Tensor:
        ids = self.pipe.tokenizer(
            captions, padding="max_length", truncation=True, max_length=77, return_tensors="pt"
        ).input_ids
        return self.pipe.text_encoder(ids).last_hidden_state


def as_input(pictures: np.ndarray) -> Tensor:
    """uint8 [B, H, W, 3] -> [B, 3, H, W] in [-1, 1], channels last in memory."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)


def _numbers(recipe: Recipe, stage: int, step: int) -> tuple[np.random.Generator, torch.Generator]:
    rng = np.random.default_rng([recipe.seed, 31, stage, step])
    return rng, torch.Generator().manual_seed(int(rng.integers(2**63)))


def _train_vae(vae: AutoencoderKL, pictures: Pictures, out: Path, recipe: Recipe, progress: bool) -> None:
    """Leaves the averaged weights, and the scale at which latents have variance 1, in ``vae``."""

    def losses(step: int) -> dict[str, Tensor]:
        rng, generator = _numbers(recipe, 0, step)
        size = VAE_BATCH
        x = as_input(np.stack([pictures(recipe.seed, step * size + i).picture for i in range(size)]))
        if step < 0.6 * recipe.vae_steps:
            x = torch.cat([_part(picture, rng) for picture in x for _ in range(PARTS)])
        return see(vae, x.contiguous(memory_format=torch.channels_last), generator)

    _start(vae)
    with torch.no_grad():  # little noise at first: else pictures drown in it
        vae.quant_conv.bias.chunk(2)[1].fill_(-4.0)
    training = Training(vae, lambda _: recipe.vae_lr, recipe.vae_steps, out / "vae.pt")
    vae.load_state_dict(training.run(losses, progress).state_dict())
    with torch.inference_mode():
        x = as_input(np.stack([pictures(recipe.seed, i).picture for i in range(256)]))
        spread = vae.encode(x).latent_dist.mean.std().item()
    vae.register_to_config(scaling_factor=1 / spread)


@torch.no_grad()
def _start(model: nn.Module) -> None:
    """Residual blocks begin as nothing, so what enters comes out: both networks learn several times as fast."""
    for block in model.modules():
        if isinstance(block, ResnetBlock2D):
            block.conv2.weight.zero_()


def _part(picture: Tensor, rng: np.random.Generator) -> Tensor:
    """Of three places, that where the picture [3, H, W] varies most: [1, 3, 32, 32]."""
    places = rng.integers(0, picture.shape[1] - PART + 1, (3, 2)).tolist()
    parts = [picture[:, y : y + PART, x : x + PART] for y, x in places]
    return max(parts, key=lambda part: part.std().item())[None]


def train(data: Path, out: Path, recipe: Recipe, *, progress: bool = True) -> Path:
    """Train sd-mini on the sets in ``data``, or go on with what ``out`` holds.

    Returns the folder ``out/sd-mini`` with U-Net, autoencoder and scheduler in float16, as the package holds them.
    """
    _same_run(out, recipe)
    torch.manual_seed(recipe.seed)
    pipe = sd_mini()
    for part in (pipe.vae, pipe.unet):
        part.to(memory_format=torch.channels_last)
    folder = out / "vae"
    if not folder.exists():
        _train_vae(pipe.vae, Pictures(data, SEE), out, recipe, progress)
        pipe.vae.save_pretrained(out / "vae.part")
        os.replace(out / "vae.part", folder)
    pipe.vae = AutoencoderKL.from_pretrained(folder).eval()
    _start(pipe.unet)
    pool = Pool(out / "pool", pipe, Pictures(data, LEARN), recipe)

    def losses(step: int) -> dict[str, Tensor]:
        rng, generator = _numbers(recipe, 1, step)
        latents, states = pool.draw(step, rng)
        latents = latents.contiguous(memory_format=torch.channels_last)
        return {"velocity": denoising_loss(pipe.unet, pipe.scheduler, latents, states, generator)}

    training = Training(pipe.unet, lambda _: recipe.lr, recipe.steps, out / "unet.pt")
    pipe.unet.load_state_dict(training.run(losses, progress).state_dict())
    return keep(pipe, out / "sd-mini")


def keep(pipe: StableDiffusionPipeline, folder: Path) -> Path:
    """Write what the package holds: U-Net and autoencoder in float16, and the scheduler."""
    for name in ("unet", "vae"):
        part: Any = getattr(pipe, name)
        part.half().save_pretrained(folder / name)
        part.float()
    pipe.scheduler.save_pretrained(folder / "scheduler")
    return folder


def _same_run(out: Path, recipe: Recipe) -> None:
    """Raises ValueError if ``out`` holds a run of another recipe."""
    out.mkdir(parents=True, exist_ok=True)
    file = out / "run.json"
    held = json.loads(file.read_text()) if file.exists() else recipe._asdict()
    for key, value in recipe._asdict().items():
        if key != "steps" and held.get(key) != value:
            raise ValueError(
                f"{out} holds a run with {key} = {held.get(key)!r}, this one has {value!r}. Give another "
                "--out, or remove that folder."
            )
    part = file.with_suffix(".part")
    part.write_text(json.dumps(recipe._asdict(), indent=1))
    os.replace(part, file)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description="Train sd-mini, or measure it.", formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="folder of tiny-imagenet and emoji")
    parser.add_argument(
        "--out",
        type=Path,
        help="folder of the run, which the same command goes on with; of pictures with --evaluate",
    )
    for name, value in Recipe()._asdict().items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    parser.add_argument("--evaluate", action="store_true", help="measure, train nothing")
    parser.add_argument("--weights", type=Path, help="with --evaluate: a folder in place of the package's")
    a = parser.parse_args(arguments)
    if a.evaluate:
        for line in evaluate(a.weights, a.data, a.out):
            print(line, flush=True)
    elif a.data is None or a.out is None:
        parser.error("give --data, the folder of pictures, and --out, a folder for the run; or --evaluate.")
    else:
        print(train(a.data, a.out, Recipe(**{name: getattr(a, name) for name in Recipe._fields})))


if __name__ == "__main__":
    main()
