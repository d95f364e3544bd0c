"""Warnings about rows that inflate, rows that did not move and losses that did not fall."""

from __future__ import annotations

import warnings
from types import SimpleNamespace

import pytest
import torch
from pipelines import shared

from vpt.methods.baselines.dreambooth_lora import DreamBoothLoRA
from vpt.methods.context import ContextRows
from vpt.methods.textual_inversion import TextualInversion
from vpt.objectives.denoise import Denoise, Schedule
from vpt.tasks.diffusion import DiffusionLearner
from vpt.tasks.task import PromptTask, Recipe
from vpt.tasks.watch import Inflation, told, warn_unchanged
from vpt.towers.diffusion import open_pipeline

WORDS = {"concept": "my-mug", "word": "dog"}


@pytest.fixture(scope="module")
def backbone():
    return open_pipeline(shared("sd"), "diffusers/tiny", size=16)


def task_of(learner: DiffusionLearner) -> PromptTask:
    objective = Denoise(Schedule("epsilon", learner.backbone.alphas), [], [])
    recipe = Recipe(objective="denoise")
    return PromptTask([learner], [1.0], objective, recipe, weight_decay=0.0, batch_size=1, epoch_batches=1)


def lengthened(learner: DiffusionLearner, length: float) -> PromptTask:
    """All rows that long."""
    with torch.no_grad():
        for p in learner.parameters():
            p.mul_(length / p.norm(dim=-1, keepdim=True))
    return task_of(learner)


def test_rows_five_times_as_long_as_words_are_told_once(backbone):
    learner = DiffusionLearner(TextualInversion(backbone, length=2, **WORDS), backbone)
    usual = backbone.length("text")
    watch = Inflation()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        watch.look(lengthened(learner, 4.9 * usual))
    task = lengthened(learner, 5.1 * usual)
    state = torch.get_rng_state()
    with pytest.warns(
        UserWarning, match=r"a row at text/embedded/<my-mug> is .* method direction .*norm=fixed"
    ):
        watch.on_train_batch_end(SimpleNamespace(global_step=20), task)
    assert torch.equal(torch.get_rng_state(), state)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        watch.on_train_batch_end(SimpleNamespace(global_step=40), task)
        watch.on_fit_end(SimpleNamespace(), task)


def test_only_words_are_measured_by_words(backbone):
    for method in (
        ContextRows(backbone, **WORDS),
        TextualInversion(backbone, norm="fixed", **WORDS),
    ):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            Inflation().look(lengthened(DiffusionLearner(method, backbone), 1e3))


def test_rows_that_stayed_and_losses_that_rose_are_told(backbone):
    learner = DiffusionLearner(TextualInversion(backbone, **WORDS), backbone)
    found = told(learner)
    assert found["moved"] == 0.0

    def numbers(now: float, before: float):
        return {
            k: [{"name": "loss", "value": v, "split": "val"}]
            for k, v in (("metrics", now), ("before", before))
        }

    with pytest.warns(UserWarning, match=r"rows moved by 0.0e\+00 .*still the word.*higher learning rate"):
        warn_unchanged(found, numbers(0.5, 0.6))
    with torch.no_grad():
        next(learner.parameters()).mul_(1.5)
    found = told(learner)
    assert found["moved"] == pytest.approx(0.5, rel=1e-4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_unchanged(found, numbers(0.5, 0.6))
    for now in (0.6, 0.7, float("nan")):
        with pytest.warns(
            UserWarning, match=r"the loss on val is .* and was 0.6000 before training: nothing"
        ):
            warn_unchanged(found, numbers(now, 0.6))


def test_a_network_that_learns_has_no_rows_to_measure(backbone):
    assert told(DiffusionLearner(DreamBoothLoRA(backbone, **WORDS), backbone)) == {}
