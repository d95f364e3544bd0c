"""Pictures by a pipeline's own call, under autograd where that is asked for.

The first denoising steps are computed without a graph, the last ones and the decoder with one, so a reward of the
pictures has a gradient to the rows through those (DRaFT-K, arXiv 2309.17400, section 3.3). The pipeline's scheduler is
its own; what stands in its place hands on every call and cuts the graph.
"""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from vpt.tower import Tower
from vpt.towers.diffusion import Diffusion
from vpt.towers.frozen import forgetful
from vpt.towers.layered import layered

__all__ = ["draw", "guidance_of"]

# what looks at pictures behind the decoder, outside of autograd
WATCHERS = ("safety_checker", "watermark")


class _Cut:
    """A scheduler whose first steps carry no graph; the last ``last`` do.

    A pipeline joins what it is told before, between or behind its scheduler's set-up, so the graph is not switched off
    before its first step; that one is cut behind, and the others that are not asked for record none.
    """

    def __init__(self, scheduler: Any, last: int) -> None:
        self.scheduler, done = scheduler, 0

        @functools.wraps(scheduler.step)  # pipelines ask which arguments a step takes
        def step(prediction: Tensor, t: Any, sample: Tensor, *args: Any, **more: Any) -> Any:
            nonlocal done
            done += 1
            left = len(scheduler.timesteps) - done
            if left >= last:
                prediction, sample = prediction.detach(), sample.detach()
            found = scheduler.step(prediction, t, sample, *args, **more)
            torch.set_grad_enabled(last > 0 and left <= last)
            return found

        self.step = step

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.__dict__["scheduler"], name)


def guidance_of(backbone: Diffusion, guidance: float, against: bool) -> tuple[str, float]:
    """The name and the value of a pipeline's guidance; 0: the one that it has by default.

    against: there is a negative side, so that it is classifier-free guidance (arXiv 2207.12598) that is meant.
    """
    takes = inspect.signature(type(backbone.pipe).__call__).parameters
    true = "true_cfg_scale" in takes and (against or takes["guidance_scale"].default is None)
    name = "true_cfg_scale" if true else "guidance_scale"
    return name, float(guidance or takes[name].default or 1.0)


def draw(
    backbone: Diffusion,
    given: Mapping[str, Any],
    seeds: Sequence[int],
    size: tuple[int, int],
    *,
    steps: int,
    last: int = 0,
    guidance: float = 0.0,
    network: Tower | None = None,
    layers: int = 1,
) -> Tensor:
    """Pictures [batch, 3, height, width] in [0, 1]; of a video, its one frame.

    given: of :meth:`Diffusion.embeds`.  seeds: a number a picture; it is the picture that the pipeline's call draws
    with ``generator=torch.Generator().manual_seed(seed)``.  size: height and width in pixels.
    last: steps that carry a gradient; 0: none, and neither does the decoder.
    guidance: see :func:`guidance_of`.  network, layers: see :meth:`Diffusion.predict`.
    """
    asked: Any = copy.copy(backbone.pipe)
    scheduler = type(backbone.pipe.scheduler).from_config(backbone.pipe.scheduler.config)
    asked.scheduler = _Cut(scheduler, last)
    asked.set_progress_bar_config(disable=True)
    learned = backbone.denoiser if network is None else network.model
    setattr(asked, "unet" if hasattr(asked, "unet") else "transformer", learned)
    for name in WATCHERS:
        if getattr(asked, name, None) is not None:
            setattr(asked, name, None)
    call: Any = type(asked).__call__
    takes = inspect.signature(call).parameters
    scale, value = guidance_of(backbone, guidance, "negative_prompt_embeds" in given)
    found: Sequence[Tensor]
    more = {
        **backbone.family.call,
        **{"height": size[0], "width": size[1], "num_frames": 1, "use_resolution_binning": False},
        **{"num_inference_steps": steps, "output_type": "pt", "return_dict": False},
        **({scale: value} if guidance else {}),
        "generator": [torch.Generator().manual_seed(seed) for seed in seeds],
    }
    with torch.set_grad_enabled(last > 0), layered(learned, layers), forgetful(learned):
        found = call.__wrapped__(asked, **{**{k: v for k, v in more.items() if k in takes}, **given})
    pictures = found[0][:, 0] if found[0].ndim == 5 else found[0]
    return pictures.to(torch.promote_types(pictures.dtype, torch.float32))
