"""With a real Ray on this machine: two workers, four shards."""

import functools
import logging
import runpy
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vpt.data.collection import open_collection
from vpt.data.item import DataError, Item
from vpt.search.embed import Embedded, embed
from vpt.search.encoder import Encoder
from vpt.search.index import Index
from vpt.search.resume import BEGUN
from vpt.search.shards import read_label, read_vectors, whole

ray = pytest.importorskip("ray")
ray_embed = pytest.importorskip("vpt.search.ray_embed")
embed_with_ray = ray_embed.embed_with_ray

pytestmark = [
    # Ray warns of fields of its own context when it makes one
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.data"),
    # and at each start says that GPUs will be hidden otherwise one day
    pytest.mark.filterwarnings("ignore:.*override accelerator visible devices:FutureWarning"),
]
MAKE = functools.partial(Encoder.open, "starter/clip-mini", device="cpu")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fourteen pictures, each of a colour of its own."""
    folder = tmp_path_factory.mktemp("pictures")
    for i in range(14):
        Image.new("RGB", (48, 48), (15 * i, 255 - 15 * i, 60)).save(folder / f"{i:02d}.png")
    return folder


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return MAKE()


@pytest.fixture(scope="module")
def items(pictures: Path) -> list[Item]:
    return list(open_collection(pictures).items)


@pytest.fixture
def running(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A Ray that may use two cores and tells nobody; it has five minutes, since on a busy machine it may hang."""

    def late(*_: object) -> None:
        raise TimeoutError("Ray was not done in five minutes")

    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(300)
    try:
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
        ray.shutdown()


def shards(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.name != BEGUN}


def times(folder: Path) -> dict[str, int]:
    return {p.stem: p.stat().st_mtime_ns for p in folder.glob("*.npy")}


class Kill(BaseException):
    """The end of a machine."""


def test_an_index_that_two_workers_build_is_what_one_machine_builds_and_goes_on_by_shard(
    running: None, pictures: Path, encoder: Encoder, tmp_path: Path
) -> None:
    there, here = tmp_path / "ray", tmp_path / "here"
    with pytest.raises(ValueError, match=r"3 workers of 1 CPUs need 3, and Ray has 2\. Ask for fewer"):
        embed_with_ray(MAKE, str(pictures), there, workers=3)
    with pytest.raises(ValueError, match=r"2 workers of 1 GPUs need 2, and Ray has 0"):
        embed_with_ray(MAKE, str(pictures), there, gpus=1)
    build = functools.partial(Index.build, encoder=encoder, collection=pictures, batch_size=2, shard=4)
    alone = build(here)

    def killed(*_: object, **__: object) -> Embedded:
        """Leaves a shard without its label, and a whole one behind the gap."""
        for name in ("000001.npy", "000002.npy", "000002.json"):
            shutil.copy(here / "shards" / name, there / "shards" / name)
        raise Kill

    def workers(_: Encoder, __: object, items: list[Item], folder: Path, **options: Any) -> Embedded:
        return embed_with_ray(MAKE, str(pictures), folder, items=items, workers=2, **options)

    with pytest.raises(Kill):
        build(there, embedder=killed)
    before = times(there / "shards")
    index = build(there, embedder=workers)
    found = index.embedded
    assert alone.embedded.shards == found.shards == [0, 1, 2, 3]
    assert (alone.embedded.count, found.count, found.skipped) == (14, 10, [])
    assert min(found.encoding, found.decoding, found.seconds) > 0
    assert shards(there / "shards") == shards(here / "shards")  # to the byte, labels too
    assert not (there / "shards" / BEGUN).exists()
    assert [n for n in before if times(there / "shards")[n] == before[n]] == ["000002"]
    assert replace(index.manifest, generation=0) == replace(alone.manifest, generation=0)
    assert index.search(encoder, texts=["red"], k=20) == alone.search(encoder, texts=["red"], k=20)


