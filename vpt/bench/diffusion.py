"""What a step of textual inversion costs, ours against the plain way, on Stable Diffusion 1.5 made narrow."""

from __future__ import annotations

import copy
import json as text
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from open_clip.tokenizer import SimpleTokenizer
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from vpt.bench.measure import Clock, Key, Work, check_json, in_turns, machine, peak_mb, write
from vpt.data.concept import TEMPLATES
from vpt.encode import advance
from vpt.objectives.denoise import Denoise, Schedule
from vpt.tasks.device import resolve_device
from vpt.tasks.diffusion import DiffusionLearner
from vpt.tasks.learner import build_method
from vpt.tower import Stream
from vpt.towers.diffusion import Diffusion, open_pipeline

__all__ = ["bench_diffusion", "peaks", "stable_diffusion"]

AGREE = (
    1e-3  # relative, of the new word's gradient in float32: rounding through U-Net and encoder is about 1e-5
)
NEW, WORD, RATE = "<my-concept>", "dog", 5e-3
WIDE = 32  # the norms of Stable Diffusion 1.5 have so many groups; it can be made narrower by a divisor
# What was asked of "ours": time in floors, times as fast as the plain way, share of its memory.
TARGETS = {"times_floor": 1.15, "times_as_fast": 1.4, "of_plain_mb": 0.7}
VARIANTS = ("plain way", "ours", "ours, latents anew", "ours, activations anew", "floor")
PLAIN, FLOOR = VARIANTS[0], VARIANTS[-1]
STEPS = (
    2  # that memory is measured over: in the second, the optimiser's state is there beside the activations
)
# glibc's malloc hands freed tensors back: with its own rule up to half as much again stays resident, by chance
AT_ONCE = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1", "MALLOC_TOP_PAD_": "0"}

Step = Callable[
    [], tuple[Tensor, Tensor]
]  # to the loss, and to the gradient of the new word or of the context


