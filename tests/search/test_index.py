"""An index from pictures to answers: against brute force, a dictionary, and kills at every write."""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from vpt.data.images import UnreadableImage
from vpt.data.item import DataError
from vpt.prompt import Site
from vpt.promptset import PromptSet
from vpt.search import index as module
from vpt.search import stores
from vpt.search.encoder import Encoder
from vpt.search.index import Index
from vpt.search.manifest import IndexBusy, Manifest, writing
from vpt.search.shards import BadIndex
from vpt.search.vectors import Hit
from vpt.towers.backbone import Backbone

TEXT = PromptSet(
    {Site("text", "embedded", "<ctx>"): torch.ones(3, 24)},
    about={"names": {"sentence": "<ctx*3> {}.", "class_specific": False}},
)


def image_rows(value: float) -> PromptSet:
    return PromptSet({Site("image", "0", "prefix"): torch.full((2, 32), value)})


@pytest.fixture(scope="module")
def encoder(tiny_clip: Backbone) -> Encoder:
    return Encoder(tiny_clip)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    root = tmp_path / "pictures"
    draw(root, range(11))
    return root


def draw(root: Path, numbers: Iterable[int], seed: int = 0) -> list[Path]:
    root.mkdir(exist_ok=True)
    files = [root / f"{n:02d}.png" for n in numbers]
    for n, file in zip(numbers, files, strict=True):
        noise = np.random.default_rng([seed, n]).integers(0, 255, (6, 6, 3), dtype=np.uint8)
        Image.fromarray(noise).resize((40, 36)).save(file)
    return files


def build(folder: Path, encoder: Encoder, pictures: Path, **options: Any) -> Index:
    return Index.build(folder, encoder, pictures, batch_size=4, shard=3, **options)


def truth(
    encoder: Encoder, files: dict[str, Path], texts: Sequence[str], k: int
) -> list[list[tuple[str, float]]]:
    """Brute force over the pictures themselves."""
    held = encoder.images(list(files.values()))
    scores = encoder.texts(texts) @ held.T
    return [sorted(zip(files, row.tolist(), strict=True), key=lambda p: -p[1])[:k] for row in scores]


def agrees(index: Index, encoder: Encoder, files: dict[str, Path], k: int = 20) -> None:
    texts = ["a red bicycle", "noise"]
    found = index.search(encoder, texts=texts, k=k)
    for hits, wanted in zip(found, truth(encoder, files, texts, k), strict=True):
        assert np.allclose([h.score for h in hits], [s for _, s in wanted], atol=2e-3)
        assert {h.id for h in hits} == {i for i, _ in wanted}
    assert set(index.ids) == files.keys()
    assert len(index) == len(files)


def by_name(pictures: Path) -> dict[str, Path]:
    return {p.name: p for p in sorted(pictures.glob("*.png"))}


@pytest.mark.parametrize("kind", ["auto", "flat", "ivf", "hnsw"])
def test_it_finds_what_brute_force_finds(kind: str, encoder: Encoder, pictures: Path, tmp_path: Path) -> None:
    made = build(tmp_path / "i", encoder, pictures, kind=kind)
    assert made.embedded.shards == [0, 1, 2, 3]
    assert made.embedded.count == 11
    assert made.embedded.seconds > 0 < made.embedded.encoding
    index = Index.open(tmp_path / "i", encoder)
    agrees(index, encoder, by_name(pictures))
    [hits] = index.search(encoder, images=[pictures / "04.png"], k=1)
    assert hits[0].id == "04.png"
    assert hits[0].score == pytest.approx(1, abs=1e-3)
    assert index.picture("04.png").size == (40, 36)
    info = index.info()
    assert (info["pictures"], info["kind"], info["shards"], info["store"]) == (11, kind, 4, "faiss")
    assert info["about"].startswith("flat" if kind == "auto" else kind)
    json.dumps(info)


def test_captions_are_kept(encoder: Encoder, pictures: Path, tmp_path: Path) -> None:
    for file in pictures.glob("*.png"):
        file.with_suffix(".txt").write_text(f"picture {file.stem}")
    index = build(tmp_path / "i", encoder, pictures)
    assert index.item("03.png").captions == ("picture 03",)


class Kill(BaseException):
    """What a user's Ctrl-C, or the end of a machine, looks like from within."""


