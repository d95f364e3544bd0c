"""From a folder of pictures to a prompt file: what learns, what stays, what a kill leaves."""

from __future__ import annotations

import inspect
import json
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

import vpt
from vpt.data.module import ImageData
from vpt.methods import METHODS, method_class
from vpt.promptset import PromptSet
from vpt.tasks.learner import build_method
from vpt.tasks.task import Diverged, PromptTask, Recipe
from vpt.tasks.tune import tune

QUIET = {"progress": False, "device": "cpu", "precision": "float32", "batch_size": 9}


def hash_of(backbone):
    """A number that changes when any weight or buffer of any tower does."""
    states = [t.model.state_dict().values() for t in backbone.towers.values()]
    return hash(tuple(t.numpy().tobytes() for state in states for t in state))


def rows_of(tuned):
    return torch.cat([t.flatten() for t in tuned.prompts.tensors().values()])


def test_deep_prompts_learn_and_the_network_does_not(backbone, pictures, frozen_hash, tmp_path):
    before = frozen_hash()
    tuned = tune(backbone, str(pictures), "vpt-deep", epochs=8, lr=0.03, length=4, out=str(tmp_path), **QUIET)
    assert frozen_hash() == before
    top1 = {m["split"]: m["value"] for m in tuned.metrics if m["name"] == "top1"}
    assert top1["test"] > 0.8
    history = tuned.prompts.about["train"]["history"]
    assert len(history) == 8
    again = vpt.load_prompts(tmp_path / "prompts.safetensors", backbone, device="cpu")
    files = sorted(map(str, (pictures / "test").rglob("*.png")))
    assert again.predict(files) == tuned.predict(files)
    right = [Path(p.picture).parent.name == p.label for p in again.predict(files)]
    assert sum(right) / len(right) == pytest.approx(top1["test"])


def test_prompts_matter_not_only_the_head(backbone, pictures):
    """The rows moved from their start, and without them the trained head is less sure of the truth."""
    tuned = tune(backbone, str(pictures), "vpt-deep", epochs=8, lr=0.03, length=4, **QUIET)
    torch.manual_seed(1)  # the seed of the run
    start = build_method("vpt-deep", backbone, {"length": 4})(vpt.Context())
    assert all((tuned.rows[site] - rows).abs().mean() > 0.01 for site, rows in start.items())
    data = ImageData(str(pictures), batch_size=9)
    data.bind(backbone.preprocessing)

    def sureness(prompts):
        found = vpt.Tuned(backbone, prompts).evaluate(data.test_dataloader())
        return found.scores.gather(1, found.labels[:, None]).mean()

    bare = PromptSet({}, tuned.prompts.head, about=tuned.prompts.about)
    assert sureness(tuned.prompts) > sureness(bare) + 0.05


@pytest.mark.parametrize("method", [name for name, entry in METHODS.items() if not entry.only])
def test_every_method_trains_saves_and_predicts_the_same(
    method, backbone, tiny_clip, needed, pictures, tmp_path
):
    takes = inspect.signature(method_class(method)).parameters
    backbone = tiny_clip if method_class(method).named or "text" in takes else backbone
    before = hash_of(backbone)
    options = {"epochs": 2, "shots": 4, **needed(method), **QUIET}
    tuned = tune(backbone, str(pictures), method, out=str(tmp_path), **options)
    assert hash_of(backbone) == before
    kind = "baseline" if METHODS[method].baseline else "prompts"
    file = tmp_path / f"{kind}.safetensors"
    assert file.is_file()
    assert not list((tmp_path / "checkpoints").iterdir())
    again = vpt.load_prompts(file, backbone, device="cpu")
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(again.logits(images), tuned.logits(images), atol=1e-6)
    with safe_open(str(file), "pt") as f:
        about = json.loads(f.metadata()["vpt"])
    assert about["kind"] == ("baseline" if METHODS[method].baseline else "prompt set")
    assert {m["split"] for m in about["metrics"]} == {"val", "test"}
    assert all(m["count"] and m["seed"] == 1 for m in about["metrics"])


