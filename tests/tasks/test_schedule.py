"""Learning-rate factors against the authors' recorded rates and against torch's own schedulers."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import pytest

from vpt.tasks.schedule import SCHEDULES, schedule

GOLDEN = Path(os.environ.get("VPT_GOLDEN", Path(__file__).parents[1] / "golden")) / "lr-schedules.json"


@pytest.mark.skipif(not GOLDEN.is_file(), reason="this golden folder holds no schedules")
def test_vpt_and_pixel_schedules_equal_the_authors():
    seen = 0
    for case in json.loads(GOLDEN.read_text())["schedules"]:
        if case["used_by"].startswith("VPT (ViT)"):
            factor = schedule("vpt", case["epochs"], 7, int(case["warmup"].split()[0]))
            rates = [case["base_lr"] * factor(7 * e + 3) for e in range(case["epochs"])]
            assert rates == pytest.approx(case["lr"], rel=1e-6, abs=1e-12)
            seen += 1
    assert seen


def test_cosine_warms_up_and_ends_at_zero():
    factor = schedule("cosine", 10, 20, 2)
    assert [factor(i) for i in range(40)] == pytest.approx([(i + 1) / 41 for i in range(40)])
    assert factor(40) == pytest.approx(1)
    assert factor(120) == pytest.approx(0.5)
    assert factor(199) == pytest.approx(0.5 * (1 + math.cos(math.pi * 159 / 160)))
    assert factor(500) == pytest.approx(0)


def test_constant_and_pixel():
    assert schedule("constant", 5, 10, 0)(0) == 1
    pixel = schedule("pixel", 100, 1000, 0)
    assert pixel(0) == 0.001
    assert pixel(19) == pytest.approx(0.02)
    assert pixel(1000) == pytest.approx(1)


def test_unknown_names_are_listed():
    with pytest.raises(ValueError, match=", ".join(SCHEDULES)):
        schedule("step", 1, 1, 0)
