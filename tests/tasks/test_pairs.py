"""Training on captions from end to end: what fits, what is stored, what is measured, and that it reads back."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from vpt.data.module import ImageData
from vpt.methods import METHODS
from vpt.objectives.captions import Captions
from vpt.objectives.retrieve import Retrieve
from vpt.tasks.learner import Learner, build_method
from vpt.tasks.measure import measure_pairs
from vpt.tasks.pairs import plainly
from vpt.tasks.task import PromptTask
from vpt.tasks.tune import tune
from vpt.tasks.tuned import Tuned, load_prompts
from vpt.towers.backbone import Backbone

QUIET = {"progress": False, "device": "cpu", "precision": "float32"}
PAIRS: dict[str, Any] = {"objective": "retrieve", "epochs": 2, **QUIET}
FIT = {
    "coop": {"length": 2},
    "kgcoop": {"length": 2, "words": ""},
    "prograd": {"length": 2, "words": ""},
    "clip-vpt": {"length": 2, "layers": 2},
    "ivlp": {"length": 2, "layers": 2, "words": "", "image_length": 2, "image_layers": 2},
    "maple": {"length": 2, "layers": 2, "words": ""},
    "promptsrc": {"length": 2, "layers": 2, "words": "", "image_length": 2, "image_layers": 2},
    "mmrl": {"length": 2, "layers": 2, "shared": 8},
    "clip-pixel": {"kind": "padding", "size": 2},
    "clip-lora": {"rank": 2},
    "clip-full": {},
    "zero-shot": {},
}


def module(path: Path, backbone: Backbone, **options: Any) -> ImageData:
    data = ImageData(str(path), captions=True, **{"batch_size": 6, **options})
    data.bind(backbone.preprocessing)
    return data


def train(backbone: Backbone, path: Path, name: str, **options: Any) -> Tuned:
    return tune(backbone, module(path, backbone), name, **{**FIT[name], **PAIRS, **options})


def by_name(numbers: list[dict[str, Any]], split: str = "test") -> dict[str, float]:
    return {m["name"]: m["value"] for m in numbers if m["split"] == split}


@pytest.mark.parametrize("name", FIT)
def test_every_method_with_names_fits_and_its_file_measures_the_same(
    name: str, tiny_clip: Backbone, pairs: Path, tmp_path: Path
) -> None:
    tuned = train(tiny_clip, pairs, name, out=str(tmp_path))
    found, about = by_name(tuned.metrics), tuned.prompts.about
    assert about["task"] == "retrieve"
    assert about["protocol"]["captions"] == {"train": 36, "val": 18, "test": 18}
    assert len(found) == 11
    assert all(math.isfinite(v) for v in found.values())
    assert all(0 <= v <= 1 for n, v in found.items() if not n.endswith("rank"))
    before = measure_pairs(plainly(tiny_clip), module(pairs, tiny_clip), "test")
    assert by_name(about["before"]) == pytest.approx(before)
    file = tmp_path / ("baseline" if METHODS[name].baseline else "prompts")
    again = load_prompts(file.with_suffix(".safetensors"), tiny_clip, device="cpu")
    assert measure_pairs(again, module(pairs, tiny_clip), "test") == pytest.approx(found)
    text = ["something red"]
    assert torch.equal(again.encode_text(text), tuned.encode_text(text))
    if name == "zero-shot":
        assert found == pytest.approx(before)
    else:
        assert len(about["train"]["history"]) == 2
        assert all(0 <= row["val/mean_recall"] <= 1 for row in about["train"]["history"])


@pytest.mark.parametrize(
    ("name", "options", "told"),
    [
        ("linear", {}, "it has a head for classes"),
        ("vpt-deep", {}, "it has a head for classes"),
        ("cocoop", {}, "its rows belong to one class each, or to one picture"),
        ("coop", {"class_specific": True}, "its rows belong to one class each, or to one picture"),
        ("lp++", {}, "it has a head for classes"),
        ("coop", {"loss": "sigmoid"}, "has no bias of its logits"),
        ("coop", {"smoothing": 0.1}, "mixup and smoothing are of class labels"),
    ],
)
def test_what_cannot_be_trained_on_captions_is_refused_before_data_are_read(
    name: str, options: dict[str, Any], told: str, tiny_clip: Backbone, tmp_path: Path
) -> None:
    gone = ImageData(str(tmp_path / "nowhere"), captions=True)
    with pytest.raises(ValueError, match=told):
        tune(tiny_clip, gone, name, **{**PAIRS, **options, "out": str(tmp_path / "out")})
    assert not (tmp_path / "out").exists()


def test_data_of_the_other_kind_are_refused_before_they_are_read(tiny_clip: Backbone, tmp_path: Path) -> None:
    for captions, objective in ((False, "retrieve"), (True, "classify")):
        data = ImageData(str(tmp_path / "nowhere"), captions=captions)
        with pytest.raises(ValueError, match=f"the objective {objective} needs data with"):
            tune(tiny_clip, data, "coop", objective=objective, **QUIET)


class Killed(BaseException):
    """Stands for a kill in the middle of an epoch."""


@pytest.mark.parametrize("name", ["ivlp", "kgcoop"])
def test_a_killed_run_resumes_to_the_same_bits(
    name: str, tiny_clip: Backbone, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"epochs": 3, "lr": (0.01, 0.03), "checkpoint_every": 1}
    whole = train(tiny_clip, pairs, name, out=str(tmp_path / "whole"), **options)
    step = PromptTask.training_step

    def dies(self: PromptTask, batch: dict[str, Any], i: int) -> Tensor:
        if self.global_step == 3:
            raise Killed
        return step(self, batch, i)

    with monkeypatch.context() as patch:
        patch.setattr(PromptTask, "training_step", dies)
        with pytest.raises(Killed):
            train(tiny_clip, pairs, name, out=str(tmp_path / "cut"), **options)
    again = train(tiny_clip, pairs, name, out=str(tmp_path / "cut"), **options)
    assert whole.rows.keys() == again.rows.keys()
    assert all(torch.equal(whole.rows[site], again.rows[site]) for site in whole.rows)
    assert whole.metrics == again.metrics


def learner_of(name: str, backbone: Backbone, texts: tuple[str, ...], **options: Any) -> Learner:
    torch.manual_seed(1)
    method = build_method(name, backbone, FIT[name])
    return Learner(method, backbone, texts, captions=True, **options).train()


@pytest.mark.parametrize("name", ["ivlp", "maple", "promptsrc", "clip-vpt", "kgcoop", "clip-full"])
def test_chunks_have_the_gradients_of_the_batch(name: str, tiny_clip: Backbone, pairs: Path) -> None:
    data = module(pairs, tiny_clip)
    captions = Captions.gather(data.captions("train"))
    objective = Retrieve(captions, captions, consistency=0.5)
    batch = {
        "index": torch.arange(5),
        "image": torch.stack([data.pictures("train")[0, i]["image"] for i in range(5)]),
    }
    found = []
    for chunk in (0, 2):
        learner = learner_of(name, tiny_clip, captions.texts, chunk=chunk, needs=True)
        seen, loss = objective.step(learner, batch["image"], batch, 0)
        total = learner.method.total(learner.method.losses(seen, loss)) + objective.more(seen)["consistency"]
        total.backward()
        grads = {n: p.grad for n, p in learner.named_parameters() if p.requires_grad and p.grad is not None}
        found.append((total.detach(), grads))
    (plain, want), (chunked, got) = found
    torch.testing.assert_close(chunked, plain)
    assert want.keys() == got.keys()
    assert want
    for key, grad in want.items():
        torch.testing.assert_close(got[key], grad, atol=1e-5, rtol=1e-4)
    assert any(grad.abs().max() > 1e-4 for grad in want.values())


def test_consistency_keeps_features_nearer_to_the_frozen_ones(tiny_clip: Backbone, pairs: Path) -> None:
    data, frozen = module(pairs, tiny_clip), plainly(tiny_clip)
    pictures = torch.stack([data.pictures("test")[0, i]["image"] for i in range(6)])
    texts = [c for told in data.captions("test") for c in told]
    near = {}
    for weight in (0.0, 100.0):
        tuned = train(tiny_clip, pairs, "ivlp", consistency=weight, lr=(0.05,), epochs=4)
        near[weight] = (
            F.cosine_similarity(tuned.encode_image(pictures), frozen.encode_image(pictures)).mean(),
            F.cosine_similarity(tuned.encode_text(texts), frozen.encode_text(texts)).mean(),
        )
    for far, close in zip(near[0.0], near[100.0], strict=True):
        assert close > far


def first_step(
    monkeypatch: pytest.MonkeyPatch,
    look: Callable[[PromptTask, dict[str, Any]], float],
    *args: Any,
    **options: Any,
) -> tuple[float, float]:
    """The loss of the first step of a run, and what ``look`` makes of the same moment."""
    found: list[tuple[float, float]] = []
    step = PromptTask.training_step

    def watched(self: PromptTask, batch: dict[str, Any], i: int) -> Tensor:
        wanted = look(self, batch) if not found else 0.0
        loss = step(self, batch, i)
        if not found:
            found.append((loss.item(), wanted))
        return loss

    monkeypatch.setattr(PromptTask, "training_step", watched)
    train(*args, **options)
    return found[0]


def one_way(logits: Tensor, true: Tensor) -> float:
    """-log of each true entry's share among itself and the wrong ones, term by term."""
    rows = []
    for scores, flags in zip(logits.tolist(), true.tolist(), strict=True):
        wrong = sum(math.exp(s) for s, t in zip(scores, flags, strict=True) if not t)
        terms = [
            -math.log(math.exp(s) / (math.exp(s) + wrong)) for s, t in zip(scores, flags, strict=True) if t
        ]
        rows.append(sum(terms) / len(terms))
    return sum(rows) / len(rows)


