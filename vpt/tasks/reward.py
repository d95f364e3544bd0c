"""What a run of the objective reward refuses, trains, measures and hands over."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from vpt.data.prompts import PromptData
from vpt.methods.method import Method
from vpt.objectives.objective import Objective
from vpt.objectives.reward import Judge, Reward
from vpt.prompt import Context, Rows
from vpt.tasks.diffusion import DiffusionLearner
from vpt.tasks.judge import judge_of
from vpt.tasks.learning import Learning
from vpt.tasks.measure import Numbers
from vpt.tasks.noise import Noise, before_and_after
from vpt.tasks.task import Recipe
from vpt.tasks.watch import told
from vpt.tower import Tower
from vpt.towers.backbone import Backbone
from vpt.towers.diffusion import Diffusion
from vpt.towers.drawing import draw, guidance_of
from vpt.towers.layered import sets_of
from vpt.towers.tokens import PLACEHOLDER

__all__ = ["RewardLearner", "Rewarded"]


class RewardLearner(DiffusionLearner):
    """Pictures of prompts with rows in them, under autograd through the last steps that drew them.

    steps: of drawing.  last: of these, under autograd.  guidance: 0 is the pipeline's own.
    """

    def __init__(
        self, method: Method, backbone: Diffusion, *, steps: int, last: int, guidance: float, remat: bool
    ) -> None:
        super().__init__(method, backbone, remat=remat)
        self.steps, self.last, self.guidance = steps, last, guidance

    @property
    def low(self) -> str:
        """Seeds come in, and all of what is drawn of them depends on the rows."""
        return "input"

    def said(self, prompt: str) -> str:
        """The prompt with words for its placeholders."""
        words = self.method.placeholders
        return PLACEHOLDER.sub(lambda found: words.get(f"<{found[1]}>", found[0]), prompt)

    def strayed(self) -> Tensor:
        """How far rows are from their start: squares, as a share of the start's."""
        rows = self.method(self.context())
        far = torch.stack(
            [(r.float() - self.start[site].to(r)).square().sum() for site, r in rows.items()]
        ).sum()
        return far / max(sum(float(r.square().sum()) for r in self.start.values()), 1e-12)

    def draw(
        self, seeds: Tensor, prompts: Sequence[str], *, last: int | None = None, rows: Rows | None = None
    ) -> Tensor:
        """Pictures [batch, 3, height, width] in [0, 1], each from its seed.

        last: steps under autograd, by default as the learner was made.  rows: in place of those that learn.
        """
        rows = self.method(self.context(len(prompts))) if rows is None else rows
        device = self.towers[0].device
        rows = {site: r.to(device) for site, r in rows.items()}
        scale, value = guidance_of(self.backbone, self.guidance, _against(rows))
        given = self.backbone.embeds(
            prompts,
            rows,
            words=self.method.placeholders,
            # a side to draw away from, where the pipeline has none by itself; Qwen-Image's card says a blank
            negative=" " if self.backbone.family.twice and scale == "true_cfg_scale" else None,
            guided=value > 1,
            strict=True,
        )
        return draw(
            self.backbone,
            given,
            seeds.tolist(),
            self.size,
            steps=self.steps,
            last=self.last if last is None else last,
            guidance=self.guidance,
            network=self.towers[1],
            layers=sets_of(rows),
        )

    def layout(self) -> str:
        """How pictures are drawn, and where rows enter."""
        name, value = guidance_of(self.backbone, self.guidance, _against(self.start))
        told = f"{self.steps} steps, the last {self.last} under autograd, {name} {value:g}"
        return f"{super().layout()}; {told}"


class _Began:
    """A learner as it was before training, for the number that training is compared with."""

    def __init__(self, learner: RewardLearner) -> None:
        self.learner, self.said = learner, learner.said

    def draw(self, seeds: Tensor, prompts: Sequence[str], *, last: int | None = None) -> Tensor:
        return self.learner.draw(seeds, prompts, last=last, rows=self.learner.start)


