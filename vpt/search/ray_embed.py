"""A collection to shards of vectors on many machines: what ``embed`` does, part by part under Ray Data.

Every worker loads the backbone once, and one shard is one task, so the files are those that one machine writes.
Pictures and shards lie where all machines see them (a shared disk), under the same paths.
"""

from __future__ import annotations

import logging
import os
import pickle
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from vpt.data.collection import open_collection
from vpt.data.item import Files, Item, Source
from vpt.search.embed import Embedded, embed, refusal
from vpt.search.encoder import Encoder
from vpt.search.resume import claim
from vpt.search.shards import SHARD, BadIndex, read_label, read_vectors, stamp, whole, write_shard

try:
    import ray
    import ray.data
except ImportError as error:
    raise ImportError(
        f"embedding on many machines needs Ray Data, and {error.name} is not installed. "
        "Install it: pip install 'visual-prompt-tuning[ray]'."
    ) from error

__all__ = ["embed_with_ray"]


def embed_with_ray(
    make: Callable[[], Encoder],
    data: str,
    folder: str | os.PathLike[str],
    *,
    root: str | None = None,
    items: Sequence[Item] | None = None,
    first: int = 0,
    workers: int = 2,
    cpus: int = 1,
    gpus: float = 0,
    batch_size: int = 64,
    shard: int = SHARD,
    skip_unreadable: bool = False,
    progress: bool = False,
) -> Embedded:
    """Write the unit vectors of a collection as shards ``first``, ``first + 1``, .., of ``shard`` pictures each.

    Given again after a kill, it embeds only what no whole shard holds. The Ray that runs in this process or that
    RAY_ADDRESS names is used; without one, a local Ray is started and stopped.

    make: gives every worker its encoder, such as ``partial(Encoder.open, "starter/clip-mini", "rows.safetensors")``.
    data, root: as ``open_collection`` takes them.  items: of that collection; None: all.
    workers: processes.  cpus, gpus: of each; a share of a GPU is allowed.  progress: show Ray's bars.
    Returns what ``embed`` returns: ``count`` of what was embedded now, ``shards`` with those that were whole already.

    Raises:
        ValueError: workers that the machines do not have room for, shards of another encoder, a ``make`` that fails.
        DataError: a picture cannot be read, unless ``skip_unreadable``; the other pictures of its shard are kept.
    """
    folder, started, found = Path(folder).resolve(), time.perf_counter(), Embedded()
    data, root = _absolute(data), root and _absolute(root)
    if items is None:
        items = [item for part in open_collection(data, root).splits().values() for item in part]
    parts = [items[start : start + shard] for start in range(0, len(items), shard)]
    rows = [{"number": first + i, "items": pickle.dumps(_placed(part))} for i, part in enumerate(parts)]
    if not rows:
        return found
    folder.mkdir(parents=True, exist_ok=True)
    with _running(progress):
        _check_room(workers, cpus, gpus)
        for row in _passed(rows, (make, data, root, folder, batch_size, cpus), workers, cpus, gpus):
            if row["refused"]:
                raise ValueError(row["refused"])
            _merge(found, pickle.loads(row["embedded"]))
            if found.skipped and not skip_unreadable:
                raise refusal(found.skipped, len(items), found.count)
    if lost := [n for n in found.shards if not whole(folder, n)]:
        raise ValueError(
            f"workers wrote shard {lost[0]} to {folder}, and it is not there. Give a folder that all machines share."
        )
    found.shards = _close_gaps(folder, first, found.shards)
    found.seconds = time.perf_counter() - started
    return found


def _passed(
    rows: list[dict[str, Any]], given: tuple[object, ...], workers: int, cpus: int, gpus: float
) -> Iterable[dict[str, Any]]:
    """What the workers say of each part, in the order in which they are done."""
    made: Any = _Worker  # Ray's types know functions only
    return (
        ray.data.from_items(rows, override_num_blocks=len(rows))
        .map(
            made,
            fn_constructor_args=given,
            num_cpus=cpus,
            num_gpus=gpus or None,
            # a shard takes minutes: one that waits in line behind another worker's would be the last to end
            compute=ray.data.ActorPoolStrategy(size=workers, max_tasks_in_flight_per_actor=1),
        )
        .iter_rows()
    )


