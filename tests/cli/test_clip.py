"""A prompt that says names, from fit to predict with other names, and a released checkpoint imported."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from vpt.cli import main
from vpt.header import read_header
from vpt.towers.backbone import Backbone

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def named(monkeypatch: pytest.MonkeyPatch, tiny_clip: Backbone) -> None:
    """Every backbone that a command loads is the tiny CLIP."""
    monkeypatch.setattr("vpt.towers.load.load", lambda name, **_: tiny_clip)
    monkeypatch.setattr("vpt.tasks.tuned.load", lambda name, **_: tiny_clip)


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory, paint: Callable[..., Path]) -> Path:
    return paint(tmp_path_factory.mktemp("clip"), {"train": 4, "val": 2, "test": 3}, noise=40)


def test_from_names_to_other_names(named: None, pictures: Path, tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "run"
    argv = ["--data", str(pictures), "--model", "open_clip/tiny", "--epochs", "2", "--device", "cpu"]
    assert main(["fit", *argv, "--method", "coop", "--method.length", "4", "--out", str(out)]) == 0
    told = capsys.readouterr()
    assert "3 names in '<ctx*4> {}.', packed into 1 row: 14 tokens of 231" in told.err
    file = str(out / "prompts.safetensors")
    assert main(["inspect", file]) == 0
    assert "sentence   <ctx*4> {}." in capsys.readouterr().out
    red = str(pictures / "test" / "red" / "0.png")
    assert main(["predict", file, red, "--json"]) == 0
    own = json.loads(capsys.readouterr().out)
    assert own[0]["label"] in ("red", "green", "blue")
    assert main(["predict", file, red, "--classes", "cat,a big dog", "--top", "2", "--json"]) == 0
    other = json.loads(capsys.readouterr().out)
    assert other[0]["scores"].keys() == {"cat", "a big dog"}
    names = tmp_path / "names.txt"
    names.write_text("a big dog\ncat\n")
    assert main(["predict", file, red, "--classes", str(names), "--top", "2", "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert again[0]["scores"] == pytest.approx(other[0]["scores"], abs=1e-5)


def test_data_with_other_classes_are_measured_with_their_names(
    named: None, pictures: Path, tmp_path: Path, paint: Callable[..., Path], capsys: Capture
) -> None:
    argv = ["--data", str(pictures), "--model", "open_clip/tiny", "--epochs", "1", "--device", "cpu"]
    assert main(["fit", *argv, "--method", "maple", "--out", str(tmp_path / "run")]) == 0
    other = paint(
        tmp_path / "other",
        {"train": 4, "val": 2, "test": 3},
        noise=40,
        colours={"x": (9,) * 3, "y": (99,) * 3},
    )
    capsys.readouterr()
    file = str(tmp_path / "run" / "prompts.safetensors")
    assert main(["test", file, "--data", str(other), "--device", "cpu", "--json"]) == 0
    told = capsys.readouterr()
    assert "now says the 2 names of these data" in told.err
    found = json.loads(told.out)
    assert found["protocol"]["counts"]["test"] == 6


def test_a_head_takes_no_other_names(named: None, pictures: Path, tmp_path: Path, capsys: Capture) -> None:
    argv = ["--data", str(pictures), "--model", "open_clip/tiny", "--epochs", "1", "--device", "cpu"]
    assert main(["fit", *argv, "--method", "linear", "--out", str(tmp_path / "run")]) == 0
    file, red = str(tmp_path / "run" / "baseline.safetensors"), str(pictures / "test" / "red" / "0.png")
    capsys.readouterr()
    assert main(["predict", file, red, "--classes", "a,b"]) != 0
    assert "has a head for its 3 classes" in capsys.readouterr().err


def test_a_released_checkpoint_is_imported(
    named: None, pictures: Path, tmp_path: Path, capsys: Capture
) -> None:
    state = {"ctx": torch.randn(4, 24) * 0.02, "token_prefix": torch.zeros(3, 1, 24)}
    checkpoint = tmp_path / "model.pth.tar-50"
    torch.save({"state_dict": state, "epoch": 50}, checkpoint)
    out = tmp_path / "coop.safetensors"
    argv = ["import", str(checkpoint), "--model", "open_clip/tiny", "--out", str(out)]
    assert main([*argv, "--classes", "red,green,blue"]) == 0
    assert "vpt predict" in capsys.readouterr().out
    about = read_header(out).about
    assert (about["method"]["name"], about["names"]["sentence"]) == ("coop", "<ctx*4> {}.")
    assert main(["predict", str(out), str(pictures / "test" / "red" / "0.png"), "--device", "cpu"]) == 0
    assert main([*argv]) == 0
    assert "it names no classes: give --classes" in capsys.readouterr().out
