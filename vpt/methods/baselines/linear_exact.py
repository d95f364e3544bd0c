"""Linear probe in closed form: logistic regression by L-BFGS on stored features (scikit-learn).

Its strength C is chosen on val as CoOp's few-shot probe does (KaiyangZhou/CoOp, lpclip): seven powers of ten
from 1e-6 to 1e6, then eight bisections around the best. The fit that is kept has seen the training features
only.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vpt.methods.method import Method
from vpt.tower import Tower

__all__ = ["LinearExact"]

SWEEP = (1e6, 1e4, 1e2, 1.0, 1e-2, 1e-4, 1e-6)
BISECTIONS = 8
ITERATIONS = 1000


class LinearExact(Method):
    """No rows and no gradient: :meth:`solve` fills the head."""

    trains = False

    def __init__(self, image: Tower) -> None:
        super().__init__()

    def solve(
        self,
        features: Tensor,
        labels: Tensor,
        val: tuple[Tensor, Tensor],
        head: nn.Linear | None,
        taught: Mapping[str, Tensor] | None = None,
    ) -> dict[str, float]:
        """Fit ``features`` [n, width], as they are, to ``labels`` [n]; choose C on ``val``.

        Returns C and the accuracy on val. Raises ValueError for classes without a training picture.
        """
        assert head is not None
        classes = head.out_features
        if labels.ndim != 1:
            raise ValueError(
                "linear-exact takes one label a picture. Use the method linear for several labels."
            )
        missing = sorted(set(range(classes)) - set(labels.tolist()))
        if missing:
            raise ValueError(
                f"classes {missing} of {classes} have no training picture. Give every class one."
            )
        train, given = features.double().cpu().numpy(), labels.cpu().numpy()
        seen, wanted = val[0].double().cpu().numpy(), val[1].cpu().numpy()
        fits: dict[float, tuple[float, Any]] = {}

        def score(c: float) -> float:
            if c not in fits:
                found = _fit(train, given, c)
                fits[c] = float((found.predict(seen) == wanted).mean()), found
            return fits[c][0]

        best = _search(score)
        accuracy, found = fits[best]
        _fill(head, found.coef_, found.intercept_)
        return {"C": best, "val_accuracy": accuracy}


def _search(score: Any) -> float:
    """CoOp's search: of equals the larger C in the sweep, and the smaller end in a bisection."""
    peak = max(SWEEP, key=score)
    low, high = np.log10(peak) - 1, np.log10(peak) + 1
    best = peak
    for _ in range(BISECTIONS):
        left, right = float(10**low), float(10**high)
        middle = (low + high) / 2
        if score(left) < score(right):
            low, best = middle, right
        else:
            high, best = middle, left
    return best


def _fit(features: np.ndarray, labels: np.ndarray, c: float) -> Any:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # at C = 1e6 the optimum lies at infinity
        return LogisticRegression(C=c, max_iter=ITERATIONS).fit(features, labels)


def _fill(head: nn.Linear, weight: np.ndarray, bias: np.ndarray) -> None:
    """Of two classes scikit-learn keeps the one difference, which is shared out to both."""
    if head.out_features == 2:
        weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    with torch.no_grad():
        head.weight.copy_(torch.from_numpy(weight))
        head.bias.copy_(torch.from_numpy(bias))
