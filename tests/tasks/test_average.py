"""The running average against one by hand, in training too."""

from __future__ import annotations

import pytest
import torch

from vpt.tasks.average import Average
from vpt.tasks.task import PromptTask
from vpt.tasks.tune import tune

QUIET = {"device": "cpu", "precision": "float32", "progress": False}


class Learner(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rows = torch.nn.Parameter(torch.zeros(2))
        self.register_buffer("count", torch.tensor([0]))

    def learned(self) -> dict[str, torch.Tensor]:
        return self.state_dict()


def test_the_average_is_the_one_by_hand():
    learner, want = Learner(), torch.zeros(2)
    average = Average([learner], 0.5)
    for n in range(1, 9):
        with torch.no_grad():
            learner.rows.copy_(torch.tensor([float(n), n**2]))
            learner.count += 1
        average.update()
        decay = min(0.5, (1 + n) / (10 + n))
        want = decay * want + (1 - decay) * torch.tensor([float(n), n**2])
    assert torch.allclose(average.kept[0]["rows"], want)
    assert int(average.kept[0]["count"]) == 8
    with average.shown():
        assert torch.allclose(learner.rows, want)
    assert learner.rows.tolist() == [8.0, 64.0]
    again = Average([Learner()], 0.5)
    again.load(average.state())
    assert again.steps == 8
    assert torch.equal(again.kept[0]["rows"], average.kept[0]["rows"])
    assert again.kept[0]["rows"] is not average.kept[0]["rows"]


class Killed(Exception):
    """Stands for a kill in the middle of an epoch."""


def test_what_training_leaves_is_the_average(backbone, pictures, monkeypatch, tmp_path):
    """That of the rows after every step, which val measures too; a killed run goes on with the same, to the bit."""
    seen: dict[str, list[torch.Tensor]] = {"before": [], "after": [], "measured": []}
    last = [99]

    def watch(name: str, room: str) -> None:
        hook = getattr(PromptTask, name)

        def watched(self, *args):
            if room == "before" and self.global_step == last[0]:
                raise Killed
            learned = self.learner(0).learned()
            seen[room].append(torch.cat([t.detach().flatten() for t in learned.values()]))
            return hook(self, *args)

        monkeypatch.setattr(PromptTask, name, watched)

    (
        watch("training_step", "before"),
        watch("on_train_batch_end", "after"),
        watch("validation_step", "measured"),
    )
    options = {"epochs": 3, "length": 2, "lr": 0.05, "ema": 0.3, "shots": 6, "batch_size": 9, **QUIET}
    options |= {"checkpoint_every": 1}
    whole = tune(backbone, str(pictures), "vpt-deep", out=str(tmp_path / "whole"), **options)
    want, averages = seen["before"][0], []
    for n, step in enumerate(seen["after"], 1):
        decay = min(0.3, (1 + n) / (10 + n))
        want = decay * want + (1 - decay) * step
        averages.append(want)
    assert len(averages) == 6
    found = torch.cat(
        [*(r.flatten() for r in whole.rows.values()), *map(torch.flatten, whole.prompts.head.values())]
    )
    assert torch.allclose(found.sort().values, want.sort().values, atol=1e-6)
    assert not torch.allclose(found.sort().values, seen["after"][-1].sort().values, atol=1e-4)
    assert len(seen["measured"]) == 6  # two batches an epoch
    for epoch in range(3):
        assert torch.allclose(seen["measured"][2 * epoch], averages[2 * epoch + 1], atol=1e-6)

    last[0] = 3
    with pytest.raises(Killed):
        tune(backbone, str(pictures), "vpt-deep", out=str(tmp_path / "cut"), **options)
    last[0] = 99
    again = tune(backbone, str(pictures), "vpt-deep", out=str(tmp_path / "cut"), **options)
    assert all(torch.equal(again.rows[site], r) for site, r in whole.rows.items())
    assert whole.prompts.about["train"]["history"] == again.prompts.about["train"]["history"]


def test_methods_that_set_their_rows_after_an_epoch_take_none(tiny_clip, pictures):
    with pytest.raises(ValueError, match=r"ema=0.9 would undo what promptsrc does.*Set ema=0"):
        tune(tiny_clip, str(pictures), "promptsrc", ema=0.9, **QUIET)
