"""A collection to shards of vectors: pictures are decoded in threads while those before them are encoded."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TimeRemainingColumn
from rich.text import Text
from torch import Tensor

from vpt.data.images import UnreadableImage, decode
from vpt.data.item import DataError, Item, Source
from vpt.search.encoder import Encoder
from vpt.search.shards import SHARD, write_shard

__all__ = ["Embedded", "embed", "read_picture", "refusal"]

THREADS = 8  # more wait for the interpreter
A = TypeVar("A")
B = TypeVar("B")


@dataclass
class Embedded:
    """What came of some pictures.

    shards: numbers of those that were written.  skipped: id and reason of pictures that could not be read.
    decoding: seconds of reading, decoding and resizing, summed over threads.  encoding: seconds in the network.
    seconds: of it all; less than the two together where they overlap.
    """

    count: int = 0
    shards: list[int] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)
    decoding: float = 0.0
    encoding: float = 0.0
    seconds: float = 0.0

    def __str__(self) -> str:
        rate = self.count / self.seconds if self.seconds else 0.0
        return (
            f"{self.count:,} pictures in {self.seconds:.1f} s, {rate:,.0f} a second (decoding {self.decoding:.1f} s "
            f"over all threads, encoding {self.encoding:.1f} s)"
        )


class _Rate(ProgressColumn):
    """Pictures a second."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:,.0f} pictures/s" if task.speed else "", style="progress.data.speed")


def embed(
    encoder: Encoder,
    source: Source,
    items: Sequence[Item],
    folder: str | os.PathLike[str],
    *,
    first: int = 0,
    added: bool = False,
    batch_size: int = 64,
    shard: int = SHARD,
    skip_unreadable: bool = False,
    threads: int | None = None,
    progress: bool = False,
) -> Embedded:
    """Write the unit vectors of pictures as shards ``first``, ``first + 1``, .. of ``shard`` vectors each.

    Shards that were written when a run is killed are whole, so it can go on with the items that are in none of them.
    added: the pictures are in no collection.  threads: that decode; None: one a core, at most 8.
    Raises DataError for a picture that cannot be read, unless ``skip_unreadable``.
    """
    folder, found, started = Path(folder), Embedded(), time.perf_counter()
    waiting: list[Item] = []
    vectors: list[np.ndarray] = []

    def flush(count: int) -> None:
        part, rest = waiting[:count], waiting[count:]
        every = np.concatenate(vectors)
        number = first + len(found.shards)
        write_shard(folder, number, part, every[:count], added=added)
        found.shards.append(number)
        waiting[:], vectors[:] = rest, [every[count:]]

    bar = Progress(
        "embedding",
        BarColumn(),
        MofNCompleteColumn(),
        _Rate(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=not progress,
        transient=True,
    )
    threads = threads or min(os.cpu_count() or 1, THREADS)
    with bar, ThreadPoolExecutor(threads) as pool:
        task = bar.add_task("", total=len(items))
        looks = _ahead(pool, lambda item: _look(encoder, source, item), items, 2 * batch_size + threads)
        for batch in _batches(looks, batch_size):
            good = [(look.item, look.pixels) for look in batch if look.pixels is not None]
            found.decoding += sum(look.seconds for look in batch)
            bad = [(look.item.key, look.why) for look in batch if look.pixels is None]
            if bad and not skip_unreadable:
                if waiting:
                    flush(len(waiting))
                raise refusal(bad, len(items), found.count)
            found.skipped += bad
            if good:
                before = time.perf_counter()
                vectors.append(encoder.pixels(torch.stack([pixels for _, pixels in good])))
                found.encoding += time.perf_counter() - before
                waiting += [item for item, _ in good]
                found.count += len(good)
            while len(waiting) >= shard:
                flush(shard)
            bar.advance(task, len(batch))
        if waiting:
            flush(len(waiting))
    found.seconds = time.perf_counter() - started
    return found


def read_picture(source: Source, item: Item) -> Image.Image:
    """RGB. Raises UnreadableImage where the file is gone, or holds no picture."""
    try:
        return decode(source.read(item), item.key)
    except OSError as error:
        raise UnreadableImage(item.key, error.strerror or str(error)) from error


@dataclass
class _Look:
    item: Item
    pixels: Tensor | None
    why: str
    seconds: float


def _look(encoder: Encoder, source: Source, item: Item) -> _Look:
    before = time.perf_counter()
    try:
        pixels, why = encoder.preprocess(read_picture(source, item)), ""
    except UnreadableImage as error:
        pixels, why = None, error.reason
    return _Look(item, pixels, why, time.perf_counter() - before)


def _ahead(pool: ThreadPoolExecutor, f: Callable[[A], B], given: Iterable[A], ahead: int) -> Iterator[B]:
    """f of each in order, with at most ``ahead`` begun or waiting: a collection does not fit in memory."""
    begun: deque[Future[B]] = deque()
    try:
        for one in given:
            begun.append(pool.submit(f, one))
            if len(begun) >= ahead:
                yield begun.popleft().result()
        while begun:
            yield begun.popleft().result()
    finally:
        for future in begun:
            future.cancel()


def _batches(given: Iterable[B], size: int) -> Iterator[list[B]]:
    batch: list[B] = []
    for one in given:
        batch.append(one)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def refusal(bad: Sequence[tuple[str, str]], total: int, done: int) -> DataError:
    """Of pictures that cannot be read, with the reasons."""
    listed = "; ".join(f"{key}: {why}" for key, why in bad[:8])
    return DataError(
        f"{len(bad)} pictures cannot be read, after {done:,} of {total:,} that were: {listed}. Repair or remove them, "
        "or leave them out with skip_unreadable (--skip-unreadable); a build then goes on from here."
    )
