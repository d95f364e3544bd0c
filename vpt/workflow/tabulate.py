"""Tables of runs: mean and spread over seeds, a column a number, a line a method, a table a protocol."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from statistics import fmean, pstdev
from typing import Any

from vpt.methods import METHODS, method_class
from vpt.methods.method import Method
from vpt.workflow.runs import Result, step_of

__all__ = [
    "Cell",
    "Entry",
    "Line",
    "Table",
    "family",
    "harmonic",
    "in_a_line",
    "label",
    "markdown",
    "same_protocol",
    "summary",
    "to_csv",
]

COSTS = ("parameters", "file kB", "step ms", "seconds", "peak MB", "lr")
FAMILIES = ("prompt engineering", "prompt tuning", "a probe", "fine-tuning")
# what two results must agree in before they are ranked
RANKED = (
    *(
        "task",
        "data",
        "subset",
        "shots",
        "split",
        "counts",
        "seed",
        "selection",
        "inductive",
        "preprocessing",
    ),
    *("augment", "views", "validation", "recipe", "precision"),
)
NOTE = (
    "± is the standard deviation over seeds (population, n, as the CoOp line of work has it); a step is that of one "
    "learning rate where a run had one; seconds are of one run, its search for a rate and its measurement included; "
    "peak MB is the largest of all runs. A difference below the spread says nothing, and a ranking holds for this "
    "network, these pictures and this recipe."
)


@dataclass(frozen=True)
class Entry:
    """One run in its place: the data set's name, and how many pictures a class (0: all)."""

    set: str
    shots: int
    result: Result


@dataclass(frozen=True)
class Cell:
    """Accuracies in [0, 1], one a seed, and the mean where it is not theirs (a harmonic mean of means)."""

    values: tuple[float, ...]
    own_mean: float | None = None

    @property
    def mean(self) -> float:
        return fmean(self.values) if self.own_mean is None else self.own_mean

    @property
    def std(self) -> float:
        """Population standard deviation over seeds."""
        return pstdev(self.values)

    def __str__(self) -> str:
        spread = f" ± {100 * self.std:.1f}" if len(self.values) > 1 else ""
        return f"{100 * self.mean:.1f}{spread}"


@dataclass(frozen=True)
class Line:
    """A method's numbers. cells: by column, "-" for what it has not.  runs: those that the costs are of."""

    name: str
    method: str
    cells: Mapping[str, Cell | str]
    runs: tuple[Result, ...]

    @cached_property
    def costs(self) -> dict[str, float]:
        """Means over runs, and the largest peak."""
        return {
            "parameters": fmean(r.parameters for r in self.runs),
            "bytes": fmean(r.bytes for r in self.runs),
            "step_ms": step_of(self.runs),
            "seconds": fmean(r.seconds for r in self.runs),
            "peak_mb": max(r.peak_mb for r in self.runs),
        }

    @property
    def val(self) -> float | None:
        """Mean top-1 on val; None where a run had no val split."""
        found = [r.val.get("top1") for r in self.runs]
        return None if None in found else fmean(v for v in found if v is not None)

    def texts(self, columns: Sequence[str]) -> list[str]:
        """The line as text, accuracies in percent."""
        c = self.costs
        rates = sorted({r.lr for r in self.runs if r.protocol.get("trained") != "not by gradient"})
        return [
            self.name,
            *(str(self.cells.get(column, "-")) for column in columns),
            f"{c['parameters']:,.0f}",
            f"{c['bytes'] / 1e3:,.1f}",
            f"{c['step_ms']:.0f}" if rates else "-",
            f"{c['seconds']:.0f}",
            f"{c['peak_mb']:,.0f}",
            ", ".join(f"{lr:g}" for lr in rates) or "-",
        ]


@dataclass(frozen=True)
class Table:
    """Lines of one protocol.  label: the protocol, in words.  notes: what else a reader should know."""

    title: str
    columns: tuple[str, ...]
    lines: tuple[Line, ...]
    label: Mapping[str, str]
    notes: tuple[str, ...] = ()

    @property
    def header(self) -> tuple[str, ...]:
        return ("method", *self.columns, *COSTS)


def harmonic(base: Cell, novel: Cell) -> Cell:
    """Of the means, as the papers have it; its spread is that of each seed's own."""

    def of(a: float, b: float) -> float:
        return 2 * a * b / (a + b) if a + b else 0.0

    values = tuple(of(a, b) for a, b in zip(base.values, novel.values, strict=True))
    return Cell(values, of(base.mean, novel.mean))


def averaged(cells: Sequence[Cell | str]) -> Cell | str:
    """The mean over data sets, seed by seed; "-" where one has no number."""
    numbers = [c for c in cells if isinstance(c, Cell)]
    if not numbers or len(numbers) < len(cells):
        return "-"
    return Cell(tuple(map(fmean, zip(*(c.values for c in numbers), strict=True))))


