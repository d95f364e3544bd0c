"""``vpt test-time`` as a person types it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from vpt.cli import main
from vpt.methods.coop import CoOp
from vpt.tasks.learner import Learner
from vpt.towers.backbone import Backbone

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def command(
    tiny_clip: Backbone,
    tmp_path: Path,
    paint: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> list[str]:
    """The command on a small CLIP, which has no name that the loader knows."""
    monkeypatch.setattr("vpt.towers.load.load", lambda name, **_: {"tiny": tiny_clip}[name])
    monkeypatch.setattr("vpt.tasks.tuned.load", lambda name, **_: tiny_clip)
    root = paint(tmp_path / "data", {"train": 1, "test": 2}, noise=50)
    return [
        "test-time",
        "--data",
        str(root),
        "--val",
        "0",
        "--views",
        "4",
        "--fraction",
        "0.5",
        "--device",
        "cpu",
    ]


@pytest.mark.parametrize("method", ["tpt", "zero"])
def test_numbers_and_a_file_that_is_gone_on_from(
    method: str, command: list[str], tmp_path: Path, capsys: Capture
) -> None:
    out = tmp_path / "r.jsonl"
    argv = [*command, "--method", method, "--model", "tiny", "--out", str(out)]
    assert main([*argv, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["protocol"]["method"] == method
    assert {m["name"] for m in said["metrics"]} == {"top1", "mean_per_class", "ece"}
    assert len(out.read_text().splitlines()) == 7
    assert main(argv) == 0
    printed = capsys.readouterr().out
    assert "test (6 pictures)" in printed
    assert "2 of 4 views" in printed
    assert main([*argv, "--seed", "2"]) == 2
    assert "another protocol" in capsys.readouterr().err


def test_a_prompt_file_is_a_start(
    command: list[str], tiny_clip: Backbone, tmp_path: Path, capsys: Capture
) -> None:
    classes = ("blue", "green", "red")
    learner = Learner(CoOp(tiny_clip.text, tiny_clip.tokens, 3, length=2), tiny_clip, classes)
    about = {"kind": "prompt set", "method": {"name": "coop", "options": {"length": 2}}}
    label = {"classes": list(classes), "backbone": tiny_clip.label()}
    learner.export({**about, **label}).save(tmp_path / "p.safetensors")
    assert main([*command, "--prompts", str(tmp_path / "p.safetensors"), "--json"]) == 0
    start = json.loads(capsys.readouterr().out)["protocol"]["start"]
    assert start["method"]["name"] == "coop"
    assert start["classes"] == "its own"


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ([], "which backbone"),
        (["--model", "tiny", "--prompts", "p", "--words", "a"], "two starts"),
        (["--model", "tiny", "--fraction", "0.1"], "leave 0"),
    ],
)
def test_what_cannot_be_is_said(more: list[str], said: str, command: list[str], capsys: Capture) -> None:
    assert main([*command, *more]) == 2
    assert said in capsys.readouterr().err


def test_a_file_of_options_is_read_and_what_is_typed_wins(
    command: list[str], tmp_path: Path, capsys: Capture
) -> None:
    config = tmp_path / "c.yaml"
    config.write_text("model: tiny\nmethod: zero\nviews: 8\nfraction: 0.25\n")
    assert main([*command, "--config", str(config), "--json"]) == 0
    protocol = json.loads(capsys.readouterr().out)["protocol"]
    assert (protocol["method"], protocol["views"], protocol["kept"]) == ("zero", 4, 2)
    config.write_text("model: tiny\nshots: 3\n")
    assert main([*command, "--config", str(config)]) == 2
    assert "has the key shots. There are" in capsys.readouterr().err
    config.write_text("model: tiny\nviews: many\n")
    assert main([*command, "--config", str(config)]) == 2
    assert "argument --views" in capsys.readouterr().err
