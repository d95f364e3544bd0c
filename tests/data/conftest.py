"""Small pictures on disk for the tests of vpt.data."""

from __future__ import annotations

import io
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vpt.data.item import Item

CONFIG = {
    "input_size": (3, 16, 16),
    "mean": (0.5, 0.4, 0.3),
    "std": (0.2, 0.3, 0.4),
    "interpolation": "bicubic",
    "crop_pct": 0.9,
    "crop_mode": "center",
}


def noise(seed: int, width: int = 20, height: int = 24) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def png(seed: int, width: int = 20, height: int = 24) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(noise(seed, width, height)).save(buffer, "png")
    return buffer.getvalue()


def plant(root: Path, counts: dict[str, int], start: int = 0) -> Path:
    """Write ROOT/NAME/0.png ... for every name, all pictures different."""
    seed = start
    for name, count in counts.items():
        (root / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            (root / name / f"{i}.png").write_bytes(png(seed))
            seed += 1
    return root


def coop(items: list[Item], val: list[Item], shots: int, seed: int) -> tuple[list[Item], list[Item]]:
    """The few-shot protocol as CoOp's code runs it: the global generator, one class after the other."""
    random.seed(seed)
    drawn = []
    for part, n in ((items, shots), (val, min(shots, 4))):
        by_label: dict[object, list[Item]] = {}
        for item in part:
            by_label.setdefault(item.label, []).append(item)
        drawn.append(
            [
                x
                for group in by_label.values()
                for x in (random.sample(group, n) if len(group) >= n else group)
            ]
        )
    return drawn[0], drawn[1]


@pytest.fixture
def config() -> dict[str, object]:
    return dict(CONFIG)


@pytest.fixture(name="plant")
def _plant() -> Callable[..., Path]:
    return plant


@pytest.fixture(name="png")
def _png() -> Callable[..., bytes]:
    return png


@pytest.fixture(name="noise")
def _noise() -> Callable[..., np.ndarray]:
    return noise


@pytest.fixture(name="coop")
def _coop() -> Callable[..., tuple[list[Item], list[Item]]]:
    return coop


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or writes the user's own cache."""
    monkeypatch.setenv("VPT_CACHE", str(tmp_path_factory.mktemp("cache")))
