"""compare: several methods on the same pictures, splits, views and budget; one honest table."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from vpt.methods import METHODS, method_class
from vpt.methods.method import Method
from vpt.tasks.device import Machine
from vpt.tasks.learner import build_method
from vpt.tasks.task import Recipe
from vpt.tasks.tuned import Tuned
from vpt.towers.backbone import Backbone
from vpt.workflow.runs import Candidate, Result, Runs, Search, step_of
from vpt.workflow.shown import SHOWN, Column, shown_of
from vpt.workflow.tabulate import RANKED, Entry, in_a_line, label

__all__ = [
    "Candidate",
    "Result",
    "Row",
    "cells",
    "columns_of",
    "compare",
    "header",
    "label_of",
    "markdown",
    "rates_of",
    "refuse",
    "solves",
    "summarise",
    "to_csv",
    "trained",
    "tries",
    "validation",
]


def compare(
    backbone: Backbone,
    data: Mapping[str, Any],
    candidates: Sequence[Candidate],
    *,
    out: str | Path,
    seeds: Sequence[int] = (1, 2, 3),
    search: Search = "every seed",
    recipe: Recipe = Recipe(),  # noqa: B008  frozen
    machine: Machine = Machine(),  # noqa: B008  frozen
    told: Callable[[str], None] = lambda _: None,
    seen: Callable[[Tuned, Result], None] = lambda *_: None,
) -> list[Result]:
    """Run every candidate with every seed; each seed has one split, the same for all candidates.

    data: options of ImageData without the seed.  out, told, seen: see :class:`vpt.workflow.runs.Runs`.  search: choose
    among several learning rates on val for every seed, or for the first one only, whose choice the others take
    (cheaper; the label says so).
    """
    refuse(backbone, candidates)
    runs = Runs(backbone, out, machine, told=told, seen=seen)
    words = {"validation": validation(candidates, recipe, search, seeds)}
    return trained(runs, data, candidates, seeds=seeds, search=search, recipe=recipe, label=words)


def refuse(backbone: Backbone, candidates: Sequence[Candidate]) -> None:
    """Raises ValueError for names that meet and for options that a method has not, before anything runs."""
    names = [c.name for c in candidates]
    if len(set(names)) < len(names):
        raise ValueError(f"two lines of the comparison have one name: {names}. Give them labels.")
    for c in candidates:
        build_method(c.method, backbone, c.options)


def solves(method: str) -> bool:
    """Whether a method searches or solves on val itself."""
    return method_class(method).solve is not Method.solve


def tries(c: Candidate, recipe: Recipe) -> bool:
    """Whether a candidate has several learning rates."""
    rates = replace(recipe, **c.recipe).rates(METHODS[c.method].lr)
    return method_class(c.method).trains and len(rates) > 1


def validation(candidates: Sequence[Candidate], recipe: Recipe, search: Search, seeds: Sequence[int]) -> str:
    """What val is used for by runs that stand in one table: one answer for all, of which a method takes its part."""
    whose = f"with seed {seeds[0]}, for all" if search == "first seed" else "for every seed"
    decides = {
        f"learning rates ({whose})": any(tries(c, recipe) for c in candidates),
        "strengths": any(solves(c.method) for c in candidates),
        "when to stop": any(replace(recipe, **c.recipe).patience for c in candidates),
    }
    chosen = " and ".join(what for what, so in decides.items() if so)
    return f"chooses {chosen}, where a method asks" if chosen else "not used"


def trained(
    runs: Runs,
    data: Mapping[str, Any],
    candidates: Sequence[Candidate],
    *,
    seeds: Sequence[int],
    search: Search,
    recipe: Recipe,
    place: Sequence[str] = (),
    label: Mapping[str, Any] | None = None,
) -> list[Result]:
    """The runs of all candidates with all seeds, by seed."""
    found: list[Result] = []
    first: dict[str, Result] = {}
    for seed in seeds:
        for c in candidates:
            chosen = first.get(c.name) if search == "first seed" else None
            own = c if chosen is None else replace(c, recipe={**c.recipe, "lr": (chosen.lr,)})
            result = runs.train(own, data, seed, recipe, place=place, label=label)
            first.setdefault(c.name, result)
            found.append(result)
    return found


@dataclass(frozen=True)
class Row:
    """One line of the table: mean and standard deviation (sample, n - 1) over seeds of one test metric.

    lrs: of runs that were trained by gradient.
    task: the objective.  beside: the same of other columns that the objective shows, by their key.
    """

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
    task: str = "classify"
    beside: Mapping[str, tuple[float, float]] = field(default_factory=dict)


def summarise(results: Sequence[Result], metric: str | None = None) -> list[Row]:
    """Rows in the order of the results. Raises ValueError when their protocols differ: such numbers are not ranked.

    metric: of the test split; by default the one that the objective ranks by.
    """
    labels = {json.dumps(_label(r.protocol), sort_keys=True) for r in results}
    if len(labels) > 1:
        raise ValueError(
            f"these results have {len(labels)} different protocols, so they are not ranked: {labels}."
        )
    shown = shown_of(results[0].protocol)
    metric = metric or shown.headline(results[0].metrics)
    rows = []
    for name in dict.fromkeys(r.name for r in results):
        mine = [r for r in results if r.name == name]
        rows.append(
            Row(
                name,
                mine[0].method,
                *_spread([r.metrics[metric] for r in mine]),
                len(mine),
                mine[0].parameters,
                mean(r.bytes for r in mine) / 1e3,
                step_of(mine),
                mean(r.seconds for r in mine),
                max(r.peak_mb for r in mine),
                tuple(r.lr for r in mine if r.protocol.get("trained") != "not by gradient"),
                str(results[0].protocol.get("task", "classify")),
                _beside(mine, shown.columns),
            )
        )
    return rows


def _spread(values: Sequence[float]) -> tuple[float, float]:
    return mean(values), stdev(values) if len(values) > 1 else 0.0


def _beside(runs: Sequence[Result], columns: Sequence[Column]) -> dict[str, tuple[float, float]]:
    """Mean and spread of the columns that all of the runs fill."""
    found = {c.key: [c.of(r) for r in runs] for c in columns}
    return {
        key: _spread([v for v in values if v is not None])
        for key, values in found.items()
        if None not in values
    }


def _label(protocol: Mapping[str, Any]) -> dict[str, Any]:
    """What must agree before numbers are ranked; split hash and seed differ between seeds by design."""
    return {k: protocol.get(k) for k in RANKED if k not in ("seed", "split")}


def label_of(results: Sequence[Result]) -> dict[str, str]:
    """The protocol of results that are ranked together, in words."""
    entries = [Entry(str(r.protocol["data"]), r.protocol.get("shots") or 0, r) for r in results]
    return label(entries, shown_of(results[0].protocol).space)


COSTS = ("seeds", "parameters", "file kB", "step ms", "seconds", "peak MB", "lr")


def columns_of(rows: Sequence[Row]) -> list[Column]:
    """The columns beside the headline that some row fills."""
    return [c for c in SHOWN[rows[0].task].columns if any(c.key in row.beside for row in rows)]


def header(rows: Sequence[Row]) -> tuple[str, ...]:
    """Names of the columns."""
    return ("method", SHOWN[rows[0].task].title, *(c.title for c in columns_of(rows)), *COSTS)


def cells(row: Row, columns: Sequence[Column] = ()) -> tuple[str, ...]:
    """A row as text; columns: beside the headline (:func:`columns_of`)."""
    return (
        row.name,
        percent(row.mean, row.std),
        *(percent(*row.beside[c.key], c.signed) if c.key in row.beside else "" for c in columns),
        str(row.seeds),
        f"{row.parameters:,}",
        f"{row.kilobytes:,.1f}",
        f"{row.step_ms:.0f}" if row.lrs else "-",
        f"{row.seconds:.0f}",
        f"{row.peak_mb:,.0f}",
        rates_of(row),
    )


def rates_of(row: Row) -> str:
    """The learning rates of a row's runs; "-" for what was not trained by gradient."""
    return ", ".join(f"{lr:g}" for lr in dict.fromkeys(row.lrs)) or "-"


