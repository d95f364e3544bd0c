"""Recall, ranks and precision against torchmetrics and against counting by hand."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize
from torchmetrics.retrieval import RetrievalHitRate, RetrievalMAP

from vpt.objectives import recall
from vpt.objectives.captions import Captions
from vpt.objectives.recall import Gallery, both_ways, ranked


@pytest.fixture
def pairs() -> tuple[Tensor, Tensor, Captions]:
    """20 pictures of 1 to 4 captions, some shared by two pictures, with features that know a little of it."""
    torch.manual_seed(0)
    told = [[f"c{(7 * i + 3 * k) % 33}" for k in range(1 + i % 4)] for i in range(20)]
    captions = Captions.gather(told)
    pictures = torch.randn(20, 8)
    texts = torch.stack([pictures[list(p)].mean(0) for p in captions.pictures])
    return pictures, texts + 0.8 * torch.randn(texts.shape), captions


@pytest.mark.parametrize("chunk", [512, 7])
def test_both_ways_are_torchmetrics(pairs, chunk, monkeypatch):
    monkeypatch.setattr(recall, "CHUNK", chunk)
    pictures, texts, captions = pairs
    found = both_ways(pictures, texts, captions)
    scores, true = normalize(pictures, dim=1) @ normalize(texts, dim=1).T, captions.true(None, None)
    for way, s, t in (("i2t", scores, true), ("t2i", scores.T, true.T)):
        asked = torch.arange(len(s))[:, None].expand_as(s).flatten()
        for k in (1, 5, 10):
            want = RetrievalHitRate(top_k=k)(s.flatten(), t.flatten(), indexes=asked)
            torch.testing.assert_close(found[f"{way}_r{k}"], want)
        # torchmetrics forgets true entries whose score is not positive
        want = RetrievalMAP()(s.flatten() + 2, t.flatten(), indexes=asked)
        torch.testing.assert_close(found[f"{way}_map"], want)
        ranks = sorted(
            1 + min(sum(x > row[j] for x in row) for j in range(len(row)) if yes[j])
            for row, yes in zip(s.tolist(), t.tolist(), strict=True)
        )
        assert found[f"{way}_median_rank"] == ranks[(len(ranks) - 1) // 2]
    six = [found[f"{way}_r{k}"] for way in ("i2t", "t2i") for k in (1, 5, 10)]
    torch.testing.assert_close(found["mean_recall"], torch.stack(six).mean())


def test_features_that_look_alike_are_the_worst():
    same = torch.ones(6, 4)
    ranks, precision = ranked(same, same, torch.eye(6, dtype=torch.bool))
    assert ranks.tolist() == [6] * 6
    torch.testing.assert_close(precision, torch.full((6,), 1 / 6))


def test_a_gallery_puts_pictures_in_their_order():
    features, gallery = torch.randn(9, 4), Gallery()
    for part in torch.randperm(9).split(4):
        gallery.update(features[part], part)
    torch.testing.assert_close(gallery.compute(), features)


def test_a_gallery_of_several_processes_is_one():
    """torchmetrics leaves one tensor of what it gathered where each process has a list; both saw picture 0."""
    features, halves = torch.randn(5, 4), (torch.tensor([1, 3, 0]), torch.tensor([4, 0, 2]))
    gallery = Gallery()
    gallery.update(features[halves[0]], halves[0])
    theirs = {torch.int64: halves[1], torch.float32: features[halves[1]]}
    gallery.dist_sync_fn = lambda t, group=None: [t, theirs[t.dtype]]
    gallery.distributed_available_fn = lambda: True
    torch.testing.assert_close(gallery.compute(), features)