def dying(monkeypatch: pytest.MonkeyPatch, at: int) -> Callable[[], bool]:
    """Let the process die at its n-th rename; the answer says whether there were so many."""
    count = [0]
    real = {name: getattr(os, name) for name in ("replace", "rename")}

    def renamed(name: str) -> Callable[..., None]:
        def call(*args: Any, **words: Any) -> None:
            count[0] += 1
            if count[0] == at:
                raise Kill
            real[name](*args, **words)

        return call

    for name in real:
        monkeypatch.setattr(os, name, renamed(name))
    return lambda: count[0] >= at


CHANGES: dict[str, Callable[[Path, Encoder, Path], Any]] = {
    "build": lambda folder, encoder, pictures: build(folder, encoder, pictures),
    "add": lambda folder, encoder, pictures: Index.open(folder).add(encoder, [pictures.parent / "new.png"]),
    "remove": lambda folder, encoder, pictures: Index.open(folder).remove(["02.png", "09.png"]),
    "refill": lambda folder, encoder, pictures: Index.refill(folder, kind="hnsw"),
}


@pytest.mark.parametrize("change", list(CHANGES))
def test_killed_at_any_write_it_is_what_it_was_or_what_it_becomes(
    change: str, encoder: Encoder, pictures: Path, tmp_path: Path
) -> None:
    draw(tmp_path, [99])[0].rename(tmp_path / "new.png")
    files = by_name(pictures)
    start = tmp_path / "start"
    build(start, encoder, pictures)
    if change == "build":
        draw(pictures, [0, 20, 21], seed=1)  # one is another picture now, two are new
        (pictures / "05.png").unlink()
    after = {
        "build": by_name(pictures),
        "add": {**files, str(tmp_path / "new.png"): tmp_path / "new.png"},
        "remove": {k: v for k, v in files.items() if k not in ("02.png", "09.png")},
        "refill": files,
    }[change]
    at, more = 0, True
    while more:
        at += 1
        folder = tmp_path / f"i{at}"
        shutil.copytree(start, folder)
        with pytest.MonkeyPatch.context() as patch:
            more = False
            died = dying(patch, at)
            try:
                CHANGES[change](folder, encoder, pictures)
            except Kill:
                more = died()
        index = Index.open(folder, encoder)
        assert set(index.ids) in (set(files), set(after)) if more else set(index.ids) == set(after)
        assert {h.id for h in index.search(encoder, texts=["x"], k=50)[0]} == set(index.ids)
        CHANGES[change](folder, encoder, pictures) if set(index.ids) == set(files) else None
        agrees(Index.open(folder, encoder), encoder, after)
    assert at > 3


