"""The one Lightning task: any method on any objective, one learning rate or several side by side."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, cast

import lightning as L
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torchmetrics import Metric
from torchvision.transforms.v2 import MixUp

from vpt.attention import fastest_for
from vpt.encode import advance
from vpt.methods.method import Batches
from vpt.objectives.objective import Objective
from vpt.tasks.average import Average
from vpt.tasks.direction import Direction
from vpt.tasks.learning import Learning
from vpt.tasks.schedule import schedule
from vpt.tasks.store import inputs_of
from vpt.tower import Stream

__all__ = ["Diverged", "PromptTask", "Recipe"]

SIGMA = 0.3  # cma's first step, a third of the range where a solution is looked for (its own advice)


@dataclass(frozen=True)
class Recipe:
    """How a method is trained.

    objective: what the rows are trained for: to "classify" labelled pictures, to "retrieve" pictures by their captions,
        to "denoise" pictures from their captions (text to image), or for a "reward" of what is drawn of prompts.
    epochs: passes over the training pictures.  lr: learning rates to try, side by side; empty: the method's own.
    head_lr: rate of the head where it is not that of the rows, which few pictures often want higher.
    per_256: VPT's rule, the rate used is lr * batch size / 256.
    optimizer: "adamw", "sgd" (momentum 0.9), "direction", which turns rows of fixed length (vpt.tasks.direction), or
        "cma", for rewards without gradients (vpt.tasks.evolve).
    weight_decay: on rows and matrices; None: the method's own.
    schedule: see vpt.tasks.schedule.  warmup: epochs.
    head: start of the linear head, at 0 or as the method published it (VPT: random, bias -log 99).
    smoothing: of the labels.  mixup: strength alpha of mixup, 0 for none; it needs fresh views.
    clip: largest norm of the gradient; 0 for none.  store: where the static part of fixed views is kept.
    patience: stop after so many epochs without a better val score; 0: never, the last epoch counts.
    chunk: pictures and sentences of one graph; 0: the batch. Larger batches than memory takes keep features only and
        compute each chunk anew in backward, with the same gradients.
    Of retrieve: loss, "infonce", "sigmoid" (networks with a bias of their logits, such as SigLIP) or "pull" (true
        pairs only, nothing is pushed away).  captions: of a
        picture in one batch, in turn; 0: all.  consistency: weight of staying near the frozen features.
        general: other pictures with captions, measured before and after: what was lost there.
    Of denoise: snr, gamma of min-SNR weighting (5 is usual), 0 for none.  prior: weight of pictures that show the
        class and not the concept.  ema: decay of the running average of what learns, which is what is kept; 0: none.
        remat: the frozen network keeps fewer activations and computes them anew in backward.
    Of reward: reward, "clip-text" (likeness to the prompt), "clip-text:WORDS", "clip-image:FILE", or a callable by its
        path, "module:name" (vpt.tasks.judge).  judge: the backbone whose features say likeness.
        inference_steps: of drawing.  last: of these, under autograd.  guidance: 0 is the pipeline's own.
        near: weight of staying near the rows' start.  population, dimension: of optimizer cma, candidates a
        generation (epochs are generations) and numbers searched; 0: cma's choice, and all of up to 256, else 64.
    """

    objective: Literal["classify", "retrieve", "denoise", "reward"] = "classify"
    epochs: int = 20
    lr: tuple[float, ...] | Literal["search"] = ()
    head_lr: float | None = None
    per_256: bool = False
    optimizer: Literal["adamw", "sgd", "direction", "cma"] = "adamw"
    weight_decay: float | None = None
    schedule: Literal["cosine", "constant", "vpt", "pixel", "coop"] = "cosine"
    warmup: float = 1.0
    head: Literal["zeros", "published"] = "zeros"
    smoothing: float = 0.0
    mixup: float = 0.0
    clip: float = 0.0
    store: Literal["auto", "memory", "disk", "off"] = "auto"
    patience: int = 0
    chunk: int = 0
    loss: Literal["infonce", "sigmoid", "pull"] = "infonce"
    captions: int = 1
    consistency: float = 0.0
    general: str = ""
    snr: float = 0.0
    prior: float = 1.0
    ema: float = 0.0
    remat: bool = False
    reward: str = "clip-text"
    judge: str = "starter/clip-mini"
    inference_steps: int = 20
    last: int = 1
    guidance: float = 0.0
    near: float = 0.0
    population: int = 0
    dimension: int = 0

    def __post_init__(self) -> None:
        if self.head_lr is not None and not self.head_lr > 0:
            raise ValueError(
                f"head_lr is {self.head_lr}, wanted a positive rate, or none for that of the rows."
            )
        none = ("warmup", "mixup", "clip", "patience", "chunk", "captions", "consistency", "snr", "prior")
        lows = {**dict.fromkeys(none, 0), "epochs": 1, "inference_steps": 1, "last": 1}
        lows |= dict.fromkeys(("guidance", "near", "population", "dimension"), 0)
        for name, low in lows.items():
            if getattr(self, name) < low:
                raise ValueError(f"{name} is {getattr(self, name)}, wanted at least {low}.")
        if self.optimizer == "cma" and (
            self.objective != "reward" or self.lr == "search" or len(self.lr) > 1
        ):
            raise ValueError(
                f"optimizer=cma is for the objective reward and one lr, not for {self.objective} and lr={self.lr}."
            )
        if self.population == 1:
            raise ValueError(
                "population is 1, wanted at least 2 candidates a generation, or 0 for cma's choice."
            )
        if self.lr != "search" and any(not lr > 0 for lr in self.lr):
            raise ValueError(f"learning rates are positive, got {self.lr}.")
        for name in ("smoothing", "ema"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, wanted 0 or more and less than 1.")

    def rates(self, own: float) -> tuple[float, ...]:
        """The learning rates to train: as asked, the method's own, or five around it, a factor of about three apart."""
        if self.lr == "search":
            return tuple(float(f"{own * factor:.3g}") for factor in (0.1, 0.3, 1, 3, 10))
        return tuple(map(float, self.lr)) or (SIGMA if self.optimizer == "cma" else own,)


