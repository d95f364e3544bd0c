"""Vectors in FAISS (arXiv 2401.08281), in memory and in a folder: flat, inverted lists, or an HNSW graph."""

from __future__ import annotations

import json
import os
import shutil
import zlib
from collections.abc import Callable, Iterable, Sequence
from importlib import import_module
from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np

from vpt.search.shards import BadIndex
from vpt.search.vectors import Hit

faiss: Any = import_module("faiss")  # its stubs know half of it
__all__ = ["FLAT_BELOW", "KINDS", "Blocks", "FaissVectors", "kind_for"]

KINDS = ("auto", "flat", "ivf", "hnsw")
FLAT_BELOW = 100_000  # vectors: up to here comparing with all of them takes milliseconds
TRAIN = 64  # vectors a list that its centre is fitted to; FAISS asks for 39 or more
RECALL = 0.99  # of the ten nearest: the lists that are looked into are as many as that takes
ASKED = 64  # vectors that this is measured with
LINKS, CONSTRUCTION, LOOK = (
    32,
    80,
    128,
)  # HNSW: neighbours a node, candidates while building and while searching
Blocks = Callable[[], Iterable[tuple[Sequence[str], np.ndarray]]]
"""Makes a fresh pass over ids and their vectors [n, width]."""


def kind_for(kind: str, count: int) -> str:
    """What "auto" means for so many vectors. Raises ValueError for an unknown kind."""
    if kind not in KINDS:
        raise ValueError(f"no kind of index {kind!r}. Choose {', '.join(KINDS)}.")
    return ("flat" if count < FLAT_BELOW else "ivf") if kind == "auto" else kind


