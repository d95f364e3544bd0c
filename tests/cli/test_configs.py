"""Every file under configs/ builds: its keys are known, its method fits a network, its header says what it is."""

from __future__ import annotations

from functools import cache
from inspect import signature
from pathlib import Path

import open_clip
import pytest
import timm
from pipelines import shared

from vpt.cli import test_time
from vpt.cli.compare import _arguments, _plan
from vpt.cli.config import parse
from vpt.data.module import ImageData
from vpt.methods import METHODS, method_class
from vpt.methods.baselines.zero_shot import ZeroShot
from vpt.tasks.device import Machine
from vpt.tasks.diffusion import DiffusionLearner
from vpt.tasks.kinds import kind_of
from vpt.tasks.learner import Learner, build_method
from vpt.tasks.learning import Learning
from vpt.tasks.pairs import check_retrieval
from vpt.tasks.task import Recipe
from vpt.tasks.test_time import Adaptation
from vpt.towers.backbone import Backbone
from vpt.towers.diffusion import Diffusion, open_pipeline
from vpt.towers.load_clip import backbone_of
from vpt.towers.vit import tiny

NEEDED = {"zero-shot-descriptions": {"descriptions": {"a": ["an a."]}}}
ROOT = Path(__file__).parents[2] / "configs"
FILES = sorted(f for f in ROOT.rglob("*.yaml") if f.parent.name != "datasets")  # those: vpt.data.protocols
COMMANDS = {
    "classify": "fit",
    "retrieve": "fit",
    "text-to-image": "fit",
    "reward": "fit",  # they build in test_reward.py
    "data": "fit",
    "compare": "compare",
    "table": "table few-shot",
    "dreambooth": "table dreambooth",
    "test-time": "test-time",
}
NETWORK = Backbone(
    "tiny", {"image": tiny(num_classes=128)}, {}, "timm"
)  # with a classifier, so that a map from its classes has something to map


def named(files: list[Path]) -> dict[str, list[object]]:
    return {"argvalues": files, "ids": [f"{f.parent.name}/{f.stem}" for f in files]}


@cache
def clip() -> Backbone:
    """A CLIP as deep as the published ones and narrow."""
    model = open_clip.model.CLIP(
        16,
        vision_cfg=open_clip.model.CLIPVisionCfg(layers=12, width=16, head_width=8, patch_size=56),
        text_cfg=open_clip.model.CLIPTextCfg(width=16, heads=2, layers=12),
    )
    return backbone_of(model, "open_clip/tiny", "ViT-B-32")


@cache
def pipeline() -> Diffusion:
    """SDXL, tiny."""
    return open_pipeline(shared("sdxl"), "diffusers/tiny")


def build(name: str, options: dict[str, object]) -> Learning:
    if METHODS[name].only == "denoise":
        return DiffusionLearner(build_method(name, pipeline(), options), pipeline())
    if method_class(name).named or "text" in signature(method_class(name)).parameters:
        return Learner(build_method(name, clip(), options), clip(), ("a", "b"))
    return Learner(build_method(name, NETWORK, options), NETWORK, ("a", "b", "c"))


def can_retrieve(name: str) -> bool:
    if not method_class(name).named:
        return False
    try:
        check_retrieval(
            name, build_method(name, clip(), NEEDED.get(name)), clip(), Recipe(objective="retrieve")
        )
    except ValueError:
        return False
    return True


@pytest.mark.parametrize("file", **named(FILES))
def test_the_header_says_what_it_repeats_and_how_to_run_it(file: Path) -> None:
    text = file.read_text()
    header = [line for line in text.splitlines() if line.startswith("#")]
    place = file.relative_to(ROOT.parent).as_posix()
    assert any(line.startswith(f"# vpt {COMMANDS[file.parent.name]} --config {place} ") for line in header)
    if file.parent.name in ("classify", "retrieve", "text-to-image", "reward"):
        for word in ("# Repeats: ", "# Published: ", "Time and machine: "):
            assert sum(word in line for line in header) == 1, word
        paper = METHODS[file.stem].paper if file.parent.name != "reward" else "arXiv"
        assert paper in "".join(header)
        kind = "" if file.parent.name == "classify" else f"{file.parent.name}-"
        assert f"--out runs/{kind}{file.stem}" in header[-1]


