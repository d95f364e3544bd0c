"""The study's numbers against counting by hand, and a killed study that goes on."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from vpt.data.concept import concept_scenes
from vpt.tasks.device import Machine
from vpt.tasks.pairs import plainly
from vpt.towers.backbone import Backbone
from vpt.workflow import concept_study
from vpt.workflow.concept_study import Candidate, Found, found_in, markdown, study

QUIET = Machine(device="cpu", precision="float32", progress=False)
SHORT = {"epochs": 2}
LINES = (
    Candidate("the plain word"),
    Candidate("concept", "concept", recipe=SHORT),
    Candidate("true pairs alone", "concept", recipe={"loss": "pull", **SHORT}),
    Candidate("POLAR", "polar", recipe={"loss": "pull", **SHORT}),
)


def test_precision_is_counted_over_the_whole_gallery(tiny_clip: Backbone) -> None:
    scenes = concept_scenes(1, contexts=5, each=2, others=30)
    tuned = plainly(tiny_clip)
    found = found_in(tuned, scenes, "a shape")
    v = tuned.encode_image(torch.stack([tiny_clip.preprocess(p) for p in scenes.pictures()]), normalize=True)
    precisions, firsts = [], []
    for context, places in [*scenes.contexts.items(), ("", scenes.everywhere)]:
        t = tuned.encode_text([f"a picture of a shape {context}".strip()], normalize=True)
        order = (v @ t[0]).argsort(descending=True).tolist()
        ranks = sorted(order.index(place) + 1 for place in places)
        precisions.append(sum((i + 1) / r for i, r in enumerate(ranks)) / len(ranks))
        firsts.append(ranks[0] == 1)
    assert found["context"] == pytest.approx(sum(precisions[:-1]) / 5, abs=1e-5)
    assert found["alone"] == pytest.approx(precisions[-1], abs=1e-5)
    assert found["first"] == pytest.approx(sum(firsts[:-1]) / 5)


def test_a_study_keeps_every_line_and_goes_on(tiny_clip: Backbone, tmp_path: Path, monkeypatch) -> None:
    small = concept_scenes(1, contexts=4, each=1, others=8)
    monkeypatch.setattr(concept_study, "concept_scenes", lambda seed: small)
    one = study(tiny_clip, "scenes:40", [1], LINES, QUIET, tmp_path)
    assert [f.label for f in one] == [c.label for c in LINES]
    rows = one[1], one[2]
    assert all(f.before == f.after > 0 for f in rows), "rows at a placeholder change no other sentence"
    monkeypatch.setattr(concept_study, "learn_concept", lambda *_, **__: pytest.fail("it is known already"))
    assert study(tiny_clip, "scenes:40", [1], LINES, QUIET, tmp_path) == one
    assert "POLAR" in markdown(one)


def test_the_table_has_mean_and_spread() -> None:
    found = [Found("a", seed, 0.1 * seed, 0.5, 0.0, 0.9, 0.88) for seed in (1, 2, 3)]
    assert "| a | 20.0 ± 10.0 | 0.0 ± 0.0 | 50.0 ± 0.0 | -2.0 ± 0.0 |" in markdown(found)
