"""Every file under configs/ builds: its keys are known, its method fits a network, its header says what it is."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm

from vpt.cli.compare import _arguments, _plan
from vpt.cli.config import parse
from vpt.data.module import ImageData
from vpt.methods import METHODS
from vpt.tasks.device import Machine
from vpt.tasks.learner import Learner, build_method
from vpt.tasks.task import Recipe
from vpt.towers.backbone import Backbone
from vpt.towers.vit import tiny

ROOT = Path(__file__).parents[2] / "configs"
FILES = sorted(f for f in ROOT.rglob("*.yaml") if f.parent.name != "datasets")  # those: vpt.data.protocols
COMMANDS = {"classify": "fit", "data": "fit", "compare": "compare"}
NETWORK = Backbone("tiny", {"image": tiny(num_classes=128)}, {}, "timm")  # with a classifier, so that a map from its classes has something to map


def named(files: list[Path]) -> dict[str, list[object]]:
    return {"argvalues": files, "ids": [f"{f.parent.name}/{f.stem}" for f in files]}


def build(name: str, options: dict[str, object]) -> Learner:
    return Learner(build_method(name, NETWORK, options), NETWORK, ("a", "b", "c"))


@pytest.mark.parametrize("file", **named(FILES))
def test_the_header_says_what_it_repeats_and_how_to_run_it(file: Path) -> None:
    text = file.read_text()
    header = [line for line in text.splitlines() if line.startswith("#")]
    place = file.relative_to(ROOT.parent).as_posix()
    assert any(line.startswith(f"# vpt {COMMANDS[file.parent.name]} --config {place} ") for line in header)
    if file.parent.name == "classify":
        for word in ("# Repeats: ", "# Published: ", "Time and machine: "):
            assert sum(word in line for line in header) == 1, word
        paper = METHODS[file.stem].paper
        assert paper in "".join(header)
        assert f"--out runs/{file.stem}" in header[-1]


@pytest.mark.parametrize("file", **named([f for f in FILES if COMMANDS[f.parent.name] == "fit"]))
def test_a_config_of_fit_builds(file: Path) -> None:
    found = parse("fit", ["--config", str(file)])
    method = found.method.as_dict()
    build(method.pop("name"), method)
    Recipe(**found.task.as_dict())
    Machine(**found.trainer.as_dict())
    data = ImageData(**found.data.as_dict())
    if data.path in ("digits", "emoji"):
        data.setup()
        assert data.protocol()["counts"]["train"] == found.data.shots * len(data.classes)


def test_every_method_has_a_config_and_every_kind_of_data_too() -> None:
    assert {f.stem for f in FILES if f.parent.name == "classify"} == METHODS.keys()
    assert all(
        parse("fit", ["--config", str(ROOT / "classify" / f"{name}.yaml")]).method.name == name
        for name in METHODS
    )
    kinds = {f.stem for f in FILES if f.parent.name == "data"}
    assert kinds == {"folder", "manifest", "shards", "torchvision", "digits", "emoji"}


@pytest.mark.parametrize("file", **named([f for f in FILES if COMMANDS[f.parent.name] == "compare"]))
def test_a_comparison_builds(file: Path) -> None:
    plan = _plan(_arguments().parse_args(["--config", str(file), "--out", "unused"]))
    for entry in plan["methods"]:
        build(entry["name"], entry["options"])
        rates = Recipe(**{**plan["task"], **entry["task"]}).lr
        assert len(rates) > 1 or entry["name"] == "linear-exact"  # chosen on val, for all alike
    for seed in plan["seeds"]:
        ImageData(**plan["data"], seed=seed)


def test_the_recipes_are_those_of_the_papers() -> None:
    """Numbers of arXiv 2203.12119 (KMnP/vpt) and 2203.17274 (hjbahng/visual_prompting)."""
    deep, shallow, pixel = (
        parse("fit", ["--config", str(ROOT / "classify" / f"{name}.yaml")])
        for name in ("vpt-deep", "vpt-shallow", "pixel")
    )
    for found, dropout in ((deep, 0.1), (shallow, 0.0)):
        task = found.task
        assert (task.optimizer, task.schedule, task.warmup, task.epochs, task.per_256) == (
            "sgd",
            "vpt",
            10,
            100,
            True,
        )
        assert set(task.lr) == {50, 25, 10, 5, 2.5, 1, 0.5, 0.25, 0.1}
        assert task.head == "published"
        assert found.method.dropout == dropout
        assert (found.method.length, found.data.batch_size) == (100, 64)
    task = pixel.task
    assert (task.optimizer, task.lr, task.weight_decay, task.schedule, task.epochs) == (
        "sgd",
        (40,),
        0,
        "pixel",
        1000,
    )


def test_the_networks_have_weights() -> None:
    names = {parse("fit", ["--config", str(f)]).model.name for f in FILES if f.parent.name == "classify"}
    assert names <= {f"timm/{name}" for name in timm.list_models(pretrained=True)}
