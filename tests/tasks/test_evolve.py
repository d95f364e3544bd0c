"""Rows found by CMA-ES: a reward without gradients rises, a stopped search goes on, the start is never lost."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from pipelines import sd
from torch import Tensor

import vpt
from vpt.data.prompts import PromptData
from vpt.tasks.device import Machine
from vpt.tasks.evolve import Reach
from vpt.tasks.task import Recipe
from vpt.tasks.tune import fit
from vpt.towers.diffusion import Diffusion, open_pipeline

OPTIONS = {"concept": "my-mug", "word": "dog"}
RECIPE = Recipe(
    objective="reward",
    reward="counted:red",
    optimizer="cma",
    epochs=4,
    population=4,
    inference_steps=1,
    guidance=1.0,
)


class Counted:
    """A reward that numpy computes, so without gradient; fails when asked for the n-th time."""

    def __init__(self) -> None:
        self.calls, self.fails_at, self.sign = 0, -1, 1.0

    def __call__(self, pictures: Tensor, prompts: Sequence[str]) -> np.ndarray[Any, Any]:
        self.calls += 1
        if self.calls == self.fails_at:
            raise KeyboardInterrupt
        x = pictures.numpy()
        return self.sign * (x[:, 0].mean((1, 2)) - x[:, 1:].mean((1, 2, 3)))


@pytest.fixture
def reward(monkeypatch: pytest.MonkeyPatch) -> Counted:
    module, found = ModuleType("counted"), Counted()
    module.red = found  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "counted", module)
    return found


@pytest.fixture(scope="module")
def backbone() -> Diffusion:
    return open_pipeline(sd(), "diffusers/tiny", size=16)


def found(backbone: Diffusion, out: Path | None = None, recipe: Recipe = RECIPE, **more: Any) -> Any:
    data = PromptData(["a <my-mug>"], val=0, seeds=1, batch_size=1)
    machine = Machine(out=None if out is None else str(out), progress=False, **more)
    return fit(backbone, data, "textual-inversion", OPTIONS, recipe, machine)  # type: ignore[arg-type]


def test_a_reward_without_gradient_rises(backbone: Diffusion, reward: Counted, tmp_path: Path) -> None:
    before = [p.clone() for p in backbone.pipe.text_encoder.parameters()]
    tuned = found(backbone, tmp_path)
    history = tuned.prompts.about["train"]["history"]
    assert [line["epoch"] for line in history] == [0, 1, 2, 3]
    assert history[-1]["train/reward"] > history[0]["train/mean"]
    assert all(a["train/reward"] <= b["train/reward"] for a, b in pairwise(history))
    assert "32 of 32 numbers searched, 4 candidates" in tuned.prompts.about["train"]["chosen_because"]
    assert {m["name"] for m in [*tuned.metrics, *tuned.prompts.about["before"]]} == {"reward"}
    assert all(map(torch.equal, before, backbone.pipe.text_encoder.parameters()))
    again = vpt.load_prompts(tmp_path / "prompts.safetensors", backbone, device="cpu")
    assert [*again.rows] == [*tuned.rows]
    # the best that was measured is what was kept
    call = {"num_inference_steps": 1, "guidance_scale": 1.0, "height": 16, "width": 16, "output_type": "pt"}
    seed = int(PromptData(["a <my-mug>"], val=0).pictures("train")[0]["image"])
    picture = backbone.pipe(
        **again.embeds("a <my-mug>", guided=False), **call, generator=torch.Generator().manual_seed(seed)
    )
    assert float(reward(picture.images, [""])[0]) == pytest.approx(history[-1]["train/reward"], abs=1e-6)


def test_a_stopped_search_goes_on_to_the_same_rows(
    backbone: Diffusion, reward: Counted, tmp_path: Path
) -> None:
    whole = found(backbone)
    asked, reward.calls = reward.calls, 0
    reward.fails_at = 1 + 4 + 4 + 3  # in the third generation
    with pytest.raises(KeyboardInterrupt):
        found(backbone, tmp_path)
    reward.fails_at, reward.calls = -1, 0
    np.random.seed(12345)  # noqa: NPY002  what others draw of numpy's global stream is no matter
    resumed = found(backbone, tmp_path)
    assert reward.calls == asked - (1 + 4 + 4)
    for site, rows in whole.rows.items():
        assert torch.equal(rows, resumed.rows[site])
    assert resumed.prompts.about["train"]["history"] == whole.prompts.about["train"]["history"]
    assert not (tmp_path / "checkpoints" / "last.ckpt").exists()


def test_the_start_stays_where_no_candidate_is_better(backbone: Diffusion, reward: Counted) -> None:
    reward.sign = 0.0
    with pytest.warns(UserWarning, match="did not rise"):
        tuned = found(backbone)
    assert "of the start" in tuned.prompts.about["train"]["chosen_because"]
    (rows,) = tuned.rows.values()
    torch.testing.assert_close(rows, backbone.vectors("text", "dog"))


def test_a_log_of_another_search_is_refused(backbone: Diffusion, reward: Counted, tmp_path: Path) -> None:
    reward.fails_at = 1 + 4 + 2
    with pytest.raises(KeyboardInterrupt):
        found(backbone, tmp_path)
    reward.fails_at, log = -1, tmp_path / "checkpoints" / "last.ckpt"
    told = json.loads(log.read_text())
    assert len(told["values"]) == 1
    log.write_text(json.dumps({**told, "cma": "0.1"}))
    with pytest.raises(ValueError, match="of another search: cma"):
        found(backbone, tmp_path)
    log.write_text("{")
    with pytest.raises(ValueError, match="no log of a search"):
        found(backbone, tmp_path)
    found(backbone, tmp_path, resume=False)


def test_few_numbers_are_searched_as_they_are_and_many_by_a_projection() -> None:
    start = torch.linspace(-2, 2, 300, dtype=torch.float64)
    few, many, chosen = Reach(start[:200], 0, 1), Reach(start, 0, 1), Reach(start, 8, 1)
    assert (few.size, many.size, chosen.size) == (200, 64, 8)
    for reach in (few, many, chosen):
        assert torch.equal(reach(np.zeros(reach.size)), reach.start)
        step = torch.randn(reach.size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        moved = reach(step) - reach.start
        torch.testing.assert_close(reach(2 * step) - reach.start, 2 * moved)
        # one unit a direction moves the numbers by about their own size
        assert float(moved.norm() / reach.start.norm()) == pytest.approx(1, rel=0.5)
    assert torch.equal(Reach(start, 8, 1)(np.ones(8)), chosen(np.ones(8)))
    assert not torch.equal(Reach(start, 8, 2)(np.ones(8)), chosen(np.ones(8)))
    assert Reach(start[:4], 99, 1).size == 4


@pytest.mark.parametrize(
    "options", [{"objective": "denoise"}, {"lr": (0.1, 0.2)}, {"lr": "search"}, {"population": 1}]
)
def test_recipes_that_cannot_be_searched_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="cma"):
        Recipe(**{"objective": "reward", "optimizer": "cma", **options})
