"""Tables against numpy, and that nothing is ranked that was measured otherwise."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from vpt.workflow.runs import Candidate, Result
from vpt.workflow.sets import VTAB, DataSet
from vpt.workflow.table import Ask, tables
from vpt.workflow.tabulate import (
    NOTE,
    RANKED,
    Cell,
    Entry,
    family,
    harmonic,
    markdown,
    same_protocol,
    to_csv,
)

LABEL = {
    "subset": "base",
    "augment": "none",
    "views": 0,
    "inductive": True,
    "preprocessing": "center 32x32",
    "validation": "not used",
    "recipe": "scaled",
    "trained": "3 epochs of batch 8, adamw with 0.005, cosine",
}
BASE = {"pets": [[0.9, 0.8, 0.7], [0.6, 0.5, 0.4]], "cars": [[0.5, 0.7, 0.6], [0.3, 0.3, 0.6]]}
NOVEL = {"pets": [[0.6, 0.5, 0.7], [0.5, 0.7, 0.6]], "cars": [[0.4, 0.2, 0.3], [0.2, 0.4, 0.1]]}
METHODS = ("coop", "zero-shot")


@pytest.fixture
def entries(result: Callable[..., Result]) -> list[Entry]:
    """Two methods on two data sets with three seeds, of runs that were never run."""
    found = []
    for d in BASE:
        for m, method in enumerate(METHODS):
            for seed in (1, 2, 3):
                r = result(method, method, seed, BASE[d][m][seed - 1], val={"top1": 0.5 + 0.1 * m})
                beside = {"novel": {"top1": NOVEL[d][m][seed - 1]}, "joint": {"top1": 0.25}}
                found.append(
                    Entry(d, 16, replace(r, protocol={**r.protocol, **LABEL, "data": d}, beside=beside))
                )
    return found


def ask(kind: str = "base-to-novel", *sets: str) -> Ask:
    return Ask(kind, [Candidate(m) for m in METHODS], [DataSet(s, {"path": s}) for s in sets], shots=(16,))  # type: ignore[arg-type]


def test_the_harmonic_mean_is_of_the_averaged_values(entries: list[Entry]) -> None:
    over, pets, cars, chosen = tables(ask(), entries)
    assert [t.title for t in (over, pets, cars)] == [
        "base-to-novel: mean of 2 data sets", "base-to-novel: pets", "base-to-novel: cars",
    ]  # fmt: skip
    for m, line in enumerate(over.lines):
        base = np.mean([BASE[d][m] for d in BASE], axis=0)
        novel = np.mean([NOVEL[d][m] for d in NOVEL], axis=0)
        by_column = line.cells
        for column, expected in (("base", base), ("novel", novel)):
            assert by_column[column].values == pytest.approx(expected)
            assert by_column[column].std == pytest.approx(np.std(expected))  # over n, not n - 1
        h = 2 * base.mean() * novel.mean() / (base.mean() + novel.mean())
        assert by_column["harmonic mean"].mean == pytest.approx(h)
        of_data_sets = np.mean([t.lines[m].cells["harmonic mean"].mean for t in (pets, cars)])
        assert abs(of_data_sets - h) > 1e-3  # another number, which papers do not give
    assert [line.name for line in chosen.lines] == ["prompt engineering: zero-shot", "prompt tuning: coop"]


def test_methods_without_a_number_have_none_over_data_sets(entries: list[Entry]) -> None:
    why = {"why": "it has a head for the classes that it was trained on"}
    lacking = [
        replace(e, result=replace(e.result, beside={"novel": why, "joint": why}))
        if e.result.name == "coop" and e.set == "cars"
        else e
        for e in entries
    ]
    over, pets, cars, _ = tables(ask(), lacking)
    assert [over.lines[0].cells[c] for c in ("novel", "harmonic mean", "joint")] == ["-", "-", "-"]
    assert isinstance(pets.lines[0].cells["novel"], Cell)
    assert cars.notes == (
        "coop has no number for novel, joint: it has a head for the classes that it was trained on.",
    )
    assert pets.notes == ()
    assert isinstance(over.lines[1].cells["novel"], Cell)


@pytest.mark.parametrize("key", RANKED)
def test_what_was_measured_otherwise_is_in_another_table(entries: list[Entry], key: str) -> None:
    """One word of the label in one run is enough."""
    odd = entries[3]
    assert odd.result.name == "zero-shot"
    changed = replace(odd, result=replace(odd.result, protocol={**odd.result.protocol, key: "another"}))
    mixed = [*entries[:3], changed, *entries[4:]]
    assert len(same_protocol(entries)) == 1
    groups = same_protocol(mixed)
    assert [{e.result.name for e in g} for g in groups] == [{"coop"}, {"zero-shot"}]
    found = tables(ask(), mixed)
    assert [[line.name for line in t.lines] for t in found] == [["coop"]] * 3 + [["zero-shot"]] * 3
    assert f"they differ in {key}." in found[0].notes[0]


def test_a_method_with_fewer_seeds_is_in_another_table(entries: list[Entry]) -> None:
    fewer = [e for e in entries if e.result.name == "coop" or e.result.seed != 3]
    assert len(same_protocol(fewer)) == 2
    assert "differ in data sets, shots or seeds" in tables(ask(), fewer)[0].notes[0]


def test_the_page_and_the_file_hold_the_numbers_and_the_protocol(entries: list[Entry]) -> None:
    found = tables(ask(), entries, ["dtd: no data at 'dtd'."])
    text = markdown(found)
    rows = [
        [c.strip() for c in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")
    ]
    assert tuple(rows[0]) == found[0].header
    shown = dict(zip(rows[0], rows[2], strict=True))
    assert (shown["method"], shown["base"], shown["joint"]) == ("coop", "70.0 ± 4.1", "25.0 ± 0.0")
    assert (shown["parameters"], shown["file kB"], shown["peak MB"]) == ("1,234", "5.6", "703")
    assert (shown["step ms"], shown["seconds"], shown["lr"]) == ("20", "4", "0.005")
    for word in (
        "setting: inductive",
        "shots: 16 a class",
        "seeds: 1, 2, 3",
        "recipe: scaled",
        "Left out: dtd",
        NOTE,
    ):
        assert word in text
    read = list(csv.DictReader(io.StringIO(to_csv(found))))
    assert len(read) == 4 * 2 * 4
    assert float(read[0]["mean"]) == found[0].lines[0].cells["base"].mean
    assert [float(v) for v in read[0]["values"].split()] == list(found[0].lines[0].cells["base"].values)
    assert read[0]["validation"] == "not used"
    assert read[0]["trained"] == LABEL["trained"]


def test_nothing_is_chosen_without_val(entries: list[Entry]) -> None:
    blind = [replace(e, result=replace(e.result, val={})) for e in entries]
    assert len(tables(ask(), blind)) == 3


def test_shots_are_columns(entries: list[Entry]) -> None:
    both = [replace(e, shots=n) for n in (1, 16) for e in entries if e.set == "pets"]
    (table, _) = tables(ask("few-shot"), both)
    assert table.columns == ("1 shot", "16 shots")
    assert table.label["shots"] == "1, 16 a class"


def test_vtab_is_the_19_tasks_of_the_benchmark_by_its_groups() -> None:
    assert {group: len(found) for group, found in VTAB.items()} == {
        "Natural": 7,
        "Specialized": 4,
        "Structured": 8,
    }


def test_a_spread_of_one_seed_is_none() -> None:
    assert str(Cell((0.5,))) == "50.0"
    assert harmonic(Cell((0.0,)), Cell((0.0,))).mean == 0


@pytest.mark.parametrize(
    ("method", "name"),
    [
        ("zero-shot", "prompt engineering"),
        ("waffle", "prompt engineering"),
        ("coop", "prompt tuning"),
        ("vpt-deep", "prompt tuning"),
        ("linear", "a probe"),
        ("linear-exact", "a probe"),
        ("tip-adapter", "a probe"),
        ("lora", "fine-tuning"),
        ("bias", "fine-tuning"),
        ("clip-full", "fine-tuning"),
    ],
)
def test_families(method: str, name: str) -> None:
    assert family(method) == name
