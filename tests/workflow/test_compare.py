"""compare on a tiny network and folder; its tables against numpy."""

import csv
import io
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from vpt.header import read_header
from vpt.tasks.device import Machine
from vpt.tasks.task import Recipe
from vpt.towers.backbone import Backbone
from vpt.workflow.compare import (
    Candidate,
    Result,
    cells,
    compare,
    header,
    label_of,
    markdown,
    summarise,
    to_csv,
    validation,
)

QUIET = Machine(progress=False)
RECIPE = Recipe(epochs=1, lr=(1e-2,))
METHODS = (Candidate("linear", "head alone"), Candidate("vpt-deep", options={"length": 2}))


def test_every_method_sees_the_same_split_and_a_second_call_repeats_nothing(
    backbone: Backbone, pictures: Path, tmp_path: Path
) -> None:
    data = {"path": str(pictures), "shots": 4, "batch_size": 6}
    told: list[str] = []
    seen: list[Result] = []

    def go(*seeds: int) -> list[Result]:
        told.clear()
        return compare(
            backbone, data, METHODS, out=tmp_path, seeds=seeds, recipe=RECIPE, machine=QUIET,
            told=told.append, seen=lambda tuned, r: seen.append(r),
        )  # fmt: skip

    first = go(1)
    assert told == ["head alone, seed 1", "vpt-deep, seed 1"]
    assert seen == first
    assert len({r.protocol["split"] for r in first}) == 1
    for r in first:
        about = read_header(r.file).about
        assert r.metrics == {m["name"]: m["value"] for m in about["metrics"] if m["split"] == "test"}
        assert r.bytes == Path(r.file).stat().st_size
        assert about["protocol"]["counts"] == {"train": 12, "val": 9, "test": 15}
    assert Path(first[0].file).name == "baseline.safetensors"
    assert Path(first[1].file).name == "prompts.safetensors"
    head = 3 * backbone.image.out + 3
    assert [r.parameters for r in first] == [head, head + 2 * backbone.image.depth * backbone.image.width]

    stamps = [Path(r.file).stat().st_mtime_ns for r in first]
    both = go(1, 2)
    assert told == ["head alone, seed 2", "vpt-deep, seed 2"]  # seed 1 was there
    assert [Path(r.file).stat().st_mtime_ns for r in first] == stamps
    assert [(r.name, r.seed) for r in both] == [
        ("head alone", 1), ("vpt-deep", 1), ("head alone", 2), ("vpt-deep", 2),
    ]  # fmt: skip
    assert go(2) == both[2:]
    assert not told
    assert len(json.loads((tmp_path / "results.json").read_text())) == 4


def test_a_run_that_is_there_takes_the_label_of_the_line_that_asks_for_it(
    backbone: Backbone, pictures: Path, tmp_path: Path
) -> None:
    """Equal settings are one run under any label; other settings never write over it."""
    data = {"path": str(pictures), "shots": 2, "batch_size": 6}

    def go(*lines: Candidate) -> tuple[list[Result], list[str]]:
        told: list[str] = []
        found = compare(
            backbone, data, lines, out=tmp_path, seeds=[1], recipe=RECIPE, machine=QUIET, told=told.append
        )
        assert [r.name for r in found] == [line.name for line in lines]
        return found, told

    (old,), _ = go(Candidate("vpt-deep", "deep", {"length": 2}))
    assert go(Candidate("vpt-deep", "two rows", {"length": 2})) == ([replace(old, name="two rows")], [])
    a, b = go(Candidate("vpt-deep", "a", {"length": 2}), Candidate("vpt-deep", "b", {"length": 2}))[0]
    assert replace(a, name="b") == b
    assert [(row.name, row.seeds) for row in summarise([a, b])] == [("a", 1), ("b", 1)]

    # another run under the first one's label, in one comparison with the first one renamed
    (new, again), told = go(
        Candidate("vpt-deep", "deep", {"length": 3}), Candidate("vpt-deep", "old", {"length": 2})
    )
    assert told == ["deep, seed 1"]
    assert again == replace(old, name="old")
    assert new.file != old.file
    for r, length in ((new, 3), (old, 2)):
        assert read_header(r.file).about["method"]["options"]["length"] == length


def test_folders_have_plain_names_of_their_own(backbone: Backbone, pictures: Path, tmp_path: Path) -> None:
    data = {"path": str(pictures), "shots": 2, "batch_size": 6}
    labels = ["head [alone], 1e-3", "head (alone) 1e-3", "../up", "ряд"]
    lines = [Candidate("linear", label, recipe={"lr": (10.0**-i,)}) for i, label in enumerate(labels, 1)]
    found = compare(backbone, data, lines, out=tmp_path / "x", seeds=[1], recipe=RECIPE, machine=QUIET)
    assert [r.name for r in found] == labels
    folders = [Path(r.file).parents[1] for r in found]
    assert len(set(folders)) == 4
    assert {f.parent for f in folders} == {tmp_path / "x"}
    assert all(re.fullmatch(r"[A-Za-z0-9.-]+", f.name) for f in folders)
    assert [f.name for f in folders][::2] == ["head-alone-1e-3", "up"]
    assert folders[1].name.startswith("head-alone-1e-3-")


