"""Unit vectors in a Qdrant collection, in half precision: a server, or for trying out a folder or this process."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from uuid import UUID, uuid5

import numpy as np

from vpt.search.checks import checked, storable
from vpt.search.vectors import Hit

try:
    from qdrant_client import QdrantClient, models
    from qdrant_client.http.exceptions import ApiException, UnexpectedResponse
except ImportError as error:
    raise ImportError(
        f"vectors in Qdrant need qdrant-client, and {error.name} is not installed. "
        "Install it: pip install 'visual-prompt-tuning[qdrant]'."
    ) from error

__all__ = ["QdrantVectors", "open_vectors"]

SPACE = UUID("6d1b6f2e-7c0f-5c7e-9a57-7670742d6964")  # ours: Qdrant's own ids are numbers or UUIDs
BATCH = 256  # points in one request: 512 wide they are 2 MB of JSON, far below the server's limit of 32 MB
ALIKE = (models.Distance.DOT, models.Distance.COSINE)  # of unit vectors, the same
FORMS = "qdrant:http://HOST:6333/COLLECTION, qdrant:FOLDER/COLLECTION or qdrant::memory:/COLLECTION"


class QdrantVectors:
    """Unit vectors by id in one collection, which is made where it is missing.

    A point's id is a UUID that follows from the string, which is kept beside it as the payload ``id``. Points go in by
    256: a kill leaves whole batches, and adding the same again completes them. A folder takes about 10 ms a vector to
    write to, serves one process and keeps float32; a server keeps float16 under its HNSW graph.
    """

    def __init__(self, place: str, collection: str, width: int) -> None:
        """Connect, and make the collection where it is missing.

        place: ``http://HOST:6333`` or https (a key is read from QDRANT_API_KEY), a folder, or ``:memory:``.
        collection: letters, digits, "_", "-" and ".".  width: channels.

        Raises:
            ValueError: a name that cannot be used, or a collection of another width or kind.
            ConnectionError: no server answers.  PermissionError: it wants a key, or another one.
            BlockingIOError: another process has the folder open.
        """
        if not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,254}", collection):
            raise ValueError(
                f"{collection!r} is no collection's name. Use letters, digits, '_', '-' and '.', at most 255."
            )
        if width < 1:
            raise ValueError(f"vectors are {width} wide, wanted 1 or more.")
        self.width, self.name, self._where = width, collection, place
        self._client = _connect(place)
        try:
            with self._asking():
                self._make()
        except BaseException:
            self._client.close()
            raise

    def __len__(self) -> int:
        """How many vectors the collection holds now."""
        with self._asking():
            return self._client.count(self.name, exact=True).count

    def add(self, ids: Sequence[str], vectors: np.ndarray) -> None:
        """Put vectors [n, width] under their ids; a known id is replaced.

        Raises ValueError for another shape, values that are not finite, a length other than 1, or an id that repeats or
        is no UTF-8.
        """
        halves = checked(vectors, self.width, ids)
        with self._asking():
            for start in range(0, len(ids), BATCH):
                names = list(ids[start : start + BATCH])
                points = models.Batch(
                    ids=[_point(name) for name in names],
                    vectors=halves[start : start + BATCH].tolist(),
                    payloads=[{"id": name} for name in names],
                )
                self._client.upsert(self.name, points, wait=True)

    def remove(self, ids: Sequence[str]) -> int:
        """Take ids out; an unknown one is passed over. Returns how many were there."""
        points = [_point(name) for name in dict.fromkeys(ids) if storable(name)]
        removed = 0
        with self._asking():
            for start in range(0, len(points), BATCH):
                some: list[Any] = points[start : start + BATCH]
                named = models.Filter(must=[models.HasIdCondition(has_id=some)])
                removed += self._client.count(self.name, count_filter=named, exact=True).count
                self._client.delete(self.name, models.PointIdsList(points=some), wait=True)
        return removed

    def search(self, queries: np.ndarray, k: int) -> list[list[Hit]]:
        """The k nearest of each query [q, width], best first; fewer only where the collection holds fewer.

        Raises ValueError for another shape or a k below 1. (Qdrant itself keeps at least k candidates in its graph.)
        """
        if k < 1:
            raise ValueError(f"a search for {k} neighbours finds nothing. Ask for k of 1 or more.")
        asked = [
            models.QueryRequest(query=query, limit=k, with_payload=["id"])
            for query in checked(queries, self.width).tolist()
        ]
        found: list[list[Hit]] = []
        with self._asking():
            for start in range(0, len(asked), BATCH):
                for answer in self._client.query_batch_points(self.name, asked[start : start + BATCH]):
                    hits = [Hit(str((p.payload or {}).get("id", p.id)), p.score) for p in answer.points]
                    found.append(sorted(hits, key=lambda hit: (-hit.score, hit.id)))
        return found

    def close(self) -> None:
        """Let go of the connection, or of the folder."""
        self._client.close()

    def _make(self) -> None:
        """The collection, or a complaint about the one that is there."""
        if not self._client.collection_exists(self.name):
            self._client.create_collection(
                self.name,
                vectors_config=models.VectorParams(
                    size=self.width, distance=models.Distance.DOT, datatype=models.Datatype.FLOAT16
                ),
            )
            return
        kept = self._client.get_collection(self.name).config.params.vectors
        if not isinstance(kept, models.VectorParams) or kept.distance not in ALIKE or kept.multivector_config:
            raise ValueError(
                f"the collection {self.name} at {self._where} holds vectors of another kind ({kept}), wanted one a "
                "point, by dot product or cosine. Choose another collection's name."
            )
        if kept.size != self.width:
            raise ValueError(
                f"the collection {self.name} at {self._where} holds vectors of width {kept.size}, and these are "
                f"{self.width} wide: another model made it. Choose another name, or the model that it was made with."
            )

    @contextmanager
    def _asking(self) -> Iterator[None]:
        """The client's errors in our words."""
        try:
            yield
        except UnexpectedResponse as error:
            words = " ".join((error.content or b"").decode("utf-8", "replace").split())[:300]
            if error.status_code in (401, 403):
                raise PermissionError(
                    f"Qdrant at {self._where} does not let us in ({error.status_code} {words}). Set QDRANT_API_KEY to "
                    "a key that may."
                ) from error
            raise ValueError(
                f"Qdrant at {self._where} refused ({error.status_code} {words}). What was there before is there still."
            ) from error
        except ApiException as error:
            raise ConnectionError(
                f"Qdrant at {self._where} does not answer ({error}). Start the server or correct the address; an add "
                "that broke off can be given again."
            ) from error


