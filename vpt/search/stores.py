"""Where the vectors of an index are searched: FAISS in its folder, or a database by its address."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np

from vpt.search.faiss_vectors import FaissVectors
from vpt.search.vectors import Vectors

__all__ = ["drop_old", "fill", "open_database", "open_faiss"]


def open_faiss(folder: Path) -> Vectors:
    """Raises FileNotFoundError, BadIndex."""
    return FaissVectors.load(folder)


def open_database(store: str, width: int, *, fresh: bool = False) -> Vectors | None:
    """The database that ``store`` names; None for "faiss".

    fresh: nothing of this index is in it yet, so it has to be empty.
    Raises ValueError for an unknown address, one that holds a password (an index keeps it in plain text), or a store
    that is not empty; ImportError where its client is not installed; ConnectionError.
    """
    if store == "faiss":
        return None
    if store.startswith(("postgresql:", "postgres:")):
        if urlsplit(store).password:
            raise ValueError(
                "this address holds a password, and an index keeps its address in plain text. Leave it out, and give "
                "it as PGPASSWORD or in ~/.pgpass."
            )
        from vpt.search.pgvector import open_vectors as open_pg

        found: Vectors = open_pg(store, width)
    elif store.startswith("qdrant:"):
        from vpt.search.qdrant import open_vectors as open_qdrant

        found = open_qdrant(store, width)
    else:
        raise ValueError(
            f"no store {store!r}. Choose faiss, postgresql://user@host/database?table=NAME or "
            "qdrant:http://HOST:6333/COLLECTION."
        )
    if fresh and (held := len(found)):
        found.close()
        raise ValueError(
            f"{store} holds {held} vectors already, of something else. Give this index a place of its own."
        )
    return found


def fill(store: Vectors, blocks: Iterable[tuple[Sequence[str], np.ndarray]]) -> None:
    """Add block after block."""
    for ids, vectors in blocks:
        store.add(ids, vectors)


def drop_old(folder: Path, kept: str) -> None:
    """Delete FAISS folders that the manifest no longer names, and halves of killed writers."""
    for path in [*folder.glob("vectors-*"), *folder.glob(".vectors-*.part")]:
        if path.name != kept:
            shutil.rmtree(path, ignore_errors=True)
