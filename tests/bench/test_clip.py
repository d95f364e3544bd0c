"""The bench of CLIP on a small network: ours and the plain way agree, every saving has its line."""

import json
from pathlib import Path

import pytest

from vpt.bench import clip
from vpt.bench.clip import Shape, bench_clip
from vpt.towers.backbone import Backbone


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, tiny_clip: Backbone) -> None:
    """Stands in for open_clip's networks, which are too large for a test."""
    monkeypatch.setattr(clip, "load", lambda name, **options: tiny_clip)
    targets = {"coop": (20.0, 3.0), "cocoop": (14.0, None), "promptsrc": (None, 1.6)}
    monkeypatch.setattr(clip, "SHAPES", {"small": Shape("open_clip/tiny", 3, 2, targets)})


def test_ours_and_the_plain_way_agree_and_are_told_apart(small: None, tmp_path: Path) -> None:
    file = tmp_path / "bench.json"
    kept = bench_clip(shapes=["small"], repeats=1, many=20, json=str(file))
    assert json.loads(file.read_text()) == json.loads(json.dumps(kept))
    apart = kept["machine"]["gradients_differ_by"]
    assert apart.keys() == {"coop, small", "cocoop, small", "promptsrc, small"}
    assert max(apart.values()) < 1e-4
    lines = {(r["work"], r["variant"]): r for r in kept["rows"]}
    assert {v for w, v in lines if w == "coop, small"} == {
        "plain way",
        "features stored",
        "... and text cut",
        "ours, stored views",
        "ours, fresh views",
        "floor",
    }
    assert (
        "promptsrc, small",
        "ours, stored views",
    ) not in lines  # rows in the pictures: nothing stands still
    assert lines["coop, small", "ours, stored views"]["target"] == 20
    assert {w for w, _ in lines if "classes" in w} == {"coop's text, 2 classes", "coop's text, 20 classes"}


def test_memory_stays_flat_where_groups_are_computed_anew(
    small: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vpt.text.GROUP", 40)
    kept = bench_clip(shapes=["small"], methods=["coop"], repeats=1, many=60)
    peak = {(r["work"], r["variant"]): r["peak_mb"] for r in kept["rows"]}
    few, many = "coop's text, 6 classes", "coop's text, 60 classes"
    assert peak[many, "one packed row"] > 3 * peak[few, "one packed row"]
    assert peak[many, "in groups, computed anew"] < 2 * peak[few, "in groups, computed anew"]


def test_what_cannot_be_measured_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"methods=\['lora'\] are not measured here.*coop"):
        bench_clip(methods=["lora"])
    with pytest.raises(ValueError, match="threads=1"):
        bench_clip(clock="cpu")
    with pytest.raises(ValueError, match="is a folder"):
        bench_clip(json=str(tmp_path))