class Pool:
    """In place of Ray Data: one worker in this process, whose parts come back last first."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(ray_embed, "_passed", self.passed)
        monkeypatch.setattr(ray_embed, "_check_room", lambda *_: None)
        monkeypatch.setattr(ray, "is_initialized", lambda: True)

    def passed(self, rows: list[dict], given: tuple, *_: object) -> Iterator[dict]:
        worker = ray_embed._Worker(*given)
        return map(worker, reversed(rows))


@pytest.fixture
def pool(monkeypatch: pytest.MonkeyPatch, encoder: Encoder) -> Callable[..., Embedded]:
    Pool(monkeypatch)
    return functools.partial(embed_with_ray, lambda: encoder, batch_size=2, shard=3)


@pytest.fixture
def spoiled(items: list[Item], tmp_path: Path) -> list[Item]:
    """The second part has no readable picture, the third lacks one."""
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no picture")
    return [replace(item, file=str(bad)) if i in (3, 4, 5, 7) else item for i, item in enumerate(items)]


def test_unreadable_pictures_leave_no_gap_in_the_numbers(
    pool: Callable[..., Embedded], spoiled: list[Item], items: list[Item], encoder: Encoder, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    found = pool("unused", out, items=spoiled, first=2, skip_unreadable=True)
    assert found.shards == [2, 3, 4, 5]
    assert found.count == 10
    assert sorted(key for key, _ in found.skipped) == [items[i].key for i in (3, 4, 5, 7)]
    assert not whole(out, 6)
    held = {}
    for n in found.shards:
        label = read_label(out, n)
        held |= dict(zip(label.ids, read_vectors(out, n, label), strict=True))
    good = [item for i, item in enumerate(items) if i not in (3, 4, 5, 7)]
    truth = encoder.images([item.file for item in good])
    assert held.keys() == {item.key for item in good}
    assert all(np.abs(held[item.key] - v).max() < 1e-3 for item, v in zip(good, truth, strict=True))


def test_an_unreadable_picture_is_refused_by_name_and_what_was_whole_is_kept(
    pool: Callable[..., Embedded], spoiled: list[Item], items: list[Item], tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=r"1 pictures cannot be read, .*: 07\.png: .*\(--skip-unreadable"):
        pool("unused", tmp_path / "out", items=spoiled)
    before = times(tmp_path / "out")
    assert {"000003", "000004"} <= before.keys()
    found = pool("unused", tmp_path / "out", items=items)  # repaired
    assert found.shards == [0, 1, 2, 3, 4]
    assert {n for n in before if before[n] == times(tmp_path / "out")[n]} == {"000003", "000004"}


def test_a_shard_that_changed_on_disk_or_whose_picture_did_is_embedded_again(
    pool: Callable[..., Embedded], items: list[Item], tmp_path: Path
) -> None:
    out, copy = tmp_path / "out", tmp_path / "copy.png"
    copy.write_bytes(Path(items[0].file).read_bytes())
    own = [replace(items[0], file=str(copy)), *items[1:]]
    pool("unused", out, items=own)
    Image.new("RGB", (48, 48), "white").save(copy)
    (out / "000002.npy").write_bytes((out / "000001.npy").read_bytes())
    assert pool("unused", out, items=own).count == 6  # shards 0 and 2
    assert pool("unused", out, items=own).count == 0


def test_pictures_without_files_are_read_from_the_collection(
    pool: Callable[..., Embedded], encoder: Encoder, tmp_path: Path
) -> None:
    source = open_collection("digits")
    found = pool("digits", tmp_path / "out", items=source.items[:4])
    embed(encoder, source, source.items[:4], tmp_path / "here", batch_size=2, shard=3)
    assert found.shards == [0, 1]
    assert shards(tmp_path / "out") == shards(tmp_path / "here")


def test_shards_of_another_encoder_are_refused(
    pool: Callable[..., Embedded], items: list[Item], encoder: Encoder, tmp_path: Path
) -> None:
    pool("unused", tmp_path, items=items[:3])
    written = (tmp_path / BEGUN).read_text()
    (tmp_path / BEGUN).write_text(written.replace(encoder.about()["fingerprint"], "0123"))
    before = times(tmp_path)
    with pytest.raises(
        ValueError, match=r"holds vectors of starter/clip-mini \(image tower 0123, image rows none\)"
    ):
        pool("unused", tmp_path, items=items)
    assert times(tmp_path) == before


def test_what_a_worker_cannot_load_is_said_as_on_one_machine(
    pool: Callable[..., Embedded], items: list[Item], tmp_path: Path
) -> None:
    lost = functools.partial(embed_with_ray, functools.partial(Encoder.open, "starter/none"))
    with pytest.raises(ValueError, match="no starter 'none'"):
        lost("unused", tmp_path / "out", items=items)


def test_nothing_to_embed_starts_nothing(tmp_path: Path) -> None:
    assert embed_with_ray(MAKE, "unused", tmp_path / "out", items=[]) == Embedded()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("workers", "cpus", "gpus"), [(0, 1, 0), (1, 0, 0), (1, 1, -1)])
def test_workers_of_nothing_are_refused(workers: int, cpus: int, gpus: float) -> None:
    with pytest.raises(ValueError, match=f"{workers} workers of {cpus} cores and {gpus} GPUs cannot be"):
        ray_embed._check_room(workers, cpus, gpus)


def test_without_the_extra_one_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r"pip install 'visual-prompt-tuning\[ray\]'"):
        runpy.run_path(ray_embed.__file__)