def test_names_that_meet_and_options_that_no_method_has_are_refused_before_anything_runs(
    backbone: Backbone, tmp_path: Path
) -> None:
    gone = {"path": "nowhere"}  # would be noticed if a run began
    with pytest.raises(ValueError, match=r"one name.*Give them labels"):
        compare(
            backbone,
            gone,
            [Candidate("vpt-deep"), Candidate("vpt-deep", options={"length": 5})],
            out=tmp_path,
        )
    with pytest.raises(ValueError, match="has no option lenght"):
        compare(
            backbone, gone, [Candidate("linear"), Candidate("vpt-deep", options={"lenght": 5})], out=tmp_path
        )
    assert not list(tmp_path.iterdir())


def test_a_summary_is_numpys(result: Callable[..., Result]) -> None:
    scores = {"a": [0.71, 0.78, 0.74], "b": [0.5]}
    rows = summarise([result(n, "linear", s, v) for n, vs in scores.items() for s, v in enumerate(vs, 1)])
    assert [row.name for row in rows] == ["a", "b"]
    assert rows[0].mean == pytest.approx(np.mean(scores["a"]))
    assert rows[0].std == pytest.approx(np.std(scores["a"], ddof=1))
    assert (rows[0].seeds, rows[1].seeds, rows[1].std) == (3, 1, 0.0)
    assert rows[0].kilobytes == pytest.approx(5.602)
    assert rows[0].seconds == pytest.approx(4.0)
    assert rows[0].step_ms == pytest.approx(20.0)
    assert rows[0].peak_mb == 703.0
    assert summarise([result("a", "linear", 1, 0.7)], "top5")[0].mean == 1.0


@pytest.mark.parametrize(
    "key", ["data", "subset", "shots", "selection", "counts", "validation", "views", "precision"]
)
def test_numbers_of_different_protocols_are_not_ranked(result: Callable[..., Result], key: str) -> None:
    a = result("a", "linear", 1, 0.7)
    b = replace(result("b", "vpt-deep", 1, 0.8), protocol={**a.protocol, key: "another"})
    with pytest.raises(ValueError, match="2 different protocols"):
        summarise([a, b])


def test_tables_hold_the_numbers(result: Callable[..., Result]) -> None:
    rows = summarise(
        [result("a", "linear", 1, 0.7), result("a", "linear", 2, 0.8), result("b", "vpt-deep", 1, 0.9)]
    )
    told = label_of([result("a", "linear", 1, 0.7), result("a", "linear", 2, 0.8)])
    text = markdown(rows, told).splitlines()
    assert text[-1].startswith(
        "Protocol: setting: inductive; label space: all classes; shots: 4 a class; seeds: 1, 2"
    )
    assert "training views: flip, 2" in text[-1]
    lines = [[c.strip() for c in line.strip("|").split("|")] for line in text[:-2]]
    assert tuple(lines[0]) == header(rows)
    assert lines[0] == [
        "method",
        "accuracy",
        "seeds",
        "parameters",
        "file kB",
        "step ms",
        "seconds",
        "peak MB",
        "lr",
    ]
    assert [tuple(line) for line in lines[2:]] == [cells(row) for row in rows]
    assert cells(rows[0])[:5] == ("a", "75.0 ± 7.1", "2", "1,234", "5.6")
    assert cells(rows[0])[-1] == "0.005"
    solved = result("a", "lp++", 1, 0.7)
    solved.protocol["trained"] = "not by gradient"
    assert (cells(*summarise([solved]))[5], cells(*summarise([solved]))[-1]) == ("-", "-")
    read = list(csv.DictReader(io.StringIO(to_csv(rows, told))))
    assert all(r["training views"] == "flip, 2" for r in read)
    assert [float(r["mean"]) for r in read] == [row.mean for row in rows]
    assert [int(r["parameters"]) for r in read] == [1234, 1234]


def test_the_label_says_what_val_is_for() -> None:
    one, several = Recipe(lr=(1e-2,)), Recipe(lr=(1e-2, 1e-3))
    deep, probe, words = Candidate("vpt-deep"), Candidate("lp++"), Candidate("zero-shot")
    assert validation([deep, words], one, "every seed", [1]) == "not used"
    assert validation([words], several, "every seed", [1]) == "not used"  # it learns nothing
    asked = ", where a method asks"
    rates = "chooses learning rates (for every seed)"
    assert validation([deep, words], several, "every seed", [1, 2]) == rates + asked
    assert "rates (with seed 5, for all)" in validation([deep], several, "first seed", [5, 6])
    assert validation([probe], one, "every seed", [1]) == "chooses strengths" + asked
    assert validation([probe, deep], several, "every seed", [1]) == rates + " and strengths" + asked
    assert validation([deep], replace(one, patience=3), "every seed", [1]) == "chooses when to stop" + asked


def test_another_precision_or_network_is_another_run(
    backbone: Backbone, pictures: Path, tmp_path: Path
) -> None:
    data = {"path": str(pictures), "shots": 2, "batch_size": 6}

    def go(backbone: Backbone, precision: str) -> tuple[Result, list[str]]:
        told: list[str] = []
        machine = Machine(progress=False, precision=precision)
        (found,) = compare(
            backbone,
            data,
            METHODS[:1],
            out=tmp_path,
            seeds=[1],
            recipe=RECIPE,
            machine=machine,
            told=told.append,
        )
        return found, told

    first, _ = go(backbone, "float32")
    assert first.protocol["precision"] == "32-true"
    assert go(backbone, "float32") == (first, [])
    assert go(backbone, "auto")[1] == ["head alone, seed 1"]
    other = replace(backbone, options={"weights": "others.pt"})
    assert go(other, "float32")[1] == ["head alone, seed 1"]
