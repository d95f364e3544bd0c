"""Losses and metrics against formulas written out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, balanced_accuracy_score, confusion_matrix

from vpt.objectives.classify import Classify


@pytest.fixture
def scored():
    g = torch.Generator().manual_seed(3)
    return torch.randn(60, 7, generator=g), torch.randint(0, 7, (60,), generator=g)


def test_loss_is_cross_entropy_with_smoothing(scored):
    logits, target = scored
    log = logits.log_softmax(-1)
    hard = -log.gather(1, target[:, None]).mean()
    assert torch.allclose(Classify("abcdefg").loss(logits, target), hard)
    smooth = 0.9 * hard - 0.1 * log.mean(-1).mean()
    assert torch.allclose(Classify("abcdefg", smoothing=0.1).loss(logits, target), smooth)


def test_single_label_metrics(scored):
    logits, target = scored
    objective = Classify("abcdefg")
    scores = objective.scores(logits)
    metrics = objective.metric()
    for part in (slice(0, 25), slice(25, None)):
        metrics.update(scores[part], target[part])
    found = {k: float(v) for k, v in metrics.compute().items()}
    best = scores.argmax(-1)
    assert found["top1"] == pytest.approx(float((best == target).float().mean()))
    five = scores.topk(5, -1).indices
    assert found["top5"] == pytest.approx(float((five == target[:, None]).any(-1).float().mean()))
    assert found["mean_per_class"] == pytest.approx(balanced_accuracy_score(target, best))
    sure, right = scores.max(-1).values.numpy(), (best == target).numpy()
    bins = np.clip(np.ceil(sure * 15).astype(int) - 1, 0, 14)
    ece = sum(abs(right[bins == b].mean() - sure[bins == b].mean()) * (bins == b).mean() for b in set(bins))
    assert found["ece"] == pytest.approx(ece, abs=1e-5)
    assert np.array_equal(
        objective.confusion(scores, target), confusion_matrix(target, best, labels=range(7))
    )


def test_several_labels(scored):
    logits, _ = scored
    target = (torch.rand(60, 7, generator=torch.Generator().manual_seed(4)) > 0.6).long()
    objective = Classify("abcdefg", multilabel=True)
    p = logits.sigmoid()
    want = -(target * p.log() + (1 - target) * (1 - p).log()).mean()
    assert torch.allclose(objective.loss(logits, target), want, atol=1e-6)
    metrics = objective.metric()
    metrics.update(objective.scores(logits), target)
    assert float(metrics.compute()["map"]) == pytest.approx(
        average_precision_score(target, p, average="macro")
    )
    assert objective.headline == "map"
    assert objective.confusion(p, target) is None


def test_five_classes_or_fewer_have_no_top5():
    assert "top5" not in Classify("abcde").metric()
    assert "top5" in Classify("abcdef").metric()