class Diverged(RuntimeError):
    """The loss is not finite; the last good prompts are kept."""


class PromptTask(L.LightningModule):
    """Trains learners side by side: one batch, one static part, the sum of their losses, their own learning rates.

    Each learner's gradient is its own, so the result is that of training them one by one. Frozen towers are not
    registered; checkpoints hold only what learned. Random numbers of a step are a function of (seed, step), so a
    resumed run draws the same.

    lrs: one a learner.  batch_size, epoch_batches: of one batch of all processes, and how many make an epoch.
    batches: passes over training pictures, for starts that come from the data.
    frames: the rest of stored streams of train and val (see vpt.tasks.store); None when batches hold pictures.
    """

    strict_loading = False  # frozen weights are in no checkpoint; on_load_checkpoint checks what learned

    def __init__(
        self,
        learners: Sequence[Learning],
        lrs: Sequence[float],
        objective: Objective,
        recipe: Recipe,
        *,
        weight_decay: float,
        batch_size: int,
        epoch_batches: int,
        seed: int = 1,
        batches: Batches = tuple,
        frames: tuple[Stream | None, Stream | None] = (None, None),
    ) -> None:
        super().__init__()
        self.learners = nn.ModuleList(learners)
        self.lrs, self.objective, self.recipe, self.weight_decay = tuple(lrs), objective, recipe, weight_decay
        self.batch_size, self.seed, self.batches, self.frames = batch_size, seed, batches, frames
        # not asked of the trainer: its estimate loads the data before a checkpoint can say where to go on
        self.epoch_batches = epoch_batches
        self.low = min((learner.low for learner in learners), key=learners[0].tower.index)
        self.scores = nn.ModuleList(cast(nn.Module, objective.metric()) for _ in learners)
        self.diverged: dict[int, int] = {}  # learner -> the step at which its loss was not finite
        self.good = [_copy(learner.learned()) for learner in learners]
        self.history: list[dict[str, float]] = []
        self.average: Average | None = None
        self.mixup = MixUp(alpha=recipe.mixup, num_classes=len(objective.classes)) if recipe.mixup else None

    def learner(self, k: int) -> Learning:
        """The k-th learner."""
        return cast(Learning, self.learners[k])

    def setup(self, stage: str) -> None:
        device = self.trainer.strategy.root_device
        for learner in map(self.learner, range(len(self.learners))):
            for tower in (*learner.towers, *learner.frozen):
                if tower is not None:
                    tower.model.to(device)
            learner.to(device)
            if stage == "fit":
                learner.method.start(learner.tower, self._on_device, learner.head)
        if stage == "fit":
            self.good = [_copy(self.learner(k).learned()) for k in range(len(self.learners))]
            if self.recipe.ema:
                self.average = Average([self.learner(k) for k in range(len(self.learners))], self.recipe.ema)

    def optimizer_step(self, *args: Any, **more: Any) -> None:
        super().optimizer_step(*args, **more)
        if self.average is not None:  # here: a checkpoint is written before the hook behind the batch
            self.average.update()

    def averaged(self) -> AbstractContextManager[None]:
        """While it is open, the learners are what is kept in the end: their averages, where the recipe has some."""
        return nullcontext() if self.average is None else self.average.shown()

    def on_validation_start(self) -> None:
        if self.average is not None:
            self.average.swap()

    def on_validation_end(self) -> None:
        if self.average is not None:
            self.average.swap()

    def on_fit_end(self) -> None:
        if self.average is not None:
            self.average.swap()

    def _on_device(self) -> Any:
        device = self.trainer.strategy.root_device
        for batch in self.batches():
            yield {k: v.to(device) if isinstance(v, Tensor) else v for k, v in batch.items()}

    def attention(self, inputs: Tensor | Stream) -> AbstractContextManager[Any]:
        """The faster attention path at this precision, by measurement; in float32 always the library's.

        Where the pictures' features are stored, the text decides.
        """
        if not str(self.trainer.precision).startswith("bf16"):
            return nullcontext()
        tower, x = self.learner(0).busiest(inputs)
        return nullcontext() if tower is None else fastest_for(tower, x, torch.bfloat16)

    def training_step(self, batch: dict[str, Any], _: int) -> Tensor:
        torch.manual_seed(self.seed * 1_000_003 + self.global_step)
        inputs = inputs_of(batch, self.frames[0])
        if self.mixup is not None:
            inputs, target = self.mixup(batch["image"], batch["label"])
            batch = {**batch, "target": target}
        alive = [k for k in range(len(self.learners)) if k not in self.diverged]
        with self.attention(inputs):
            if len(alive) > 1:  # one static part for all
                inputs = advance(self.learner(0).tower, inputs, {}, self.low)
            losses = torch.stack([self._loss(self.learner(k), inputs, batch) for k in alive])
        finite = losses.detach().isfinite().tolist()
        for k, ok in zip(alive, finite, strict=True):
            if not ok:
                self.diverged[k] = self.global_step
        if not any(finite):
            raise Diverged(
                f"the loss is not finite at step {self.global_step} (epoch {self.current_epoch}) with learning rate "
                f"{', '.join(f'{lr:g}' for lr in self.lrs)}. Lower the learning rate, or clip the gradient (clip=1)."
            )
        loss = losses[[i for i, ok in enumerate(finite) if ok]].sum()
        self.log("train/loss", loss.detach() / sum(finite), prog_bar=True, batch_size=len(batch["index"]))
        return loss

    def _loss(self, learner: Learning, inputs: Tensor | Stream, batch: dict[str, Any]) -> Tensor:
        seen, task = self.objective.step(learner, inputs, batch, self.current_epoch)
        total = learner.method.total(learner.method.losses(seen, task))
        return sum(self.objective.more(seen).values(), total)

    def on_train_epoch_end(self) -> None:
        for k in range(len(self.learners)):
            if k not in self.diverged:
                learner = self.learner(k)
                learner.method.after_epoch(
                    self.current_epoch + 1, self.recipe.epochs, learner.tower, self._on_device, learner.head
                )
                self.good[k] = _copy(self.average.kept[k] if self.average else learner.learned())

    def validation_step(self, batch: dict[str, Any], _: int) -> None:
        inputs = inputs_of(batch, self.frames[1])
        with self.attention(inputs):
            if len(self.learners) > 1:
                inputs = advance(self.learner(0).tower, inputs, {}, self.low)
            for k in range(len(self.learners)):
                self.objective.observe(self.metric(k), self.learner(k), inputs, batch)

    def metric(self, k: int) -> Metric:
        """What measures the k-th learner on val."""
        return cast(Metric, self.scores[k])

    def on_validation_epoch_end(self) -> None:
        name, row = f"val/{self.objective.headline}", {"epoch": float(self.current_epoch)}
        scores = []
        for k, lr in enumerate(self.lrs):
            found = {
                f"val/{n}": float(v)
                for n, v in self.objective.result(self.metric(k), self.learner(k)).items()
            }
            self.metric(k).reset()
            if k not in self.diverged:
                scores.append(found[name])
            row |= found if len(self.lrs) == 1 else {f"{n}/lr={lr:g}": v for n, v in found.items()}
        best = row[name] = self._best(scores) if scores else math.nan
        self.log_dict({k: v for k, v in row.items() if k != "epoch"})
        self.log("val", best, prog_bar=True, logger=False)
        self.history.append(row)

    @property
    def _best(self) -> Callable[[Sequence[float]], float]:
        return min if self.objective.better == "min" else max

    def configure_optimizers(self) -> Any:
        scale = self.batch_size / 256 if self.recipe.per_256 else 1.0
        groups = []
        for k, lr in enumerate(self.lrs):
            rates = lr * scale, (self.recipe.head_lr or lr) * scale
            groups += self.learner(k).groups(*rates, self.weight_decay)
        if self.recipe.optimizer == "sgd":
            optimizer: torch.optim.Optimizer = torch.optim.SGD(groups, momentum=0.9)
        elif self.recipe.optimizer == "direction":
            optimizer = Direction(groups)
        else:
            optimizer = torch.optim.AdamW(groups)
        steps = math.ceil(self.epoch_batches / self.trainer.accumulate_grad_batches)
        factor = schedule(self.recipe.schedule, self.recipe.epochs, steps, self.recipe.warmup)
        factors: list[Any] = [partial(factor, lr=group["lr"]) for group in optimizer.param_groups]
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": LambdaLR(optimizer, factors), "interval": "step"},
        }

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["state_dict"] = {
            f"learners.{k}.{name}": t
            for k in range(len(self.learners))
            for name, t in self.learner(k).learned().items()
        }
        checkpoint["vpt"] = {"diverged": self.diverged, "good": self.good, "history": self.history}
        if self.average is not None:
            checkpoint["vpt"]["average"] = self.average.state()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        want = {f"learners.{k}.{n}" for k in range(len(self.learners)) for n in self.learner(k).learned()}
        if missing := want - checkpoint["state_dict"].keys():
            raise ValueError(
                f"the checkpoint lacks {', '.join(sorted(missing)[:3])}: it belongs to another method or other "
                "options. Start afresh in another folder."
            )
        kept = checkpoint["vpt"]
        self.diverged, self.good, self.history = kept["diverged"], kept["good"], kept["history"]
        if self.average is not None:
            self.average.load(kept["average"])

    def best(self) -> tuple[int, str]:
        """Which learner wins on val by its last epoch (ties: the smaller rate), and a sentence that says why."""
        alive = [k for k in range(len(self.learners)) if k not in self.diverged]
        if len(self.learners) == 1 or not alive:
            return 0, ""
        last, name = self.history[-1], self.objective.headline
        score = {k: last[f"val/{name}/lr={self.lrs[k]:g}"] for k in alive}
        sign = 1 if self.objective.better == "min" else -1
        k = min(alive, key=lambda k: (sign * score[k], self.lrs[k]))
        told = ", ".join(f"{self.lrs[k]:g}: {score[k]:.3f}" for k in alive)
        gone = "".join(f", {self.lrs[k]:g}: diverged at step {step}" for k, step in self.diverged.items())
        return k, f"learning rate {self.lrs[k]:g} has the best val {name} at the last epoch ({told}{gone})"


def _copy(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k: v.detach().cpu().clone() for k, v in tensors.items()}
