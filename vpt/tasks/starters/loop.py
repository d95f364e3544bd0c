"""A training loop that can be killed: one model, Muon and AdamW, the average of its weights."""

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from vpt.tasks.starters.muon import Muon

__all__ = ["Training"]

WARM_UP = 50  # steps; then the learning rate follows a cosine to 0
AVERAGE = 0.995  # decay of the average of the weights, from a faster start
EVERY = 50  # steps between checkpoints, and between lines of the log


class Training:
    """Trains the parameters that need gradients; matrices and filters of blocks by Muon, the others by AdamW.

    rates: the learning rate of a parameter by its name. steps: of the whole run.
    checkpoint: its file; a run goes on with what it holds, and ends in the same weights.
    """

    def __init__(self, model: nn.Module, rates: Callable[[str], float], steps: int, checkpoint: Path):
        self.model, self.steps, self.checkpoint = model, steps, checkpoint
        self.average = AveragedModel(model, avg_fn=_average)
        groups: dict[tuple[bool, float, float], list[nn.Parameter]] = {}
        for name, p in model.named_parameters():
            if p.requires_grad:
                matrix = p.ndim in (2, 4) and "block" in name
                decay = 0.05 if p.ndim >= 2 and "embedding" not in name else 0.0
                groups.setdefault((matrix, rates(name), decay), []).append(p)
        self.optimizers: list[torch.optim.Optimizer] = []
        for (matrix, lr, decay), params in groups.items():
            if matrix:
                self.optimizers.append(Muon(params, lr=lr, weight_decay=decay))
            else:
                adam = torch.optim.AdamW(params, lr=lr, weight_decay=decay, betas=(0.9, 0.98))
                self.optimizers.append(adam)
        self.rates = [group["lr"] for o in self.optimizers for group in o.param_groups]
        self.parameters = [p for params in groups.values() for p in params]

    def run(self, losses: Callable[[int], dict[str, Tensor]], progress: bool = True) -> nn.Module:
        """Take the steps that are left; returns the averaged model.

        losses: the terms of a step, by its number, which alone must seed what is random in it.
        Raises FloatingPointError if a loss is not finite.
        """
        console = Console(quiet=not progress)
        sums: dict[str, float] = {}
        for step in track(range(self._resume(), self.steps), disable=not progress, console=console):
            terms = losses(step)
            loss = torch.stack(list(terms.values())).sum()
            if not loss.isfinite():
                raise FloatingPointError(
                    f"the loss is {loss.item()} at step {step}. {self.checkpoint} holds an earlier one: start "
                    "again in another folder with a lower learning rate."
                )
            self._step(loss, step)
            for name, term in terms.items():
                sums[name] = sums.get(name, 0.0) + term.item() / EVERY
            if (step + 1) % EVERY == 0:
                console.print(f"step {step + 1}: " + ", ".join(f"{n} {v:.3f}" for n, v in sums.items()))
                sums = {}
                self._save(step + 1)
        self._save(self.steps)
        return self.average.module

    def _step(self, loss: Tensor, step: int) -> None:
        rate = min(1, (step + 1) / WARM_UP) * 0.5 * (1 + math.cos(math.pi * step / self.steps))
        groups = [group for o in self.optimizers for group in o.param_groups]
        for group, lr in zip(groups, self.rates, strict=True):
            group["lr"] = lr * rate
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, 5.0)
        for optimizer in self.optimizers:
            optimizer.step()
        self.average.update_parameters(self.model)

    def _parts(self) -> list[Any]:
        return [self.model, self.average, *self.optimizers]

    def _resume(self) -> int:
        if not self.checkpoint.exists():
            return 0
        held = torch.load(self.checkpoint, weights_only=True)
        for part, state in zip(self._parts(), held["parts"], strict=True):
            part.load_state_dict(state)
        return int(held["step"])

    def _save(self, step: int) -> None:
        part = self.checkpoint.with_suffix(".part")
        torch.save({"step": step, "parts": [p.state_dict() for p in self._parts()]}, part)
        os.replace(part, self.checkpoint)


def _average(average: Tensor, new: Tensor, steps: Tensor | int) -> Tensor:
    return average.lerp(new, 1 - min(AVERAGE, (int(steps) + 1) / (int(steps) + 10)))