def same_protocol(entries: Sequence[Entry]) -> list[list[Entry]]:
    """The entries in groups whose methods were measured alike, which may be ranked; never across groups.

    Alike: the same data sets, shots and seeds, and for each the same splits and the same label.
    """
    groups: dict[str, list[Entry]] = {}
    for name in dict.fromkeys(e.result.name for e in entries):
        mine = [e for e in entries if e.result.name == name]
        facts = sorted([e.set, e.shots, json.dumps(_ranked(e.result), sort_keys=True)] for e in mine)
        groups.setdefault(json.dumps(facts), []).extend(mine)
    return list(groups.values())


def _ranked(result: Result) -> dict[str, Any]:
    return {k: result.protocol.get(k) for k in RANKED}


def differences(entries: Sequence[Entry]) -> str:
    """The words of the label in which methods differ on the same data, shots and seed."""
    found: dict[str, None] = {}
    for key in RANKED:
        values: dict[tuple[str, int, int], set[str]] = {}
        for e in entries:
            values.setdefault((e.set, e.shots, e.result.seed), set()).add(
                json.dumps(e.result.protocol.get(key))
            )
        if any(len(v) > 1 for v in values.values()):
            found[key] = None
    return ", ".join(found) or "data sets, shots or seeds"


def label(entries: Sequence[Entry], space: str) -> dict[str, str]:
    """The protocol of one group, in words; what differs between its data sets is listed."""

    def every(key: str) -> str:
        return ", ".join(dict.fromkeys(str(e.result.protocol.get(key)) for e in entries))

    p = entries[0].result.protocol
    views = (
        "as for evaluation"
        if p["augment"] == "none"
        else f"{every('augment')}, {p['views'] or 'fresh every epoch'}"
    )
    return {
        "setting": "inductive" if p["inductive"] else "transductive",
        "label space": space,
        "shots": ", ".join(dict.fromkeys(str(e.shots or "all") for e in entries))
        + (" in all" if "captions" in p else " a class"),
        "seeds": ", ".join(map(str, sorted({e.result.seed for e in entries}))),
        "validation": every("validation"),
        "selection": every("selection"),
        "preprocessing": every("preprocessing"),
        "training views": views,
        "precision": every("precision"),
        **({"recipe": every("recipe")} if "recipe" in p else {}),
    }


def in_a_line(told: Mapping[str, str]) -> str:
    """A label as a sentence."""
    return "; ".join(f"{k}: {v}" for k, v in told.items())


def family(method: str) -> str:
    """What a method is called by people who choose.

    Nothing learned, rows learned, a head or a cache on what the frozen network says, or the network's weights learned.
    """
    made = method_class(method)
    solves = made.solve is not Method.solve
    if not made.trains and not solves:
        return FAMILIES[0]
    if made.learn is not Method.learn:
        return FAMILIES[3]
    return FAMILIES[2] if METHODS[method].baseline or solves else FAMILIES[1]


def summary(table: Table) -> Table | None:
    """The best of each family by val, of two families at least; None where nothing is to choose or no val was there."""
    lines = []
    for name in FAMILIES:
        mine = [line for line in table.lines if family(line.method) == name and line.val is not None]
        if mine:
            best = max(mine, key=lambda line: line.val or 0.0)
            lines.append(replace(best, name=f"{name}: {best.name}"))
    if len(lines) < 2:
        return None
    note = "Each family is represented by the method that is best on val (top-1, mean over all runs), not on test."
    return Table(f"{table.title}: what to choose", table.columns, tuple(lines), table.label, (note,))


def markdown(tables: Sequence[Table]) -> str:
    """All tables with their labels, accuracies in percent."""
    parts = []
    for t in tables:
        body = [line.texts(t.columns) for line in t.lines]
        rows = [list(t.header), ["---", *["--:"] * (len(t.header) - 1)], *body]
        parts.append(f"## {t.title}\n")
        parts.append("\n".join("| " + " | ".join(row) + " |" for row in rows) + "\n")
        parts.append(f"Protocol: {in_a_line(t.label)}.\n")
        parts += [f"{note}\n" for note in t.notes]
    return "\n".join([*parts, f"{NOTE}\n"])


def to_csv(tables: Sequence[Table]) -> str:
    """A line a number: table, method, column, mean, std, every seed's value, the costs and the protocol."""
    text = io.StringIO()
    rows = []
    for t in tables:
        for line in t.lines:
            trained = "; ".join(dict.fromkeys(str(r.protocol.get("trained")) for r in line.runs))
            for column in t.columns:
                cell = line.cells.get(column, "-")
                numbers = (
                    {"mean": cell.mean, "std": cell.std, "values": " ".join(map(repr, cell.values))}
                    if isinstance(cell, Cell)
                    else {"mean": "", "std": "", "values": ""}
                )
                facts = {"table": t.title, "method": line.name, "column": column}
                rows.append({**facts, **numbers, **line.costs, "trained": trained, **t.label})
    writer = csv.DictWriter(text, [*rows[0]], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
