"""How a diffusion pipeline is called for pictures, whatever its family: what it takes is read off its signature."""

from __future__ import annotations

import copy
import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from vpt.towers.diffusion import Diffusion

__all__ = ["Settings", "draw_batch", "settings_of"]

Progress = Callable[[int, int], object]  # steps that are done, and all


@dataclass(frozen=True)
class Settings:
    """What a pipeline is called with beside the prompt, its own defaults filled in.

    negative: None: the pipeline's own, which is the empty prompt, or none.  scale: what its call names ``guidance``.
    size: height and width in pixels; None: as the call chooses.  frames: None for pictures.
    """

    negative: str | None
    steps: int
    guidance: float | None
    scale: str
    size: tuple[int, int] | None
    frames: int | None

    @property
    def guided(self) -> bool:
        """Whether the negative side is drawn away from."""
        return self.guidance is not None and self.guidance > 1

    def arguments(self) -> dict[str, Any]:
        """For the call, by its names; those that a call does not take are to be left out."""
        height, width = self.size or (None, None)
        given = {
            "num_inference_steps": self.steps,
            self.scale: self.guidance,
            "height": height,
            "width": width,
            "num_frames": self.frames,
        }
        return {k: v for k, v in given.items() if v is not None}


def settings_of(
    backbone: Diffusion,
    pipe: Any,
    *,
    negative: str | None,
    steps: int | None,
    guidance: float | None,
    size: int | tuple[int, int] | None,
    frames: int | None,
) -> Settings:
    """Settings for a call of ``pipe``, a pipeline of the backbone's family; None: what the pipeline does by itself.

    Raises ValueError for what the pipeline does not take, and for a negative side that would do nothing.
    """
    takes, kind = inspect.signature(type(pipe).__call__).parameters, type(pipe).__name__
    if negative is not None and "negative_prompt_embeds" not in takes:
        raise ValueError(f"{kind} reads no negative side. Leave the negative prompt out.")
    if size is not None and "height" not in takes:
        raise ValueError(f"{kind} draws as large as the picture that it is given. Leave size out.")
    if frames is not None and "num_frames" not in takes:
        raise ValueError(f"{kind} draws pictures, not videos. Leave frames out.")
    true = "true_cfg_scale" in takes
    if true and negative is None and guidance is not None and takes["guidance_scale"].default is None:
        negative = " "  # its one guidance needs a side to draw away from: Qwen-Image's card says a blank
    scale = "true_cfg_scale" if true and negative is not None else "guidance_scale"
    value = takes[scale].default if guidance is None else guidance
    if negative is not None and not (value or 0) > 1:
        raise ValueError(
            f"a negative side acts with guidance above 1, and here {scale} is {value}. Give guidance, such as 4."
        )
    return Settings(
        negative,
        takes["num_inference_steps"].default if steps is None else steps,
        value,
        scale,
        _size(backbone, takes, size),
        frames if frames is not None or "num_frames" not in takes else takes["num_frames"].default,
    )


def _size(
    backbone: Diffusion, takes: Mapping[str, Any], size: int | tuple[int, int] | None
) -> tuple[int, int] | None:
    """Videos have shapes of their own, which the call knows; pictures are drawn as the network was trained."""
    if "height" not in takes:
        return None
    if size is None and backbone.family.video and "size" not in backbone.options:
        own = takes["height"].default, takes["width"].default
        return None if None in own else own
    if size is None:
        _, height, width = backbone.preprocessing["input_size"]
        return height, width
    return (size, size) if isinstance(size, int) else size


def draw_batch(
    pipe: Any,
    given: Mapping[str, Any],
    seeds: Sequence[int],
    settings: Settings,
    progress: Progress | None = None,
    more: Mapping[str, Any] | None = None,
) -> list[Any]:
    """Pictures, or lists of frames, by the pipeline's own call: one a seed.

    given: what it is told, of as many prompts (``TunedPipeline.embeds``).  more: further arguments of its call.
    The pipeline itself stays as it is: a copy of it with a scheduler of its own is called.
    Warns where the pipeline's safety checker blackened pictures.
    """
    asked = copy.copy(pipe)
    asked.scheduler = copy.deepcopy(pipe.scheduler)
    asked.set_progress_bar_config(disable=True)
    takes = inspect.signature(type(pipe).__call__).parameters
    call = {
        **settings.arguments(),
        "output_type": "pil",
        "generator": [torch.Generator().manual_seed(seed) for seed in seeds],
        **_told(asked, takes, progress),
    }
    out = asked(**{k: v for k, v in call.items() if k in takes}, **given, **(more or {}))
    if black := sum(map(bool, getattr(out, "nsfw_content_detected", None) or ())):
        warnings.warn(
            f"the pipeline's safety checker made {black} of {len(seeds)} pictures black.", stacklevel=3
        )
    return list(out.frames if hasattr(out, "frames") else out.images)


def _told(asked: Any, takes: Mapping[str, Any], progress: Progress | None) -> dict[str, Any]:
    """The argument by which a call tells of its steps; there are an older and a newer one."""
    if progress is None:
        return {}

    def tell(done: int) -> None:
        progress(done + 1, getattr(asked, "num_timesteps", None) or len(asked.scheduler.timesteps))

    def ended(pipe: Any, done: int, t: Any, told: dict[str, Any]) -> dict[str, Any]:
        tell(done)
        return told

    if "callback_on_step_end" in takes:
        return {"callback_on_step_end": ended}
    return {"callback": lambda done, t, latents: tell(done), "callback_steps": 1}
