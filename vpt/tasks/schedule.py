"""Learning-rate factors, by name; each is a function of step and rate alone, so that a resumed run sees the same."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol

__all__ = ["SCHEDULES", "Factor", "schedule"]


class Factor(Protocol):
    """What the rate ``lr`` is multiplied by at a step."""

    def __call__(self, step: int, lr: float = 1.0) -> float: ...


def constant(epochs: int, steps: int, warmup: float) -> Factor:
    """1 after a linear warm-up by steps."""
    return lambda step, lr=1.0: min(1.0, (step + 1) / max(1.0, warmup * steps))


def cosine(epochs: int, steps: int, warmup: float) -> Factor:
    """Linear warm-up over ``warmup`` epochs, then a cosine to 0, both by steps."""
    ramp, total = warmup * steps, epochs * steps

    def factor(step: int, lr: float = 1.0) -> float:
        if step < ramp:
            return (step + 1) / (ramp + 1)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - ramp) / max(1.0, total - ramp))))

    return factor


def vpt(epochs: int, steps: int, warmup: float) -> Factor:
    """VPT's (KMnP/vpt, solver/lr_scheduler.py), by epochs: e / warmup, so that epoch 0 trains at rate 0, then a
    cosine to 0."""

    def factor(step: int, lr: float = 1.0) -> float:
        epoch = step // steps
        if epoch < warmup:
            return epoch / warmup
        return 0.5 * (1 + math.cos(math.pi * (epoch - warmup) / max(1.0, epochs - warmup)))

    return factor


def pixel(epochs: int, steps: int, warmup: float) -> Factor:
    """Visual prompting's (arXiv 2203.17274): (t + 1) / 1000 in the first 1000 steps, then a cosine by steps."""

    def factor(step: int, lr: float = 1.0) -> float:
        if step < 1000:
            return (step + 1) / 1000
        return 0.5 * (1 + math.cos(math.pi * (step - 1000) / max(1, epochs * steps - 1000)))

    return factor


def coop(epochs: int, steps: int, warmup: float) -> Factor:
    """That of the CoOp family (Dassl's scheduler, KaiyangZhou/Dassl.pytorch), by epochs: a rate of 1e-5 in the first
    ``warmup`` epochs, then a cosine of full period that starts there, so that the last epoch does not reach 0."""

    def factor(step: int, lr: float = 1.0) -> float:
        epoch = step // steps
        if epoch < warmup:
            return 1e-5 / lr
        return 0.5 * (1 + math.cos(math.pi * (epoch - warmup) / epochs))

    return factor


SCHEDULES: dict[str, Callable[[int, int, float], Factor]] = {
    "cosine": cosine,
    "constant": constant,
    "vpt": vpt,
    "pixel": pixel,
    "coop": coop,
}


def schedule(name: str, epochs: int, steps: int, warmup: float) -> Factor:
    """The factor by step of a schedule: ``epochs`` in all, ``steps`` an epoch, ``warmup`` in epochs."""
    if name not in SCHEDULES:
        raise ValueError(f"no schedule {name!r}. Choose one of {', '.join(SCHEDULES)}.")
    return SCHEDULES[name](epochs, max(1, steps), warmup)
