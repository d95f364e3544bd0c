"""vpt table: what is typed becomes the protocol, what is missing is said first, the files are written."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from vpt.cli import main
from vpt.cli.table import KINDS, _arguments, _plan, _sets
from vpt.towers.backbone import Backbone
from vpt.workflow.sets import VTAB

COLOURS = {"blue": (50, 60, 220), "green": (40, 200, 60), "red": (220, 40, 40), "sand": (200, 180, 120)}


def plan(*argv: str) -> dict[str, Any]:
    return _plan(_arguments().parse_args([*argv, "--out", "unused"]))


def sets(*argv: str) -> tuple[list[str], str | None]:
    found, source = _sets(argv[0], plan(*argv, "--methods", "coop"))
    return [d.data["path"] for d in found], source and source.data["path"]


@pytest.fixture
def clip(tiny_clip: Backbone, monkeypatch: pytest.MonkeyPatch) -> Backbone:
    """What every model name loads."""
    monkeypatch.setattr("vpt.towers.load.load", lambda name, **options: tiny_clip)
    return tiny_clip


def test_the_kinds_are_those_that_there_are() -> None:
    from vpt.workflow.table import KINDS as there

    assert there == KINDS


def test_a_kind_brings_its_protocol() -> None:
    few, novel, vtab = (plan(k, "--methods", "coop,linear") for k in ("few-shot", "base-to-novel", "vtab"))
    assert (few["shots"], novel["shots"], vtab["shots"]) == ([1, 2, 4, 8, 16], [16], [])
    assert (few["seeds"], vtab["seeds"]) == ([1, 2, 3], [42, 44, 82, 100, 800])
    assert (few["model"]["name"], vtab["model"]["name"]) == ("starter/clip-mini", "starter/vit-mini")
    assert (few["search"], few["recipe"], few["data"]) == ("first seed", "scaled", {})
    assert [m["name"] for m in few["methods"]] == ["coop", "linear"]


def test_options_win_over_the_file(tmp_path: Path) -> None:
    content = {
        "model": "timm/test_vit",
        "data": {"batch_size": 16, "augment": "flip", "views": 2},
        "task": {"epochs": 3, "lr": "1e-3,1e-2"},
        "sets": ["a=photos", "scenes"],
        "shots": 4,
        "search": "every seed",
        "recipe": "published",
        "methods": [
            "coop",
            {"name": "maple", "label": "short", "options": {"length": 1}, "task": {"lr": 0.1}},
        ],
    }
    config = tmp_path / "c.yaml"
    config.write_text(yaml.safe_dump(content))
    found = plan("few-shot", "--config", str(config))
    assert (found["shots"], found["search"], found["recipe"]) == ([4], "every seed", "published")
    assert found["data"] == {"batch_size": 16, "augment": "flip", "views": 2}
    assert found["methods"][1] == {
        "name": "maple", "label": "short", "options": {"length": 1}, "task": {"lr": (0.1,)},
    }  # fmt: skip
    argv = ["--batch-size", "8", "--lr", "0.5", "--shots", "1,2", "--data", "b=x", "--recipe", "scaled"]
    typed = plan("few-shot", "--config", str(config), *argv)
    assert (typed["shots"], typed["sets"], typed["recipe"]) == ([1, 2], ["b=x"], "scaled")
    assert typed["data"]["batch_size"] == 8
    assert typed["task"]["lr"] == (0.5,)
    assert typed["methods"][1]["task"] == {}


def test_data_sets_of_each_kind() -> None:
    every, none = sets("base-to-novel", "--root", "DATA")
    assert (len(every), every[0], none) == (11, "coop:imagenet", None)
    assert sets("few-shot", "--root", "DATA", "--datasets", "dtd") == (["coop:dtd"], None)
    assert sets("few-shot", "--data", "photos", "--data", "s=scenes") == (["photos", "scenes"], None)
    others, source = sets("cross-dataset", "--root", "DATA")
    assert (len(others), source) == (10, "coop:imagenet")
    assert "coop:imagenet" not in others
    shifted, source = sets("domain-shift", "--root", "DATA")
    assert (len(shifted), shifted[0], source) == (4, "coop:imagenetv2", "coop:imagenet")
    assert sets("cross-dataset", "--source", "photos", "--data", "scenes") == (["scenes"], "photos")
    assert sets("cross-dataset", "--root", "DATA", "--source", "dtd", "--datasets", "ucf101")[1] == "coop:dtd"
    assert len(sets("vtab", "--root", "DATA")[0]) == 19
    assert sets("vtab", "--root", "DATA", "--datasets", "dtd,svhn")[0] == ["DATA/dtd", "DATA/svhn"]
    assert sets("fgvc", "--data", "cub=birds") == (["birds"], None)


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["few-shot", "--data", "{here}"], "needs --methods"),
        (["few-shot", "--methods", "coop"], "Give --root, the folder that holds imagenet/"),
        (["few-shot", "--methods", "coop,maplr", "--data", "{here}"], "no method 'maplr'"),
        (["few-shot", "--methods", "coop", "--data", "{here}", "--shots", "few"], "shots are ['few']"),
        (
            ["few-shot", "--methods", "coop", "--data", "{here}", "--data", "x/here"],
            "two data sets have one name",
        ),
        (
            ["few-shot", "--methods", "coop", "--data", "{here}", "--data", "gone"],
            "1 of 2 data sets cannot be opened",
        ),
        (["few-shot", "--methods", "coop", "--root", "{here}", "--datasets", "dtf"], "no data set 'dtf'"),
        (
            ["few-shot", "--methods", "coop", "--config", "{config}"],
            "data says path, shots, which a table decides",
        ),
        (
            ["few-shot", "--methods", "coop", "--config", "{recipe}"],
            "recipe is 'mine', wanted published or scaled",
        ),
        (
            ["base-to-novel", "--methods", "coop", "--data", "{three}"],
            "it has 3 classes, and this table needs 4",
        ),
        (["vtab", "--methods", "vpt-deep", "--root", "{here}", "--shots", "4"], "so there are no shots"),
        (
            ["vtab", "--methods", "vpt-deep", "--root", "{here}", "--datasets", "birds"],
            "vtab has no task birds",
        ),
        (["vtab", "--methods", "vpt-deep", "--root", "{here}", "--datasets", "dtd"], "dtd: no data at"),
        (["cross-dataset", "--methods", "coop", "--data", "{here}"], "coop:imagenet needs a root"),
        (["few-shot", "--methods", "coop", "--data", "{here}", "--model", "x"], "never loaded"),
    ],
)
def test_what_cannot_be_run_is_refused(
    argv: list[str], told: str, tmp_path: Path, paint: Callable[..., Path],
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def refuse(name: str, **options: object) -> None:
        raise ValueError("never loaded")

    monkeypatch.setattr("vpt.towers.load.load", refuse)  # all but the last are said before
    (tmp_path / "c.yaml").write_text("data: {path: photos, shots: 4}\n")
    (tmp_path / "r.yaml").write_text("recipe: mine\n")
    places = {"config": tmp_path / "c.yaml", "recipe": tmp_path / "r.yaml"}
    places["here"] = paint(tmp_path / "here", {"train": 1, "test": 1}, 9, COLOURS)
    places["three"] = paint(tmp_path / "three", {"train": 1, "test": 1}, 9)
    assert main(["table", *(word.format(**places) for word in argv), "--out", str(tmp_path / "out")]) == 2
    assert told in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()


def test_the_table_is_printed_and_written_and_goes_on(
    clip: Backbone, tmp_path: Path, paint: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    here = paint(tmp_path / "here", {"train": 3, "val": 1, "test": 3}, 60, COLOURS)
    out = tmp_path / "out"
    argv = ["table", "base-to-novel", "--data", f"colours={here}", "--data", "gone", "--skip-missing"]
    argv += ["--methods", "zero-shot,coop,linear", "--epochs", "1", "--shots", "2", "--seeds", "1,2"]
    argv += ["--device", "cpu", "--out", str(out)]
    assert main(argv) == 0
    first = capsys.readouterr()
    assert "colours, base, 2-shot, coop, seed 2" in first.err
    assert "## base-to-novel: colours\n" in first.out
    assert "## base-to-novel: colours: what to choose\n" in first.out
    assert "Left out: gone: no data at 'gone'" in first.out
    assert (out / "table.md").read_text() in first.out
    rows = list(csv.DictReader((out / "table.csv").open()))
    assert {r["method"] for r in rows if r["table"] == "base-to-novel: colours"} == {
        "zero-shot",
        "coop",
        "linear",
    }
    assert all((out / name).read_bytes().startswith(b"\x89PNG") for name in ("table.png", "table-dark.png"))
    assert main(argv) == 0  # nothing is repeated
    again = capsys.readouterr()
    assert again.out == first.out
    assert "seed" not in again.err


def test_the_help_says_where_the_pictures_should_lie(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["table", "--help"]) == 0
    told = capsys.readouterr().out
    for name in (name for group in VTAB.values() for name in group):
        assert name in told
    assert "train/CLASS/*.jpg, val/CLASS/*.jpg, test/CLASS/*.jpg" in told