@pytest.mark.parametrize(
    "file", **named([f for f in FILES if COMMANDS[f.parent.name] == "fit" and f.parent.name != "reward"])
)
def test_a_config_of_fit_builds(file: Path) -> None:
    found = parse("fit", ["--config", str(file)])
    method = found.method.as_dict()
    name, recipe = method.pop("name"), Recipe(**found.task.as_dict())
    learner = build(name, method)
    assert found.data.captions == (recipe.objective != "classify")
    if recipe.objective == "retrieve":
        check_retrieval(name, learner.method, clip(), recipe)
    if recipe.objective == "denoise":
        kind_of("denoise").check(name, learner.method, pipeline(), recipe)
        assert learner.method.placeholders.keys() == {f"<{found.data.concept}>"}
    Machine(**found.trainer.as_dict())
    data = ImageData(**found.data.as_dict())
    if data.path in ("digits", "emoji", "scenes"):
        data.setup()
        assert data.protocol()["counts"]["train"] == found.data.shots * len(data.classes)


def test_every_method_has_a_config_and_every_kind_of_data_too() -> None:
    of = {n: [name for name in METHODS if METHODS[name].only in ("", n)] for n in ("classify", "retrieve")}
    # on captions, which take no template, the other sentences and words of zero-shot are those of zero-shot
    of["retrieve"] = [
        name
        for name in of["retrieve"]
        if can_retrieve(name) and (name == "zero-shot" or not issubclass(method_class(name), ZeroShot))
    ]
    of = {objective: [name for name in names if not METHODS[name].only] for objective, names in of.items()}
    of["denoise"] = [name for name in METHODS if METHODS[name].only == "denoise"]
    for objective, names in of.items():
        folder = "text-to-image" if objective == "denoise" else objective
        files = {f.stem: f for f in FILES if f.parent.name == folder}
        assert files.keys() == set(names)
        for name, file in files.items():
            found = parse("fit", ["--config", str(file)])
            assert (found.method.name, found.task.objective) == (name, objective)
    kinds = {f.stem for f in FILES if f.parent.name == "data" and not f.stem.startswith("captions-")}
    assert kinds == {"folder", "manifest", "shards", "torchvision", "coop", "digits", "emoji", "scenes"}


@pytest.mark.parametrize("file", **named([f for f in FILES if f.parent.name == "table"]))
def test_a_table_builds(file: Path) -> None:
    from vpt.cli import table

    args = ["few-shot", "--config", str(file), "--data", "caltech101=unused", "--out", "unused"]
    plan = table._plan(table._arguments().parse_args(args))
    for entry in plan["methods"]:
        build(entry["name"], entry["options"])
        Recipe(**{**plan["task"], **entry["task"]})


@pytest.mark.parametrize("file", **named([f for f in FILES if f.parent.name == "dreambooth"]))
def test_a_table_of_subjects_builds(file: Path) -> None:
    from vpt.cli.table_dreambooth import _parser, _plan

    args = ["--config", str(file), "--root", "characters", "--out", "unused"]
    plan = _plan(_parser("table").parse_args(args))
    for entry in plan["methods"]:
        learner = build(entry["name"], entry["options"])
        recipe = Recipe(**{**plan["task"], **entry["task"]})
        kind_of("denoise").check(entry["name"], learner.method, pipeline(), recipe)