@pytest.mark.parametrize("method", ["lp++", "tip-adapter", "tip-adapter-f"])
def test_what_val_chooses_is_not_trained_without_val(method, tiny_clip, paint, tmp_path):
    folder = paint(tmp_path, {"train": 2, "test": 2}, noise=40)
    with pytest.raises(ValueError, match=r"chooses on a val split, and there is none"):
        tune(tiny_clip, str(folder), method, val=0.0, **QUIET)


def test_the_cache_is_searched_after_its_keys_have_learned(tiny_clip, pictures):
    """Two rates side by side; keys are those of the chosen learner, and val chose alpha and beta."""
    tuned = tune(tiny_clip, str(pictures), "tip-adapter-f", epochs=2, shots=4, lr=(1e-3, 1e-2), **QUIET)
    told, kept = tuned.prompts.about["train"], tuned.prompts.method
    assert kept["keys"].shape == (12, 16)
    assert (kept["keys"].norm(dim=-1) - 1).abs().max() > 1e-4, "trained keys are no longer of length 1"
    assert float(kept["beta"]) == pytest.approx(told["beta"])
    assert float(kept["alpha"]) == pytest.approx(told["alpha"])
    val = {m["split"]: m["value"] for m in tuned.metrics if m["name"] == "top1"}["val"]
    assert val == pytest.approx(told["val_accuracy"], abs=1e-6)
    assert told["parameters"] == 12 * 16


def test_keys_are_means_over_views(tiny_clip, pictures):
    views = {"augment": "crop", "shots": 4, **QUIET}
    one, two = (tune(tiny_clip, str(pictures), "tip-adapter", augmented=n, **views) for n in (1, 2))
    plain = tune(tiny_clip, str(pictures), "tip-adapter", shots=4, **QUIET)
    keys = [t.prompts.method["keys"] for t in (one, two, plain)]
    assert all((a - b).abs().max() > 1e-3 for a, b in ((keys[0], keys[1]), (keys[1], keys[2])))
    assert torch.allclose(keys[1].norm(dim=-1), torch.ones(12), atol=1e-5)
    data = ImageData(str(pictures), shots=4, augment="crop", batch_size=9)
    data.bind(tiny_clip.preprocessing)
    train = data.pictures("train", augmented=True)
    features = torch.stack(
        [
            torch.stack([vpt.encode(tiny_clip.image, train[v, i]["image"][None])[0] for v in (0, 1)])
            for i in range(12)
        ]
    ).mean(1)
    assert torch.allclose(keys[1], torch.nn.functional.normalize(features, dim=-1), atol=1e-5)


def test_stored_static_part_gives_the_same_prompts(backbone, pictures):
    """The saving is exact: last block prompted, streams stored in memory, on disk, or not at all."""
    options = {"layers": "2", "epochs": 3, "lr": 0.03, "length": 3, **QUIET}
    plain = tune(backbone, str(pictures), "vpt-deep", store="off", **options)
    stored = tune(backbone, str(pictures), "vpt-deep", store="memory", **options)
    assert torch.allclose(rows_of(plain), rows_of(stored), atol=1e-5)


def test_stored_on_disk(backbone, pictures, tmp_path, monkeypatch):
    options = {"layers": "2", "epochs": 3, "lr": 0.03, "length": 3, "augment": "flip", "views": 2, **QUIET}
    memory = tune(backbone, str(pictures), "vpt-deep", store="memory", **options)
    disk = tune(backbone, str(pictures), "vpt-deep", store="disk", out=str(tmp_path), **options)
    assert torch.equal(rows_of(memory), rows_of(disk))
    assert (tmp_path / "train.static").stat().st_size == 36 * 2 * 17 * 32 * 4
    monkeypatch.setattr("vpt.tasks.store.MEMORY", 1000)
    auto = tune(backbone, str(pictures), "vpt-deep", out=str(tmp_path / "auto"), **options)
    assert torch.equal(rows_of(memory), rows_of(auto))
    assert not list((tmp_path / "auto").glob("*.static"))  # nobody asked for them


