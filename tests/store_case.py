"""The truth that every store of vectors is held against: a dictionary, and all inner products."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from hypothesis import strategies as st

from vpt.search.vectors import Vectors

NAMES = ["a.jpg", "b/ä.jpg", 'it\'s "c"; --', "%s\\N\t", "{t}", "", "e", "f", "猫.png", "h"]
"""Ids that a careless query would break on."""

operations = st.lists(
    st.one_of(
        st.tuples(
            st.just("add"), st.lists(st.sampled_from(NAMES), unique=True, max_size=5), st.integers(0, 99)
        ),
        st.tuples(st.just("remove"), st.lists(st.sampled_from(NAMES), max_size=4), st.just(0)),
        st.tuples(st.just("search"), st.just([]), st.integers(1, 12)),
    ),
    min_size=2,
    max_size=8,
)
"""What may happen to a store: (word, ids, seed of the vectors or k)."""


def units(count: int, width: int, seed: int = 0) -> np.ndarray:
    """[count, width] of unit length, float32."""
    x = np.random.default_rng(seed).standard_normal((count, width)).astype(np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def clustered(count: int, width: int, seed: int = 0) -> np.ndarray:
    """[count, width] of unit length around 50 centres, as pictures of 50 kinds of thing."""
    around = units(50, width, 99)[np.random.default_rng(seed).integers(0, 50, count)]
    x = around + 0.1 * np.random.default_rng(seed).standard_normal((count, width)).astype(np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def agrees(store: Vectors, truth: dict[str, np.ndarray], queries: np.ndarray, k: int) -> None:
    """Asserts that a search finds what comparing with every vector finds, best first."""
    found = store.search(queries, k)
    assert len(found) == len(queries)
    for query, hits in zip(queries, found, strict=True):
        scores = {name: float(query @ v) for name, v in truth.items()}
        assert len(hits) == len({hit.id for hit in hits}) == min(k, len(truth))
        assert [h.score for h in hits] == sorted((h.score for h in hits), reverse=True)
        for hit, best in zip(hits, sorted(scores.values(), reverse=True), strict=False):
            assert abs(hit.score - scores[hit.id]) < 2e-3  # its own vector's, in half precision
            assert abs(hit.score - best) < 2e-3  # and no better one was passed over


def replay(store: Vectors, happened: Sequence[tuple[str, list[str], Any]]) -> None:
    """Asserts that a store and a dictionary stay alike through adding, replacing, removing and searching."""
    truth: dict[str, np.ndarray] = {}
    for word, names, number in happened:
        if word == "add":
            vectors = units(len(names), store.width, number)
            store.add(names, vectors.astype(np.float16 if number % 2 else np.float32))
            truth |= dict(zip(names, vectors, strict=True))
        elif word == "remove":
            assert store.remove(names) == sum(
                truth.pop(name, None) is not None for name in dict.fromkeys(names)
            )
        else:
            agrees(store, truth, units(2, store.width, 7), number)
        assert len(store) == len(truth)
    agrees(store, truth, units(2, store.width, 8), 3)
