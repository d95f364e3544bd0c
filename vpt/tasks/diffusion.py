"""A method on a diffusion pipeline: what one learning rate trains for the objective denoise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from vpt.encode import encode
from vpt.methods.method import Method, Seen
from vpt.prompt import Rows, Site
from vpt.tasks.learning import Learning
from vpt.tower import Stream, Tower
from vpt.towers.diffusion import Diffusion
from vpt.towers.layered import layered_twin, sets_of
from vpt.towers.twin import twin

__all__ = ["DiffusionLearner", "Started", "moved"]


class DiffusionLearner(Learning):
    """Predictions of a frozen network that is told captions with rows in them.

    Pictures pass the VAE alone, which is written to nowhere, so the moments of their latents are what is stored.
    remat: the network keeps fewer activations and computes them anew in backward.
    """

    def __init__(self, method: Method, backbone: Diffusion, *, remat: bool = False) -> None:
        super().__init__()
        self.method, self.backbone = method, backbone
        frozen = backbone.towers["denoiser"]
        with torch.no_grad(), torch.random.fork_rng():
            self.start = {site: r.detach().cpu().clone() for site, r in method(self.context()).items()}
        denoiser = method.learn(frozen)
        learns = denoiser.learns_from is not None
        if remat:
            if not learns:  # the pipeline's own is left as it is
                make = layered_twin if sets_of(self.start) > 1 else twin
                denoiser = replace(denoiser, model=make(denoiser.model))
            denoiser.model.enable_gradient_checkpointing()  # type: ignore[operator]
        self.towers, self.frozen = (
            (backbone.image, denoiser),
            (backbone.image, *backbone.encoders.values(), frozen),
        )
        self.network = nn.ModuleDict({denoiser.name: denoiser.model} if learns else {})
        self.head, self.needs = None, False

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the pictures."""
        _, height, width = self.backbone.preprocessing["input_size"]
        return height, width

    def latents(self, inputs: Tensor | Stream, *, drawn: bool = True) -> Tensor:
        """Latents as the pipeline takes them."""
        with torch.no_grad():
            moments = inputs.x if isinstance(inputs, Stream) else encode(self.tower, inputs)
            return self.backbone.latents(moments, drawn=drawn)

    def paint(self, noisy: Tensor, t: Tensor, captions: Sequence[str]) -> Tensor:
        """The network's prediction, under autograd up to the rows."""
        return self.told(self.method(self.context(len(noisy))), noisy, t, captions, self.towers[1])

    def seen(self, latents: Tensor, prediction: Tensor) -> Seen:
        """What the method's losses look at."""
        return Seen(latents, logits=prediction)

    def told(
        self, rows: Rows, noisy: Tensor, t: Tensor, captions: Sequence[str], network: Tower | None
    ) -> Tensor:
        """The prediction with these rows and of this network."""
        words, layers = self.method.placeholders, sets_of(rows)
        given = self.backbone.embeds(captions, rows, words=words, guided=False, strict=True)
        return self.backbone.predict(noisy, t, given, self.size, network=network, layers=layers)

    def layout(self) -> str:
        """Where rows enter, and what the network predicts."""
        shapes = ", ".join(f"{site} {list(r.shape)}" for site, r in self.start.items())
        return f"{self.backbone.kind} predicts {self.backbone.prediction}; {shapes or 'no rows'}"

    def label(self) -> dict[str, Any]:
        """The family, and what an axis of rows means."""
        axis = {"axis": "cross-attention"} if sets_of(self.start) > 1 else {}
        return {"family": self.backbone.kind, **axis}


class Started:
    """A learner as it was before training, for the number that training is compared with."""

    def __init__(self, learner: DiffusionLearner) -> None:
        self.learner, self.latents = learner, learner.latents

    def paint(self, noisy: Tensor, t: Tensor, captions: Sequence[str]) -> Tensor:
        """The prediction with the first rows, and with the network as it came."""
        rows = {site: r.to(noisy.device) for site, r in self.learner.start.items()}
        return self.learner.told(rows, noisy, t, captions, self.learner.frozen[-1])


def moved(start: Mapping[Site, Tensor], rows: Rows) -> float:
    """How far rows are from where they started, as a share of their start's length."""
    far = sum(float((rows[site].detach().cpu().float() - r.float()).norm()) for site, r in start.items())
    return far / max(sum(float(r.norm()) for r in start.values()), 1e-12)