class FaissVectors:
    """Unit vectors by id; empty and flat when it is made, else see :meth:`build`.

    flat compares with every vector, in float32. ivf looks into the lists of the nearest centres, and hnsw follows a
    graph; both keep float16, which loses nothing of vectors that come as float16.
    """

    def __init__(self, width: int) -> None:
        if width < 1:
            raise ValueError(f"vectors are {width} wide, wanted 1 or more.")
        self.width, self.kind, self.told = width, "flat", ""
        self._faiss: Any = faiss.IndexIDMap2(faiss.IndexFlatIP(width))
        self._ids: list[str | None] = []  # by the number that FAISS knows a vector by; None: it is gone
        self._numbers: dict[str, int] = {}

    @classmethod
    def build(cls, width: int, blocks: Blocks, count: int, kind: str = "auto") -> FaissVectors:
        """From ``count`` vectors that come in blocks: asked for twice where centres are fitted first.

        Raises ValueError for an unknown kind, and as :meth:`add` does.
        """
        made, kind = cls(width), kind_for(kind, count)
        sample = np.zeros((0, width), np.float32)
        if count and kind == "ivf":
            sample = made._train(blocks, count)
        elif kind == "hnsw":
            graph = faiss.IndexHNSWSQ(width, faiss.ScalarQuantizer.QT_fp16, LINKS, faiss.METRIC_INNER_PRODUCT)
            graph.hnsw.efConstruction, graph.hnsw.efSearch = CONSTRUCTION, LOOK
            made._faiss = faiss.IndexIDMap2(graph)
        for ids, vectors in blocks():
            made.add(ids, vectors)
        made.kind = kind if count or kind == "hnsw" else "flat"  # lists need vectors to be fitted to
        made.tune(sample[:: max(1, len(sample) // ASKED)][:ASKED])
        return made

    def _train(self, blocks: Blocks, count: int) -> np.ndarray:
        """Fit the centres: as many as the square root of the count, to vectors taken evenly from all, which are
        returned."""
        lists = max(1, min(round(sqrt(count)), count // 39 or 1))
        step = max(1, count // (lists * TRAIN))
        sample, seen = [], 0
        for _, vectors in blocks():
            sample.append(np.asarray(vectors[(-seen) % step :: step], np.float32))
            seen += len(vectors)
        coarse = faiss.IndexFlatIP(self.width)
        ivf = faiss.IndexIVFScalarQuantizer(
            coarse, self.width, lists, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT, False
        )
        ivf.cp.min_points_per_centroid = (
            1  # FAISS prints a warning below 39, for a list that few vectors make
        )
        taken = np.concatenate(sample)
        ivf.train(taken)
        self._faiss, self.kind = ivf, "ivf"
        return taken

    def __len__(self) -> int:
        return len(self._numbers)

    @property
    def about(self) -> str:
        """What it is, in words."""
        if self.kind == "flat":
            return "flat: every vector is compared, so answers are exact"
        if self.kind == "hnsw":
            return f"hnsw: a graph of {LINKS} links a vector; it can be searched, and not added to or removed from"
        return f"ivf: {self._faiss.nprobe} of {self._faiss.nlist} lists are looked into{self.told}"

    def add(self, ids: Sequence[str], vectors: np.ndarray) -> None:
        """See :class:`vpt.search.vectors.Vectors`. Raises ValueError for a graph that is built, and for vectors that
        are of another width, not one an id, or not of unit length."""
        if self.kind == "hnsw":
            raise ValueError(
                f"this index is read only: {self.about}. Build one of kind ivf or flat to change it."
            )
        given = checked(vectors, self.width, "vectors").copy()
        if len(given) != len(ids) or len(set(ids)) != len(ids):
            raise ValueError(f"{len(given)} vectors came with {len(set(ids))} different ids of {len(ids)}.")
        lengths = np.linalg.norm(given, axis=1)
        if len(given) and np.abs(lengths - 1).max() > 0.01:  # float16 is off by a thousandth
            worst = int(np.abs(lengths - 1).argmax())
            raise ValueError(
                f"the vector of {ids[worst]!r} is {lengths[worst]:g} long, wanted 1. Normalise it."
            )
        given /= lengths[:, None]
        self.remove([i for i in ids if i in self._numbers])
        start = len(self._ids)
        self._faiss.add_with_ids(given, np.arange(start, start + len(ids), dtype=np.int64))
        self._ids += ids
        self._numbers |= {i: start + n for n, i in enumerate(ids)}

    def remove(self, ids: Sequence[str]) -> int:
        """See :class:`vpt.search.vectors.Vectors`. Raises ValueError for a graph."""
        if self.kind == "hnsw":
            raise ValueError(
                f"this index is read only: {self.about}. Build one of kind ivf or flat to change it."
            )
        numbers = [self._numbers.pop(i) for i in dict.fromkeys(ids) if i in self._numbers]
        for number in numbers:
            self._ids[number] = None
        if numbers:
            self._faiss.remove_ids(np.array(numbers, np.int64))
        return len(numbers)

    def search(self, queries: np.ndarray, k: int) -> list[list[Hit]]:
        """See :class:`vpt.search.vectors.Vectors`; equal scores stand in the order of their ids."""
        asked = checked(queries, self.width, "queries")
        if k < 1:
            raise ValueError(f"k={k}, wanted 1 or more.")
        k = min(k, len(self))
        if not k or not len(asked):
            return [[] for _ in asked]
        look = self._faiss.nprobe if self.kind == "ivf" else max(LOOK, k)
        most = self._faiss.nlist if self.kind == "ivf" else len(self)
        scores, numbers = self._look(asked, k, look)
        while (numbers < 0).any() and look < most:  # the lists hold fewer than k
            look = min(2 * look, most)
            scores, numbers = self._look(asked, k, look)
        return [
            sorted(
                (Hit(str(self._ids[n]), float(s)) for n, s in zip(ns, ss, strict=True) if n >= 0),
                key=lambda hit: (-hit.score, hit.id),
            )
            for ns, ss in zip(numbers.tolist(), scores.tolist(), strict=True)
        ]

    def _look(self, queries: np.ndarray, k: int, look: int) -> tuple[np.ndarray, np.ndarray]:
        """Scores and numbers [q, k], -1 where none was found; look: lists, or candidates in a graph."""
        if self.kind == "flat":
            return self._faiss.search(queries, k)
        if self.kind == "ivf":
            return self._faiss.search(queries, k, params=faiss.SearchParametersIVF(nprobe=look))
        # asked below the map of ids, which hands no parameters on
        scores, places = faiss.downcast_index(self._faiss.index).search(
            queries, k, params=faiss.SearchParametersHNSW(efSearch=look)
        )
        return scores, places  # vectors were added once and in order, so a place is a number

    def tune(self, queries: np.ndarray) -> None:
        """Look into as few lists as find 99 % of the ten nearest of these queries (powers of two); ivf only."""
        asked = checked(queries, self.width, "queries")
        if self.kind != "ivf" or not len(asked):
            return
        k, lists, look, found = min(10, len(self)), self._faiss.nlist, 1, 0.0
        exact = self._look(asked, k, lists)[0][:, -1:]  # by score: equal vectors are equally good
        while True:
            found = float((self._look(asked, k, look)[0] >= exact - 1e-6).mean())
            if found >= RECALL or look == lists:
                break
            look = min(2 * look, lists)
        self._faiss.nprobe = look
        self.told = f", which finds {100 * found:.1f} % of the {k} nearest of {len(asked)} of its own vectors"

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write a folder that was not there, under a temporary name first: a kill leaves all of it or nothing."""
        folder = Path(folder)
        part = folder.with_name(f".{folder.name}.{os.getpid()}.part")
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        try:
            faiss.write_index(self._faiss, str(part / "vectors.faiss"))
            told = {"width": self.width, "kind": self.kind, "told": self.told, "ids": self._ids}
            (part / "ids.json").write_text(json.dumps({**told, "check": _crc(part / "vectors.faiss")}))
            shutil.rmtree(folder, ignore_errors=True)
            os.rename(part, folder)
        finally:
            shutil.rmtree(part, ignore_errors=True)
        return folder

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> FaissVectors:
        """Raises FileNotFoundError, or BadIndex for files that are damaged."""
        folder = Path(folder)
        try:
            told = json.loads((folder / "ids.json").read_bytes())
            if _crc(folder / "vectors.faiss") != told["check"]:
                raise ValueError("its bytes are not those that were written")
            found = faiss.read_index(str(folder / "vectors.faiss"))
            made = cls(told["width"])
            made.kind, made.told, made._ids = told["kind"], told["told"], told["ids"]
            made._numbers = {i: n for n, i in enumerate(made._ids) if i is not None}
            made._faiss = found
            if (made._faiss.d, made._faiss.ntotal) != (made.width, len(made)):
                raise ValueError(f"it holds {found.ntotal} vectors of {found.d}, its ids say {len(made)}")
        except FileNotFoundError:
            raise
        except (ValueError, KeyError, TypeError, RuntimeError) as error:
            raise BadIndex(
                f"{folder} is damaged: {error}. Its vectors are kept apart from it: run vpt index build --out "
                f"{folder.parent} to fill it again."
            ) from None
        return made

    def close(self) -> None:
        """Nothing is held but memory."""


def checked(vectors: np.ndarray, width: int, what: str) -> np.ndarray:
    """float32 [n, width], contiguous. Raises ValueError for another shape and for what is not finite."""
    given = np.ascontiguousarray(vectors, np.float32)
    if given.ndim != 2 or given.shape[1] != width:
        raise ValueError(f"{what} are {tuple(given.shape)}, this index takes [n, {width}].")
    if not np.isfinite(given).all():
        raise ValueError(f"{what} hold NaN or infinity.")
    return given


def _crc(path: Path) -> int:
    check = 0
    with path.open("rb") as file:
        while block := file.read(2**22):
            check = zlib.crc32(block, check)
    return check
