"""What sd-mini draws: held-out captions, read by a checker on pixels, and sheets of things beside real ones."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image, ImageDraw

from vpt.data import characters
from vpt.data.painted import Look, Setting, captions, painting, sentences
from vpt.data.scene_check import obeyed
from vpt.data.scenes import one_of
from vpt.tasks.starters.sentences import emoji_names
from vpt.tasks.starters.shards import find_shards, pictures
from vpt.towers.starter.sd_mini import load_sd_mini

__all__ = ["evaluate", "make", "sheet"]

BATCH = 25
STEPS, GUIDANCE = 20, 4.0
COUNT, SEED = 200, 1_000_003  # of held-out captions; training draws from seeds 0 and 1
CHOSEN = (
    "grinning face,red heart,cat face,dog face,sun,crescent moon,red apple,rocket,bug,pig face,frog,cookie"
)


def make(
    pipe: StableDiffusionPipeline, prompts: Sequence[str], steps: int = STEPS, guidance: float = GUIDANCE
) -> list[Image.Image]:
    """One picture a prompt; number i from noise of seed i."""
    made: list[Image.Image] = []
    for start in range(0, len(prompts), BATCH):
        part = list(prompts[start : start + BATCH])
        noise = [torch.Generator().manual_seed(start + i) for i in range(len(part))]
        made += pipe(part, num_inference_steps=steps, guidance_scale=guidance, generator=noise).images
    return made


def sheet(rows: Sequence[Sequence[Image.Image]], labels: Sequence[str] = (), zoom: int = 2) -> Image.Image:
    """Pictures of one size in rows; above every column its label, where there is one."""
    side, gap = rows[0][0].width * zoom, 4
    top = 14 if labels else 0
    canvas = Image.new("RGB", (len(rows[0]) * (side + gap), top + len(rows) * (side + gap)), "white")
    for x, label in enumerate(labels):
        ImageDraw.Draw(canvas).text((x * (side + gap), 1), label[: side // 6], fill="black")
    for y, row in enumerate(rows):
        for x, picture in enumerate(row):
            place = (x * (side + gap), top + y * (side + gap))
            canvas.paste(picture.resize((side, side), Image.Resampling.NEAREST), place)
    return canvas


def evaluate(
    weights: Path | None = None,
    data: Path | None = None,
    out: Path | None = None,
    *,
    count: int = COUNT,
    steps: int = STEPS,
) -> Iterator[str]:
    """Measure sd-mini, or the folder ``weights``; yields lines of text.

    out: a folder for sheets of what was drawn. data: holds the folder emoji, for real ones beside those drawn.
    """
    pipe = load_sd_mini(weights)
    yield from _held_out(pipe, out, count, steps)
    if out is not None:
        yield from _sheets(pipe, data, out, steps)


def _held_out(pipe: StableDiffusionPipeline, out: Path | None, count: int, steps: int) -> Iterator[str]:
    """Single things whose combination of colour, shape and background training has not shown, plainly told."""
    asked = [painting(SEED, i, held_out=True) for i in range(count)]
    made = make(pipe, [captions(one)[0] for one in asked], steps)
    looks = [Look(one.colour, one.shape, one.setting.background) for one in asked]
    found = np.array([obeyed(look, picture) for look, picture in zip(looks, made, strict=True)])
    both = found[:, 0] & found[:, 1]
    said = np.array([look.background is not None for look in looks])
    yield (
        f"{count} held-out captions of one thing, {steps} steps, guidance {GUIDANCE:g}: "
        f"colour and shape {both.mean():.1%}, colour {found[:, 0].mean():.1%}, shape {found[:, 1].mean():.1%}"
    )
    yield (
        f"the {said.sum()} of them that say a background: background {found[said, 2].mean():.1%}, "
        f"all three {(both & found[:, 2])[said].mean():.1%}"
    )
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        sheet([made[i : i + 12] for i in range(0, min(count, 72) // 12 * 12, 12)]).save(out / "held-out.png")


def _sheets(pipe: StableDiffusionPipeline, data: Path | None, out: Path, steps: int) -> Iterator[str]:
    out.mkdir(parents=True, exist_ok=True)
    new = characters.new_characters()
    settings = (Setting(), Setting("blue"), Setting("yellow"))
    rows = [[characters.draw_character(one, settings[0], SEED, i) for i, one in enumerate(new)]]
    rows += [make(pipe, [sentences(str(one), s)[0] for one in new], steps) for s in settings]
    sheet(rows).save(out / "characters.png")
    if data is not None:
        names = [names[0] for names in emoji_names(f"{data}/emoji")]
        every = [p for shard in find_shards(f"{data}/emoji", "emoji") for p in pictures(shard)]
        chosen = [name for name in CHOSEN.split(",") if name in names]
        real = [every[names.index(name)] for name in chosen]
        said = [f"an emoji of {one_of(name)}" for name in chosen]
        sheet([real, make(pipe, said, steps), make(pipe, said, steps, guidance=2.0)], chosen).save(
            out / "emoji.png"
        )
    yield f"sheets are in {out}: held-out.png, characters.png (real ones first), emoji.png (real ones first)"
