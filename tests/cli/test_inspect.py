"""What a prompt file says of itself, and files that say nothing."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
import torch

from vpt.cli import main
from vpt.prompt import Site
from vpt.promptset import PromptSet

ABOUT: dict[str, Any] = {
    "kind": "prompt set",
    "method": {"name": "vpt-deep", "options": {"length": 3}},
    "backbone": {"name": "timm/test_vit", "fingerprints": {"image": "0123456789abcdef"}},
    "classes": [f"class {i}" for i in range(11)],
    "metrics": [{"name": "top1", "value": 0.8765, "split": "test", "count": 1234, "seed": 5}],
    "protocol": {"data": "photos", "shots": 16, "counts": {"train": 3}},
}


@pytest.fixture
def file(tmp_path: Path) -> str:
    rows = {Site("image", stage, "prefix"): torch.randn(3, 8) for stage in "01"}
    return str(PromptSet(rows, about=ABOUT).save(tmp_path / "p.safetensors"))


def test_it_says_what_the_label_holds(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", file]) == 0
    said = capsys.readouterr().out
    size = Path(file).stat().st_size
    for part in (
        f"{file}: prompt set, {size / 1e3:.1f} kB, 48 numbers",
        "vpt-deep length=3",
        "timm/test_vit image=0123456789abcdef",
        "11: class 0, class 1",
        "class 7 and 3 more",
        "image/1/prefix        3 x 8",
        "test       top1 0.8765 (1234 pictures, seed 5)",
        "data=photos, shots=16",
    ):
        assert part in said
    assert "counts" not in said


def test_json_is_the_whole_label(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", file, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {k: found[k] for k in ABOUT} == ABOUT
    assert found["tensors"]["image/0/prefix"] == {"dtype": "F32", "shape": [3, 8]}
    assert found["bytes"] == Path(file).stat().st_size


@pytest.mark.parametrize(
    "about",
    [
        {},
        {"method": "mine", "backbone": [], "metrics": {"a": 1}, "protocol": 3, "classes": []},
        {"metrics": [3, {"name": "top1"}], "classes": [1, None], "created": "today", "kind": 5},
        {"classes": ["\udce9t\udce9"]},
    ],
)
def test_labels_of_another_make_are_shown_as_far_as_they_go(
    about: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "p.safetensors"
    header = json.dumps({"__metadata__": {"vpt": json.dumps({"format": 1, **about})}}).encode()
    file.write_bytes(struct.pack("<Q", len(header)) + header)
    if about.get("backbone") == []:
        assert main(["inspect", str(file)]) == 2  # the header's own check
        assert "backbone is no dict" in capsys.readouterr().err
        return
    assert main(["inspect", str(file)]) == 0
    said = capsys.readouterr().out
    said.encode()
    assert "0 numbers" in said


def test_what_is_no_prompt_file_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(tmp_path / "none.safetensors")]) == 2
    assert "there is no prompt file" in capsys.readouterr().err
    (tmp_path / "text.safetensors").write_text("hello")
    assert main(["inspect", str(tmp_path / "text.safetensors")]) == 2
    assert "is no whole safetensors file" in capsys.readouterr().err
    assert main(["inspect"]) == 2
