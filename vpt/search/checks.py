"""What stores outside this process refuse before they are asked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

__all__ = ["checked", "storable"]

ROUNDING = 0.01  # of a length: float16 is off by a thousandth


def checked(vectors: np.ndarray, width: int, ids: Sequence[str] | None = None) -> np.ndarray:
    """Vectors [n, width], one an id, in float16; without ids they are queries, of any length.

    Raises ValueError for another shape, for values that are not finite, and with ids for one that is given twice or
    that no database keeps, and for a vector that is not of unit length.
    """
    given = np.asarray(vectors)
    if given.ndim != 2 or given.shape[1] != width:
        raise ValueError(
            f"vectors of shape {list(given.shape)}, and [n, {width}] is wanted. Encode with the model that the index "
            "was made with."
        )
    with np.errstate(over="ignore"):
        halves = given.astype(np.float16)
    names = ids if ids is not None else [f"query {n + 1}" for n in range(len(given))]
    if len(names) != len(given):
        raise ValueError(f"{len(given)} vectors for {len(names)} ids. Give one an id.")
    if len(wrong := np.flatnonzero(~np.isfinite(halves).all(1))):
        raise ValueError(
            f"the vector of {names[wrong[0]]!r} holds NaN or infinity. Encode it anew, or leave it out."
        )
    if ids is None:
        return halves
    for name in ids:
        if not storable(name):
            raise ValueError(
                f"the id {name!r} holds a NUL, or bytes that are no UTF-8, which no database keeps. Rename it."
            )
    if len(set(ids)) < len(ids):
        twice = Counter(ids).most_common(1)[0][0]
        raise ValueError(f"the id {twice!r} is given twice in one call. Give every vector an id of its own.")
    lengths = np.linalg.norm(given.astype(np.float32), axis=1)
    if len(given) and np.abs(lengths - 1).max() > ROUNDING:
        worst = int(np.abs(lengths - 1).argmax())
        raise ValueError(
            f"the vector of {names[worst]!r} is {lengths[worst]:g} long, wanted 1. Divide it by its length."
        )
    return halves


def storable(name: str) -> bool:
    """Whether a text column takes this."""
    return "\0" not in name and not any("\ud800" <= letter <= "\udfff" for letter in name)