def flags(captions: list[tuple[str, ...]], texts: list[str]) -> Tensor:
    return torch.tensor([[text in told for text in texts] for told in captions])


def test_with_text_rows_alone_every_training_picture_is_a_negative(
    tiny_clip: Backbone, pairs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = module(pairs, tiny_clip)
    told = data.captions("train")
    pictures = torch.stack([data.pictures("train")[0, i]["image"] for i in range(12)])
    stored = F.normalize(plainly(tiny_clip).encode_image(pictures), dim=-1).clone()

    @torch.no_grad()
    def by_hand(task: PromptTask, batch: dict[str, Any]) -> float:
        learner, index = task.learner(0), batch["index"].tolist()
        assert learner.low == "pooled"
        assert "image" not in batch or batch["image"].ndim < 4
        chosen = task.objective.train.drawn(index, 0, 1, data.seed)
        texts = [learner.classes[int(n)] for n in chosen]
        said = F.normalize(learner.read(texts), dim=-1)
        logits = tiny_clip.scale * stored @ said.T
        here = [told[i] for i in index]
        return (one_way(logits[index], flags(here, texts)) + one_way(logits.T, flags(told, texts).T)) / 2

    loss, wanted = first_step(monkeypatch, by_hand, tiny_clip, pairs, "coop", epochs=3)
    assert loss == pytest.approx(wanted, rel=1e-4)


def test_with_image_rows_alone_every_training_caption_is_a_negative(
    tiny_clip: Backbone, pairs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = module(pairs, tiny_clip)
    told = data.captions("train")
    every = sorted({c for captions in told for c in captions})
    stored = F.normalize(plainly(tiny_clip).encode_text(every), dim=-1).clone()
    pictures = torch.stack([data.pictures("train")[0, i]["image"] for i in range(12)])

    @torch.no_grad()
    def by_hand(task: PromptTask, batch: dict[str, Any]) -> float:
        learner, index = task.learner(0), batch["index"].tolist()
        assert list(learner.classes) == every
        image = F.normalize(learner.look(pictures[index]), dim=-1)
        chosen = task.objective.train.drawn(index, 0, 1, data.seed).tolist()
        logits = tiny_clip.scale * image @ stored.T
        true = flags([told[i] for i in index], every)
        return (one_way(logits, true) + one_way(logits[:, chosen].T, true[:, chosen].T)) / 2

    loss, wanted = first_step(monkeypatch, by_hand, tiny_clip, pairs, "clip-vpt")
    assert loss == pytest.approx(wanted, rel=1e-4)


def test_other_pairs_are_measured_before_and_after(tiny_clip: Backbone, pairs: Path, tmp_path: Path) -> None:
    tuned = train(tiny_clip, pairs, "ivlp", general=str(pairs))
    about = tuned.prompts.about
    assert by_name(about["metrics"], "general") == pytest.approx(by_name(about["metrics"]))
    assert by_name(about["before"], "general") == pytest.approx(by_name(about["before"]))
    assert {m["split"] for m in about["before"]} == {"test", "general"}
    assert {m["split"] for m in about["metrics"]} == {"val", "test", "general"}


def test_classes_may_be_named_by_what_was_trained_on_captions(tiny_clip: Backbone, pairs: Path) -> None:
    names = ["something red", "something green"]
    tuned = train(tiny_clip, pairs, "ivlp")
    pictures = sorted((pairs / "test" / "red").glob("*.png"))
    found = tuned.with_classes(names).predict(pictures)
    image = F.normalize(
        tuned.encode_image(torch.stack([tiny_clip.preprocess(_open(p)) for p in pictures])), dim=-1
    )
    logits = tiny_clip.scale * image @ F.normalize(tuned.encode_text(names), dim=-1).T
    for prediction, row in zip(found, logits.softmax(-1), strict=True):
        assert [prediction.scores[n] for n in names] == pytest.approx(row.tolist(), abs=1e-4)


def _open(path: Path) -> Any:
    from vpt.data.images import decode

    return decode(path)
