"""Pictures drawn while rows learn, at fixed seeds: a file an epoch, and TensorBoard."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor
from torchvision.transforms.functional import to_pil_image
from torchvision.utils import make_grid

from vpt.promptset import write_atomically
from vpt.tasks.device import autocast
from vpt.tasks.diffusion import DiffusionLearner
from vpt.tasks.task import PromptTask
from vpt.towers.drawing import draw
from vpt.towers.layered import sets_of

__all__ = ["Samples", "grid"]

SEEDS = (0, 1, 2, 3)
STEPS = 25
SAID = ("a photo of {}", "{} in the rain")


class Samples(Callback):
    """Before training, every so many epochs and at the end draws each prompt at four seeds, with the rows as they are.

    folder: of the files, ``epoch-000.png`` and so on; a line is a prompt, a column a seed.  every: epochs.
    prompts: said; by default two with the placeholder.
    With several learning rates, the first one's rows draw. A run draws the same random numbers with and without this.
    """

    def __init__(self, folder: Path, every: int, prompts: Sequence[str], precision: str) -> None:
        self.folder, self.every, self.prompts, self.precision = folder, every, tuple(prompts), precision

    def on_train_start(self, trainer: L.Trainer, task: L.LightningModule) -> None:
        if trainer.global_step == 0:
            self._draw(trainer, task, 0)

    def on_train_epoch_end(self, trainer: L.Trainer, task: L.LightningModule) -> None:
        epoch = trainer.current_epoch + 1
        if epoch % self.every == 0 or epoch == trainer.max_epochs:
            self._draw(trainer, task, epoch)

    def _draw(self, trainer: L.Trainer, task: L.LightningModule, epoch: int) -> None:
        assert isinstance(task, PromptTask)
        learner = task.learner(0)
        assert isinstance(learner, DiffusionLearner)
        if not trainer.is_global_zero:
            return
        slot = next(iter(learner.method.placeholders), "")
        prompts = self.prompts or tuple(said.replace("{}", slot) for said in SAID)
        around = autocast(learner.tower.device, self.precision)
        with torch.random.fork_rng(), task.averaged(), around:
            pictures = grid(learner, prompts)
        file = io.BytesIO()
        to_pil_image(pictures).save(file, "PNG")
        self.folder.mkdir(parents=True, exist_ok=True)
        write_atomically(self.folder / f"epoch-{epoch:03d}.png", file.getvalue())
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_image("samples", pictures, epoch)


@torch.no_grad()
def grid(learner: DiffusionLearner, prompts: Sequence[str]) -> Tensor:
    """One picture [3, height, width] in [0, 1]: a line a prompt, a column a seed."""
    training = learner.training
    learner.eval()
    rows = learner.method(learner.context())
    lines = []
    for prompt in prompts:
        # one by one: memory is what training left
        given = learner.backbone.embeds(prompt, rows, words=learner.method.placeholders)
        lines += [
            draw(
                learner.backbone,
                given,
                [seed],
                learner.size,
                steps=STEPS,
                network=learner.towers[1],
                layers=sets_of(rows),
            )
            for seed in SEEDS
        ]
    learner.train(training)
    return make_grid(torch.cat(lines).clamp(0, 1).cpu(), nrow=len(SEEDS), padding=2)
