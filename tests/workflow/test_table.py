"""Tables of a tiny CLIP on painted pictures: what is measured, on which names, and that nothing is measured twice."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from vpt.data.item import DataError
from vpt.data.module import ImageData
from vpt.tasks.device import Machine
from vpt.tasks.task import Recipe
from vpt.tasks.tuned import load_prompts
from vpt.towers.backbone import Backbone
from vpt.workflow.runs import Candidate, Runs
from vpt.workflow.sets import DataSet
from vpt.workflow.table import Ask, run, tables
from vpt.workflow.tabulate import Cell, Table

COLOURS = {
    "blue": (50, 60, 220),
    "green": (40, 200, 60),
    "pink": (240, 130, 180),
    "red": (220, 40, 40),
    "sand": (200, 180, 120),
}
QUIET = Machine(progress=False, device="cpu")
RECIPE = Recipe(epochs=1, lr=(1e-2,))
COOP = Candidate("coop", options={"length": 2})
DATA = {"batch_size": 8}


@pytest.fixture(scope="module")
def five(tmp_path_factory: pytest.TempPathFactory, paint: Callable[..., Path]) -> DataSet:
    """Noisy pictures of five colours: three base classes, two novel ones."""
    root = paint(tmp_path_factory.mktemp("five"), {"train": 4, "val": 2, "test": 6}, 90, COLOURS)
    return DataSet("five", {"path": str(root)}, dict.fromkeys(("zero-shot", "kgcoop", "prograd"), "the {}."))


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory, paint: Callable[..., Path]) -> DataSet:
    root = paint(tmp_path_factory.mktemp("three"), {"train": 3, "val": 2, "test": 4}, 90)
    return DataSet("three", {"path": str(root)}, {"zero-shot": "a {} thing."})


def cells(table: Table, name: str) -> dict[str, object]:
    return dict(next(line for line in table.lines if line.name == name).cells)


def test_base_to_novel_is_measured_among_the_right_names_and_once(
    tiny_clip: Backbone, five: DataSet, tmp_path: Path
) -> None:
    lines = [
        COOP,
        Candidate("zero-shot"),
        Candidate("linear"),
        Candidate("coop", "own rows", {"length": 2, "class_specific": True}),
    ]
    ask = Ask("base-to-novel", lines, [five], shots=(2,), seeds=(1, 2), recipe=RECIPE, data=DATA)
    told: list[str] = []
    entries = run(ask, Runs(tiny_clip, tmp_path, QUIET, told=told.append))
    found = tables(ask, entries)
    trained = [line for line in told if ":" not in line]
    assert trained == [f"five, base, 2-shot, {c.name}, seed {seed}" for seed in (1, 2) for c in lines]

    # the same numbers by hand: the file, the novel half's names, the novel half's pictures
    for name in ("coop", "zero-shot"):
        for subset, column in (("base", "base"), ("novel", "novel"), ("all", "joint")):
            values = []
            for seed in (1, 2):
                (entry,) = (e for e in entries if e.result.name == name and e.result.seed == seed)
                tuned = load_prompts(entry.result.file, tiny_clip)
                data = ImageData(five.data["path"], shots=2, seed=seed, subset=subset)
                data.bind(tiny_clip.preprocessing)
                tuned = tuned if subset == "base" else tuned.with_classes(data.classes)
                values.append(tuned.evaluate(data.test_dataloader()).metrics["top1"])
            assert cells(found[0], name)[column].values == pytest.approx(values)
    assert ImageData(five.data["path"], subset="novel").classes == ("red", "sand")
    shown = cells(found[0], "coop")
    base, novel = shown["base"].mean, shown["novel"].mean
    assert shown["harmonic mean"].mean == pytest.approx(2 * base * novel / (base + novel))

    for name, why in (("linear", "a head"), ("own rows", "class-specific rows")):
        assert cells(found[0], name)["novel"] == cells(found[0], name)["joint"] == "-"
        assert f"{name} has no number for novel, joint: it has {why} for" in " ".join(found[0].notes)

    # a run that was killed leaves what it measured; the same command measures the rest and gives the same table
    told.clear()
    file = tmp_path / "results.json"
    whole = file.read_text()
    half = json.loads(whole)[:-1]
    half[0]["beside"].pop("joint")
    file.write_text(json.dumps(half))
    assert (
        tables(ask, run(ask, Runs(tiny_clip, tmp_path, QUIET, told=told.append)))[0].lines[:3]
        == found[0].lines[:3]
    )
    assert told == ["five, base, 2-shot, own rows, seed 2", "coop, seed 1: joint"]


def test_every_result_says_how_it_was_measured(tiny_clip: Backbone, five: DataSet, tmp_path: Path) -> None:
    rates = Candidate("coop", "coop, two rates", {"length": 2}, {"lr": (1e-3, 1e-2)})
    ask = Ask(
        "few-shot", [rates], [five], shots=(1, 2), seeds=(1, 2), recipe=RECIPE, data=DATA, word="published"
    )
    entries = run(ask, Runs(tiny_clip, tmp_path, QUIET))
    (table,) = tables(ask, entries)
    assert table.columns == ("1 shot", "2 shots")
    assert table.label == {
        "setting": "inductive",
        "label space": "all classes",
        "shots": "1, 2 a class",
        "seeds": "1, 2",
        "validation": "chooses learning rates (with seed 1, for all), where a method asks",
        "selection": "no early stop",
        "preprocessing": table.label["preprocessing"],
        "training views": "as for evaluation",
        "precision": "32-true",
        "recipe": "published",
    }
    assert "32x32" in table.label["preprocessing"]
    for shots in (1, 2):  # seed 2 took the rate that seed 1 chose
        one, two = (e.result for e in entries if e.shots == shots)
        assert two.lr == one.lr
        assert (one.protocol["lr_grid"], two.protocol["lr_grid"]) == ([1e-3, 1e-2], [one.lr])
    values = [e.result.metrics["top1"] for e in entries if e.shots == 2]
    cell = table.lines[0].cells["2 shots"]
    assert isinstance(cell, Cell)
    assert (cell.mean, cell.std) == pytest.approx((np.mean(values), np.std(values)))  # population


def test_sentences_of_the_data_set_reach_the_methods_that_say_them(
    tiny_clip: Backbone, five: DataSet, three: DataSet, tmp_path: Path
) -> None:
    """Cross-dataset: the source's sentence for the source, each target's for the target; learned words stay."""
    lines = [
        Candidate("zero-shot"),
        Candidate("zero-shot", "mine", {"template": "my {}."}),
        Candidate("kgcoop"),
        Candidate("linear"),
    ]
    ask = Ask("cross-dataset", lines, [three], five, (2,), (1,), recipe=RECIPE, data=DATA)
    table, chosen = tables(ask, run(ask, Runs(tiny_clip, tmp_path, QUIET)))
    assert table.columns == ("five (source)", "three", "mean of targets")
    zero, mine, kgcoop, linear = (e.result for e in run(ask, Runs(tiny_clip, tmp_path, QUIET)))
    assert load_prompts(zero.file, tiny_clip).learner.method.sentence == "the {}."
    assert load_prompts(mine.file, tiny_clip).learner.method.sentence == "my {}."
    assert load_prompts(kgcoop.file, tiny_clip).prompts.about["method"]["options"] == {"teacher": "the {}."}
    assert [r.beside["three"]["of"][1] for r in (zero, mine, kgcoop)] == [{"template": "a {} thing."}, {}, {}]
    own = Ask("few-shot", lines[:1], [three], shots=(1,), seeds=(1,), recipe=RECIPE, data=DATA)
    assert (
        run(own, Runs(tiny_clip, tmp_path / "own", QUIET))[0].result.metrics["top1"]
        == zero.beside["three"]["top1"]
    )
    assert "a head" in linear.beside["three"]["why"]
    assert cells(table, "linear")["mean of targets"] == "-"

    best = max((zero, mine), key=lambda r: r.val["top1"])
    assert [line.name for line in chosen.lines] == [
        f"prompt engineering: {best.name}", "prompt tuning: kgcoop", "a probe: linear",
    ]  # fmt: skip
    assert chosen.lines[0].cells == cells(table, best.name)


def test_vtab_chooses_on_its_val_and_then_trains_on_all(
    tiny_clip: Backbone, five: DataSet, three: DataSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "vpt.workflow.table.solves", lambda method: method == "vpt-shallow"
    )  # as tip-adapter does
    sets = [replace(three, name="dtd"), replace(five, name="dmlab"), replace(three, name="kitti")]
    lines = [
        Candidate("linear", recipe={"lr": (1e-3, 1e-2)}),
        Candidate("coop", options={"length": 2}),
        Candidate("vpt-shallow"),
    ]
    ask = Ask("vtab", lines, sets, seeds=(42, 44), recipe=RECIPE, data=DATA)
    told: list[str] = []
    entries = run(ask, Runs(tiny_clip, tmp_path, QUIET, told=told.append))
    assert told[:5] == [
        "dtd, search, linear, seed 42", "dtd, linear, seed 42", "dtd, linear, seed 44",
        "dtd, coop, seed 42", "dtd, coop, seed 44",
    ]  # fmt: skip
    for e in entries:
        joined = e.result.name != "vpt-shallow"
        n = {"dtd": (9, 6), "dmlab": (20, 10), "kitti": (9, 6)}[e.set]
        assert e.result.protocol["counts"]["train"] == (sum(n) if joined else n[0])
    found = tables(ask, entries)
    both = found[0]
    assert both.columns == ("Natural (1)", "Structured (2)", "mean of 2 groups", "mean of 3 tasks")
    value = {(e.set, e.result.seed): e.result.metrics["top1"] for e in entries if e.result.name == "linear"}
    structured = [(value["dmlab", s] + value["kitti", s]) / 2 for s in (42, 44)]
    shown = cells(both, "linear")
    assert shown["Structured (2)"].values == pytest.approx(structured)
    assert shown["mean of 2 groups"].values == pytest.approx(
        [(value["dtd", s] + v) / 2 for s, v in zip((42, 44), structured, strict=True)]
    )

    # vpt-shallow kept its val, so it was trained on fewer pictures: it has tables of its own
    assert [[line.name for line in t.lines] for t in found] == [["linear", "coop"]] * 4 + [
        ["vpt-shallow"]
    ] * 4
    assert found[4].title == "vtab: mean of 3 data sets, protocol 2 of 2"
    assert "they differ in split, counts, validation" in " ".join(found[0].notes)
    assert any("VTAB-1k has 1,000 training pictures; here there are 15" in note for note in found[1].notes)


def test_what_cannot_be_run_is_refused_before_anything_runs(
    tiny_clip: Backbone, five: DataSet, tmp_path: Path
) -> None:
    runs = Runs(tiny_clip, tmp_path / "out", QUIET)
    with pytest.raises(ValueError, match=r"no data set|none is named. Give --source"):
        run(Ask("domain-shift", [COOP], [five], shots=(1,)), runs)
    with pytest.raises(ValueError, match="has no option lenght"):
        run(Ask("few-shot", [Candidate("coop", options={"lenght": 2})], [five], shots=(1,)), runs)
    with pytest.raises(ValueError, match="one name"):
        run(Ask("few-shot", [COOP, COOP], [five], shots=(1,)), runs)
    with pytest.raises(DataError):
        run(Ask("few-shot", [COOP], [replace(five, data={"path": "nowhere"})], shots=(1,)), runs)
    assert not (tmp_path / "out" / "results.json").exists()
