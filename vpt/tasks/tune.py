"""tune: pictures, a frozen backbone and a method in; a prompt set with an honest number out."""

from __future__ import annotations

import inspect
import json
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from rich.console import Console
from rich.progress import track
from torchdata.stateful_dataloader import StatefulDataLoader

from vpt.attention import cast_frozen
from vpt.data.module import ImageData
from vpt.methods import EPOCHS, METHODS, method_class
from vpt.methods.method import Method
from vpt.objectives.retrieve import Retrieve
from vpt.promptset import PromptSet, write_atomically
from vpt.tasks.callbacks import StepTime, quiet
from vpt.tasks.device import Machine, PeakMemory, autocast, resolve_device, resolve_precision
from vpt.tasks.kinds import kind_of
from vpt.tasks.label import protocol_of
from vpt.tasks.learner import Learner, build_method
from vpt.tasks.learning import Learning
from vpt.tasks.measure import Numbers, shelves_of
from vpt.tasks.pairs import check_kind
from vpt.tasks.store import Stored, fill
from vpt.tasks.task import Diverged, PromptTask, Recipe
from vpt.tasks.trainer import trainer_of
from vpt.towers.backbone import Backbone
from vpt.towers.load import load

__all__ = ["Machine", "fit", "tune"]


def tune(backbone: Backbone | str, data: ImageData | str, method: str = "vpt-deep", **options: Any) -> Any:
    """Train ``method`` on ``backbone`` with the pictures in ``data``: three lines for a notebook.

    options: any of the method's (length=20), the data's (shots=16, seed=1, batch_size=32, augment="flip"),
        the recipe's (epochs=20, lr=(1e-3, 1e-2)) and the machine's (out="runs/photos", device="cuda").
    Raises ValueError for an option that none of them has, and for data, sites or backbones that cannot be used.
    """
    backbone = load(backbone) if isinstance(backbone, str) else backbone
    rooms: dict[str, dict[str, Any]] = {"data": {}, "method": {}, "recipe": {}, "machine": {}}
    only = METHODS[method].only if method in METHODS else ""
    kind = kind_of(options.get("objective") or only or "classify")
    known = {
        "method": set(inspect.signature(method_class(method)).parameters) - backbone.towers.keys(),
        "data": set(inspect.signature(kind.data).parameters) - {"path"} if isinstance(data, str) else set(),
        "recipe": {f.name for f in fields(Recipe)},
        "machine": {f.name for f in fields(Machine)},
    }
    for name, value in options.items():
        homes = [room for room, names in known.items() if name in names]
        if not homes:
            every = "; ".join(f"{room}: {', '.join(sorted(names))}" for room, names in known.items() if names)
            raise ValueError(f"nothing here has an option {name!r}. There are {every}.")
        for home in homes if name == "concept" else homes[:1]:  # a concept is the data's and the method's
            rooms[home][name] = value
    if "lr" in rooms["recipe"]:
        lr = rooms["recipe"]["lr"]
        rooms["recipe"]["lr"] = (lr,) if isinstance(lr, (int, float)) else lr if lr == "search" else tuple(lr)
    objective = rooms["recipe"].setdefault("objective", METHODS[method].only or "classify")
    if objective in EPOCHS:
        rooms["recipe"].setdefault("epochs", EPOCHS[objective])
    recipe = Recipe(**rooms["recipe"])
    if "captions" in known["data"]:
        rooms["data"].setdefault("captions", kind.captioned)
    module = kind.data(data, **rooms["data"]) if isinstance(data, str) else data
    return fit(backbone, module, method, rooms["method"], recipe, Machine(**rooms["machine"]))


def fit(
    backbone: Backbone,
    data: ImageData,
    method: str,
    options: Mapping[str, Any] | None = None,
    recipe: Recipe = Recipe(),  # noqa: B008  frozen
    machine: Machine = Machine(),  # noqa: B008  frozen
) -> Any:
    """Train, choose among the recipe's learning rates on val, measure on test, and write the file.

    Whatever can be refused is refused before the first picture is read. Raises Diverged when the loss is not finite;
    the prompts of the last good epoch are then in ``out``.
    """
    run = Run(backbone, data, method, dict(options or {}), recipe, machine)
    return run()


