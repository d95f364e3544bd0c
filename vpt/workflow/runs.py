"""Runs that are kept: each is trained once, whatever is killed, and carries the label of how it was measured."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from vpt.data.module import ImageData
from vpt.methods import METHODS, method_class
from vpt.promptset import write_atomically
from vpt.tasks.device import Machine
from vpt.tasks.measure import measure
from vpt.tasks.task import Recipe
from vpt.tasks.tune import fit
from vpt.tasks.tuned import Tuned, load_prompts
from vpt.towers.backbone import Backbone

__all__ = ["Candidate", "Result", "Runs", "Search", "by_split", "renamed", "step_of"]

Search = Literal["every seed", "first seed"]
KEY = "key.json"  # in the folder of a run that is not done: what it is
MODULES = 3  # data sets that are kept open: a base half, its novel half, and both


@dataclass(frozen=True)
class Candidate:
    """One line of a table: a method, its options, and what its recipe changes (lr, epochs, ...)."""

    method: str
    label: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    recipe: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """How the table calls it."""
        return self.label or self.method


@dataclass(frozen=True)
class Result:
    """One run. metrics: of the test split, empty without one.  bytes: of the file.  seconds: all in all.

    val: metrics of the val split, empty without one.
    beside: what else was measured, by a name such as "novel" or "general": metrics and count, or ``why`` it was not.
    before: metrics of the frozen model, by "test" and what else was measured; only of pictures with captions.
    """

    name: str
    method: str
    seed: int
    metrics: dict[str, float]
    parameters: int
    bytes: int
    seconds: float
    step_ms: float
    peak_mb: float
    lr: float
    file: str
    protocol: dict[str, Any]
    val: dict[str, float] = field(default_factory=dict)
    beside: dict[str, dict[str, Any]] = field(default_factory=dict)
    before: dict[str, dict[str, float]] = field(default_factory=dict)


class Runs:
    """Runs on one backbone below one folder.

    out: folder; ``results.json`` there is written after every run and every measurement, and what it holds is not
    repeated: equal settings are one run, whatever they are called.  told: one line before each run.  seen: called
    after each new run.
    """

    def __init__(
        self,
        backbone: Backbone,
        out: str | Path,
        machine: Machine = Machine(),  # noqa: B008  frozen
        *,
        told: Callable[[str], None] = lambda _: None,
        seen: Callable[[Tuned, Result], None] = lambda *_: None,
    ) -> None:
        # what several runs ask of a picture is computed once
        machine = replace(machine, cache=machine.cache or str(Path(out) / "static"))
        self.backbone, self.out, self.machine, self.told, self.seen = backbone, Path(out), machine, told, seen
        self.file = self.out / "results.json"
        kept = [Result(**r) for r in json.loads(self.file.read_text())] if self.file.is_file() else []
        self.done = {r.protocol["run"]: replace(r, file=self._here(r.file)) for r in kept}
        self._modules: dict[str, ImageData] = {}

    def train(
        self,
        c: Candidate,
        data: Mapping[str, Any],
        seed: int,
        recipe: Recipe = Recipe(),  # noqa: B008  frozen
        *,
        place: Sequence[str] = (),
        label: Mapping[str, Any] | None = None,
    ) -> Result:
        """The run of a candidate with a seed, trained where it is not there yet.

        data: options of ImageData without the seed.  recipe: what the candidate's own recipe is laid over.  place:
        folders between ``out`` and the candidate's.  label: what is added to the protocol.
        """
        own = replace(recipe, **c.recipe)
        key = self._key(data, c, seed, own)
        if key not in self.done:
            self.told(", ".join([*place, c.name, f"seed {seed}"]))
            folder = self._folder(place, c.name, seed, key)
            write_atomically(folder / KEY, key.encode())
            machine = replace(self.machine, out=str(folder))
            tuned = fit(self.backbone, self.module(data, seed), c.method, c.options, own, machine)
            self._keep(_result(c, tuned, seed, folder, key))
            (folder / KEY).unlink()
            self.seen(tuned, self.done[key])
        # under the name and the label that are asked for, whatever they were when it ran
        found = self.done[key]
        return replace(found, name=c.name, protocol={**found.protocol, **(label or {})})

    def measure(
        self,
        run: Result,
        name: str,
        data: Mapping[str, Any],
        words: Mapping[str, Any] | None = None,
    ) -> Result:
        """The run with a measurement beside its own: its prompts say the classes of other data's test split.

        name: of the measurement.  words: options of a method that learned nothing, for the names of these data.
        """
        facts = json.loads(json.dumps([dict(data), dict(words or {})], sort_keys=True))
        key = run.protocol["run"]
        if run.beside.get(name, {}).get("of") != facts:
            module, tuned = self.module(data, run.seed), self._tuned(run)
            try:
                tuned = renamed(tuned, module.classes, words or {})
                if tuned.learner.method.named and not method_class(run.method).trains:
                    tuned.learner.texts()  # descriptions may lack a name
            except ValueError as error:
                tied = f"it has {tuned.tied} for the classes that it was trained on"
                measured: dict[str, Any] = {"why": tied if tuned.tied else str(error).rstrip(".")}
            else:
                self.told(f"{run.name}, seed {run.seed}: {name}")
                metrics = measure(tuned, module, "test", cache=self.machine.cache).metrics
                measured = {**metrics, "count": module.protocol()["counts"]["test"]}
            kept = self.done[key]
            self._keep(replace(kept, beside={**kept.beside, name: {**measured, "of": facts}}))
        return replace(run, beside=self.done[key].beside)

    def module(self, data: Mapping[str, Any], seed: int) -> ImageData:
        """The data with their splits; the last few stay open, since reading every picture takes its time."""
        key = json.dumps([dict(data), seed], sort_keys=True)
        if key not in self._modules:
            if len(self._modules) == MODULES:
                del self._modules[next(iter(self._modules))]
            module = ImageData(**{**data, "seed": seed})
            module.bind(self.backbone.preprocessing)
            self._modules[key] = module
        return self._modules[key]

    def _tuned(self, run: Result) -> Tuned:
        """What the run left, in the precision that it was measured in."""
        tuned = load_prompts(run.file, self.backbone, device=self.machine.device)
        tuned.precision = tuned.prompts.about["train"]["precision"]
        return tuned

    def _keep(self, result: Result) -> None:
        self.done[result.protocol["run"]] = result
        lines = [asdict(r) for r in self.done.values()]
        for line in lines:
            if Path(line["file"]).is_relative_to(self.out):  # the folder may move
                line["file"] = Path(line["file"]).relative_to(self.out).as_posix()
        write_atomically(self.file, json.dumps(lines, indent=1).encode())

    def _here(self, file: str) -> str:
        """A kept path, which counts from the folder; those of before counted from where the command ran."""
        return str(self.out / file) if (self.out / file).is_file() else file

    def _key(self, data: Mapping[str, Any], c: Candidate, seed: int, recipe: Recipe) -> str:
        """What a run is: equal keys are the same run."""
        network = {k: v for k, v in self.backbone.label().items() if k != "libraries"}
        own = [network, self.machine.precision, dict(data), c.method, dict(c.options), asdict(recipe), seed]
        return json.dumps(own, sort_keys=True)

    def _folder(self, place: Sequence[str], name: str, seed: int, key: str) -> Path:
        """Where a run is written: its label in plain letters, and more where another run lies there, or began to."""
        parts = [*map(_plain, place), _plain(name)]

        def taken(runs: Iterable[Result]) -> bool:
            end = (*parts, f"seed{seed}")
            return any(Path(r.file).parts[-len(end) - 1 : -1] == end for r in runs)

        here = self.out.joinpath(*parts, f"seed{seed}")
        begun = (here / KEY).is_file() and (here / "checkpoints" / "last.ckpt").is_file()
        if taken(self.done.values()) or (begun and (here / KEY).read_text() != key):
            parts[-1] += "-" + hashlib.sha256(key.encode()).hexdigest()[:8]
        return self.out.joinpath(*parts, f"seed{seed}")


def _plain(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9.]+", "-", name).strip("-.") or "run"


def renamed(tuned: Tuned, classes: Sequence[str], words: Mapping[str, Any]) -> Tuned:
    """The same prompts for other class names. Raises ValueError where they belong to their own.

    words: options laid over those of a method that learned nothing.
    """
    if words:
        made = tuned.prompts.about["method"]
        about = {**tuned.prompts.about, "method": {**made, "options": {**made["options"], **words}}}
        tuned = Tuned(tuned.backbone, replace(tuned.prompts, about=about), precision=tuned.precision)
    if tuple(classes) == tuned.classes:
        return tuned
    return tuned.with_classes(classes, repeated=True)  # two pairs of ImageNet's names are the same word


def _result(c: Candidate, tuned: Tuned, seed: int, folder: Path, key: str) -> Result:
    train = tuned.prompts.about["train"]
    path = folder / ("baseline.safetensors" if METHODS[c.method].baseline else "prompts.safetensors")
    after, counts = by_split(tuned.metrics), {m["split"]: m["count"] for m in tuned.metrics}
    return Result(
        c.name,
        c.method,
        seed,
        after.get("test", {}),
        train["parameters"],
        path.stat().st_size,
        train["seconds"],
        train["step_ms"],
        train["peak_mb"],
        train["lr"],
        str(path),
        {**tuned.protocol, "run": key},
        after.get("val", {}),
        {
            name: {**found, "count": counts[name]}
            for name, found in after.items()
            if name not in ("val", "test")
        },
        by_split(tuned.prompts.about.get("before") or ()),
    )


def step_of(runs: Sequence[Result]) -> float:
    """Mean time of a step in ms: of one learning rate, where a run had one; several train side by side in one step."""
    one = [r for r in runs if len(r.protocol.get("lr_grid", ())) == 1]
    return fmean(r.step_ms for r in one or runs)


def by_split(metrics: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Values by split and name of numbers as a prompt file lists them."""
    found: dict[str, dict[str, float]] = {}
    for m in metrics:
        found.setdefault(m["split"], {})[m["name"]] = m["value"]
    return found
