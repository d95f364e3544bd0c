"""FAISS against brute force in numpy and against a dictionary."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vpt.search.faiss_vectors import FLAT_BELOW, FaissVectors, kind_for
from vpt.search.shards import BadIndex
from vpt.search.vectors import Vectors

WIDTH = 16


def unit(n: int, seed: int, centres: int = 0) -> np.ndarray:
    """float16 unit vectors [n, WIDTH], around so many centres."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, WIDTH))
    if centres:
        x = rng.normal(size=(centres, WIDTH))[rng.integers(centres, size=n)] + 0.2 * x
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float16)


def names(n: int) -> list[str]:
    return [f"p{i:05d}" for i in range(n)]


def built(kind: str, x: np.ndarray, block: int = 300) -> FaissVectors:
    ids = names(len(x))

    def blocks() -> Iterator[tuple[list[str], np.ndarray]]:
        yield from ((ids[i : i + block], x[i : i + block]) for i in range(0, len(x), block))

    return FaissVectors.build(x.shape[1], blocks, len(x), kind)


def brute(ids: list[str], x: np.ndarray, queries: np.ndarray, k: int) -> list[list[tuple[str, float]]]:
    x = x.astype(np.float32)
    scores = queries.astype(np.float32) @ (x / np.linalg.norm(x, axis=1, keepdims=True)).T
    return [sorted(zip(ids, map(float, row), strict=True), key=lambda p: (-p[1], p[0]))[:k] for row in scores]


def close(found: list, wanted: list, tolerance: float = 2e-3) -> None:
    """The same scores in order; the same ids where scores are apart."""
    assert len(found) == len(wanted)
    for hits, truth in zip(found, wanted, strict=True):
        assert np.allclose([h.score for h in hits], [s for _, s in truth], atol=tolerance)


@pytest.mark.parametrize("kind", ["flat", "ivf", "hnsw"])
def test_every_kind_finds_what_brute_force_finds(kind: str, tmp_path: Path) -> None:
    x, queries = unit(1200, 0, centres=30), unit(20, 1).astype(np.float32)
    v = built(kind, x)
    assert isinstance(v, Vectors)
    assert (len(v), v.kind) == (1200, kind)
    wanted = brute(names(1200), x, queries, 10)
    found = v.search(queries, 10)
    if kind == "flat":
        close(found, wanted)
    hits = [{h.id for h in f} & {i for i, _ in w} for f, w in zip(found, wanted, strict=True)]
    assert sum(map(len, hits)) / 200 >= {"flat": 1.0, "ivf": 0.6, "hnsw": 0.95}[kind]
    if kind == "ivf":  # with all lists it is exact, so what it keeps is what was given
        v._faiss.nprobe = v._faiss.nlist
        close(v.search(queries, 10), wanted)
    assert all(list(f) == sorted(f, key=lambda h: (-h.score, h.id)) for f in found)
    v.save(tmp_path / "v")
    again = FaissVectors.load(tmp_path / "v")
    assert again.search(queries, 10) == v.search(queries, 10)
    assert (again.kind, again.about, len(again)) == (v.kind, v.about, 1200)


def test_ivf_looks_into_as_many_lists_as_it_needs_and_says_so() -> None:
    x = unit(3000, 0)  # without structure, so that few lists would miss much
    v = built("ivf", x)
    asked = x[::47].astype(np.float32)
    truth = brute(names(3000), x, asked, 10)
    found = v.search(asked, 10)
    hits = sum(len({h.id for h in f} & {i for i, _ in w}) for f, w in zip(found, truth, strict=True))
    assert hits / (10 * len(asked)) > 0.97
    assert v._faiss.nlist == 55  # the square root
    assert f"{v._faiss.nprobe} of 55 lists" in v.about
    assert v._faiss.nprobe > built("ivf", unit(3000, 0, centres=40))._faiss.nprobe


@pytest.mark.parametrize("kind", ["ivf", "hnsw"])
def test_two_builds_of_the_same_are_the_same(kind: str) -> None:
    x = unit(800, 3, centres=10)
    assert built(kind, x).search(x[:9], 5) == built(kind, x).search(x[:9], 5)