def test_test_time_methods_have_the_papers_numbers() -> None:
    """azshue/TPT and FarinaMatteo/zero."""
    for name, fraction, kept in (("tpt", 0.1, 6), ("zero", 0.3, 19)):
        args = test_time._arguments(
            "test-time", ["--config", str(ROOT / "test-time" / f"{name}.yaml"), "--root", "unused"]
        )
        assert (args.method, args.data, args.words) == (name, "coop:imagenet", "a photo of a")
        rule = Adaptation(args.method, args.views, args.fraction, args.steps, args.lr)
        assert (rule.views, rule.fraction, rule.label()["kept"]) == (64, fraction, kept)
        if name == "tpt":
            assert (rule.steps, rule.lr) == (1, 0.005)


@pytest.mark.parametrize("file", **named([f for f in FILES if COMMANDS[f.parent.name] == "compare"]))
def test_a_comparison_builds(file: Path) -> None:
    plan = _plan(_arguments().parse_args(["--config", str(file), "--out", "unused"]))
    for entry in plan["methods"]:
        build(entry["name"], entry["options"])
        rates = Recipe(**{**plan["task"], **entry["task"]}).lr
        trains = method_class(entry["name"]).trains and entry["name"] != "linear-exact"
        assert len(rates) == 0 if not trains else len(rates) > 1  # chosen on val, for all alike
    assert plan["data"].get("captions", False) == (plan["task"].get("objective") == "retrieve")
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


@pytest.mark.parametrize(
    ("name", "lr", "epochs", "batch", "told"),
    [
        ("coop", 0.002, 200, 32, {"length": 16}),
        ("cocoop", 0.002, 10, 1, {"words": "a photo of a"}),
        ("kgcoop", 0.002, 100, 128, {"weight": 8.0}),
        ("prograd", 0.002, 200, 32, {"strength": 1.0, "length": 16}),
        ("clip-vpt", 0.0025, 5, 4, {"length": 8, "layers": 12}),
        ("ivlp", 0.0025, 20, 4, {"length": 4, "image_length": 4, "layers": 9}),
        ("maple", 0.0035, 5, 4, {"length": 2, "layers": 9}),
        ("promptsrc", 0.0025, 20, 4, {"length": 4, "layers": 9, "mean": 15, "std": 1, "text_weight": 25}),
    ],
)
def test_the_clip_recipes_are_those_of_the_papers(
    name: str, lr: float, epochs: int, batch: int, told: dict[str, object]
) -> None:
    found = parse("fit", ["--config", str(ROOT / "classify" / f"{name}.yaml")])
    task = found.task
    assert (task.optimizer, task.lr, task.epochs, task.schedule, task.warmup) == (
        "sgd",
        (lr,),
        epochs,
        "coop",
        1,
    )
    assert task.weight_decay == 5e-4  # Dassl's default, which no script of the family changes
    assert (found.data.batch_size, found.data.augment, found.data.shots) == (batch, "crop", 16)
    assert {k: found.method[k] for k in told} == told


def test_the_networks_have_weights() -> None:
    names = {parse("fit", ["--config", str(f)]).model.name for f in FILES if f.parent.name == "classify"}
    known = {f"timm/{name}" for name in timm.list_models(pretrained=True)}
    assert names <= known | {f"open_clip/{arch}:{tag}" for arch, tag in open_clip.list_pretrained()}


def test_the_recipes_of_new_words_are_those_published() -> None:
    """rinongal/textual_inversion, kunheek/dti and diffusers' script, for 5 pictures."""
    for name, lr, batch, steps in (
        ("textual-inversion", 5e-3 * 2, 2, 6100),
        ("direction", 1e-2, 4, 400),
        ("dreambooth-lora", 1e-4, 1, 500),
    ):
        found = parse("fit", ["--config", str(ROOT / "text-to-image" / f"{name}.yaml")])
        task = found.task
        assert (task.lr, found.data.batch_size, task.schedule, task.warmup) == ((lr,), batch, "constant", 0)
        assert abs(task.epochs * -(-5 // batch) - steps) < 3
    assert task.clip == 1.0