def open_vectors(url: str, width: int) -> QdrantVectors:
    """``qdrant:http://HOST:6333/COLLECTION``, ``qdrant:FOLDER/COLLECTION``, or ``qdrant::memory:/COLLECTION``, which is
    empty whenever it is opened.

    Raises ValueError for an address of another form, and what :class:`QdrantVectors` raises.
    """
    place, slash, collection = url.removeprefix("qdrant:").rpartition("/")
    if not url.startswith("qdrant:") or not slash or place in ("", "http:/", "https:/"):
        raise ValueError(f"{url!r} does not say where, and which collection. Write {FORMS}.")
    return QdrantVectors(place, collection, width)


def _connect(place: str) -> QdrantClient:
    if place == ":memory:":
        return QdrantClient(location=place)
    if place.startswith(("http://", "https://")):
        # the check of versions warns where no server answers; the first question says so too, as an error
        return QdrantClient(
            url=place, api_key=os.environ.get("QDRANT_API_KEY"), timeout=60, check_compatibility=False
        )
    try:
        return QdrantClient(path=place)
    except RuntimeError as error:
        if "already accessed" not in str(error):
            raise
        raise BlockingIOError(
            f"the folder {place} is open in another process, and serves one at a time. Wait until it is done, or run a "
            "Qdrant server."
        ) from None


def _point(name: str) -> str:
    return str(uuid5(SPACE, name))
