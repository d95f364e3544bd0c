"""What a run of the objective denoise refuses, trains, measures and hands over."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import Callback
from torch.utils.data import DataLoader

from vpt.data.module import ImageData
from vpt.methods.method import Method
from vpt.objectives.denoise import Denoise, Schedule
from vpt.objectives.objective import Objective
from vpt.prompt import Context
from vpt.promptset import PromptSet
from vpt.tasks.bound import Bound
from vpt.tasks.device import Machine, autocast
from vpt.tasks.diffusion import DiffusionLearner, Started
from vpt.tasks.kind import Kind
from vpt.tasks.learning import Learning
from vpt.tasks.measure import Numbers
from vpt.tasks.pipeline import TunedPipeline
from vpt.tasks.samples import Samples
from vpt.tasks.task import Recipe
from vpt.tasks.watch import Inflation, told, warn_unchanged
from vpt.tower import Tower
from vpt.towers.backbone import Backbone
from vpt.towers.diffusion import Diffusion

__all__ = ["Noise", "before_and_after"]

MEASURED = 25  # steps between two measurements


class Noise(Kind):
    """Captions that pictures are drawn from."""

    captioned = True

    def check(self, name: str, method: Method, backbone: Backbone, recipe: Recipe) -> None:
        if not isinstance(backbone, Diffusion):
            raise ValueError(
                f"{backbone.name} draws no pictures. For text to image give a diffusion pipeline: "
                "starter/sd-mini or diffusers/REPO_OR_FOLDER."
            )
        with torch.no_grad(), torch.random.fork_rng():
            rows = method(Context(1))
        if strange := [str(site) for site in rows if site.tower not in {*backbone.encoders, "context"}]:
            raise ValueError(
                f"{name} writes to {strange[0]}, and a diffusion pipeline takes rows in its text encoders and its "
                "context. Choose textual-inversion, p-plus or context."
            )
        if recipe.snr and backbone.prediction == "flow":
            raise ValueError(
                f"snr={recipe.snr} weighs noise schedules, and {backbone.name} matches flows. Set snr=0."
            )
        if recipe.optimizer == "direction" and not getattr(method, "directed", False):
            raise ValueError(
                f"optimizer=direction turns rows of fixed length, and {name} lets them grow. Give norm=fixed with the "
                "method textual-inversion."
            )

    def held(self, data: ImageData) -> str:
        """Without a val split the training pictures, under noises that are not trained on."""
        return super().held(data) or "train"

    def every(self, batches: int) -> int:
        """A few pictures are an epoch of a step or two, and measuring costs more than that."""
        return max(1, round(MEASURED / batches))

    def objective(self, backbone: Backbone, data: ImageData, recipe: Recipe) -> Objective:
        assert isinstance(backbone, Diffusion)
        shift = 1.0 if backbone.pipe.scheduler.config.get("use_dynamic_shifting") else None
        schedule = Schedule(
            backbone.prediction,  # type: ignore[arg-type]
            backbone.alphas,
            shift or float(backbone.pipe.scheduler.config.get("shift") or 1.0),
            int(backbone.pipe.scheduler.config.get("num_train_timesteps") or 1000),
        )
        beside = frozenset(
            i for i, item in enumerate(data.pictures("train").items) if item.key.startswith("class/")
        )
        train, held = data.captions("train"), data.captions(self.held(data))
        return Denoise(schedule, train, held, recipe.snr, recipe.prior, beside, data.seed)

    def learner(
        self,
        method: Method,
        backbone: Backbone,
        classes: Sequence[str],
        towers: Mapping[str, Tower],
        recipe: Recipe,
    ) -> Learning:
        assert isinstance(backbone, Diffusion)
        return DiffusionLearner(method, backbone, remat=recipe.remat)

    def callbacks(self, machine: Machine, precision: str) -> list[Callback]:
        watching: list[Callback] = [Inflation()]
        if machine.sample_every and machine.out is not None:
            folder = Path(machine.out) / "samples"
            watching.append(Samples(folder, machine.sample_every, machine.sample_prompts, precision))
        return watching

    def bound(self, backbone: Backbone, prompts: PromptSet, precision: str) -> Bound:
        assert isinstance(backbone, Diffusion)
        return TunedPipeline(backbone, prompts, precision=precision)

    def numbers(self, tuned: Any, learner: Learning, numbers: Numbers) -> dict[str, list[dict[str, Any]]]:
        assert isinstance(learner, DiffusionLearner)
        objective = self.objective(tuned.backbone, numbers.data, numbers.recipe)
        held, data = self.held(numbers.data), numbers.data
        batches = DataLoader(data.pictures(held), max(1, data.batch_size))
        split = "val" if held == "val" else "held-out noise"
        found = before_and_after(learner, Started(learner), objective, numbers, split, batches)
        now = told(learner)
        tuned.prompts.about["train"] |= now
        warn_unchanged(now, found)
        return found


def before_and_after(
    learner: Learning, started: Any, objective: Objective, numbers: Numbers, split: str, batches: Any
) -> dict[str, list[dict[str, Any]]]:
    """The objective's headline with the rows as they are, and as they started, on the same batches.

    split: what the numbers call these batches; where the data have no such split, they are the training pictures.
    """
    data, device = numbers.data, learner.tower.device
    counts = data.protocol()["counts"]
    told = {"split": split, "count": counts.get(split, counts["train"]), "seed": data.seed}
    found: dict[str, list[dict[str, Any]]] = {}
    for when, model in (("metrics", learner), ("before", started)):
        metric = objective.metric().to(device)
        with torch.inference_mode(), autocast(device, numbers.precision):
            for batch in numbers.bar(f"measuring on {split}")(batches):
                objective.observe(metric, model, batch["image"].to(device), batch)
            value = objective.result(metric, model)[objective.headline]
        found[when] = [{"name": objective.headline, "value": float(value), **told}]
    return found
