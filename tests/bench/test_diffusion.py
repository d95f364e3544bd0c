"""The bench of text to image on a very narrow model: ours and the plain way agree, and each has its line."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch

from vpt.bench import diffusion
from vpt.bench.diffusion import VARIANTS, bench_diffusion, peaks

NARROW = {"narrow": 32, "size": 64}


def test_ours_and_the_plain_way_agree_and_are_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(diffusion, "_apart", peaks)  # a process each would take most of a minute
    file = tmp_path / "bench.json"
    found = bench_diffusion(**NARROW, repeats=1, json=str(file))
    assert json.loads(file.read_text()) == json.loads(json.dumps(found))
    assert found["machine"]["gradients_differ_by"] < 1e-4
    lines = {r["variant"]: r for r in found["rows"]}
    assert tuple(lines) == VARIANTS
    assert lines["floor"]["times_floor"] == lines["plain way"]["times_as_fast"] == 1
    assert lines["ours"]["targets"] == {"times_floor": 1.15, "times_as_fast": 1.4, "of_plain_mb": 0.7}
    table = (
        49409 * 768 // 32 * 4 / 1e6
    )  # its copy, two moments and a gradient: the model itself is not counted
    assert lines["plain way"]["peak_mb"] > lines["ours"]["peak_mb"] + 3 * table
    assert lines["ours, activations anew"]["peak_mb"] < lines["ours"]["peak_mb"]


def test_memory_is_measured_in_a_process_of_its_own() -> None:
    alone = diffusion._apart("floor", 32, 64, 1, "cpu", 1)
    here = peaks("floor", 32, 64, 1, "cpu", torch.get_num_threads())
    assert alone["peak_mb"] == pytest.approx(here["peak_mb"], rel=0.01)


def test_a_process_that_fails_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    with pytest.raises(RuntimeError, match="the memory of 'floor' was not measured"):
        diffusion._apart("floor", 32, 64, 1, "cpu", 1)


def test_what_cannot_be_measured_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"narrow=3 \(a divisor of 32\)"):
        bench_diffusion(narrow=3)
    with pytest.raises(ValueError, match=r"size=500 \(a multiple of 64\)"):
        bench_diffusion(size=500)
    with pytest.raises(ValueError, match="threads=1"):
        bench_diffusion(clock="cpu")
    with pytest.raises(ValueError, match="is a folder"):
        bench_diffusion(json=str(tmp_path))
