"""table: the protocols of the literature, run and written down so that their numbers mean something."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

from vpt.methods import METHODS
from vpt.tasks.task import Recipe
from vpt.workflow.compare import refuse, solves, trained, tries, validation
from vpt.workflow.runs import Candidate, Result, Runs, Search
from vpt.workflow.sets import VTAB, DataSet, sentences_for
from vpt.workflow.tabulate import (
    Cell,
    Entry,
    Line,
    Table,
    averaged,
    differences,
    family,
    harmonic,
    label,
    same_protocol,
    summary,
)

__all__ = ["KINDS", "Ask", "Kind", "run", "tables"]

Kind = Literal["few-shot", "base-to-novel", "cross-dataset", "domain-shift", "vtab", "fgvc"]
KINDS: tuple[Kind, ...] = get_args(Kind)
THOUSAND = 1000  # training pictures of a task of VTAB-1k
TRANSFER = ("cross-dataset", "domain-shift")
SPACES = {
    "few-shot": "all classes",
    "base-to-novel": "base and novel each against their own names, joint against all",
    "cross-dataset": "each data set's own classes",
    "domain-shift": "each data set's own classes",
    "vtab": "all classes",
    "fgvc": "all classes",
}


@dataclass(frozen=True)
class Ask:
    """What a table is of.

    sets: data sets; with a source, those that are tested on.  source: what cross-dataset and domain-shift train on.
    shots: pictures a class; empty: all.  data: options of ImageData for all sets.  recipe: for all candidates.
    word: "published" or "scaled", whether these are the papers' recipes.
    """

    kind: Kind
    candidates: Sequence[Candidate]
    sets: Sequence[DataSet]
    source: DataSet | None = None
    shots: Sequence[int] = ()
    seeds: Sequence[int] = (1, 2, 3)
    search: Search = "first seed"
    recipe: Recipe = Recipe()  # noqa: RUF009  frozen
    data: Mapping[str, Any] = field(default_factory=dict)
    word: str = "scaled"

    def on(self, d: DataSet) -> list[Candidate]:
        """The candidates with the sentences of a data set."""
        return [replace(c, options=d.options(c.method, c.options)) for c in self.candidates]

    def options(self, d: DataSet, shots: int = 0, **more: Any) -> dict[str, Any]:
        """Options of ImageData."""
        few = {"shots": shots} if shots else {}
        return {**self.data, **d.data, **few, **more}

    def test_only(self, d: DataSet, **more: Any) -> dict[str, Any]:
        """Options that bring the same test pictures and read hardly any others."""
        return self.options(d, 1, **more) | {"val_shots": 1}

    @property
    def label(self) -> dict[str, str]:
        """What all runs of this table say of themselves."""
        chosen = validation(self.candidates, self.recipe, self.search, self.seeds)
        if self.kind == "vtab":
            chosen += "; then val trains too"
        return {"validation": chosen, "recipe": self.word}


def run(ask: Ask, runs: Runs) -> list[Entry]:
    """Every run that the table needs; those that ``runs`` holds are not repeated.

    Raises ValueError before the first one for names that meet, and for methods and options that do not fit.
    """
    if ask.kind in TRANSFER and ask.source is None:
        raise ValueError(f"{ask.kind} trains on one data set, and none is named. Give --source.")
    for d in [ask.source] if ask.source else ask.sets:
        refuse(runs.backbone, ask.on(d))
    if ask.kind == "base-to-novel":
        return [e for d in ask.sets for shots in ask.shots for e in _base_to_novel(ask, runs, d, shots)]
    if ask.source is not None:
        return _transfer(ask, runs, ask.source)
    if ask.kind == "vtab":
        return [e for d in ask.sets for c in ask.on(d) for e in _searched(ask, runs, d, c)]
    return [
        Entry(d.name, shots, r)
        for d in ask.sets
        for shots in ask.shots or (0,)
        for r in _trained(ask, runs, d, shots)
    ]


def _trained(ask: Ask, runs: Runs, d: DataSet, shots: int, **more: Any) -> list[Result]:
    place = [d.name, *map(str, more.values()), *([f"{shots}-shot"] if shots else [])]
    return trained(
        runs,
        ask.options(d, shots, **more),
        ask.on(d),
        seeds=ask.seeds,
        search=ask.search,
        recipe=ask.recipe,
        place=place,
        label=ask.label,
    )


def _base_to_novel(ask: Ask, runs: Runs, d: DataSet, shots: int) -> list[Entry]:
    """Trained on the base classes; then the novel ones among their own names, and all among all (joint)."""
    found = []
    for r in _trained(ask, runs, d, shots, subset="base"):
        r = runs.measure(r, "novel", ask.test_only(d, subset="novel"))
        found.append(Entry(d.name, shots, runs.measure(r, "joint", ask.test_only(d, subset="all"))))
    return found


def _transfer(ask: Ask, runs: Runs, source: DataSet) -> list[Entry]:
    """Trained on the source, tested on every set among its own names; what learned nothing takes its sentence too."""
    found = [Entry(source.name, n, r) for n in ask.shots or (0,) for r in _trained(ask, runs, source, n)]
    options = {c.name: c.options for c in ask.candidates}
    for d in ask.sets:
        # seed by seed, so that each set is read once
        for i in sorted(range(len(found)), key=lambda i: found[i].result.seed):
            r, words = found[i].result, {}
            if family(r.method) == "prompt engineering":
                words = sentences_for(r.method, options[r.name], d.sentences)
                words = {k: v for k, v in words.items() if k not in options[r.name]}
            found[i] = replace(found[i], result=runs.measure(r, d.name, ask.test_only(d), words))
    return found


def _searched(ask: Ask, runs: Runs, d: DataSet, c: Candidate) -> list[Entry]:
    """VTAB-1k's way: 800 train and 200 choose the rate, with the first seed; then all 1,000 train with every seed.

    A method that chooses on val itself keeps it as val, and is never ranked with the others.
    """
    rates = replace(ask.recipe, **c.recipe).rates(METHODS[c.method].lr)
    data, seeds = ask.options(d), ask.seeds
    if solves(c.method):
        label = ask.label | {"validation": "a fifth of the training pictures chooses, and never trains"}
        return [
            Entry(d.name, 0, runs.train(c, data, seed, ask.recipe, place=[d.name], label=label))
            for seed in seeds
        ]
    if tries(c, ask.recipe):
        first = runs.train(c, data, seeds[0], ask.recipe, place=[d.name, "search"])
        rates = (first.lr,)
    own = replace(c, recipe={**c.recipe, "lr": rates[:1]})
    data = {**data, "join_val": True}
    return [
        Entry(d.name, 0, runs.train(own, data, seed, ask.recipe, place=[d.name], label=ask.label))
        for seed in seeds
    ]


def tables(ask: Ask, entries: Sequence[Entry], missing: Sequence[str] = ()) -> list[Table]:
    """The tables of these runs: over all data sets, of each one, and what to choose by val.

    Methods whose protocols differ are never in one table.  missing: lines on data sets that were left out.
    """
    groups = same_protocol(entries)
    found: list[Table] = []
    for i, group in enumerate(groups, 1):
        several = f", protocol {i} of {len(groups)}" if len(groups) > 1 else ""
        notes = [f"Left out: {line}" for line in missing]
        if several:
            notes.append(f"Not to be ranked with the other protocols: they differ in {differences(entries)}.")
        found += _of_group(ask, group, several, tuple(notes))
    best = summary(found[0]) if len(groups) == 1 and found else None
    return [*found, *([best] if best else [])]


def _of_group(ask: Ask, group: Sequence[Entry], several: str, notes: tuple[str, ...]) -> list[Table]:
    sets = list(dict.fromkeys(e.set for e in group))
    names = list(dict.fromkeys(e.result.name for e in group))
    most = max(e.shots for e in group)
    by_set: dict[str, list[Line]] = {}
    for d in sets:
        for name in names:
            mine = [e for e in group if e.set == d and e.result.name == name]
            costs = tuple(e.result for e in mine if e.shots == most)
            by_set.setdefault(d, []).append(Line(name, mine[0].result.method, _cells(ask, mine), costs))

    def table(of: str, lines: Sequence[Line], entries: Sequence[Entry], title_notes: Sequence[str]) -> Table:
        columns = tuple(lines[0].cells)
        told = label(entries, SPACES[ask.kind])
        return Table(f"{ask.kind}: {of}{several}", columns, tuple(lines), told, tuple(title_notes))

    each = [
        table(d, lines, [e for e in group if e.set == d], [*notes, *_reasons(ask, group, d)])
        for d, lines in by_set.items()
    ]
    if len(sets) == 1:
        return each
    over = []
    for k, name in enumerate(names):
        lines = [by_set[d][k] for d in sets]
        runs = tuple(r for line in lines for r in line.runs)
        over.append(Line(name, lines[0].method, _over(ask, dict(zip(sets, lines, strict=True))), runs))
    return [table(f"mean of {len(sets)} data sets", over, group, notes), *each]


def _cells(ask: Ask, mine: Sequence[Entry]) -> dict[str, Cell | str]:
    """A method's numbers on one data set, by column."""
    if ask.kind == "few-shot":
        counts = sorted({e.shots for e in mine})
        return {f"{n} shot{'s' * (n != 1)}": _own([e for e in mine if e.shots == n]) for n in counts}
    if ask.kind == "base-to-novel":
        base, novel, joint = _own(mine), _beside(mine, "novel"), _beside(mine, "joint")
        both = harmonic(base, novel) if isinstance(novel, Cell) else "-"
        return {"base": base, "novel": novel, "harmonic mean": both, "joint": joint}
    if ask.kind in TRANSFER:
        targets = {d.name: _beside(mine, d.name) for d in ask.sets}
        return {
            f"{mine[0].set} (source)": _own(mine),
            **targets,
            "mean of targets": averaged([*targets.values()]),
        }
    return {"top-1": _own(mine)}


