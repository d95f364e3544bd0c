"""Finding the nearest of a million vectors, kind by kind, and how fast pictures become vectors."""

from __future__ import annotations

import gc
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from itertools import count, cycle
from math import sqrt
from pathlib import Path
from statistics import median
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor

from vpt.bench.measure import Key, Work, check_json, in_turns, machine, write
from vpt.data.item import Files, Item
from vpt.encode import encode
from vpt.search.embed import embed, read_picture
from vpt.search.encoder import Encoder, opened
from vpt.search.faiss_vectors import FaissVectors, faiss
from vpt.search.shards import SHARD, read_label, read_vectors
from vpt.tasks.device import resolve_device

__all__ = ["Cloud", "bench_search"]

Kind = Literal["flat", "ivf", "hnsw"]
NEAREST = 10
BATCH = 100  # queries asked at once
FURTHER = 1.25  # queries lie so many times as far from their centre as the vectors do
PICTURE = (500, 375)  # pixels, as collections of photographs have them
TARGET = 0.9  # of the throughput of the plain frozen forward
AGREE = 2e-3  # of a coordinate of a unit vector: a shard keeps float16
FILES = Files("", (), False, {})
PLAIN: Key = ("embedding", "plain frozen forward", "float32")


@dataclass(frozen=True)
class Cloud:
    """vectors: float16 [n, width], of unit length, around centres.  queries: float32 [q, width], off the cloud."""

    vectors: np.ndarray
    queries: np.ndarray

    @classmethod
    def drawn(cls, vectors: int, centres: int, width: int, spread: float, queries: int) -> Cloud:
        """Around unit centres without structure among them; noise is ``spread`` long, ``FURTHER * spread`` for queries,
        so that a vector has cosine 1 / sqrt(1 + spread**2) with its centre."""
        rng = np.random.default_rng(0)
        middle = _unit(rng.standard_normal((centres, width), np.float32))

        def around(n: int, far: float) -> np.ndarray:
            noise = rng.standard_normal((n, width), np.float32)
            return _unit(middle[rng.integers(centres, size=n)] + far / sqrt(width) * noise)

        held = np.empty((vectors, width), np.float16)
        for start in range(0, vectors, SHARD):
            held[start : start + SHARD] = around(min(SHARD, vectors - start), spread)
        return cls(held, around(queries, FURTHER * spread))

    def blocks(self) -> Iterator[tuple[list[str], np.ndarray]]:
        """Ids and vectors as the shards of an index give them."""
        for start in range(0, len(self.vectors), SHARD):
            part = self.vectors[start : start + SHARD]
            yield [str(i) for i in range(start, start + len(part))], part


def _unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def _found(index: FaissVectors, queries: np.ndarray) -> list[set[str]]:
    """Ids of the nearest of each query."""
    parts = (queries[i : i + BATCH] for i in range(0, len(queries), BATCH))
    return [{hit.id for hit in hits} for part in parts for hits in index.search(part, NEAREST)]


def _asked(index: FaissVectors, queries: np.ndarray, at_once: int, repeats: int) -> float:
    """Median milliseconds of a search of so many queries, other ones each time."""
    parts = cycle([queries[i : i + at_once] for i in range(0, len(queries) - at_once + 1, at_once)])
    work = Work("search", "", "", lambda: index.search(next(parts), NEAREST))
    return round(median(in_turns([work], repeats, torch.device("cpu"))[work.key]), 4)


def _kind(
    kind: str, cloud: Cloud, exact: list[set[str]] | None, repeats: int
) -> tuple[dict[str, Any], list[set[str]]]:
    """One row, and what was found. exact: by flat search; None for flat search itself."""
    many, width = cloud.vectors.shape
    start = time.perf_counter()
    index = FaissVectors.build(width, cloud.blocks, many, kind)
    built = time.perf_counter() - start
    found = _found(index, cloud.queries)
    exact = found if exact is None else exact
    shared = sum(len(a & b) for a, b in zip(found, exact, strict=True))
    with tempfile.TemporaryDirectory() as folder:
        size = sum(p.stat().st_size for p in index.save(Path(folder) / "vectors").iterdir())
    row = {
        "work": f"{many:,} vectors of width {width}",
        "variant": kind,
        "precision": "float32" if kind == "flat" else "float16",
        "build_s": round(built, 3),
        "one_ms": _asked(index, cloud.queries, 1, 10 * repeats),
        "hundred_ms": _asked(index, cloud.queries, BATCH, repeats),
        "recall_at_10": round(shared / sum(map(len, exact)), 4),
        "file_mb": round(size / 1e6, 3),
        "about": index.about,
    }
    return row, found