def test_candidates_side_by_side_equal_one_by_one(backbone, pictures):
    """The sum of the losses trains each learner as if alone; the best on val is kept."""
    options = {"epochs": 2, "length": 3, **QUIET}
    lrs = (1e-3, 3e-2)
    both = tune(backbone, str(pictures), "vpt-deep", lr=lrs, **options)
    alone = [tune(backbone, str(pictures), "vpt-deep", lr=lr, **options) for lr in lrs]
    chosen = lrs.index(both.prompts.about["train"]["lr"])
    assert torch.allclose(rows_of(both), rows_of(alone[chosen]), atol=1e-5)
    val = [next(m["value"] for m in t.metrics if m["split"] == "val" and m["name"] == "top1") for t in alone]
    assert val[chosen] == max(val)
    assert f"{lrs[chosen]:g}" in both.prompts.about["train"]["chosen_because"]


class Killed(Exception):
    """Stands for a kill in the middle of an epoch."""


@pytest.fixture
def killed(monkeypatch):
    """with killed(5): what trains there dies before step 5, and what comes after does not."""
    step = PromptTask.training_step

    @contextmanager
    def at(last):
        def dies(self, batch, i):
            if self.global_step == last:
                raise Killed
            return step(self, batch, i)

        with monkeypatch.context() as patch:
            patch.setattr(PromptTask, "training_step", dies)
            with pytest.raises(Killed):
                yield

    return at


@pytest.mark.parametrize(
    "options", [{"augment": "crop", "dropout": 0.1}, {"augment": "flip", "views": 2, "layers": "1..2"}]
)
def test_a_killed_run_resumes_to_the_same_bits(backbone, pictures, tmp_path, monkeypatch, killed, options):
    options = {"epochs": 4, "lr": (0.01, 0.03), "length": 3, "checkpoint_every": 1, **options, **QUIET}
    whole = tune(backbone, str(pictures), "vpt-deep", out=str(tmp_path / "whole"), **options)
    with killed(6):
        tune(backbone, str(pictures), "vpt-deep", out=str(tmp_path / "cut"), **options)
    assert not (tmp_path / "cut" / "prompts.safetensors").exists()
    steps, step = [], PromptTask.training_step
    monkeypatch.setattr(
        PromptTask, "training_step", lambda self, b, i: (steps.append(self.global_step), step(self, b, i))[1]
    )
    again = tune(backbone, str(pictures), "vpt-deep", out=str(tmp_path / "cut"), **options)
    assert steps[0] == 6
    assert torch.equal(rows_of(whole), rows_of(again))
    assert whole.prompts.about["train"]["history"] == again.prompts.about["train"]["history"]


def test_a_stopped_run_of_another_configuration_is_refused(backbone, pictures, tmp_path, killed):
    options = {"epochs": 2, "checkpoint_every": 1, "out": str(tmp_path), **QUIET}
    with killed(2):
        tune(backbone, str(pictures), "vpt-deep", length=3, **options)
    with pytest.raises(ValueError, match="stopped run with another method"):
        tune(backbone, str(pictures), "vpt-deep", length=5, **options)


def test_a_checkpoint_holds_only_what_learned(backbone, pictures, tmp_path, killed):
    with killed(2):
        tune(backbone, str(pictures), "vpt-deep", length=3, checkpoint_every=1, out=str(tmp_path), **QUIET)
    kept = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=False)["state_dict"]
    assert sum(t.numel() for t in kept.values()) == 3 * 3 * 32 + 3 * 32 + 3


