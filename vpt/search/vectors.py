"""What every store of vectors answers: FAISS on disk, PostgreSQL with pgvector, Qdrant."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np

__all__ = ["Hit", "Vectors"]


class Hit(NamedTuple):
    """One answer: the id of a picture and its cosine with the query, in -1..1."""

    id: str
    score: float


@runtime_checkable
class Vectors(Protocol):
    """Unit vectors by id, compared by cosine."""

    width: int

    def __len__(self) -> int:
        """How many vectors are held."""
        ...

    def add(self, ids: Sequence[str], vectors: np.ndarray) -> None:
        """Put vectors [n, width], float16 or float32, under their ids; a known id is replaced.

        Raises:
            ValueError: vectors of another shape, or an id that repeats within the call.
        """
        ...

    def remove(self, ids: Sequence[str]) -> int:
        """Take ids out; an unknown one is passed over. Returns how many were there."""
        ...

    def search(self, queries: np.ndarray, k: int) -> list[list[Hit]]:
        """The k nearest of each query [q, width]: best first, fewer than k where there are fewer."""
        ...

    def close(self) -> None:
        """Let go of connections and memory; nothing is written that was not before."""
        ...