def stable_diffusion(narrow: int, size: int) -> StableDiffusionPipeline:
    """Stable Diffusion 1.5 from its configs with random weights: U-Net, VAE and text encoder narrower by one factor.

    Widths, heads and groups of norms shrink; depths, the vocabulary of 49,408 and the 77 positions stay.
    """
    width, groups = 768 // narrow, WIDE // narrow
    theirs = SimpleTokenizer()
    ends = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    vocabulary = {ends.get(entry, entry): i for entry, i in theirs.encoder.items()}
    text_config = CLIPTextConfig(
        vocab_size=49408,
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=12,
        num_attention_heads=max(1, 12 // narrow),
        max_position_embeddings=77,
        hidden_act="quick_gelu",
        bos_token_id=49406,
        eos_token_id=49407,
        pad_token_id=49407,
    )
    unet = UNet2DConditionModel(
        sample_size=size // 8,
        block_out_channels=tuple(c // narrow for c in (320, 640, 1280, 1280)),
        cross_attention_dim=width,
        attention_head_dim=max(1, 8 // narrow),  # its name for the number of heads
        norm_num_groups=groups,
    )
    vae = AutoencoderKL(
        block_out_channels=tuple(c // narrow for c in (128, 256, 512, 512)),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        norm_num_groups=groups,
        sample_size=size,
    )
    betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    scheduler = DDPMScheduler(**betas, steps_offset=1, clip_sample=False)
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=CLIPTextModel(text_config),
        tokenizer=CLIPTokenizer(vocab=vocabulary, merges=list(theirs.bpe_ranks), model_max_length=77),
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


@dataclass(frozen=True)
class _Subject:
    """One model and one batch of pictures. stored: the moments of their latents, as training keeps them."""

    backbone: Diffusion
    images: Tensor
    stored: Stream

    @classmethod
    def made(cls, narrow: int, size: int, batch: int, device: torch.device) -> _Subject:
        torch.manual_seed(0)
        pipe = stable_diffusion(narrow, size)
        pipe.set_progress_bar_config(disable=True)
        backbone = open_pipeline(pipe.to(device), "diffusers/sd-1.5", size=size)
        images = (torch.rand(batch, 3, size, size) * 2 - 1).to(device)
        with torch.no_grad():
            return cls(backbone, images, advance(backbone.image, images, {}, "pooled"))

    @cached_property
    def captions(self) -> list[str]:
        return [TEMPLATES[i % len(TEMPLATES)].replace("{}", NEW) for i in range(len(self.images))]

    @cached_property
    def schedule(self) -> Schedule:
        return Schedule("epsilon", self.backbone.alphas)

    def step(self, variant: str) -> Step:
        """Training steps of a variant, from its start: each forward, backward and the optimiser's part."""
        if variant == PLAIN:
            return self.plain()
        if variant == FLOOR:
            return self.floor()
        return self.ours(fresh="latents" in variant, remat="activations" in variant)

    def ours(self, *, fresh: bool, remat: bool) -> Step:
        """The objective's step on the method's learner, as the task asks for it."""
        method = build_method("textual-inversion", self.backbone, {"concept": NEW.strip("<>"), "word": WORD})
        learner = DiffusionLearner(method, self.backbone).train()
        said = [[caption] for caption in self.captions]
        objective, (row,) = Denoise(self.schedule, said, said), method.parameters()
        optimizer = torch.optim.AdamW(learner.groups(RATE, RATE, 0.0))
        batch = {"index": torch.arange(len(self.images))}
        self.backbone.vocabulary(
            "text", {NEW: 1}
        )  # once a run; the plain way's tokenizer is there before, too
        inputs: Tensor | Stream = self.images if fresh else self.stored
        denoiser = self.backbone.denoiser

        def run() -> tuple[Tensor, Tensor]:
            torch.manual_seed(0)
            if remat:
                denoiser.enable_gradient_checkpointing()
            seen, task = objective.step(learner, inputs, batch, 0)
            loss = method.total(method.losses(seen, task))
            loss.backward()
            if remat:  # the others share the network
                denoiser.disable_gradient_checkpointing()
            optimizer.step()
            grad = row.grad
            optimizer.zero_grad()
            assert grad is not None
            return loss.detach(), grad.flatten()

        return run

    def plain(self) -> Step:
        """What diffusers' examples/textual_inversion/textual_inversion.py does in a step; sentences are ids already."""
        pipe, tokenizer = self.backbone.pipe, copy.deepcopy(self.backbone.pipe.tokenizer)
        encoder = copy.deepcopy(pipe.text_encoder)
        tokenizer.add_tokens([NEW])
        new, word = (tokenizer.convert_tokens_to_ids(t) for t in (NEW, f"{WORD}</w>"))
        encoder.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        table = encoder.get_input_embeddings().weight
        with torch.no_grad():
            table[new] = table[word]
        encoder.train()
        table.requires_grad_()
        optimizer = torch.optim.AdamW([table], RATE, weight_decay=1e-2)
        ids = tokenizer(self.captions, padding="max_length", truncation=True, return_tensors="pt").input_ids
        ids = ids.to(table.device)
        kept: list[Tensor] = []

        def run() -> tuple[Tensor, Tensor]:
            if not kept:
                kept.append(table.detach().clone())  # of the way, not of the model, so memory counts it
            torch.manual_seed(0)
            with torch.no_grad():
                x = pipe.vae.encode(self.images).latent_dist.sample() * pipe.vae.config.scaling_factor
            noise = torch.randn_like(x)
            t = torch.randint(pipe.scheduler.config.num_train_timesteps, (len(x),), device=x.device)
            predicted = pipe.unet(pipe.scheduler.add_noise(x, noise, t), t, encoder(ids)[0]).sample
            loss = F.mse_loss(predicted, noise)
            loss.backward()
            optimizer.step()
            others = torch.ones(len(table), dtype=torch.bool)
            others[new] = False
            with torch.no_grad():
                table[others] = kept[0][others]
            assert table.grad is not None
            grad = table.grad[new].clone()
            optimizer.zero_grad()
            return loss.detach(), grad

        return run

    def floor(self) -> Step:
        """What nothing can avoid: the denoiser forward, and backward to its context."""
        with torch.no_grad():
            x = self.backbone.latents(self.stored.x)
            given = self.backbone.embeds([c.replace(NEW, WORD) for c in self.captions], guided=False)
        context, noise = given["prompt_embeds"].clone().requires_grad_(), torch.randn_like(x)
        t = self.schedule.spread(len(x), x.device)
        noisy, unet = self.schedule.noisy(x, noise, t), self.backbone.denoiser

        def run() -> tuple[Tensor, Tensor]:
            loss = F.mse_loss(unet(noisy, t, context).sample, noise)
            return loss.detach(), torch.autograd.grad(loss, context)[0]

        return run


def _agree(b: _Subject) -> float:
    """Relative difference between our gradient of the new word and the plain way's, with the same noise.

    Raises RuntimeError above rounding, and where a weight of the denoiser got a gradient.
    """
    plain = b.step(PLAIN)()
    worst = 0.0
    for variant in VARIANTS[1:-1]:
        for mine, theirs in zip(b.step(variant)(), plain, strict=True):
            worst = max(worst, float((mine - theirs).norm() / theirs.norm()))
    if not worst <= AGREE:
        raise RuntimeError(
            f"ours and the plain way differ by {worst:.1e} in the loss or in the gradient of the new word, more than "
            f"{AGREE:.0e}. Their times cannot be compared; please report this."
        )
    if any(p.grad is not None or p.requires_grad for p in b.backbone.denoiser.parameters()):
        raise RuntimeError("weights of the denoiser got a gradient, which costs time. Please report this.")
    return worst


def _highest() -> int | None:
    """Highest resident set of this process since the last call, in bytes; None where the system does not tell."""
    try:
        status = Path("/proc/self/status").read_text()
        Path("/proc/self/clear_refs").write_text("5")  # counts anew
    except OSError:
        return None
    return 1024 * next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))


def peaks(variant: str, narrow: int, size: int, batch: int, device: str, threads: int) -> dict[str, Any]:
    """Peak memory of the first steps of a variant: tensors, and what the resident set of this process grew by.

    Both beyond what was there before: the model and the pictures. Meant for a fresh process.
    """
    torch.set_num_threads(threads)
    where = torch.device(device)
    b = _Subject.made(narrow, size, batch, where)
    first, second = b.step(variant), b.step(variant)

    def steps(run: Step) -> None:
        for _ in range(STEPS):
            run()

    _highest()
    before = _highest()
    steps(first)
    after = _highest()
    grown = None if before is None or after is None else (after - before) / 1e6
    return {"peak_mb": peak_mb(partial(steps, second), where), "resident_mb": grown}


def _apart(*arguments: Any) -> dict[str, Any]:
    """:func:`peaks` in a process of its own."""
    code = f"import json; from vpt.bench.diffusion import peaks; print(json.dumps(peaks(*{arguments!r})))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | AT_ONCE
    )
    if done.returncode:
        raise RuntimeError(f"the memory of {arguments[0]!r} was not measured: {done.stderr.strip()[-2000:]}")
    found: dict[str, Any] = text.loads(done.stdout.splitlines()[-1])
    return found


def _rows(
    work: str, times: Mapping[Key, Sequence[float]], memory: Mapping[str, Mapping[str, Any]]
) -> list[dict[str, Any]]:
    mine = {variant: times[work, variant, "float32"] for variant in VARIANTS}

    def ratio(over: Sequence[float], under: Sequence[float]) -> float:
        return round(median(a / b for a, b in zip(over, under, strict=True)), 4)

    rows = []
    for variant, taken in mine.items():
        peak, resident = memory[variant]["peak_mb"], memory[variant]["resident_mb"]
        row = {
            "work": work,
            "variant": variant,
            "precision": "float32",
            "ms_median": round(median(taken), 2),
            "ms_min": round(min(taken), 2),
            "times_floor": ratio(taken, mine[FLOOR]),
            "times_as_fast": ratio(mine[PLAIN], taken),
            "peak_mb": round(peak, 2),
            "of_plain_mb": round(peak / memory[PLAIN]["peak_mb"], 4),
            "resident_mb": None if resident is None else round(resident, 1),
        }
        rows.append(row | {"targets": TARGETS if variant == "ours" else None})
    return rows


def _show(about: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> None:
    console = Console()
    title = f"vpt bench diffusion: {rows[0]['work']}"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("step", no_wrap=True)
    for name in ("ms", "min", "floors", "faster", "MB", "share", "RSS"):
        table.add_column(name, justify="right", no_wrap=True)
    for r in rows:
        numbers = (f"{r['ms_median']:.0f}", f"{r['ms_min']:.0f}", f"{r['times_floor']:.2f}")
        memory = (f"{r['peak_mb']:.0f}", f"{r['of_plain_mb']:.2f}")
        resident = "" if r["resident_mb"] is None else f"{r['resident_mb']:.0f}"
        table.add_row(r["variant"], *numbers, f"{r['times_as_fast']:.2f}", *memory, resident)
    console.print(table)
    ours = next(r for r in rows if r["targets"])
    for name, wanted in TARGETS.items():
        least = name == "times_as_fast"
        met = ours[name] >= wanted if least else ours[name] <= wanted
        said = f"ours, {name}: {ours[name]:.3g}, wanted at {'least' if least else 'most'} {wanted:g}"
        console.print(f"{said}: {'met' if met else 'missed'}", highlight=False)
    for name, value in about.items():
        console.print(f"{name}: {value}", style="dim", highlight=False, markup=False)


def bench_diffusion(
    *,
    narrow: int = 4,
    size: int = 512,
    batch: int = 1,
    repeats: int = 5,
    device: str = "cpu",
    threads: int | None = None,
    clock: Clock = "wall",
    json: str | None = None,
) -> dict[str, Any]:
    """Time a step of textual inversion our way, the plain way and its floor, in turns; memory each in its own process.

    narrow: Stable Diffusion 1.5's widths are divided by so much: 1, 2, 4, 8, 16 or 32.  size: of the pictures, in
        pixels; a multiple of 64.  batch: pictures a step.
    repeats: turns, after one for warm-up.  device: auto, cpu, cuda, cuda:N, mps.  threads, clock: as in bench vit.
    json: file for ``{"machine": .., "rows": [..]}``.
    Raises ValueError for options that cannot be, RuntimeError if ours and the plain way give other gradients.
    """
    check_json(json)
    where = resolve_device(device)
    if narrow < 1 or WIDE % narrow or size < 64 or size % 64 or batch < 1 or repeats < 1:
        raise ValueError(
            f"narrow={narrow} (a divisor of {WIDE}), size={size} (a multiple of 64), batch={batch}, repeats={repeats} "
            "(1 or more): one of them cannot be."
        )
    if clock == "cpu" and (where.type != "cpu" or threads != 1):
        raise ValueError(
            "clock='cpu' counts the processor time of one thread: give device=cpu and threads=1."
        )
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    work = f"SD 1.5 / {narrow}, {size} px, batch {batch}"
    try:
        options = (narrow, size, batch, str(where), torch.get_num_threads())
        memory = {variant: _apart(variant, *options) for variant in VARIANTS}
        b = _Subject.made(narrow, size, batch, where)
        apart = _agree(b)
        works = [Work(work, variant, "float32", b.step(variant)) for variant in VARIANTS]
        times = in_turns(works, repeats, where, clock)
        about = machine(where, repeats=repeats, clock=clock, gradients_differ_by=apart)
    finally:
        torch.set_num_threads(before)
    about = {k: v for k, v in about.items() if k not in ("times_plain_is", "times_floor_is", "timm")}
    about["floor_is"] = "forward of the U-Net and backward to its context"
    about["times_as_fast_is"] = "median over the turns of the plain way's time divided by this one's"
    about["peak_mb_is"] += f"; of the first {STEPS} steps, in a process of their own, without the model"
    about["resident_mb_is"] = (
        "what the resident set grew by at most in them, where freed memory is handed back"
    )
    report = _rows(work, times, memory)
    _show(about, report)
    if json is not None:
        write(json, about, report)
    return {"machine": about, "rows": report}
