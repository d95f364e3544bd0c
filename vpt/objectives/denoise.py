"""Objective denoise: a frozen diffusion network, told what a picture shows, takes the noise out of it again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor
from torchmetrics import MeanMetric

from vpt.objectives.objective import Loss

__all__ = ["Denoise", "Schedule"]

HELD = 8  # noises and timesteps of a picture that measure; none of them is trained on


@dataclass(frozen=True)
class Schedule:
    """How much noise there is at a timestep, and what the network predicts.

    predicts: "epsilon", "v_prediction", "sample" or "flow", in the words of diffusers' schedulers.
    alphas: products of 1 - beta [timesteps]; None for flows.
    shift: of flows towards noise, for large pictures (arXiv 2403.03206, equation 23).
    """

    predicts: Literal["epsilon", "v_prediction", "sample", "flow"]
    alphas: Tensor | None = None
    shift: float = 1.0
    steps: int = 1000

    def times(self, n: int, device: torch.device) -> Tensor:
        """Timesteps [n] to train on: uniform (arXiv 2006.11239), or for flows logit-normal (arXiv 2403.03206)."""
        if self.alphas is not None:
            return torch.randint(len(self.alphas), (n,), device=device)
        return self._shifted(torch.randn(n, device=device).sigmoid())

    def spread(self, n: int, device: torch.device) -> Tensor:
        """Timesteps [n] to measure on, evenly over the schedule."""
        middle = (torch.arange(n, device=device) + 0.5) / n
        return self._shifted(middle) if self.alphas is None else (middle * len(self.alphas)).long()

    def _shifted(self, u: Tensor) -> Tensor:
        return self.steps * self.shift * u / (1 + (self.shift - 1) * u)

    def _parts(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Shares of picture and noise, shaped to multiply x."""
        if self.alphas is None:
            noise = (t / self.steps).to(x.dtype)
            return _like(1 - noise, x), _like(noise, x)
        alphas = self.alphas.to(x.device)[t].to(x.dtype)
        return _like(alphas.sqrt(), x), _like((1 - alphas).sqrt(), x)

    def noisy(self, x: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Latents x with noise at timesteps t [batch]."""
        a, b = self._parts(x, t)
        return a * x + b * noise

    def target(self, x: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """What the network should say: noise, the picture, their velocity (arXiv 2202.00512), or the flow."""
        if self.predicts == "flow":
            return noise - x
        if self.predicts == "epsilon":
            return noise
        if self.predicts == "sample":
            return x
        a, b = self._parts(x, t)
        return a * noise - b * x

    def weights(self, t: Tensor, gamma: float) -> Tensor:
        """Of the loss at timesteps t [batch]: min-SNR (arXiv 2303.09556, section 3.4), or 1 for gamma 0."""
        if not gamma:
            return torch.ones(len(t), device=t.device)
        if self.alphas is None:
            raise ValueError("min-SNR weighs noise schedules, and this scheduler matches flows. Set snr=0.")
        alphas = self.alphas.to(t.device)[t]
        snr = alphas / (1 - alphas)
        least = snr.clamp(max=gamma)
        return {"epsilon": least / snr.clamp(min=1e-8), "sample": least}.get(self.predicts, least / (snr + 1))


def _like(share: Tensor, x: Tensor) -> Tensor:
    return share.view(-1, *[1] * (x.ndim - 1))


class Painter(Protocol):
    """What this objective asks of the model that learns."""

    def latents(self, inputs: Any, *, drawn: bool = True) -> Tensor:
        """Latents of pictures, or of stored moments: drawn from these, or their mean."""

    def paint(self, noisy: Tensor, t: Tensor, captions: Sequence[str]) -> Tensor:
        """What the network predicts for noisy latents at timesteps t [batch], told the captions."""

    def seen(self, latents: Tensor, prediction: Tensor) -> Any:
        """What a method's losses look at: the prediction is in the place of logits."""


@dataclass(frozen=True)
class Denoise:
    """The mean squared error of the prediction.

    captions, held: of the pictures of train, and of those that measure; one of a picture's captions a step, in turn.
    snr: gamma of min-SNR weighting, 0 for none.  prior: weight of pictures whose numbers are in ``beside``, which
    show the class and not the concept (DreamBooth's prior, arXiv 2208.12242).
    """

    schedule: Schedule
    captions: Sequence[Sequence[str]]
    held: Sequence[Sequence[str]]
    snr: float = 0.0
    prior: float = 1.0
    beside: frozenset[int] = frozenset()
    seed: int = 1

    @property
    def classes(self) -> tuple[str, ...]:
        """There are none."""
        return ()

    @property
    def headline(self) -> str:
        """The error under noises and timesteps that are held out."""
        return "loss"

    @property
    def better(self) -> Literal["max", "min"]:
        return "min"

    def metric(self) -> MeanMetric:
        """The mean over pictures, noises and timesteps."""
        return MeanMetric()

    def step(self, model: Painter, inputs: Any, batch: Mapping[str, Any], epoch: int) -> tuple[Any, Loss]:
        """The prediction in the place of logits, and its error."""
        x, numbers = model.latents(inputs), batch["index"].tolist()
        said = [self.captions[i][(epoch + i) % len(self.captions[i])] for i in numbers]
        noise, t = torch.randn_like(x), self.schedule.times(len(x), x.device)
        weights = self.schedule.weights(t, self.snr)
        weights = weights * torch.tensor([self.prior if i in self.beside else 1.0 for i in numbers]).to(
            weights
        )
        target = self.schedule.target(x, noise, t)

        def error(prediction: Tensor) -> Tensor:
            return (weights * _errors(prediction, target)).mean()

        predicted = model.paint(self.schedule.noisy(x, noise, t), t, said)
        return model.seen(x, predicted), error

    def more(self, seen: Any) -> Mapping[str, Tensor]:
        """Terms beside the method's own: none."""
        return {}

    def observe(self, metric: MeanMetric, model: Painter, inputs: Any, batch: Mapping[str, Any]) -> None:
        """Errors under noises that depend on the seed and on the picture's number alone."""
        x, numbers = model.latents(inputs, drawn=False), batch["index"].tolist()
        for k, time in enumerate(self.schedule.spread(HELD, x.device)):
            noise = torch.stack([self._noise(x[0], i, k) for i in numbers])
            t = time.expand(len(x))
            said = [self.held[i][k % len(self.held[i])] for i in numbers]
            predicted = model.paint(self.schedule.noisy(x, noise, t), t, said)
            metric.update(_errors(predicted, self.schedule.target(x, noise, t)))

    def _noise(self, like: Tensor, number: int, k: int) -> Tensor:
        stream = torch.Generator().manual_seed((self.seed * 1_000_003 + number) * HELD + k)
        return torch.randn(like.shape, generator=stream).to(like)

    def result(self, metric: MeanMetric, model: Any) -> dict[str, Tensor]:
        """The mean error."""
        return {"loss": metric.compute()}


def _errors(prediction: Tensor, target: Tensor) -> Tensor:
    """[batch], in float32."""
    return (prediction.float() - target.float()).square().flatten(1).mean(1)