def _kinds(kinds: Sequence[str], cloud: Cloud, repeats: int) -> Iterator[dict[str, Any]]:
    """Kind after kind, each let go before the next is built: together they would not fit."""
    row, exact = _kind("flat", cloud, None, repeats)
    yield row
    for kind in dict.fromkeys(kinds):
        if kind != "flat":
            gc.collect()
            yield _kind(kind, cloud, exact, repeats)[0]


class _Prepared(Encoder):
    """Looks pictures of one pixel up: its colour is the number of a tensor that was prepared before."""

    tensors: Tensor

    @property
    def preprocess(self) -> Callable[[Image.Image], Tensor]:
        return self._tensor

    def _tensor(self, picture: Image.Image) -> Tensor:
        _, high, low = picture.getpixel((0, 0))  # type: ignore[misc]
        return self.tensors[256 * high + low]


def _drawn(folder: Path, number: int) -> tuple[list[Item], list[Item]]:
    """Photographs of so many blotches, and pictures of one pixel that hold their numbers."""
    photos, dots, rng = [], [], np.random.default_rng(0)
    for i in range(number):
        photo, dot = folder / f"{i:05d}.jpg", folder / f"{i:05d}.png"
        small = Image.fromarray(rng.integers(0, 256, (24, 32, 3), np.uint8))
        small.resize(PICTURE, Image.Resampling.BICUBIC).save(photo, quality=90)
        Image.new("RGB", (1, 1), (0, *divmod(i, 256))).save(dot)
        photos.append(Item(photo.name, 0, str(photo)))
        dots.append(Item(dot.name, 0, str(dot)))
    return photos, dots


def _embedding(
    model: str, pictures: int, batch: int, repeats: int, device: torch.device
) -> list[dict[str, Any]]:
    """The plain forward, ``embed`` on the same tensors, ``embed`` from files, and what a file costs alone."""
    backbone = opened({"name": model}, str(device))
    encoder, prepared = Encoder(backbone), _Prepared(backbone)
    with tempfile.TemporaryDirectory() as name:
        folder, numbers = Path(name), count()
        photos, dots = _drawn(folder, pictures)

        def ready(items: Sequence[Item]) -> Tensor:
            return torch.stack([encoder.preprocess(read_picture(FILES, item)) for item in items])

        def plain() -> list[Tensor]:
            with torch.inference_mode():
                return [encode(backbone.image, x.to(device)) for x in prepared.tensors.split(batch)]

        def embedded(by: Encoder, items: Sequence[Item]) -> Path:
            into = folder / str(next(numbers))
            into.mkdir()
            embed(by, FILES, items, into, batch_size=batch)
            return into

        prepared.tensors = ready(photos)
        _agree(torch.cat(plain()), embedded(prepared, dots))
        works = [
            Work(*PLAIN, plain, PLAIN),
            Work(PLAIN[0], "embed, tensors at hand", PLAIN[2], partial(embedded, prepared, dots), PLAIN),
            Work(PLAIN[0], "embed, from files", PLAIN[2], partial(embedded, encoder, photos), PLAIN),
            Work(PLAIN[0], "decoding alone, one thread", PLAIN[2], partial(ready, photos)),
        ]
        times = in_turns(works, repeats, device)
    return [_rate(work, times, pictures) for work in works]


def _agree(features: Tensor, folder: Path) -> None:
    """Raises RuntimeError where the shard holds other vectors: then the times could not be compared."""
    held = read_vectors(folder, 0, read_label(folder, 0)).astype(np.float32)
    apart = float(np.abs(held - _unit(features.float().cpu().numpy())).max())
    if not apart <= AGREE:
        raise RuntimeError(
            f"vectors on disk and the plain forward differ by {apart:.1e}, more than {AGREE:.0e}. Their times cannot "
            "be compared; please report this."
        )


def _rate(work: Work, times: Mapping[Key, Sequence[float]], pictures: int) -> dict[str, Any]:
    mine = times[work.key]
    plain = None if work.floor is None else zip(times[work.floor], mine, strict=True)
    return {
        "work": work.work,
        "variant": work.variant,
        "precision": work.precision,
        "ms_median": round(median(mine), 3),
        "ms_min": round(min(mine), 3),
        "pictures_a_second": round(1e3 * pictures / median(mine), 2),
        "of_plain": None if plain is None else round(median(p / m for p, m in plain), 4),
        "target": TARGET if work.variant == "embed, tensors at hand" else None,
    }


