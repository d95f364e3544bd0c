"""compare: several methods on the same pictures, splits, views and budget; one honest table."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any, Literal

from vpt.data.module import ImageData
from vpt.methods import METHODS
from vpt.promptset import write_atomically
from vpt.tasks.device import Machine
from vpt.tasks.learner import build_method
from vpt.tasks.task import Recipe
from vpt.tasks.tune import fit
from vpt.tasks.tuned import Tuned
from vpt.towers.backbone import Backbone

__all__ = ["Candidate", "Result", "Row", "compare", "markdown", "summarise", "to_csv"]


@dataclass(frozen=True)
class Candidate:
    """One line of the comparison: a method, its options, and what its recipe changes (lr, epochs, ...)."""

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
    """One run. metrics: of the test split.  bytes: of the file.  seconds: all in all."""

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


def compare(
    backbone: Backbone,
    data: Mapping[str, Any],
    candidates: Sequence[Candidate],
    *,
    out: str | Path,
    seeds: Sequence[int] = (1, 2, 3),
    search: Literal["every seed", "first seed"] = "every seed",
    recipe: Recipe = Recipe(),  # noqa: B008  frozen
    machine: Machine = Machine(),  # noqa: B008  frozen
    told: Callable[[str], None] = lambda _: None,
    seen: Callable[[Tuned, Result], None] = lambda *_: None,
) -> list[Result]:
    """Run every candidate with every seed; each seed has one split, the same for all candidates.

    data: options of ImageData without the seed.  out: folder; ``results.json`` there is written after every run, and
    a run that it holds is not repeated: equal settings are one run, whatever they are called.  search: choose among
    several learning rates on val for every seed, or for the first one only, whose choice the others take (cheaper;
    the label says so).  seen: called after each new run.
    """
    out = Path(out)
    names = [c.name for c in candidates]
    if len(set(names)) < len(names):
        raise ValueError(f"two lines of the comparison have one name: {names}. Give them labels.")
    for c in candidates:
        build_method(c.method, backbone, c.options)  # all are refused before the first one runs
    file = out / "results.json"
    kept = [Result(**r) for r in json.loads(file.read_text())] if file.is_file() else []
    done = {r.protocol["run"]: r for r in kept}
    for seed in seeds:
        for c in candidates:
            key = _key(backbone, data, c, seed, recipe)
            if key in done:
                continue
            told(f"{c.name}, seed {seed}")
            folder = _folder(out, c.name, seed, key, done.values())
            module = ImageData(**{**data, "seed": seed})
            own = replace(recipe, **c.recipe)
            if search == "first seed" and seed != seeds[0]:
                own = replace(own, lr=(done[_key(backbone, data, c, seeds[0], recipe)].lr,))
            tuned = fit(backbone, module, c.method, c.options, own, replace(machine, out=str(folder)))
            done[key] = _result(c, tuned, seed, folder, key)
            write_atomically(file, json.dumps([asdict(r) for r in done.values()], indent=1).encode())
            seen(tuned, done[key])
    # under the names that this comparison gives, whatever they were called when they ran
    return [
        replace(done[_key(backbone, data, c, seed, recipe)], name=c.name)
        for seed in seeds
        for c in candidates
    ]


def _key(backbone: Backbone, data: Mapping[str, Any], c: Candidate, seed: int, recipe: Recipe) -> str:
    """What a run is: equal keys are the same run."""
    facts = [backbone.name, dict(data), c.method, dict(c.options), asdict(replace(recipe, **c.recipe)), seed]
    return json.dumps(facts, sort_keys=True)


def _folder(out: Path, name: str, seed: int, key: str, done: Iterable[Result]) -> Path:
    """Where a run is written: its label in plain letters, and more where another run lies there."""
    plain = re.sub(r"[^A-Za-z0-9.]+", "-", name).strip("-.") or "run"
    if any(Path(r.file).parts[-3:-1] == (plain, f"seed{seed}") for r in done):
        plain += "-" + hashlib.sha256(key.encode()).hexdigest()[:8]
    return out / plain / f"seed{seed}"


def _result(c: Candidate, tuned: Tuned, seed: int, folder: Path, key: str) -> Result:
    train = tuned.prompts.about["train"]
    path = folder / ("baseline.safetensors" if METHODS[c.method].baseline else "prompts.safetensors")
    return Result(
        c.name,
        c.method,
        seed,
        {m["name"]: m["value"] for m in tuned.metrics if m["split"] == "test"},
        train["parameters"],
        path.stat().st_size,
        train["seconds"],
        train["step_ms"],
        train["peak_mb"],
        train["lr"],
        str(path),
        {**tuned.protocol, "run": key},
    )


@dataclass(frozen=True)
class Row:
    """One line of the table: mean and standard deviation (sample, n - 1) over seeds of one test metric."""

    name: str
    method: str
    mean: float
    std: float
    seeds: int
    parameters: int
    kilobytes: float
    step_ms: float
    seconds: float
    peak_mb: float
    lrs: tuple[float, ...]


def summarise(results: Sequence[Result], metric: str = "top1") -> list[Row]:
    """Rows in the order of the results. Raises ValueError when their protocols differ: such numbers are not ranked."""
    labels = {json.dumps(_label(r.protocol), sort_keys=True) for r in results}
    if len(labels) > 1:
        raise ValueError(
            f"these results have {len(labels)} different protocols, so they are not ranked: {labels}."
        )
    rows = []
    for name in dict.fromkeys(r.name for r in results):
        mine = [r for r in results if r.name == name]
        values = [r.metrics[metric] for r in mine]
        rows.append(
            Row(
                name,
                mine[0].method,
                mean(values),
                stdev(values) if len(values) > 1 else 0.0,
                len(values),
                mine[0].parameters,
                mean(r.bytes for r in mine) / 1e3,
                mean(r.step_ms for r in mine),
                mean(r.seconds for r in mine),
                max(r.peak_mb for r in mine),
                tuple(r.lr for r in mine),
            )
        )
    return rows


def _label(protocol: Mapping[str, Any]) -> dict[str, Any]:
    """What must agree before numbers are ranked; split hash and seed differ between seeds by design."""
    return {k: protocol.get(k) for k in ("data", "shots", "task", "selection", "counts")}


HEADER = ("method", "accuracy", "seeds", "parameters", "file kB", "step ms", "seconds", "peak MB", "lr")


def cells(row: Row) -> tuple[str, ...]:
    """A row as text."""
    lrs = ", ".join(f"{lr:g}" for lr in dict.fromkeys(row.lrs))
    return (
        row.name,
        f"{100 * row.mean:.1f} ± {100 * row.std:.1f}",
        str(row.seeds),
        f"{row.parameters:,}",
        f"{row.kilobytes:,.1f}",
        f"{row.step_ms:.0f}",
        f"{row.seconds:.0f}",
        f"{row.peak_mb:,.0f}",
        lrs,
    )


def markdown(rows: Sequence[Row]) -> str:
    """The table in Markdown; accuracy in percent."""
    lines = [HEADER, tuple("---" if i == 0 else "--:" for i in range(len(HEADER))), *map(cells, rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def to_csv(rows: Sequence[Row]) -> str:
    """The table with plain numbers."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [*asdict(rows[0])])
    writer.writeheader()
    writer.writerows(asdict(r) for r in rows)
    return text.getvalue()