def _over(ask: Ask, lines: Mapping[str, Line]) -> dict[str, Cell | str]:
    """Over data sets: means seed by seed, the harmonic mean of means, VTAB's groups."""

    def mean_of(column: str, sets: Sequence[str]) -> Cell | str:
        return averaged([lines[d].cells[column] for d in sets])

    every = [*lines]
    if ask.kind == "base-to-novel":
        base, novel = mean_of("base", every), mean_of("novel", every)
        both = harmonic(base, novel) if isinstance(base, Cell) and isinstance(novel, Cell) else "-"
        return {"base": base, "novel": novel, "harmonic mean": both, "joint": mean_of("joint", every)}
    if ask.kind == "vtab":
        groups = {g: [d for d in every if d in names] for g, names in VTAB.items()}
        found = {f"{g} ({len(sets)})": mean_of("top-1", sets) for g, sets in groups.items() if sets}
        return {
            **found,
            f"mean of {len(found)} groups": averaged([*found.values()]),
            f"mean of {len(every)} tasks": mean_of("top-1", every),
        }
    if ask.kind == "fgvc":
        return {**{d: lines[d].cells["top-1"] for d in every}, "mean": mean_of("top-1", every)}
    return {column: mean_of(column, every) for column in lines[every[0]].cells}


def _own(mine: Sequence[Entry]) -> Cell:
    """Top-1 on the test split, a value a seed."""
    return Cell(tuple(e.result.metrics["top1"] for e in sorted(mine, key=lambda e: e.result.seed)))


def _beside(mine: Sequence[Entry], name: str) -> Cell | str:
    found = [e.result.beside[name] for e in sorted(mine, key=lambda e: e.result.seed)]
    return "-" if any("why" in f for f in found) else Cell(tuple(f["top1"] for f in found))


def _reasons(ask: Ask, group: Sequence[Entry], d: str) -> list[str]:
    """Why methods have no number somewhere, and what is not as the protocol has it."""
    lines: dict[str, None] = {}
    if ask.kind == "vtab":
        train = {sum(e.result.protocol["counts"][p] for p in ("train", "val")) for e in group if e.set == d}
        if train != {THOUSAND}:
            lines[f"VTAB-1k has {THOUSAND:,} training pictures; here there are {max(train):,}."] = None
    for e in group:
        lacks = {name: found["why"] for name, found in e.result.beside.items() if "why" in found}
        if lacks and e.set == d:
            lines[f"{e.result.name} has no number for {', '.join(lacks)}: {next(iter(lacks.values()))}."] = (
                None
            )
    return list(lines)