@pytest.mark.parametrize("kind", ["flat", "ivf", "hnsw"])
def test_asked_for_more_than_there_is_it_gives_all(kind: str) -> None:
    x = unit(200, 0, centres=4)
    assert {len(h) for h in built(kind, x).search(x[:3], 500)} == {200}


def test_auto_is_flat_until_there_are_many() -> None:
    assert kind_for("auto", FLAT_BELOW - 1) == "flat"
    assert kind_for("auto", FLAT_BELOW) == "ivf"
    assert kind_for("hnsw", 3) == "hnsw"
    with pytest.raises(ValueError, match=r"'tree'.*auto, flat, ivf, hnsw"):
        kind_for("tree", 3)


def test_a_graph_is_read_only_and_says_why() -> None:
    v = built("hnsw", unit(50, 0))
    for change in (lambda: v.add(["new"], unit(1, 5)), lambda: v.remove(["p00001"])):
        with pytest.raises(ValueError, match=r"read only.*ivf or flat"):
            change()
    assert len(v) == 50


@pytest.mark.parametrize("kind", ["flat", "ivf"])
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    steps=st.lists(
        st.tuples(st.sampled_from(["add", "remove", "save"]), st.lists(st.integers(0, 25), max_size=6)),
        max_size=8,
    )
)
def test_it_holds_what_a_dictionary_holds(
    kind: str, steps: list[tuple[str, list[int]]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    x = unit(10, 9)
    v, model = built(kind, x), dict(zip(names(10), x, strict=True))
    for n, (what, numbers) in enumerate(steps):
        ids = [f"p{i:05d}" for i in dict.fromkeys(numbers)]
        if what == "add":
            new = unit(len(ids), 100 + n)
            v.add(ids, new)
            model |= dict(zip(ids, new, strict=True))
        elif what == "remove":
            assert v.remove(ids) == len(set(ids) & model.keys())
            for i in ids:
                model.pop(i, None)
        else:
            folder = tmp_path_factory.mktemp("v") / "v"
            v.save(folder)
            v = FaissVectors.load(folder)
    assert len(v) == len(model)
    if not model:
        assert v.search(x[:2], 3) == [[], []]
        return
    held = np.stack(list(model.values()))
    close(v.search(x[:3], len(model)), brute(list(model), held, x[:3], len(model)))
    assert {h.id for h in v.search(x[:1], 100)[0]} == model.keys()


def test_what_it_cannot_take_is_refused_and_changes_nothing() -> None:
    v = FaissVectors(WIDTH)
    v.add(["a"], unit(1, 0))
    for ids, vectors, told in [
        (["b"], unit(1, 0)[:, :7], r"\(1, 7\).*\[n, 16\]"),
        (["b", "c"], unit(1, 0), "1 vectors came with 2"),
        (["b", "b"], unit(2, 0), "1 different ids of 2"),
        (["b"], 2 * unit(1, 0), "'b' is 2.* long.*Normalise"),
        (["b"], unit(1, 0) * np.float16(np.nan), "NaN"),
    ]:
        with pytest.raises(ValueError, match=told):
            v.add(ids, vectors)
    with pytest.raises(ValueError, match="k=0"):
        v.search(unit(1, 0), 0)
    assert (len(v), v.search(unit(1, 0), 5)[0][0].id) == (1, "a")


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    folder = built("flat", unit(40, 0)).save(tmp_path / "v")
    data = (folder / "vectors.faiss").read_bytes()
    for broken in (data[:-9], data[:200] + b"\xff" + data[201:], b""):
        (folder / "vectors.faiss").write_bytes(broken)
        with pytest.raises(BadIndex, match=r"damaged.*vpt index build --out"):
            FaissVectors.load(folder)
    (folder / "vectors.faiss").unlink()
    with pytest.raises(FileNotFoundError):
        FaissVectors.load(folder)


def test_saving_replaces_what_a_killed_writer_left(tmp_path: Path) -> None:
    (tmp_path / "v").mkdir()
    (tmp_path / "v" / "old").write_text("half")
    v = built("flat", unit(5, 0))
    v.save(tmp_path / "v")
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["ids.json", "v", "vectors.faiss"]
    v.close()
