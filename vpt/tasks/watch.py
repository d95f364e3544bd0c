"""What watches rows of text to image: vectors that inflate while they train, and trainings that changed nothing."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback

from vpt.prompt import Rows, Site
from vpt.tasks.diffusion import DiffusionLearner, moved
from vpt.tasks.task import PromptTask
from vpt.towers.diffusion import Diffusion

__all__ = ["Inflation", "told", "warn_unchanged"]

LONG = 5.0  # mean lengths of the vocabulary; textual inversion reaches 50 (arXiv 2512.13672, section 3)
EVERY = 20  # steps: a look makes the CPU wait for a GPU
STILL = 1e-3  # of the start's length: less is rounding


class Inflation(Callback):
    """Warns once when a learned word vector is more than five times as long as the vocabulary's are on average."""

    def __init__(self) -> None:
        self.warned = False

    def on_train_batch_end(self, trainer: L.Trainer, task: L.LightningModule, *_: Any) -> None:
        if trainer.global_step % EVERY == 0:
            self.look(task)

    def on_fit_end(self, trainer: L.Trainer, task: L.LightningModule) -> None:
        self.look(task)

    def look(self, task: L.LightningModule) -> None:
        """Measure the rows of every learner, as they are."""
        assert isinstance(task, PromptTask)
        for k in range(0 if self.warned else len(task.learners)):
            learner = task.learner(k)
            assert isinstance(learner, DiffusionLearner)
            for site, length in lengths(rows_of(learner)).items():
                usual = usual_length(learner.backbone, site)
                if usual is None or not length > LONG * usual or self.warned:
                    continue
                self.warned = True
                warnings.warn(
                    f"a row at {site} is {length:.3g} long, and words there are {usual:.3g} on average. Such vectors "
                    "drown the rest of a sentence (arXiv 2512.13672). Train the method direction (norm=fixed with "
                    "optimizer=direction), whose rows keep their length, or take a lower learning rate.",
                    stacklevel=2,
                )


def rows_of(learner: DiffusionLearner) -> Rows:
    """The learner's rows, without drawing random numbers from the run's stream."""
    with torch.no_grad(), torch.random.fork_rng():
        return learner.method(learner.context())


def lengths(rows: Rows) -> dict[Site, float]:
    """Of the longest row at each site."""
    return {site: float(r.detach().float().norm(dim=-1).max()) for site, r in rows.items()}


def usual_length(backbone: Diffusion, site: Site) -> float | None:
    """The mean length of word vectors at a site; None where rows are no words."""
    if site.tower not in backbone.encoders or site.stage != "embedded":
        return None
    known = backbone.kept.setdefault("lengths", {})
    if site.tower not in known:
        known[site.tower] = backbone.length(site.tower)
    return float(known[site.tower])


def told(learner: DiffusionLearner) -> dict[str, Any]:
    """For the file: lengths of rows with those of words, by site, and how far they moved as a share of their start."""
    rows = rows_of(learner)
    if not rows:
        return {}
    norms = {
        str(site): {"longest": round(length, 4), "words": usual and round(usual, 4)}
        for site, length in lengths(rows).items()
        for usual in [usual_length(learner.backbone, site)]
    }
    return {"norms": norms, "moved": round(moved(learner.start, rows), 6)}


def warn_unchanged(found: Mapping[str, Any], numbers: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Say it plainly where rows stayed where they started, or where the held-out loss did not fall.

    found: of :func:`told`.  numbers: ``metrics`` and ``before``, each with the loss first.
    """
    if not found.get("moved", 1.0) > STILL:
        warnings.warn(
            f"the rows moved by {found['moved']:.1e} of their length: they are still the word that they started from. "
            "Take a higher learning rate, more epochs, or less warm-up.",
            stacklevel=2,
        )
    now, before = (numbers[when][0]["value"] for when in ("metrics", "before"))
    if not now < before:
        warnings.warn(
            f"the loss on {numbers['metrics'][0]['split']} is {now:.4f} and was {before:.4f} before training: nothing "
            "was learned that helps to draw these pictures. Take another learning rate, more epochs or more pictures.",
            stacklevel=2,
        )
