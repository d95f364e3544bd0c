"""vpt compare: what is typed wins, what cannot be run is refused before anything runs, the table is written."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from vpt.cli import main
from vpt.cli.compare import _arguments, _plan

if TYPE_CHECKING:
    from tests.cli.conftest import Trained


def plan(*argv: str) -> dict[str, Any]:
    return _plan(_arguments().parse_args([*argv, "--out", "unused"]))


def write(path: Path, content: Any) -> str:
    path.write_text(yaml.safe_dump(content))
    return str(path)


CONTENT = {
    "model": "timm/test_vit",
    "data": {"path": "photos", "shots": 4},
    "task": {"epochs": 3, "lr": "1e-3,1e-2", "weight_decay": "1e-4"},
    "seeds": [5],
    "methods": [
        "linear",
        {"name": "vpt-deep", "label": "deep 3", "options": {"length": 3}, "task": {"lr": 0.1}},
    ],
}


def test_names_alone_are_enough() -> None:
    found = plan("--data", "photos", "--methods", "linear,vpt-deep", "--seeds", "4,5", "--lr", "0.1,0.3")
    assert [m["name"] for m in found["methods"]] == ["linear", "vpt-deep"]
    assert found["model"] == {"name": "starter/vit-mini"}
    assert found["data"] == {"path": "photos"}
    assert found["task"] == {"lr": (0.1, 0.3)}
    assert found["seeds"] == [4, 5]
    assert found["search"] == "every seed"
    assert plan("--data", "photos", "--methods", "linear", "--search-once")["search"] == "first seed"


def test_yaml_holds_what_differs_between_methods(tmp_path: Path) -> None:
    found = plan("--config", write(tmp_path / "c.yaml", CONTENT))
    assert found["task"] == {"epochs": 3, "lr": (1e-3, 1e-2), "weight_decay": 1e-4}
    linear, deep = found["methods"]
    assert (linear["label"], linear["options"], linear["task"]) == ("", {}, {})
    assert (deep["label"], deep["options"], deep["task"]) == ("deep 3", {"length": 3}, {"lr": (0.1,)})


def test_options_win_over_yaml_for_all_methods(tmp_path: Path) -> None:
    config = write(tmp_path / "c.yaml", CONTENT)
    found = plan("--config", config, "--data", "other", "--lr", "search", "--epochs", "9", "--shots", "2")
    assert found["data"] == {"path": "other", "shots": 2}
    assert found["task"]["lr"] == "search"
    assert found["task"]["epochs"] == 9
    assert [m["task"] for m in found["methods"]] == [{}, {}]
    assert [m["name"] for m in plan("--config", config, "--methods", "bias")["methods"]] == ["bias"]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"seed": 3}, "has the key seed. There are model, data, task, seeds, search, methods"),
        ({"methods": []}, "needs --data and --methods"),
        ({"data": {}}, "needs --data and --methods"),
        ({"methods": ["vpt"]}, "no method 'vpt'"),
        ({"methods": [{"name": "linear", "option": {}}]}, "a method is a name or has name, label, options"),
        ({"methods": [{"name": "linear", "options": {"length": 3}}]}, "linear has no options"),
        ({"methods": [{"name": "linear", "task": {"epoch": 3}}]}, "Did you mean task.epochs"),
        ({"data": {"path": "x", "shotz": 3}}, "Did you mean data.shots"),
        ({"data": {"path": "x", "seed": 3}}, "the seeds of a comparison"),
        ({"task": {"lr": "quick"}}, "lr is 'quick'"),
        ({"task": {"epochs": "many"}}, "task.epochs is many, wanted int"),
        ({"seeds": ["one"]}, "seeds are ['one'], wanted whole numbers"),
        ({"search": "once"}, "search is 'once', wanted every seed or first seed"),
        ({"seeds": []}, "wanted whole numbers"),
        ({"model": {"name": "timm/test_vit", "weight": "x"}}, "Did you mean model.weights"),
    ],
)
def test_what_cannot_be_run_is_refused(
    changes: dict[str, Any], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write(tmp_path / "c.yaml", {**CONTENT, **changes})
    assert main(["compare", "--config", config, "--out", str(tmp_path / "out")]) == 2
    assert told in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()


def test_the_table_is_printed_and_written(
    trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = {
        "model": {"name": "timm/test_vit", "weights": str(trained.weights), "size": 32},
        "data": {"path": str(trained.pictures), "shots": 2, "batch_size": 6},
        "task": {"epochs": 1},
        "seeds": [1, 2],
        "methods": [
            {"name": "linear", "task": {"lr": [0.01, 0.1]}},
            {"name": "vpt-shallow", "label": "one [row]", "options": {"length": 1}},
        ],
    }
    out = tmp_path / "out"
    argv = ["compare", "--config", write(tmp_path / "c.yaml", content), "--out", str(out), "--device", "cpu"]
    assert main(argv) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "one [row], seed 2" in printed
    assert "6 pictures of pictures" in printed
    rows = list(csv.DictReader((out / "table.csv").open()))
    assert [r["name"] for r in rows] == ["linear", "one [row]"]
    assert [r["seeds"] for r in rows] == ["2", "2"]
    text = (out / "table.md").read_text()
    assert text.count("\n") == 6
    assert "validation: chooses learning rates (for every seed)" in text
    runs = json.loads((out / "results.json").read_text())
    assert [(r["name"], r["seed"]) for r in runs] == [(n, s) for s in (1, 2) for n in ("linear", "one [row]")]
    assert main(argv) == 0  # nothing is repeated
    assert "seed 2" not in capsys.readouterr().out