def _show(about: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> None:
    console = Console()
    heads = {
        "build_s": "build s",
        "one_ms": "query ms",
        "hundred_ms": f"{BATCH} ms",
        "recall_at_10": "recall@10",
        "file_mb": "MB",
        "ms_median": "ms",
        "ms_min": "min",
        "pictures_a_second": "pictures/s",
        "of_plain": "of plain",
        "target": "at least",
    }
    for work in dict.fromkeys(r["work"] for r in rows):
        table = Table(title=work, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
        mine = [r for r in rows if r["work"] == work]
        shown = [name for name in heads if name in mine[0]]
        table.add_column("")
        for name in shown:
            table.add_column(heads[name], justify="right", no_wrap=True)
        for r in mine:
            table.add_row(r["variant"], *(_cell(r, name) for name in shown))
        console.print(table)
        for r in mine:
            if "about" in r:
                console.print(r["about"], style="dim", highlight=False, markup=False)
    for name, value in about.items():
        console.print(f"{name}: {value}", style="dim", highlight=False, markup=False)


def _cell(row: Mapping[str, Any], name: str) -> str:
    value = row[name]
    if value is None:
        return ""
    if name == "target":
        return f"{value:g} {'met' if row['of_plain'] >= value else 'missed'}"
    digits = 4 if name == "recall_at_10" else 2
    return f"{value:,.{digits if value < 100 else 0}f}"


def bench_search(
    *,
    vectors: int = 1_000_000,
    centres: int | None = None,
    width: int = 256,
    spread: float = 0.5,
    queries: int = 1000,
    kinds: Sequence[Kind] = ("flat", "ivf", "hnsw"),
    model: str = "starter/clip-mini",
    pictures: int = 128,
    batch: int = 64,
    repeats: int = 10,
    device: str = "cpu",
    threads: int | None = None,
    json: str | None = None,
) -> dict[str, Any]:
    """Time building and asking an index of each kind, and embedding against the plain frozen forward.

    vectors: unit vectors in the index; 0 leaves that part out.  centres: they lie around so many; by default one for a
        hundred vectors.  width: of a vector.  spread: length of what is added to a centre of length 1.
    queries: held-out points around the same centres, 1.25 times as far from them; 100 or more.
    kinds: flat, ivf, hnsw; flat is always measured, since the others are held against it.
    model: whose pictures are embedded.  pictures: JPEG files of 500 x 375; 0 leaves that part out.  batch: pictures.
    repeats: turns of a batch of queries and of embedding, ten times as many of one query.
    device: of the network.  threads: of the network and of FAISS.  json: file for ``{"machine": .., "rows": [..]}``.
    Raises ValueError for options that cannot be, RuntimeError if embedding gives other vectors than the forward.
    """
    check_json(json)
    middle = max(1, vectors // 100) if centres is None else centres
    if min(vectors, pictures) < 0 or min(middle, width, batch, repeats) < 1 or spread <= 0 or queries < BATCH:
        raise ValueError(
            f"vectors={vectors}, pictures={pictures} (0 or more), centres={middle}, width={width}, batch={batch}, "
            f"repeats={repeats} (1 or more), spread={spread:g} (above 0), queries={queries} ({BATCH} or more): one of "
            "them cannot be."
        )
    if not vectors and not pictures:
        raise ValueError("vectors=0 and pictures=0 leave nothing to measure.")
    if pictures > 256**2:
        raise ValueError(f"pictures={pictures}: at most {256**2} can be told apart.")
    where, before = resolve_device(device), (torch.get_num_threads(), faiss.omp_get_max_threads())
    torch.set_num_threads(threads or before[0])
    faiss.omp_set_num_threads(threads or before[1])
    rows: list[dict[str, Any]] = []
    try:
        if pictures:
            rows += _embedding(model, pictures, batch, repeats, where)
        if vectors:
            rows += _kinds(kinds, Cloud.drawn(vectors, middle, width, spread, queries), repeats)
        about = machine(where, faiss=version("faiss-cpu"), faiss_threads=faiss.omp_get_max_threads())
    finally:
        torch.set_num_threads(before[0])
        faiss.omp_set_num_threads(before[1])
    about = {k: v for k, v in about.items() if k not in ("times_plain_is", "times_floor_is", "peak_mb_is")}
    about |= {"model": model, "pictures": pictures, "batch": batch, "repeats": repeats, "queries": queries}
    near = [round(1 / sqrt(1 + (far * spread) ** 2), 3) for far in (1, FURTHER)]
    about["vectors_are"] = f"around {middle:,} centres, cosine {near[0]} with theirs; queries have {near[1]}"
    about["of_plain_is"] = "median over the turns of the plain forward's time divided by this one's"
    _show(about, rows)
    if json is not None:
        write(json, about, rows)
    return {"machine": about, "rows": rows}