def test_a_killed_build_goes_on_with_what_it_has(
    encoder: Encoder, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, asked = tmp_path / "i", []
    pixels = Encoder.pixels

    def dies(self: Encoder, images: Tensor) -> np.ndarray:
        asked.append(len(images))
        if len(asked) == 3:
            raise Kill
        return pixels(self, images)

    monkeypatch.setattr(Encoder, "pixels", dies)
    with pytest.raises(Kill):
        build(folder, encoder, pictures)
    with pytest.raises(FileNotFoundError, match=r"no index.*build was begun"):
        Index.open(folder)
    monkeypatch.setattr(Encoder, "pixels", pixels)
    with pytest.raises(ValueError, match=r"begun.*image rows none.*delete the folder"):
        build(folder, Encoder(encoder.backbone, image_rows(1.0)), pictures)
    index = build(folder, encoder, pictures)
    assert index.embedded.count == 11 - 6  # two shards of three were whole
    agrees(index, encoder, by_name(pictures))
    assert not (folder / "shards" / "building.json").exists()


def test_given_again_it_takes_in_what_changed(encoder: Encoder, pictures: Path, tmp_path: Path) -> None:
    folder = tmp_path / "i"
    build(folder, encoder, pictures)
    assert build(folder, encoder, pictures).embedded.count == 0
    Index.open(folder).remove(["07.png"])
    draw(pictures, [3, 30], seed=1)
    (pictures / "01.png").unlink()
    index = build(folder, encoder, pictures)
    assert index.embedded.count == 2
    files = by_name(pictures)
    del files["07.png"]  # removed by hand, it stays away
    agrees(index, encoder, files)
    draw(pictures, [1], seed=2)  # it is back
    added = draw(tmp_path / "others", [50])[0]
    Index.open(folder).add(encoder, [added])
    index = build(folder, encoder, pictures)  # what was added by hand stays
    agrees(index, encoder, {**files, "01.png": pictures / "01.png", added.as_posix(): added})
    Index.open(folder).add(encoder, [pictures / "07.png"])


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    steps=st.lists(
        st.tuples(
            st.sampled_from(["add", "remove", "build"]), st.sets(st.integers(0, 7), min_size=1, max_size=4)
        ),
        max_size=6,
    )
)
def test_it_holds_what_a_dictionary_holds(
    steps: list[tuple[str, set[int]]], encoder: Encoder, tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = tmp_path_factory.mktemp("model")
    pictures = root / "pictures"
    draw(pictures, range(4))
    model = by_name(pictures)
    index = build(root / "i", encoder, pictures)
    others = draw(root / "others", range(8), seed=3)
    for what, numbers in steps:
        if what == "add":
            files = [others[n] for n in sorted(numbers)]
            index.add(encoder, files)
            model |= {f.as_posix(): f for f in files}
        elif what == "remove":
            ids = [i for n, i in enumerate(sorted(model)) if n in numbers]
            assert index.remove(ids) == len(ids)
            for i in ids:
                del model[i]
        else:
            index = build(root / "i", encoder, pictures)
        assert set(index.ids) == set(model) == set(Index.open(root / "i").ids)
    if model:
        agrees(Index.open(root / "i"), encoder, model)


def test_of_two_writers_the_second_is_refused_and_readers_go_on(
    encoder: Encoder, pictures: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "i"
    index = build(folder, encoder, pictures)
    entered, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with writing(folder):
            entered.set()
            leave.wait(30)

    thread = threading.Thread(target=hold)
    thread.start()
    entered.wait(30)
    try:
        for change in CHANGES.values():
            draw(tmp_path, [99])[0].rename(tmp_path / "new.png")
            with pytest.raises(IndexBusy, match=rf"process {os.getpid()} on .*Wait until it is done"):
                change(folder, encoder, pictures)
        agrees(Index.open(folder, encoder), encoder, by_name(pictures))
    finally:
        leave.set()
        thread.join()
    assert index.remove(["00.png"]) == 1


def test_a_reader_opened_before_a_change_still_answers(
    encoder: Encoder, pictures: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "i"
    build(folder, encoder, pictures)
    early = Index.open(folder)
    Index.open(folder).remove(["00.png"])
    assert "00.png" not in [h.id for h in early.search(encoder, texts=["x"], k=20)[0]]


def test_prompts_of_the_text_tower_keep_the_vectors_valid(
    tiny_clip: Backbone, encoder: Encoder, pictures: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "i"
    before = build(folder, encoder, pictures)
    stored = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    tuned = Encoder(tiny_clip, TEXT)
    index = Index.open(folder, tuned)
    agrees(index, tuned, by_name(pictures))
    assert index.search(tuned, texts=["noise"]) != before.search(encoder, texts=["noise"])
    assert stored == {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    assert "text tower only keeps them valid" in index.info()["valid"]


def test_other_image_rows_and_other_weights_are_refused_with_both_values(
    tiny_clip: Backbone, encoder: Encoder, pictures: Path, tmp_path: Path
) -> None:
    folder, prompts = tmp_path / "i", image_rows(1.0)
    with_rows = Encoder(tiny_clip, prompts)
    index = build(folder, with_rows, pictures)
    agrees(index, with_rows, by_name(pictures))
    own = prompts.written("image")
    assert own in index.info()["valid"]
    kept = PromptSet.load(folder / index.manifest.prompts)
    Index.open(folder, Encoder(tiny_clip, kept))  # later pictures are embedded with these
    both = PromptSet({**prompts.rows, **TEXT.rows}, about=TEXT.about)
    Index.open(folder, Encoder(tiny_clip, both))
    other = image_rows(2.0)
    for wrong in (Encoder(tiny_clip, other), encoder):
        has = wrong.about()["rows"] or "none"
        told = rf"image rows {own}, not {has}.*vpt index build .*pictures --out NEW --model open_clip/tiny"
        for attempt in (
            lambda e=wrong: Index.open(folder, e),
            lambda e=wrong: index.search(e, texts=["x"]),
            lambda e=wrong: index.add(e, [pictures / "00.png"]),
            lambda e=wrong: build(folder, e, pictures),
        ):
            with pytest.raises(ValueError, match=told):
                attempt()
    manifest = json.loads((folder / "index.json").read_text())
    manifest["encoder"]["fingerprint"] = "f" * 16
    (folder / "index.json").write_text(json.dumps(manifest))
    now = with_rows.about()["fingerprint"]
    with pytest.raises(ValueError, match=f"image tower {'f' * 16}, not {now}"):
        Index.open(folder, with_rows)


def test_pictures_that_cannot_be_read_are_refused_or_left_out(
    encoder: Encoder, pictures: Path, tmp_path: Path
) -> None:
    (pictures / "05.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"1 pictures cannot be read.*05\.png: no known.*--skip-unreadable"):
        build(tmp_path / "i", encoder, pictures)
    index = build(tmp_path / "i", encoder, pictures, skip_unreadable=True)
    assert [i for i, _ in index.embedded.skipped] == ["05.png"] == [i for i, _ in index.info()["skipped"]]
    files = by_name(pictures)
    del files["05.png"]
    agrees(index, encoder, files)
    draw(pictures, [5])
    assert build(tmp_path / "i", encoder, pictures).embedded.count == 1  # mended, it comes in
    (pictures / "06.png").unlink()
    with pytest.raises(UnreadableImage, match=r"06\.png"):
        index.picture("06.png")


def test_what_cannot_be_done_is_refused_before_anything_changes(
    encoder: Encoder, pictures: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "i"
    index = build(folder, encoder, pictures)
    stored = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    draw(tmp_path / "other", [1])
    for attempt, told in [
        (lambda: index.remove(["00.png", "zz.png"]), r"zz\.png. Nothing was removed"),
        (lambda: build(folder, encoder, tmp_path / "other"), "is an index of .*vpt index add"),
        (lambda: build(folder, encoder, pictures, kind="tree"), "'tree'"),
        (lambda: build(folder, encoder, pictures, store="mysql://x"), "no store 'mysql"),
        (lambda: build(folder, encoder, pictures, store="postgresql://a:secret@h/d?table=t"), "PGPASSWORD"),
        (lambda: index.search(encoder), "nothing to look for"),
    ]:
        with pytest.raises(ValueError, match=told):
            attempt()
    with pytest.raises(FileNotFoundError, match=r"none\.png.*nothing was added"):
        index.add(encoder, [pictures / "00.png", pictures / "none.png"])
    assert stored == {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    index.remove(index.ids)
    with pytest.raises(ValueError, match=r"holds no pictures.*vpt index add"):
        Index.open(folder).search(encoder, texts=["x"])
    index.add(encoder, [pictures / "00.png"])
    assert len(index) == 1


def test_a_graph_is_not_changed_and_becomes_another_kind_without_embedding(
    encoder: Encoder, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = build(tmp_path / "i", encoder, pictures, kind="hnsw")
    monkeypatch.setattr(Encoder, "pixels", lambda *_: pytest.fail("a picture was embedded"))
    for attempt in (lambda: index.remove(["00.png"]), lambda: index.add(encoder, [pictures / "00.png"])):
        with pytest.raises(ValueError, match=r"HNSW graph.*--kind auto"):
            attempt()
    index = Index.refill(tmp_path / "i", kind="auto")
    assert index.remove(["00.png"]) == 1


def test_a_lost_store_is_filled_again_from_the_shards(
    encoder: Encoder, pictures: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "i"
    index = build(folder, encoder, pictures)
    index.remove(["02.png"])
    shutil.rmtree(folder / index.manifest.vectors)
    with pytest.raises(BadIndex, match=r"missing.*vpt index build --out"):
        Index.open(folder).search(encoder, texts=["x"])
    Index.refill(folder)
    files = by_name(pictures)
    del files["02.png"]
    agrees(Index.open(folder), encoder, files)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "damaged"),
        ("[]", "damaged"),
        ('{"format": 9}', "format 9, this vpt reads format 1"),
        ('{"format": 1}', "damaged"),
        ('{"format": 1, "encoder": {}, "collection": "x"}', "damaged"),
    ],
)
def test_a_damaged_manifest_is_refused(text: str, told: str, tmp_path: Path) -> None:
    (tmp_path / "index.json").write_text(text)
    with pytest.raises(BadIndex, match=told):
        Index.open(tmp_path)


def test_shards_of_another_width_are_refused(encoder: Encoder, pictures: Path, tmp_path: Path) -> None:
    folder = tmp_path / "i"
    index = build(folder, encoder, pictures)
    manifest = json.loads((folder / "index.json").read_text())
    manifest["encoder"]["width"] = 5
    (folder / "index.json").write_text(json.dumps(manifest))
    with pytest.raises(BadIndex, match=r"vectors of 16, the index is 5 wide"):
        Index.refill(folder)
    with pytest.raises(ValueError, match="width 5, not 16"):
        Index.open(folder, encoder)
    assert index.manifest.encoder["width"] == 16


class Shelf:
    """A database in a dictionary: what :class:`vpt.search.vectors.Vectors` asks for, and no more."""

    held: dict[str, np.ndarray]

    def __init__(self, held: dict[str, np.ndarray], dies_at: int | None = None) -> None:
        self.width, self.held, self.dies_at = 16, held, dies_at

    def __len__(self) -> int:
        return len(self.held)

    def add(self, ids: Sequence[str], vectors: np.ndarray) -> None:
        if self.dies_at is not None:
            self.dies_at -= 1
            if self.dies_at < 0:
                raise Kill
        self.held |= dict(zip(ids, vectors.astype(np.float32), strict=True))

    def remove(self, ids: Sequence[str]) -> int:
        return len([self.held.pop(i) for i in ids if i in self.held])

    def search(self, queries: np.ndarray, k: int) -> list[list[Hit]]:
        return [
            sorted((Hit(i, float(v @ q)) for i, v in self.held.items()), key=lambda h: -h.score)[:k]
            for q in queries
        ]

    def close(self) -> None:
        pass


@pytest.fixture
def database(monkeypatch: pytest.MonkeyPatch) -> Shelf:
    """Stands behind every address that begins with "shelf:"."""
    shelf = Shelf({})
    real = stores.open_database

    def opened(store: str, width: int, *, fresh: bool = False) -> Any:
        return shelf if store.startswith("shelf:") else real(store, width, fresh=fresh)

    monkeypatch.setattr(module, "open_database", opened)
    return shelf


def test_a_database_holds_what_the_shards_say(
    encoder: Encoder, pictures: Path, tmp_path: Path, database: Shelf
) -> None:
    folder = tmp_path / "i"
    index = build(folder, encoder, pictures, store="shelf:a")
    agrees(index, encoder, by_name(pictures))
    assert not list(folder.glob("vectors-*"))
    index.remove(["02.png"])
    assert len(database) == 10
    index.add(encoder, [pictures / "02.png"])
    assert len(database) == 11
    database.held.clear()
    with pytest.raises(BadIndex, match=r"shelf:a holds 0 of the 11 vectors.*vpt index build --out"):
        Index.open(folder).search(encoder, texts=["x"])
    Index.refill(folder)
    assert database.held.keys() == set(Index.open(folder).ids)
    assert Index.refill(folder, store="faiss").info()["about"].startswith("flat")
    assert len(Index.open(folder).search(encoder, texts=["x"], k=50)[0]) == 11


def test_a_database_that_a_killed_writer_left_behind_is_told_of_and_filled(
    encoder: Encoder, pictures: Path, tmp_path: Path, database: Shelf
) -> None:
    folder = tmp_path / "i"
    index = build(folder, encoder, pictures, store="shelf:a")
    database.dies_at = 0
    with pytest.raises(Kill):
        index.add(encoder, [pictures / "03.png"])
    database.dies_at = None
    assert not Manifest.read(folder).filled
    with (
        pytest.warns(UserWarning, match=r"stopped before shelf:a held all.*vpt index build"),
        pytest.raises(BadIndex, match="11 of the 12"),
    ):
        Index.open(folder).search(encoder, texts=["x"])
    Index.open(folder).remove(["00.png"])  # the next writer fills it whole
    assert Manifest.read(folder).filled
    assert database.held.keys() == set(Index.open(folder).ids)
    assert len(database) == 11


def test_a_database_with_others_vectors_is_refused(
    encoder: Encoder, pictures: Path, tmp_path: Path, database: Shelf
) -> None:
    database.held["stranger"] = np.ones(16)
    with pytest.raises(ValueError, match=r"holds 12 vectors after 11.*store of its own"):
        build(tmp_path / "i", encoder, pictures, store="shelf:a")
