"""What happens beside the training steps: checkpoints that survive a kill, the time of a step, and quiet."""

from __future__ import annotations

import logging
import os
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, Checkpoint

__all__ = ["LastGood", "StepTime", "quiet"]


class LastGood(Checkpoint):
    """Writes ``last.ckpt`` every so many steps from inside the loop, to a temporary name, then renamed.

    From inside the loop, because a checkpoint written after the loop counts its epoch as finished.
    """

    def __init__(self, folder: Path, every: int) -> None:
        self.path, self.every = folder / "last.ckpt", every

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step % self.every == 0:
            self._save(trainer)

    def on_train_epoch_end(self, trainer: L.Trainer, *_: Any) -> None:
        self._save(trainer)

    def _save(self, trainer: L.Trainer) -> None:
        part = self.path.with_suffix(".part")
        trainer.save_checkpoint(part, weights_only=False)  # every process takes part; one writes
        if trainer.is_global_zero:
            os.replace(part, self.path)


class StepTime(Callback):
    """Milliseconds of each training step, forward to optimiser, without loading."""

    def __init__(self) -> None:
        self.ms: list[float] = []
        self._start = 0.0

    @staticmethod
    def _now(trainer: L.Trainer) -> float:
        if trainer.strategy.root_device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        self._start = self._now(trainer)

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        self.ms.append(1e3 * (self._now(trainer) - self._start))

    @property
    def median(self) -> float:
        """Median, the first two left out where there are more."""
        return median(self.ms[2:] or self.ms or [0.0])


@contextmanager
def quiet() -> Iterator[None]:
    """Without the notices of Lightning and torchdata that a user can do nothing about."""
    names = ("lightning.pytorch", "lightning.fabric")
    levels = {name: logging.getLogger(name).level for name in names}
    with warnings.catch_warnings():
        for text in (
            "does not have many workers",
            "smaller than the logging interval",
            "set_vital",
            "LeafSpec",
            "in eval mode",
            "have no `val_dataloader`",
        ):
            warnings.filterwarnings("ignore", f".*{text}.*")
        warnings.filterwarnings("ignore", ".*exists and is not empty.*")  # out is meant to be gone on with
        for name in names:
            logging.getLogger(name).setLevel(logging.ERROR)
        try:
            yield
        finally:
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)
