"""Lightning's Trainer as a run needs it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping, RichProgressBar
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from vpt.objectives.objective import Objective
from vpt.tasks.callbacks import LastGood
from vpt.tasks.device import Machine
from vpt.tasks.task import Recipe

__all__ = ["trainer_of"]


def trainer_of(
    machine: Machine,
    recipe: Recipe,
    objective: Objective,
    device: torch.device,
    precision: str,
    watching: Sequence[Callback],
    every: int = 1,
) -> L.Trainer:
    """A Trainer that logs and writes checkpoints where the machine has a folder; its own options win.

    every: epochs between two measurements, which ``recipe.patience``, in epochs, is rounded up to.
    """
    callbacks, out = list(watching), None if machine.out is None else Path(machine.out)
    loggers: list[Any] = []
    if out is not None:
        callbacks.append(LastGood(out / "checkpoints", machine.checkpoint_every))
        loggers = [CSVLogger(out, "logs", version=""), TensorBoardLogger(out, "logs", version="")]
    if machine.progress:
        callbacks.append(RichProgressBar())
    if recipe.patience:
        name = f"val/{objective.headline}"
        patience = -(-recipe.patience // every)
        callbacks.append(EarlyStopping(name, patience=patience, mode=objective.better))
    options: dict[str, Any] = {
        "accelerator": {"cuda": "gpu"}.get(device.type, device.type),
        "devices": [device.index or 0] if device.type == "cuda" else 1,
        "precision": precision,
        "max_epochs": recipe.epochs,
        "logger": loggers,
        "callbacks": callbacks,
        "enable_progress_bar": machine.progress,
        "enable_checkpointing": out is not None,
        "enable_model_summary": False,
        "use_distributed_sampler": False,
        "num_sanity_val_steps": 0,
        "check_val_every_n_epoch": every,
        "log_every_n_steps": 10,
        "gradient_clip_val": recipe.clip or None,
        "default_root_dir": out,
    }
    return L.Trainer(**{**options, **(machine.trainer or {})})