class _Worker:
    """One process of the pool: a loaded encoder, and the shards that are handed to it."""

    def __init__(
        self,
        make: Callable[[], Encoder],
        data: str,
        root: str | None,
        folder: Path,
        batch_size: int,
        threads: int,
    ) -> None:
        self.data, self.root, self.folder = data, root, folder
        self.batch_size, self.threads = batch_size, threads
        self.refused = ""
        try:
            self.encoder = make()
            claim(folder, self.encoder)
        except (
            ValueError,
            OSError,
        ) as error:  # raised here, it would reach the user as the death of an actor
            self.refused = str(error)

    @cached_property
    def source(self) -> Source:
        """The collection, for pictures that have no file of their own."""
        return open_collection(self.data, self.root)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Embed one part, unless its shard is whole."""
        if self.refused:
            return {"refused": self.refused, "embedded": b""}
        items, number = pickle.loads(row["items"]), int(row["number"])
        if _done(self.folder, number, items):
            found = Embedded(shards=[number])
        else:
            found = embed(
                self.encoder,
                Files("", (), False, {}) if all(item.file for item in items) else self.source,
                items,
                self.folder,
                first=number,
                batch_size=self.batch_size,
                shard=len(items),
                skip_unreadable=True,  # the other pictures are kept; who started us decides what that means
                threads=self.threads,
            )
        return {"refused": "", "embedded": pickle.dumps(found)}


def _absolute(path: str) -> str:
    """Workers run elsewhere. A name that is no path stays as it is."""
    return os.path.abspath(path) if os.path.exists(path) else path


def _placed(items: Sequence[Item]) -> list[Item]:
    return [replace(item, file=os.path.abspath(item.file)) if item.file else item for item in items]


def _done(folder: Path, number: int, items: Sequence[Item]) -> bool:
    """Whether a shard holds these pictures, all of them, as their files are now."""
    if not whole(folder, number):
        return False
    try:
        label = read_label(folder, number)
        read_vectors(folder, number, label)
    except BadIndex:
        return False
    return label.ids == [item.key for item in items] and label.stamps == [stamp(item) for item in items]


def _merge(found: Embedded, part: Embedded) -> None:
    found.count += part.count
    found.shards += part.shards
    found.skipped += part.skipped
    found.decoding += part.decoding
    found.encoding += part.encoding


def _close_gaps(folder: Path, first: int, numbers: Sequence[int]) -> list[int]:
    """Numbers in a row from ``first``: a part without one readable picture makes no shard, so the last takes its place.

    A kill leaves a shard twice, which says the same twice.
    """
    there = sorted(numbers)
    for gap in [n for n in range(first, first + len(there)) if n not in there]:
        last = there.pop()
        label = read_label(folder, last)
        items = [label.item(row) for row in range(len(label.ids))]
        write_shard(folder, gap, items, read_vectors(folder, last, label), added=label.added)
        (folder / f"{last:06d}.json").unlink()
        (folder / f"{last:06d}.npy").unlink()
        there = sorted([*there, gap])
    return there


@contextmanager
def _running(progress: bool) -> Iterator[None]:
    """A Ray: the one that runs, or one of our own until the end. Ray Data is quiet without ``progress``."""
    own = not ray.is_initialized()
    if own:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a run reports to nobody unless asked to
        ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    context, logger = ray.data.DataContext.get_current(), logging.getLogger("ray.data")
    before = context.enable_progress_bars, logger.level
    context.enable_progress_bars = progress
    logger.setLevel(logging.INFO if progress else logging.WARNING)
    try:
        yield
    finally:
        context.enable_progress_bars = before[0]
        logger.setLevel(before[1])
        if own:
            ray.shutdown()


def _check_room(workers: int, cpus: int, gpus: float) -> None:
    """Raises ValueError for workers that would wait for ever."""
    if min(workers, cpus) < 1 or not gpus >= 0:
        raise ValueError(
            f"{workers} workers of {cpus} cores and {gpus:g} GPUs cannot be. Give 1 or more, of 1 core or more."
        )
    there = ray.cluster_resources()
    for what, each in (("CPU", cpus), ("GPU", gpus)):
        if workers * each > there.get(what, 0):
            raise ValueError(
                f"{workers} workers of {each:g} {what}s need {workers * each:g}, and Ray has {there.get(what, 0):g}. "
                "Ask for fewer workers, or connect to a larger cluster (RAY_ADDRESS)."
            )