class Rewarded(Noise):
    """Prompts whose pictures a reward likes."""

    data = PromptData
    methods_of = "denoise"

    def every(self, batches: int) -> int:
        """Steps draw too, so measuring is no dearer than they are."""
        return 1

    def __init__(self) -> None:
        self.judge: Judge | None = None
        self.slots: set[str] = set()  # placeholders that learn

    def check(self, name: str, method: Method, backbone: Backbone, recipe: Recipe) -> None:
        super().check(name, method, backbone, recipe)
        assert isinstance(backbone, Diffusion)
        if recipe.last > recipe.inference_steps:
            raise ValueError(
                f"last={recipe.last} steps are to carry a gradient, and there are {recipe.inference_steps}. Give last="
                f"{recipe.inference_steps} for all of them."
            )
        with torch.no_grad(), torch.random.fork_rng():
            rows = method(Context(1))
        against = _against(rows)
        self.slots = {site.slot for site in rows if site.slot.startswith("<")}
        scale, value = guidance_of(backbone, recipe.guidance, against)
        if against and value <= 1:
            raise ValueError(
                f"{name} learns the negative side, which {backbone.name} does not read at {scale}={value:g}. Set "
                "guidance=7.5, say."
            )
        self.judge = judge_of(recipe.reward, recipe.judge)

    def held(self, data: Any) -> str:
        """Always something: other prompts, or other seeds."""
        return "val"

    def objective(self, backbone: Backbone, data: Any, recipe: Recipe) -> Objective:
        assert isinstance(backbone, Diffusion)
        assert self.judge is not None  # check came before
        said = [*data.captions("train"), *data.captions("val")]
        if self.slots and (bare := [p for p in said if not any(slot in p for slot in self.slots)]):
            raise ValueError(
                f"the prompt {bare[0]!r} does not say {min(self.slots)}, so its picture depends on nothing that "
                "learns. Put it in every prompt, or learn context rows, which all prompts have."
            )
        found = Reward(
            self.judge, data.captions("train"), data.captions("val"), recipe.near, f"reward={recipe.reward}"
        )
        if recipe.optimizer != "cma":
            _, height, width = backbone.preprocessing["input_size"]
            found.refuse_flat((height, width), backbone.image.device)
        return found

    def learner(
        self,
        method: Method,
        backbone: Backbone,
        classes: Sequence[str],
        towers: Mapping[str, Tower],
        recipe: Recipe,
    ) -> Learning:
        assert isinstance(backbone, Diffusion)
        return RewardLearner(
            method,
            backbone,
            steps=recipe.inference_steps,
            last=0 if recipe.optimizer == "cma" else recipe.last,
            guidance=recipe.guidance,
            remat=recipe.remat,
        )

    def search(self, learner: Learning, run: Any) -> Any:
        from vpt.tasks.evolve import search

        assert isinstance(learner, RewardLearner)
        log = None if run.out is None else run.out / "checkpoints" / "last.ckpt"
        return search(
            learner.to(run.device),
            run.objective,
            run.data,
            run.recipe,
            sigma=run.lrs[0],
            log=log,
            precision=run.precision,
            bar=run._bar,
        )

    def numbers(self, tuned: Any, learner: Learning, numbers: Numbers) -> dict[str, list[dict[str, Any]]]:
        assert isinstance(learner, RewardLearner)
        objective = self.objective(tuned.backbone, numbers.data, numbers.recipe)
        batches = numbers.data.val_dataloader()
        found = before_and_after(learner, _Began(learner), objective, numbers, "val", batches)
        tuned.prompts.about["train"] |= told(learner)
        now, before = (found[when][0]["value"] for when in ("metrics", "before"))
        if not now > before:
            warnings.warn(
                f"the reward on held-out pictures is {now:.4f} and was {before:.4f} before training: it did not rise. "
                "Take another learning rate, more epochs, more prompts or more steps under autograd (last).",
                stacklevel=2,
            )
        return found


def _against(rows: Mapping[Any, Tensor]) -> bool:
    """Whether rows are on the negative side of guidance."""
    return any(site.slot == "negative" for site in rows)