def test_nan_stops_and_keeps_the_last_good_prompts(backbone, pictures, tmp_path):
    with pytest.raises(Diverged, match=r"step \d+ .*learning rate 1e\+30.*Lower the learning rate"):
        tune(
            backbone,
            str(pictures),
            "vpt-deep",
            lr=1e30,
            optimizer="sgd",
            warmup=0,
            epochs=4,
            out=str(tmp_path),
            **QUIET,
        )
    kept = PromptSet.load(tmp_path / "prompts.safetensors")
    assert all(t.isfinite().all() for t in kept.tensors().values())
    assert "not finite" in kept.about["train"]["stopped"]


def test_one_diverging_candidate_does_not_stop_the_others(backbone, pictures):
    tuned = tune(
        backbone, str(pictures), "vpt-deep", lr=(1e30, 1e-2), optimizer="sgd", warmup=0, epochs=3, **QUIET
    )
    assert tuned.prompts.about["train"]["lr"] == 1e-2
    assert "diverged" in tuned.prompts.about["train"]["chosen_because"]


def test_early_stop(backbone, pictures):
    tuned = tune(backbone, str(pictures), "linear", lr=1e-9, epochs=30, patience=2, **QUIET)
    assert len(tuned.prompts.about["train"]["history"]) == 3
    assert "early stop" in tuned.protocol["selection"]


@pytest.mark.parametrize(
    "recipe",
    [
        {"optimizer": "sgd", "per_256": True, "schedule": "vpt"},
        {"mixup": 0.3, "augment": "crop"},
        {"smoothing": 0.1, "clip": 1.0},
    ],
)
def test_recipes_run(backbone, pictures, recipe):
    tuned = tune(backbone, str(pictures), "vpt-shallow", epochs=2, lr=0.1, **recipe, **QUIET)
    assert rows_of(tuned).isfinite().all()


def test_unknown_options_and_sites_are_refused_before_data_are_read(backbone, tmp_path):
    with pytest.raises(ValueError, match="nothing here has an option 'lenght'"):
        tune(backbone, str(tmp_path / "nowhere"), "vpt-deep", lenght=3)
    with pytest.raises(ValueError, match="no method 'vpt-dep'"):
        tune(backbone, str(tmp_path / "nowhere"), "vpt-dep")
    with pytest.raises(ValueError, match="names no blocks of a tower 3 deep"):
        tune(backbone, str(tmp_path / "nowhere"), "vpt-deep", layers="0..7")
    closed = vpt.load("timm/resnet18", pretrained=False)
    with pytest.raises(ValueError, match="ResNet is a closed tower"):
        tune(closed, str(tmp_path / "nowhere"), "vpt-deep")


def test_recipe_refuses_values_that_make_no_sense():
    for wrong in ({"epochs": 0}, {"lr": (-1.0,)}, {"smoothing": 1.0}):
        with pytest.raises(ValueError, match=r"wanted|positive"):
            Recipe(**wrong)


@pytest.mark.filterwarnings("ignore:bf16 will be slow")  # on processors that emulate it
def test_bf16_keeps_rows_in_float32(backbone, pictures):
    tuned = tune(backbone, str(pictures), "vpt-deep", epochs=2, lr=0.01, **{**QUIET, "precision": "bf16"})
    assert {t.dtype for t in tuned.rows.values()} == {torch.float32}


def test_the_head_may_have_a_rate_of_its_own(backbone, pictures):
    """At a rate of nearly 0 for the rows, they stay at their start while the head learns."""
    torch.manual_seed(1)  # the seed of the run
    start = build_method("vpt-deep", backbone, {"length": 3})(vpt.Context())
    tuned = tune(backbone, str(pictures), "vpt-deep", epochs=2, length=3, lr=1e-9, head_lr=0.1, **QUIET)
    assert all(torch.allclose(tuned.rows[site], rows, atol=1e-6) for site, rows in start.items())
    assert tuned.prompts.head["weight"].abs().mean() > 0.01
