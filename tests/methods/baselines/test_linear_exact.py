"""The exact probe against scikit-learn used directly."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits
from torch import Tensor, nn

from vpt.methods.baselines.linear_exact import LinearExact, _search
from vpt.methods.method import Method
from vpt.towers.vit import tiny


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Problems this small are fifty times slower when threads wait for one another."""
    with threadpool_limits(1):
        yield


def blobs(classes: int) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
    """Training and validation features [45, 6] of classes that overlap."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(90) % classes
    x = torch.randn(90, 6, generator=generator) + torch.randn(3, 6, generator=generator)[y]
    train = torch.arange(90) < 45
    return x[train], y[train], (x[~train], y[~train])


@pytest.mark.parametrize("classes", [2, 3])
def test_the_head_is_scikit_learns_model_at_the_chosen_c(classes: int) -> None:
    features, labels, val = blobs(classes)
    head = nn.Linear(6, classes)
    said = LinearExact(tiny()).solve(features, labels, val, head)
    model = LogisticRegression(C=said["C"], max_iter=1000).fit(features.double().numpy(), labels.numpy())
    wanted = model.predict_proba(val[0].double().numpy())
    np.testing.assert_allclose(head(val[0]).softmax(-1).detach().numpy(), wanted, atol=1e-4)
    assert said["val_accuracy"] == model.score(val[0].double().numpy(), val[1].numpy())
    for c in (1e6, 1e4, 1e2, 1.0, 1e-2, 1e-4, 1e-6):
        sweep = LogisticRegression(C=c, max_iter=5000).fit(features.double().numpy(), labels.numpy())
        assert said["val_accuracy"] >= sweep.score(val[0].double().numpy(), val[1].numpy())


@pytest.mark.parametrize("peak", [3e-6, 0.02, 0.7, 40.0, 2e5])
def test_the_search_closes_in_on_a_single_peak(peak: float) -> None:
    tried = []

    def score(c: float) -> float:
        tried.append(c)
        return -abs(np.log10(c) - np.log10(peak))

    assert abs(np.log10(_search(score)) - np.log10(peak)) < 0.02
    assert len(set(tried)) <= 7 + 2 * 8


def test_val_is_not_fitted() -> None:
    features, labels, val = blobs(3)
    a, b = nn.Linear(6, 3), nn.Linear(6, 3)
    method = LinearExact(tiny())
    method.solve(features, labels, val, a)
    method.solve(features, labels, (val[0].repeat(2, 1), val[1].repeat(2)), b)  # the same accuracies
    assert torch.equal(a.weight, b.weight)


def test_what_cannot_be_solved_is_refused() -> None:
    features, labels, val = blobs(3)
    with pytest.raises(ValueError, match=r"classes \[3\] of 4 have no training picture"):
        LinearExact(tiny()).solve(features, labels, val, nn.Linear(6, 4))
    with pytest.raises(ValueError, match="one label a picture"):
        LinearExact(tiny()).solve(features, torch.ones(len(features), 3), val, nn.Linear(6, 3))
    assert Method().solve(features, labels, val, nn.Linear(6, 3)) is NotImplemented
