"""The bench of search on few vectors: its numbers against brute force, and what it refuses."""

import json
from pathlib import Path

import numpy as np
import pytest

from vpt.bench import search
from vpt.bench.search import Cloud, bench_search
from vpt.search.encoder import Encoder
from vpt.search.faiss_vectors import FaissVectors
from vpt.towers.backbone import Backbone


def test_the_cloud_is_as_far_from_its_centres_as_it_says() -> None:
    cloud = Cloud.drawn(3000, 10, 64, 0.5, 400)
    assert (cloud.vectors.shape, cloud.vectors.dtype) == ((3000, 64), np.float16)
    vectors, queries = cloud.vectors.astype(np.float32), cloud.queries
    for x in (vectors, queries):
        assert np.allclose(np.linalg.norm(x, axis=1), 1, atol=2e-3)
    # the mean of a cloud points to its centre: noise cancels
    near = vectors @ vectors.T > 0.5
    middle = np.stack([vectors[row].mean(0) for row in near[:50]])
    middle /= np.linalg.norm(middle, axis=1, keepdims=True)
    assert np.median((middle * vectors[:50]).sum(1)) == pytest.approx(1 / np.sqrt(1.25), abs=0.02)
    assert np.median((queries @ middle.T).max(1)) == pytest.approx(1 / np.sqrt(1 + 0.625**2), abs=0.03)
    assert len({i for ids, _ in cloud.blocks() for i in ids}) == 3000


def test_every_kind_is_held_against_flat_search_and_let_go(tmp_path: Path) -> None:
    file = tmp_path / "bench.json"
    kept = bench_search(
        vectors=2000, width=24, kinds=["hnsw", "ivf"], queries=100, pictures=0, repeats=1, json=str(file)
    )
    assert json.loads(file.read_text()) == kept
    assert "around 20 centres, cosine 0.894" in kept["machine"]["vectors_are"]
    assert [r["variant"] for r in kept["rows"]] == ["flat", "hnsw", "ivf"]
    for r in kept["rows"]:
        assert min(r["build_s"], r["one_ms"], r["hundred_ms"]) > 0
        assert 0.9 <= r["recall_at_10"] <= 1
        halves = 1 if r["variant"] == "flat" else 0.5
        assert r["file_mb"] >= halves * 4 * 2000 * 24 / 1e6  # at least the numbers themselves
    assert kept["rows"][0]["recall_at_10"] == 1


def test_recall_is_what_brute_force_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """On vectors without structure, and with one list looked into, much is missed."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((1500, 16)).astype(np.float32)
    x = (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float16)
    q = rng.standard_normal((100, 16)).astype(np.float32)
    cloud = Cloud(x, q / np.linalg.norm(q, axis=1, keepdims=True))
    monkeypatch.setattr(FaissVectors, "tune", lambda *_: None)
    row, exact = search._kind("flat", cloud, None, 1)
    got, found = search._kind("ivf", cloud, exact, 1)
    order = np.argsort(-(cloud.queries @ x.astype(np.float32).T), axis=1)[:, :10]
    truth = [{str(i) for i in row} for row in order]
    assert exact == truth
    hits = sum(len(a & b) for a, b in zip(found, truth, strict=True))
    assert got["recall_at_10"] == round(hits / 1000, 4)
    assert got["recall_at_10"] < 0.7
    assert row["recall_at_10"] == 1


def test_embedding_is_held_against_the_plain_forward(
    monkeypatch: pytest.MonkeyPatch, tiny_clip: Backbone, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(search, "opened", lambda label, device: tiny_clip)
    kept = bench_search(vectors=0, pictures=6, batch=4, repeats=1)
    rows = {r["variant"]: r for r in kept["rows"]}
    assert list(rows) == [
        "plain frozen forward",
        "embed, tensors at hand",
        "embed, from files",
        "decoding alone, one thread",
    ]
    assert rows["plain frozen forward"]["of_plain"] == 1
    assert rows["embed, from files"]["of_plain"] > 0
    assert rows["decoding alone, one thread"]["of_plain"] is None
    assert [r["target"] for r in kept["rows"]] == [None, 0.9, None, None]
    assert all(r["pictures_a_second"] == pytest.approx(6e3 / r["ms_median"], rel=1e-2) for r in kept["rows"])
    said = capsys.readouterr().out
    assert "0.9 met" in said or "0.9 missed" in said


def test_other_vectors_than_the_forwards_are_told_of(
    monkeypatch: pytest.MonkeyPatch, tiny_clip: Backbone
) -> None:
    monkeypatch.setattr(search, "opened", lambda label, device: tiny_clip)
    pixels = Encoder.pixels
    monkeypatch.setattr(Encoder, "pixels", lambda self, images: pixels(self, images.flip(0)))
    with pytest.raises(RuntimeError, match=r"differ by .*please report this"):
        bench_search(vectors=0, pictures=4, batch=4, repeats=1)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"vectors": -1}, "vectors=-1"),
        ({"queries": 99}, r"queries=99 \(100 or more\)"),
        ({"spread": 0}, r"spread=0 \(above 0\)"),
        ({"vectors": 0, "pictures": 0}, "nothing to measure"),
        ({"pictures": 70_000}, "at most 65536"),
        ({"json": "."}, "is a folder"),
    ],
)
def test_what_cannot_be_measured_is_refused(options: dict, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        bench_search(**options)
