"""Rows tuned for a reward by gradient: it rises, nothing else changes, and what cannot work is refused."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from pipelines import sd
from torch import Tensor

import vpt
from vpt.data.prompts import PromptData
from vpt.tasks.task import PromptTask
from vpt.towers.diffusion import Diffusion, open_pipeline

# a network with random weights: rows go far, and a few steps may not help, of which training warns
pytestmark = [
    pytest.mark.filterwarnings("ignore:a row at:UserWarning"),
    pytest.mark.filterwarnings("ignore:the reward on held-out pictures:UserWarning"),
]
PROMPTS = ["a <my-mug>", "a red <my-mug>"]
QUICK: dict[str, Any] = {
    **{"objective": "reward", "reward": "colours:red", "inference_steps": 2, "last": 2},
    **{"concept": "my-mug", "progress": False, "warmup": 0.0, "store": "off"},
}

FAST = {**QUICK, "inference_steps": 1, "last": 1, "guidance": 1.0}  # one pass of the network a picture


def red(pictures: Tensor, prompts: Sequence[str]) -> Tensor:
    """Its highest is a picture all red."""
    return pictures[:, 0].mean((1, 2)) - pictures[:, 1:].mean((1, 2, 3))


@pytest.fixture(autouse=True)
def colours(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module = ModuleType("colours")
    module.red = red  # type: ignore[attr-defined]
    module.flat = lambda p, t: red(p.detach(), t)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "colours", module)
    return module


@pytest.fixture
def backbone() -> Diffusion:
    return open_pipeline(sd(), "diffusers/tiny", size=16)


def prompts(**options: Any) -> PromptData:
    return PromptData(PROMPTS, **{"val": 0, "seeds": 2, "batch_size": 2, **options})


def weights(backbone: Diffusion) -> str:
    found = hashlib.sha256()
    for part in backbone.pipe.components.values():
        if isinstance(part, torch.nn.Module):
            for name, t in sorted(part.state_dict().items()):
                found.update(name.encode() + t.numpy().tobytes())
    return found.hexdigest()


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("textual-inversion", {"word": "dog", "lr": 0.05}),
        ("context", {"side": "negative", "length": 0, "lr": 0.1}),
    ],
)
def test_a_reward_rises_on_seeds_that_are_not_trained_on(
    backbone: Diffusion, tmp_path: Path, method: str, options: dict[str, Any]
) -> None:
    before, said = weights(backbone), len(backbone.pipe.tokenizer)
    tuned = vpt.tune(backbone, prompts(), method, **QUICK, **options, epochs=6, out=str(tmp_path / "run"))
    assert (weights(backbone), len(backbone.pipe.tokenizer)) == (before, said)
    (start,), (end,) = tuned.prompts.about["before"], tuned.metrics
    assert end["value"] > start["value"] + 5e-4
    assert {k: end[k] for k in ("name", "split", "count", "seed")} == {
        **{"name": "reward", "split": "val", "count": 4, "seed": 1}
    }
    assert tuned.prompts.about["train"]["history"][-1]["val/reward"] == pytest.approx(end["value"], abs=1e-6)
    assert tuned.protocol["task"] == "reward"
    assert tuned.protocol["held"] == "the same prompts, other seeds"
    # the number is that of the pipeline's own pictures with these rows
    found = vpt.load_prompts(tmp_path / "run" / "prompts.safetensors", backbone, device="cpu")
    drawn = []
    for prompt in PROMPTS:
        for seed in range(2):
            call = {"num_inference_steps": 2, "height": 16, "width": 16, "output_type": "pt"}
            picture = backbone.pipe(
                **found.embeds(prompt), **call, generator=torch.Generator().manual_seed(seed)
            )
            drawn.append(red(picture.images, [prompt]))
    assert float(torch.cat(drawn).mean()) == pytest.approx(end["value"], abs=1e-5)


def test_staying_near_the_start_is_weighed(backbone: Diffusion) -> None:
    far, near = (
        vpt.tune(backbone, prompts(), "textual-inversion", **FAST, word="dog", lr=0.05, epochs=4, near=weight)
        for weight in (0.0, 100.0)
    )
    start = backbone.vectors("text", "dog")
    moved = [float((next(iter(tuned.rows.values())) - start).norm()) for tuned in (far, near)]
    assert moved[1] < 0.7 * moved[0]


def test_a_killed_run_goes_on_to_the_same_rows(
    backbone: Diffusion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {**FAST, "word": "dog", "lr": 0.05, "epochs": 3}
    data = {"val": 0.0, "seeds": 1, "batch_size": 1}
    whole = vpt.tune(backbone, prompts(**data), "textual-inversion", **options)
    step = PromptTask.training_step

    def dies(task: PromptTask, batch: Any, i: int) -> Tensor:
        if task.global_step == 3:
            raise RuntimeError("killed")
        return step(task, batch, i)

    again = {**options, "out": str(tmp_path), "checkpoint_every": 1}
    monkeypatch.setattr(PromptTask, "training_step", dies)
    with pytest.raises(RuntimeError, match="killed"):
        vpt.tune(backbone, prompts(**data), "textual-inversion", **again)
    monkeypatch.setattr(PromptTask, "training_step", step)
    resumed = vpt.tune(backbone, prompts(**data), "textual-inversion", **again)
    for site, rows in whole.rows.items():
        assert torch.equal(rows, resumed.rows[site])


def test_learning_rates_are_compared_side_by_side(backbone: Diffusion) -> None:
    tuned = vpt.tune(backbone, prompts(), "textual-inversion", **FAST, word="dog", lr=(1e-6, 0.05), epochs=3)
    assert tuned.prompts.about["train"]["lr"] == 0.05
    alone = vpt.tune(backbone, prompts(), "textual-inversion", **FAST, word="dog", lr=0.05, epochs=3)
    for site, rows in alone.rows.items():
        torch.testing.assert_close(rows, tuned.rows[site])


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"reward": "colours:blue"}, "cannot be imported"),
        ({"reward": "colours:flat"}, "no gradient to the pictures"),
        ({"last": 3}, "last=3 steps are to carry a gradient, and there are 2"),
        ({"guidance": 1.0, "side": "negative"}, "does not read at guidance_scale=1"),
        ({"inference_steps": 0}, "inference_steps is 0, wanted at least 1"),
        ({"near": -1.0}, "near is -1.0, wanted at least 0"),
    ],
)
def test_what_cannot_be_trained_so_is_refused_before_a_picture_is_drawn(
    backbone: Diffusion, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], told: str
) -> None:
    monkeypatch.setattr(backbone.pipe.unet, "forward", None)
    with pytest.raises(ValueError, match=told):
        vpt.tune(backbone, prompts(), "context", **{**QUICK, **options})


def test_prompts_are_for_rewards_and_pictures_for_other_objectives(backbone: Diffusion) -> None:
    with pytest.raises(ValueError, match="needs PromptData, and these are ImageData"):
        vpt.tune(backbone, vpt.data.module.ImageData("digits", captions=True), "context", objective="reward")
    with pytest.raises(ValueError, match="needs ImageData, and these are PromptData"):
        vpt.tune(backbone, prompts(), "context")


def test_prompts_that_no_learned_row_is_in_are_refused(backbone: Diffusion) -> None:
    data = PromptData([*PROMPTS, "a cat"], val=0)
    with pytest.raises(ValueError, match="the prompt 'a cat' does not say <my-mug>"):
        vpt.tune(backbone, data, "textual-inversion", **QUICK)


def test_a_reward_that_is_no_number_stops_the_run_and_leaves_its_checkpoint(
    backbone: Diffusion, colours: ModuleType, tmp_path: Path
) -> None:
    asked = []

    def breaks(pictures: Tensor, said: Sequence[str]) -> Tensor:
        asked.append(said)
        return red(pictures, said) * (float("nan") if len(asked) > 4 else 1)

    colours.breaks = breaks  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="reward=colours:breaks gave nan for the prompt"):
        vpt.tune(
            backbone,
            prompts(),
            "context",
            **{**QUICK, "reward": "colours:breaks"},
            epochs=9,
            out=str(tmp_path),
        )
    assert (tmp_path / "checkpoints" / "last.ckpt").is_file()


def test_a_reward_reads_words_where_the_prompt_has_a_placeholder(
    backbone: Diffusion, colours: ModuleType
) -> None:
    asked: list[str] = []

    def listens(pictures: Tensor, said: Sequence[str]) -> Tensor:
        asked.extend(said)
        return red(pictures, said)

    colours.listens = listens  # type: ignore[attr-defined]
    vpt.tune(
        backbone,
        prompts(),
        "textual-inversion",
        **{**FAST, "reward": "colours:listens"},
        word="dog",
        epochs=1,
    )
    assert {"a dog", "a red dog"} <= set(asked)
    assert not any("<" in said for said in asked)
