"""Pictures with captions, from fit to search, as a person would type it."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import yaml

from vpt.cli import main
from vpt.cli.compare import _arguments, _plan
from vpt.cli.config import parse
from vpt.data.images import decode
from vpt.header import read_header
from vpt.tasks.tuned import load_prompts
from vpt.towers.backbone import Backbone
from vpt.workflow.runs import by_split

Capture = pytest.CaptureFixture[str]
RETRIEVE = ["--task", "retrieve", "--epochs", "1", "--device", "cpu"]


@pytest.fixture(autouse=True)
def _named(monkeypatch: pytest.MonkeyPatch, tiny_clip: Backbone) -> None:
    """Every backbone that a command loads is the tiny CLIP."""
    monkeypatch.setattr("vpt.towers.load.load", lambda name, **_: tiny_clip)
    monkeypatch.setattr("vpt.tasks.tuned.load", lambda name, **_: tiny_clip)


@pytest.fixture(scope="module")
def pairs(
    tmp_path_factory: pytest.TempPathFactory, paint: Callable[..., Path], tell: Callable[[Path], Path]
) -> Path:
    return tell(paint(tmp_path_factory.mktemp("told"), {"train": 3, "val": 2, "test": 2}, noise=80))


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory, pairs: Path, tiny_clip: Backbone) -> Path:
    """Rows in both towers, trained by the shortest command."""
    out = tmp_path_factory.mktemp("fitted")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vpt.towers.load.load", lambda name, **_: tiny_clip)
        assert main(["fit", "--data", str(pairs), "--general", str(pairs), *RETRIEVE, "--out", str(out)]) == 0
    return out / "prompts.safetensors"


def test_the_objective_decides_what_is_read_and_what_starts(tmp_path: Path) -> None:
    found = parse("fit", ["--task", "retrieve", "--data", "x"])
    assert (found.method.name, found.model.name, found.data.captions) == ("ivlp", "starter/clip-mini", True)
    assert found.method.image_length == 2  # its options are those of ivlp
    config = tmp_path / "c.yaml"
    config.write_text("data: x\ntask: {objective: retrieve, general: y}\n")
    again = parse("fit", ["--config", str(config)])
    assert (again.method, again.data, again.task.general) == (found.method, found.data, "y")
    assert parse("fit", ["--config", str(config), "--method", "coop"]).data.captions is True
    labelled = parse("fit", ["--config", str(config), "--task", "classify"])
    assert (labelled.method.name, labelled.model.name, labelled.data.captions) == (
        "vpt-deep",
        "starter/vit-mini",
        False,
    )
    typed = "--data x --task retrieve --general y --loss sigmoid --consistency 0.5 --chunk 8"
    task = parse("fit", typed.split()).task
    assert (task.general, task.loss, task.consistency, task.chunk) == ("y", "sigmoid", 0.5, 8)


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (
            ["fit", "--task", "retrieve", "--data", "x", "--data.captions", "false"],
            "needs data with captions",
        ),
        (["fit", "--data", "x", "--data.captions", "true", "--method", "coop"], "needs data with labels"),
        (["fit", "--task", "retrieve", "--data", "x", "--method", "linear"], "it has a head for classes"),
        (
            ["fit", "--task", "retrieve", "--data", "x", "--captions", "2"],
            "Did you mean --data.captions or --task",
        ),
        (["fit", "--task", "find", "--data", "x"], "task.objective is find, wanted"),
        (["table", "few-shot", "--config", "CONFIG", "--methods", "coop", "--out", "x"], "Use vpt compare"),
        (["compare", "--task", "find", "--data", "x", "--methods", "coop", "--out", "x"], "is find, wanted"),
    ],
)
def test_what_does_not_go_together_is_refused(
    argv: list[str], told: str, tmp_path: Path, capsys: Capture
) -> None:
    config = tmp_path / "c.yaml"
    config.write_text("task: retrieve\n")
    assert main([str(config) if word == "CONFIG" else word for word in argv]) == 2
    assert told in capsys.readouterr().err


def test_help_speaks_of_captions(capsys: Capture) -> None:
    assert main(["fit", "--task", "retrieve", "--help"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "Train ivlp" in said
    assert "on pictures with captions, and measure it." in said
    assert "[--general]" in said
    assert main(["fit", "--help"]) == 0
    assert "With --task retrieve, on pictures with captions" in " ".join(capsys.readouterr().out.split())


def test_fit_prints_what_was_before_and_what_is_now(pairs: Path, tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "run"
    argv = [
        "fit",
        "--data",
        str(pairs),
        *RETRIEVE,
        "--method",
        "coop",
        "--method.length",
        "2",
        "--out",
        str(out),
    ]
    assert main(argv) == 0
    said = capsys.readouterr().out
    about = read_header(out / "prompts.safetensors").about
    after, before = by_split(about["metrics"]), by_split(about["before"])
    lines = {
        words[0]: words[1:]
        for line in said.splitlines()
        if (words := [w.strip() for w in line.split("│")[1:-1]])
    }
    for name, word in {"t2i_r1": "t2i recall@1", "i2t_map": "i2t mAP", "mean_recall": "mean recall"}.items():
        wanted = (after["val"][name], before["test"][name], after["test"][name])
        assert lines[word] == [f"{v:.4f}" for v in wanted]
    assert lines["t2i median rank"][2] == f"{after['test']['t2i_median_rank']:.0f}"
    assert len([k for k in lines if k.startswith(("t2i", "i2t", "mean"))]) == 11
    assert "18 captions" in said
    file = out / "prompts.safetensors"
    assert f"vpt index build PICTURES --prompts {file} --out INDEX" in said
    assert "vpt predict" not in said


@pytest.mark.parametrize(("command", "split"), [("test", "test"), ("validate", "val")])
def test_a_file_measures_what_training_measured(
    command: str, split: str, prompts: Path, pairs: Path, capsys: Capture
) -> None:
    assert main([command, str(prompts), "--data", str(pairs), "--device", "cpu", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    about = read_header(prompts).about
    assert by_split(said["metrics"])[split] == pytest.approx(by_split(about["metrics"])[split])
    assert said["protocol"]["captions"] == {"train": 27, "val": 18, "test": 18}
    assert main([command, str(prompts), "--data", str(pairs), "--device", "cpu"]) == 0
    told = capsys.readouterr().out
    assert "t2i recall@10" in told
    assert "18 captions" in told


def test_inspect_says_what_it_is_for_and_what_was_before(prompts: Path, capsys: Capture) -> None:
    assert main(["inspect", str(prompts)]) == 0
    said = capsys.readouterr().out
    assert "task       retrieve, trained on 27 captions" in said
    about = read_header(prompts).about
    after, before = by_split(about["metrics"]), by_split(about["before"])
    for split in ("test", "general"):
        line = f"mean_recall {after[split]['mean_recall']:.4f} (6 pictures, seed 1; frozen "
        assert f"{split:<11}{line}{before[split]['mean_recall']:.4f})" in said


def test_predict_needs_classes(prompts: Path, pairs: Path, tiny_clip: Backbone, capsys: Capture) -> None:
    picture = str(pairs / "test" / "red" / "0.png")
    assert main(["predict", str(prompts), picture]) == 2
    told = capsys.readouterr().err
    assert "Give --classes" in told
    assert "vpt search" in told
    names = ["something red", "something green"]
    argv = [
        "predict",
        str(prompts),
        picture,
        "--classes",
        ",".join(names),
        "--top",
        "2",
        "--device",
        "cpu",
        "--json",
    ]
    assert main(argv) == 0
    scores = json.loads(capsys.readouterr().out)[0]["scores"]
    tuned = load_prompts(prompts, tiny_clip, device="cpu")
    image = F.normalize(tuned.encode_image(tiny_clip.preprocess(decode(picture))[None]), dim=-1)
    logits = tiny_clip.scale * image @ F.normalize(tuned.encode_text(names), dim=-1).T
    assert torch.tensor([scores[n] for n in names]).allclose(logits.softmax(-1)[0], atol=1e-4)


def test_a_comparison_ranks_by_mean_recall_and_says_what_was_lost(
    pairs: Path, tmp_path: Path, capsys: Capture
) -> None:
    content: dict[str, Any] = {
        "model": "open_clip/tiny",
        "data": {"path": str(pairs), "batch_size": 6},
        "task": {"objective": "retrieve", "epochs": 1},
        "seeds": [1, 2],
        "methods": ["zero-shot", {"name": "ivlp", "label": "both", "task": {"lr": [0.01]}}],
    }
    config, out = tmp_path / "c.yaml", tmp_path / "out"
    config.write_text(yaml.safe_dump(content))
    argv = ["compare", "--config", str(config), "--general", str(pairs), "--out", str(out), "--device", "cpu"]
    assert main(argv) == 0
    assert "mean recall" in capsys.readouterr().out
    runs = json.loads((out / "results.json").read_text())
    rows = {r["name"]: r for r in csv.DictReader((out / "table.csv").open())}
    for name, row in rows.items():
        mine = [r for r in runs if r["name"] == name]
        assert len(mine) == 2
        assert float(row["mean"]) == pytest.approx(sum(r["metrics"]["mean_recall"] for r in mine) / 2)
        assert float(row["i2t_r5"]) == pytest.approx(sum(r["metrics"]["i2t_r5"] for r in mine) / 2)
        lost = [r["beside"]["general"]["mean_recall"] - r["before"]["general"]["mean_recall"] for r in mine]
        assert float(row["general_change"]) == pytest.approx(sum(lost) / 2)
    assert float(rows["zero-shot"]["general_change"]) == 0
    frozen = next(r for r in runs if r["name"] == "zero-shot")
    assert frozen["metrics"] == pytest.approx(frozen["before"]["test"])
    head = (out / "table.md").read_text().splitlines()[0]
    columns = "mean recall | t2i R@1 | t2i R@5 | t2i R@10 | i2t R@1 | i2t R@5 | i2t R@10 | general | general, change"
    assert head.startswith(f"| method | {columns} | seeds |")


def test_names_alone_are_enough_for_a_comparison() -> None:
    argv = ["--task", "retrieve", "--data", "x", "--general", "y", "--methods", "ivlp", "--out", "unused"]
    found = _plan(_arguments().parse_args(argv))
    assert found["model"] == {"name": "starter/clip-mini"}
    assert found["data"] == {"captions": True, "path": "x"}
    assert found["task"] == {"objective": "retrieve", "general": "y"}