class Run:
    """One training run, step by step."""

    def __init__(
        self,
        backbone: Backbone,
        data: ImageData,
        method: str,
        options: dict[str, Any],
        recipe: Recipe,
        machine: Machine,
    ) -> None:
        self.backbone, self.data, self.method, self.options = backbone, data, method, options
        self.machine = machine
        self.entry = (
            METHODS[method] if method in METHODS else method_class(method)
        )  # raises, listing the names
        self.recipe, self.lrs = recipe, recipe.rates(self.entry.lr)
        self.weight_decay = self.entry.weight_decay if recipe.weight_decay is None else recipe.weight_decay
        self.device = resolve_device(machine.device)
        self.precision = resolve_precision(machine.precision, self.device)
        self.out = None if machine.out is None else Path(machine.out)
        self.console = Console(stderr=True, quiet=not machine.progress)
        made = build_method(method, backbone, options)  # sites and options are refused before data are read
        self.kind = kind_of(recipe.objective)
        if self.entry.only not in ("", recipe.objective, self.kind.methods_of):
            raise ValueError(f"{method} is for the objective {self.entry.only}, not {recipe.objective}.")
        self.kind.check(method, made, backbone, recipe)
        check_kind(data, recipe, self.kind.captioned, self.kind.data)
        self.watching = self.kind.callbacks(machine, self.precision)

    def __call__(self) -> Any:
        started = time.perf_counter()
        self.data.bind(self.backbone.preprocessing)
        self.data.setup()
        self._check_data()
        resumed = self._open_out()
        self.console.print(self.data.summary())
        self.objective = self.kind.objective(self.backbone, self.data, self.recipe)
        memory, timer = PeakMemory(self.device), StepTime()
        learners = self._learners()
        self._say_what_learns(learners[0])
        solved: dict[str, float] = {}
        method = learners[0].method
        chosen, why, task = 0, "", None
        if method.trains:
            task = self._train(learners, resumed, timer)
            chosen, why = task.best()
        if cut := len(learners[chosen].cut):
            self.console.print(f"{cut:,} captions were longer than the context and lost their last words")
        if type(method).solve is not Method.solve:
            solved = self._solve(learners[chosen])
        if why:
            self.console.print(why)
        train = {
            "lr": self.lrs[chosen],
            "chosen_because": why,
            **solved,
            "weight_decay": self.weight_decay,
            **{k: v for k, v in asdict(self.recipe).items() if k not in ("lr", "weight_decay")},
            "batch_size": self.data.batch_size,
            "precision": self.precision,
            "device": str(self.device),
            "steps": len(timer.ms),
            "step_ms": round(timer.median, 2),
            "peak_mb": round(memory.mb(), 1),
            "parameters": sum(p.numel() for p in learners[chosen].parameters() if p.requires_grad),
            "history": task.history if task else [],
            "command": " ".join(sys.argv) if sys.argv[0].endswith(("vpt", "vptune", "__main__.py")) else "",
        }
        tuned = self._bind(learners[chosen], train)
        numbers = Numbers(self.data, self.recipe, self.machine.cache, self._bar, self.precision)
        tuned.prompts.about.update(self.kind.numbers(tuned, learners[chosen], numbers))
        tuned.prompts.about["train"]["seconds"] = round(time.perf_counter() - started, 1)
        if self.out is not None:
            tuned.save(self.out / self.file_name)
            (self.out / "checkpoints" / "last.ckpt").unlink(missing_ok=True)
            for kept in self.out.glob("*.static") if self.recipe.store == "auto" else ():
                kept.unlink(missing_ok=True)
        return tuned

    def _bar(self, name: str) -> Callable[[Iterable[Any]], Iterable[Any]]:
        """A progress bar under that name, where one is wanted."""
        if not self.machine.progress:
            return iter
        return partial(track, description=name, console=self.console, transient=True)

    @property
    def file_name(self) -> str:
        """Of the artifact: a baseline's is no prompt set, and is not called one."""
        return "baseline.safetensors" if self.entry.baseline else "prompts.safetensors"

    def _check_data(self) -> None:
        solves = method_class(self.method).solve is not Method.solve
        if solves and not self.data.protocol()["counts"].get("val"):
            raise ValueError(f"{self.method} chooses on a val split, and there is none. Set val=0.2.")
        if solves and self.data.multilabel:
            raise ValueError(
                f"{self.method} takes one label a picture. Use the method linear for several labels."
            )
        if len(self.lrs) > 1 and not self.data.protocol()["counts"].get("val"):
            raise ValueError(
                f"choosing among the learning rates {self.lrs} needs a val split, and there is none. "
                "Set val=0.2, or give one learning rate."
            )
        if self.recipe.mixup and (self.data.fixed_views or self.data.multilabel):
            raise ValueError("mixup needs fresh views (augment, views=0) and one label a picture.")

    def config(self) -> dict[str, Any]:
        """What decides the result: a resumed run must agree with it."""
        return {
            "backbone": self.backbone.label(),
            "data": self.data.protocol(),
            "batch_size": self.data.batch_size,
            "method": {"name": self.method, "options": self.options},
            "recipe": asdict(self.recipe),
            "precision": self.precision,
        }

    def _open_out(self) -> Path | None:
        """Make the folder, or find the checkpoint of a killed run in it; refuses one of another configuration."""
        if self.out is None:
            return None
        config, told = self.out / "run.json", json.loads(json.dumps(self.config()))
        checkpoint = self.out / "checkpoints" / "last.ckpt"
        if self.machine.resume and checkpoint.is_file() and config.is_file():
            before = json.loads(config.read_text())
            if before == told:
                self.console.print(f"going on from {checkpoint}")
                return checkpoint
            changed = [k for k in told if before.get(k) != told[k]]
            raise ValueError(
                f"{self.out} holds a stopped run with another {', '.join(changed)}. Repeat its options to go on, "
                "start afresh with resume=false, or choose another out."
            )
        if self.out.exists() and not self.out.is_dir():
            raise ValueError(f"out={str(self.out)!r} is a file. Give a folder.")
        checkpoint.parent.mkdir(parents=True, exist_ok=True)
        checkpoint.unlink(missing_ok=True)
        write_atomically(config, json.dumps(told, indent=1).encode())
        return None

    def _learners(self) -> list[Learning]:
        """One learner a learning rate, all from the same start."""
        towers = dict(self.backbone.towers)
        for tower in towers.values():
            tower.model.to(self.device)
        if self.precision.startswith("bf16") and not self.entry.baseline:
            towers = {
                name: cast_frozen(t, torch.bfloat16) if t.reopen is not None else t
                for name, t in towers.items()
            }
        made = []
        for _ in self.lrs:
            torch.manual_seed(self.data.seed)
            classes = self.objective.classes
            method = build_method(
                self.method, self.backbone, self.options, classes=len(classes), towers=towers
            )
            made.append(self.kind.learner(method, self.backbone, classes, towers, self.recipe))
        return made

    def _say_what_learns(self, learner: Learning) -> None:
        models = [t.model for t in learner.frozen if t is not None]
        frozen = sum(p.numel() for model in models for p in model.parameters()) / 1e6
        name = f"{self.method} on {self.backbone.name} ({frozen:.1f} M frozen)"
        self.console.print(f"{name} learns: {learner.learns()}")
        if layout := learner.layout():
            self.console.print(layout)

    def _store(self, learner: Learning, low: str, split: str, trains: bool) -> Stored | None:
        """The static part of one split, kept; None where it is not worth it."""
        views = self.data.fixed_views if trains else 1
        pictures = self.data.pictures(split, augmented=trains)
        wanted = self.recipe.store in ("memory", "disk") or (
            self.recipe.store == "auto" and self.recipe.epochs > views
        )
        if not views or low == "input" or not wanted or not len(pictures):
            return None
        return fill(
            learner.tower,
            low,
            pictures,
            views,
            where=self.recipe.store,
            folder=self.out,
            name="train" if trains else "val",
            pooled=learner.needs and trains,
            shelves=shelves_of(self.backbone, self.machine.cache, self.precision, pictures.source),
            around=partial(autocast, self.device, self.precision),
            track=self._bar(f"storing {split} below {low}"),
        )

    def _solve(self, learner: Learning) -> dict[str, float]:
        """A closed form or a search on stored features."""
        learner.to(self.device).train()
        parts = {}
        for split in ("train", "val"):
            views = learner.method.views if split == "train" and self.data.augment != "none" else 0
            pictures = self.data.pictures(split, augmented=views > 0)
            shelves = shelves_of(self.backbone, self.machine.cache, self.precision, pictures.source)
            stored = fill(learner.tower, "pooled", pictures, max(views, 1), where="memory", shelves=shelves)
            assert stored is not None
            parts[split] = (stored.x.mean(0), torch.tensor([fact["label"] for fact in stored.facts]))
        assert isinstance(learner, Learner)
        return learner.method.solve(*parts["train"], parts["val"], learner.head, learner.taught())

    def _train(self, learners: list[Learning], resumed: Path | None, timer: StepTime) -> Any:
        if self.recipe.optimizer == "cma":
            return cast(Any, self.kind).search(learners[0], self)  # a recipe has it for rewards alone
        with quiet():
            loader, val = self.data.train_dataloader(), self._held()
        low = min((learner.low for learner in learners), key=learners[0].tower.index)
        held = self.kind.held(self.data)
        stored = self._store(learners[0], low, "train", True)
        stored_val = self._store(learners[0], low, held, False) if stored is not None and held else None
        if stored is not None:
            with quiet():
                loader = StatefulDataLoader(stored, batch_sampler=loader.batch_sampler)
        if stored_val is not None:
            val = torch.utils.data.DataLoader(stored_val, val.batch_size)
        objective = self.objective
        if isinstance(objective, Retrieve) and stored is not None and low == learners[0].tower.stages[-1]:
            objective = replace(objective, bank=stored.x)
        task = PromptTask(
            learners,
            self.lrs,
            objective,
            self.recipe,
            weight_decay=self.weight_decay,
            batch_size=self.data.batch_size,
            epoch_batches=len(loader),
            seed=self.data.seed,
            batches=self._batches,
            frames=(stored.frame if stored else None, stored_val.frame if stored_val else None),
        )
        try:
            with quiet():
                trainer = trainer_of(
                    self.machine,
                    self.recipe,
                    self.objective,
                    self.device,
                    self.precision,
                    [timer, *self.watching],
                    self.kind.every(len(loader)),
                )
                trainer.fit(task, loader, val or None, ckpt_path=resumed, weights_only=False)
        except Diverged:
            self._keep_last_good(task)
            raise
        if trainer.interrupted:
            raise KeyboardInterrupt
        return task

    def _batches(self) -> Any:
        """Training batches as for evaluation, in order: what starts from data read."""
        return torch.utils.data.DataLoader(self.data.pictures("train"), self.data.batch_size)

    def _held(self) -> Any:
        """Batches that measure training as it goes."""
        if self.kind.held(self.data) == "train":
            return self._batches()
        return self.data.val_dataloader()

    def _keep_last_good(self, task: PromptTask) -> None:
        """Write the prompts of the last epoch whose loss was finite."""
        if self.out is None:
            return
        learner = task.learner(0)
        learner.load_state_dict(task.good[0], strict=False)
        tuned = self._bind(learner, {"stopped": f"the loss was not finite at step {task.global_step}"})
        tuned.save(self.out / self.file_name)

    def _bind(self, learner: Learning, train: dict[str, Any]) -> Any:
        told, recipe = self.data.protocol(), self.recipe
        protocol = protocol_of(self.backbone, told, learner.method, recipe, self.lrs, train, self.precision)
        about = {
            "kind": "baseline" if self.entry.baseline else "prompt set",
            "method": {
                "name": self.method,
                "options": {**self.options, **learner.method.kept},
                "paper": self.entry.paper,
            },
            "task": self.recipe.objective,
            "multilabel": self.data.multilabel,
            "protocol": protocol,
            "backbone": self.backbone.label(),
            "preprocessing": dict(self.backbone.preprocessing),
            "classes": list(self.data.classes),
            **({"placeholders": dict(learner.method.placeholders)} if learner.method.placeholders else {}),
            "metrics": [],
            "train": train,
        }
        prompts: PromptSet = learner.export(about)
        return self.kind.bound(self.backbone, prompts, self.precision)
