"""fit, predict, test and validate on a small folder, as a person would type them."""

from __future__ import annotations

import csv
import json
import shutil
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from PIL import Image

from vpt.cli import main
from vpt.cli.use import _data_options
from vpt.header import Header, read_header
from vpt.prompt import Site
from vpt.promptset import PromptSet

if TYPE_CHECKING:
    from tests.cli.conftest import Trained

Capture = pytest.CaptureFixture[str]


def said(capsys: Capture, *argv: str) -> Any:
    """What a command prints as JSON."""
    assert main([*argv, "--json"]) == 0, capsys.readouterr().err
    return json.loads(capsys.readouterr().out)


def test_fit_leaves_a_prompt_file_and_says_where(trained: Trained, tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "run"
    argv = [
        *trained.bare,
        "--method.length",
        "2",
        "--epochs",
        "1",
        "--lr",
        "0.01",
        "--method",
        "vpt-shallow",
        "--out",
        str(out),
    ]
    assert main(["fit", *argv]) == 0
    printed = capsys.readouterr().out
    assert f"prompt set: {out}/prompts.safetensors" in printed
    assert f"vpt predict {out}/prompts.safetensors" in printed
    assert "test (6 pictures)" in printed
    header = read_header(out / "prompts.safetensors")
    assert header.about["method"]["name"] == "vpt-shallow"
    assert header.about["method"]["options"]["length"] == 2
    assert [s["stage"] for s in header.about["sites"]] == ["0"]
    assert header.about["protocol"]["seed"] == 3


def test_fit_without_a_folder_writes_nothing_and_says_so(
    trained: Trained, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["fit", *trained.bare, "--lr", "0.01", "--method", "linear"]) == 0
    assert "Nothing was written; --out FOLDER" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_a_baseline_says_that_it_is_one(trained: Trained, tmp_path: Path, capsys: Capture) -> None:
    assert (
        main(["fit", *trained.bare, "--lr", "0.01", "--method", "bias", "--out", str(tmp_path / "run")]) == 0
    )
    assert f"baseline: {tmp_path}/run/baseline.safetensors" in capsys.readouterr().out
    red = str(trained.pictures / "red" / "0.png")
    assert len(said(capsys, "predict", str(tmp_path / "run" / "baseline.safetensors"), red)) == 1


def test_it_predicts_what_it_learned(trained: Trained, capsys: Capture) -> None:
    found = said(capsys, "predict", str(trained.prompts), str(trained.pictures), "--batch-size", "7")
    assert len(found) == 30
    assert [p["picture"] for p in found] == sorted(str(p) for p in trained.pictures.rglob("*.png"))
    right = [p["label"] == Path(p["picture"]).parent.name for p in found]
    assert sum(right) > 24  # colours: two thirds would be chance and more
    for p in found:
        assert p["probability"] == max(p["scores"].values())


def test_the_three_forms_hold_the_same(trained: Trained, capsys: Capture) -> None:
    files = [str(folder / "1.png") for folder in sorted(trained.pictures.iterdir())]
    argv = ["predict", str(trained.prompts), *files, "--top", "2"]
    found = said(capsys, *argv)
    assert [p["picture"] for p in found] == files
    assert all(len(p["scores"]) == 2 for p in found)

    assert main([*argv, "--csv"]) == 0
    table = list(csv.reader(capsys.readouterr().out.splitlines()))
    assert table[0] == ["picture", "class", "probability"]
    expected = [[p["picture"], name, f"{v:.6f}"] for p in found for name, v in p["scores"].items()]
    assert table[1:] == expected

    assert main(argv) == 0
    printed = capsys.readouterr().out
    for p in found:
        for name, value in p["scores"].items():
            assert name in printed  # "sky [blue]" is a name, not a colour of the terminal
            assert f"{value:.3f}" in printed


def test_unreadable_pictures_are_named_and_the_others_predicted(
    trained: Trained, tmp_path: Path, capsys: Capture
) -> None:
    shutil.copy(trained.pictures / "red" / "0.png", tmp_path / "good.png")
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8 and nothing more")
    (tmp_path / "empty.png").touch()
    (tmp_path / "notes.txt").write_text("no picture")
    assert main(["predict", str(trained.prompts), str(tmp_path), "--csv"]) == 2
    printed = capsys.readouterr()
    assert [line.split(",")[0] for line in printed.out.splitlines()[1:]] == [str(tmp_path / "good.png")]
    assert "2 of 3 pictures could not be read" in printed.err
    assert "broken.jpg" in printed.err
    assert "empty.png" in printed.err
    assert "notes.txt" not in printed.err


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["predict", "{prompts}", "nowhere.jpg"], "no picture or folder 'nowhere.jpg'"),
        (["predict", "{prompts}", "{empty}"], "holds no pictures"),
        (["predict", "{prompts}", "{pictures}", "--top", "0"], "no whole number of 1 or more"),
        (["predict", "{prompts}", "{pictures}", "--batch-size", "x"], "no whole number of 1 or more"),
        (["predict", "{headless}", "{pictures}"], "rows without a head"),
        (["predict", "{prompts}", "{pictures}", "--model", "starter/vit-mini"], "another 'image' tower"),
        (["predict", "{nameless}", "{pictures}"], "names no backbone. Give it as --model"),
        (["predict", "{prompts}", "{pictures}", "--device", "abacus"], "no device 'abacus'"),
        (["test", "{prompts}"], "which pictures? Give --data"),
        (["test", "{prompts}", "--data", "digits"], "knows 3 classes, the data have 10 (without"),
        (["test", "{headless}", "--data", "digits"], "rows without a head"),
        (["validate", "{prompts}", "--data", "{pictures}", "--config", "no.yaml"], "no config file"),
    ],
)
def test_what_cannot_be_done_is_refused(
    argv: list[str], told: str, trained: Trained, tmp_path: Path, capsys: Capture
) -> None:
    (tmp_path / "empty").mkdir()
    headless = PromptSet({Site("image", "0", "prefix"): torch.zeros(2, 64)})
    head = {"weight": torch.zeros(3, 64), "bias": torch.zeros(3)}
    nameless = PromptSet(headless.rows, head, about={"head": {"reads": "features"}})
    places = {
        "prompts": trained.prompts,
        "pictures": trained.pictures,
        "empty": tmp_path / "empty",
        "nameless": nameless.save(tmp_path / "nameless.safetensors"),
        "headless": headless.save(tmp_path / "headless.safetensors"),
    }
    assert main([word.format(**places) for word in argv]) == 2
    assert told in " ".join(capsys.readouterr().err.split())