def percent(value: float, spread: float, signed: bool = False) -> str:
    """A share and its spread in percent, or a signed difference in points."""
    return f"{100 * value:{'+' if signed else ''}.1f} ± {100 * spread:.1f}"


def markdown(rows: Sequence[Row], told: Mapping[str, str]) -> str:
    """The table in Markdown, shares in percent, and its protocol (:func:`label_of`)."""
    head, columns = header(rows), columns_of(rows)
    lines = [head, tuple("---" if i == 0 else "--:" for i in range(len(head)))]
    lines += [cells(row, columns) for row in rows]
    table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    return (
        f"{table}\n\nProtocol: {in_a_line(told)}. ± is the standard deviation over seeds (sample, n - 1).\n"
    )


def to_csv(rows: Sequence[Row], told: Mapping[str, str]) -> str:
    """The table with plain numbers; columns beside the headline with their spread as ``KEY_std``; the protocol."""
    keys = [c.key for c in columns_of(rows)]
    lines = []
    for row in rows:
        line = {k: v for k, v in asdict(row).items() if k not in ("task", "beside")}
        for key in keys:
            line[key], line[f"{key}_std"] = row.beside.get(key, ("", ""))
        lines.append(line | {k: v for k, v in told.items() if k not in line})
    text = io.StringIO()
    writer = csv.DictWriter(text, [*lines[0]])
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()
