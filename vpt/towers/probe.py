"""A scheduler that asks a pipeline's network once, at given timesteps, and keeps what it says."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["Probe"]


class Probe:
    """A scheduler of one step at given timesteps, which keeps the prediction."""

    order = 1
    init_noise_sigma = 1.0

    def __init__(self, scheduler: Any) -> None:
        self.scheduler, self.timesteps, self.prediction = scheduler, torch.empty(0), torch.empty(0)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.__dict__["scheduler"], name)

    def set_timesteps(self, *args: Any, timesteps: Any = None, sigmas: Any = None, **more: Any) -> None:
        """Those given stay."""

    def set_begin_index(self, begin: int = 0) -> None:
        """There is one step."""

    def scale_model_input(self, sample: Tensor, *_: Any) -> Tensor:
        return sample

    def step(self, prediction: Tensor, t: Tensor, sample: Tensor, *_: Any, **more: Any) -> tuple[Tensor]:
        self.prediction = prediction
        return (sample,)