def test_test_repeats_the_number_of_training(trained: Trained, capsys: Capture) -> None:
    """Split, seed and shots come from the file, so that no picture of training is measured on."""
    about = read_header(trained.prompts).about
    for command, split in (("test", "test"), ("validate", "val")):
        assert main([command, str(trained.prompts), "--data", str(trained.pictures), "--json"]) == 0
        printed = capsys.readouterr()
        assert "trained on" not in printed.err
        found = json.loads(printed.out)
        assert found["protocol"]["split"] == about["protocol"]["split"]
        then = {m["name"]: m for m in about["metrics"] if m["split"] == split}
        assert found["metrics"]
        for metric in found["metrics"]:
            assert metric == {
                **then[metric["name"]],
                "value": pytest.approx(then[metric["name"]]["value"], abs=1e-5),
            }


def test_what_the_file_says_of_its_data_and_what_is_typed_meet() -> None:
    protocol = {"seed": 3, "shots": None, "val": 0.1, "test": 0.2, "subset": "base", "split": "abc"}
    header = Header("x", 0, {}, {"protocol": protocol})
    typed = dict.fromkeys(("config", "seed", "split_file", "batch_size", "root"))
    args = Namespace(**{**typed, "data": "coop:dtd", "root": "data", "seed": 4})
    assert _data_options("test", args, header) == {
        "path": "coop:dtd", "root": "data", "seed": 4, "val": 0.1, "test": 0.2, "subset": "base",
    }  # fmt: skip


def test_another_split_of_the_same_data_is_warned_about(trained: Trained, capsys: Capture) -> None:
    argv = ["test", str(trained.prompts), "--data", str(trained.pictures), "--seed", "4"]
    assert main(argv) == 0
    printed = capsys.readouterr()
    assert "may hold pictures that were trained on" in printed.err
    assert "seed 4" in printed.out


def test_the_config_of_training_gives_the_data(trained: Trained, tmp_path: Path, capsys: Capture) -> None:
    config = tmp_path / "run.yaml"
    config.write_text(
        f"data: {{path: {trained.pictures}, seed: 3, shots: 4}}\nmethod: vpt-deep\ntask: {{epochs: 99}}\n"
    )
    found = said(capsys, "test", str(trained.prompts), "--config", str(config))
    assert found["protocol"]["split"] == read_header(trained.prompts).about["protocol"]["split"]
    config.write_text(f"data: {{path: {trained.pictures}, sed: 3}}\n")
    assert main(["test", str(trained.prompts), "--config", str(config)]) == 2
    assert "no key data.sed. Did you mean data.seed" in capsys.readouterr().err


def test_classes_that_differ_are_named(trained: Trained, tmp_path: Path, capsys: Capture) -> None:
    for name in ("red", "green", "violet"):
        for split in ("train", "test"):
            (tmp_path / "data" / split / name).mkdir(parents=True)
            for i in range(5):
                Image.new("RGB", (8, 8), (i, len(name), 0)).save(
                    tmp_path / "data" / split / name / f"{i}.png"
                )
    assert main(["test", str(trained.prompts), "--data", str(tmp_path / "data")]) == 2
    assert "without sky [blue]; besides violet" in capsys.readouterr().err


def test_weights_may_lie_elsewhere(trained: Trained, tmp_path: Path, capsys: Capture) -> None:
    moved = shutil.copy(trained.weights, tmp_path / "moved.safetensors")
    red = str(trained.pictures / "red" / "0.png")
    here = said(capsys, "predict", str(trained.prompts), red)
    assert said(capsys, "predict", str(trained.prompts), red, "--weights", str(moved)) == here
