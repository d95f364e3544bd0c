"""Runs: kept with their labels, named anew where names allow it, their data opened once."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from vpt.methods import METHODS
from vpt.promptset import PromptSet
from vpt.tasks import measure
from vpt.tasks.device import Machine
from vpt.tasks.label import recipe_of
from vpt.tasks.learner import Learner, build_method
from vpt.tasks.task import Recipe
from vpt.tasks.tuned import Tuned
from vpt.towers.backbone import Backbone
from vpt.workflow.runs import Candidate, Result, Runs, renamed, step_of

QUIET = Machine(progress=False, device="cpu")


def tuned(backbone: Backbone, name: str, classes: tuple[str, ...], **options: object) -> Tuned:
    learner = Learner(build_method(name, backbone, options, classes=len(classes)), backbone, classes)
    kind = "baseline" if METHODS[name].baseline else "prompt set"
    about = {"method": {"name": name, "options": options}, "classes": list(classes), "kind": kind}
    prompts: PromptSet = learner.export(about)
    return Tuned(backbone, prompts)


def test_a_run_says_how_it_was_measured_and_takes_the_label_of_who_asks(
    backbone: Backbone, pictures: Path, tmp_path: Path
) -> None:
    runs = Runs(backbone, tmp_path, QUIET)
    data = {"path": str(pictures), "shots": 2, "batch_size": 6}
    c = Candidate("vpt-shallow", options={"length": 2}, recipe={"epochs": 1})
    first = runs.train(c, data, 1, Recipe(lr=(0.01,)), place=["set", "2-shot"], label={"recipe": "scaled"})
    p = first.protocol
    assert p["inductive"] is True
    assert p["preprocessing"].startswith("center 32x32")
    assert p["trained"] == "1 epochs of batch 6, adamw with 0.01, cosine"
    assert p["recipe"] == "scaled"
    assert set(first.val) == set(first.metrics)
    assert Path(first.file).relative_to(tmp_path).parts[:-1] == ("set", "2-shot", "vpt-shallow", "seed1")
    again = Runs(backbone, tmp_path, QUIET).train(
        c, data, 1, Recipe(lr=(0.01,)), label={"recipe": "published"}
    )
    assert again.protocol == {**p, "recipe": "published"}


def test_results_of_before_are_read(
    result: Callable[..., Result], backbone: Backbone, tmp_path: Path
) -> None:
    """A file without val and what is beside it."""
    old = asdict(result("a", "linear", 1, 0.5))
    old["protocol"]["run"] = "key"
    (tmp_path / "results.json").write_text(
        json.dumps([{k: v for k, v in old.items() if k not in ("val", "beside")}])
    )
    assert Runs(backbone, tmp_path, QUIET).done["key"].val == {}


def test_a_folder_that_was_moved_is_gone_on_from(backbone: Backbone, pictures: Path, tmp_path: Path) -> None:
    data = {"path": str(pictures), "shots": 2, "batch_size": 6}
    c = Candidate("vpt-shallow", options={"length": 2}, recipe={"epochs": 1})
    first = Runs(backbone, tmp_path / "here", QUIET).train(c, data, 1)
    (tmp_path / "here").rename(tmp_path / "there")
    told: list[str] = []
    again = Runs(backbone, tmp_path / "there", QUIET, told=told.append).train(c, data, 1)
    assert not told
    assert Path(again.file) == tmp_path / "there" / "vpt-shallow" / "seed1" / "prompts.safetensors"
    assert Path(again.file).is_file()
    assert replace(again, file=first.file) == first


def test_data_are_opened_once_and_the_oldest_are_let_go(
    backbone: Backbone, pictures: Path, tmp_path: Path
) -> None:
    runs = Runs(backbone, tmp_path, QUIET)
    data = {"path": str(pictures)}
    first = runs.module(data, 1)
    assert runs.module(data, 1) is first
    assert runs.module(data, 2) is not first
    runs.module(data, 3)
    assert runs.module(data, 1) is first
    runs.module(data, 4)
    assert runs.module(data, 1) is not first


def test_names_may_repeat_as_two_pairs_of_imagenets_do(tiny_clip: Backbone) -> None:
    images = torch.randn(2, 3, 32, 32)
    prompts = tuned(tiny_clip, "coop", ("cat", "dog"), length=2)
    other = renamed(prompts, ("crane", "maillot", "crane"), {})
    assert other.classes == ("crane", "maillot", "crane")
    logits = other.logits(images)
    torch.testing.assert_close(logits[:, 0], logits[:, 2])
    torch.testing.assert_close(logits[:, :2], prompts.with_classes(["crane", "maillot"]).logits(images))
    assert renamed(prompts, ("cat", "dog"), {}) is prompts


def test_what_learned_nothing_is_said_in_the_sentence_of_the_data(tiny_clip: Backbone) -> None:
    images = torch.randn(2, 3, 32, 32)
    plain = tuned(tiny_clip, "zero-shot", ("cat", "dog"))
    said = renamed(plain, ("bird", "fish"), {"template": "a {} thing."})
    expected = tuned(tiny_clip, "zero-shot", ("bird", "fish"), template="a {} thing.")
    torch.testing.assert_close(said.logits(images), expected.logits(images))
    assert not torch.allclose(said.logits(images), plain.with_classes(["bird", "fish"]).logits(images))


def test_what_belongs_to_its_classes_is_refused(tiny_clip: Backbone) -> None:
    with pytest.raises(ValueError, match="a head"):
        renamed(tuned(tiny_clip, "linear", ("cat", "dog")), ("bird", "fish"), {})


def test_a_recipe_in_a_line() -> None:
    train = {"steps": 0}
    assert recipe_of(train) == "not by gradient"


def test_a_cache_is_tied_to_its_classes_and_still_reads_words(tiny_clip: Backbone) -> None:
    cache = tuned(tiny_clip, "tip-adapter", ("cat", "dog"))
    with pytest.raises(ValueError, match="a cache of pictures for its 2 classes"):
        renamed(cache, ("bird", "fish"), {})
    plain = tuned(tiny_clip, "zero-shot", ("cat", "dog")).encode_text(["bird"], normalize=True)
    torch.testing.assert_close(cache.encode_text(["bird"], normalize=True), plain)


def test_descriptions_that_lack_a_name_say_so_beside_the_run(
    tiny_clip: Backbone, pictures: Path, tmp_path: Path
) -> None:
    told = {name: [f"a {name} thing."] for name in ("blue", "green", "red")}
    runs = Runs(tiny_clip, tmp_path, QUIET)
    c = Candidate("zero-shot-descriptions", options={"descriptions": told})
    run = runs.train(c, {"path": str(pictures), "shots": 2, "batch_size": 6}, 1)
    run = runs.measure(run, "digits", {"path": "digits", "shots": 1, "val_shots": 1})
    assert run.beside["digits"]["why"].startswith("the descriptions lack 10 of 10 classes: 0, 1, 2")
    assert run.metrics["top1"] >= 0


def test_a_run_that_was_stopped_is_no_hindrance_to_one_of_another_recipe(
    backbone: Backbone, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It lies where it was, and the same settings go on from it."""
    data = {"path": str(pictures), "shots": 2, "batch_size": 6}
    runs, whole = Runs(backbone, tmp_path, QUIET), measure.Numbers.of

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    def go(epochs: int) -> Result:
        c = Candidate("vpt-shallow", options={"length": 2}, recipe={"epochs": epochs})
        return runs.train(c, data, 1)

    monkeypatch.setattr(measure.Numbers, "of", killed)
    with pytest.raises(KeyboardInterrupt):
        go(2)
    monkeypatch.setattr(measure.Numbers, "of", whole)
    stopped = tmp_path / "vpt-shallow" / "seed1"
    assert (stopped / "checkpoints" / "last.ckpt").is_file()
    other = Path(go(1).file).parent
    assert other.parent.name.startswith("vpt-shallow-")
    assert Path(go(2).file).parent == stopped
    assert not list(tmp_path.rglob("key.json"))


def test_a_step_is_that_of_one_rate(result: Callable[..., Result]) -> None:
    """result's steps take ten times its seed."""

    def run(seed: int, rates: int) -> Result:
        made = result("a", "coop", seed, 0.5)
        made.protocol["lr_grid"] = [0.1] * rates
        return made

    assert step_of([run(1, 3), run(2, 1), run(3, 1)]) == 25
    assert step_of([run(1, 3), run(2, 3)]) == 15


def test_pictures_and_words_are_read_in_one_precision(tiny_clip: Backbone) -> None:
    made = tuned(tiny_clip, "coop", ("cat", "dog"), length=2)
    made.precision = "bf16-mixed"
    image, text = made.encode_image(torch.randn(1, 3, 32, 32)), made.encode_text(["bird"])
    assert image.dtype == text.dtype == torch.bfloat16
