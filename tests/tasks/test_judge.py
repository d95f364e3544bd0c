"""Rewards by name: what is found, and what is refused with a sentence that helps."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from vpt.objectives.reward import Likeness
from vpt.tasks.judge import judge_of

MODULE = """
class Kinds:
    def red(pictures, prompts):
        return pictures[:, 0].mean((1, 2))
number = 3
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "my_rewards.py").write_text(MODULE)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "my_rewards", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_callable_is_found_in_the_folder_that_python_runs_in(folder: Path) -> None:
    found = judge_of("my_rewards:Kinds.red", "starter/clip-mini")
    assert torch.equal(found(torch.full((2, 3, 4, 4), 0.25), ["a", "b"]), torch.tensor([0.25, 0.25]))


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("my_rewards:blue", "cannot be imported.*no attribute 'blue'"),
        ("no_such_rewards:red", "cannot be imported: No module named 'no_such_rewards'"),
        ("my_rewards:number", "is a int"),
        ("my_rewards", "is none. Wanted: clip-text"),
        ("clip-image:", "is none. Wanted: clip-text"),
    ],
)
def test_what_is_no_reward_is_refused(folder: Path, name: str, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        judge_of(name, "starter/clip-mini")


def test_likeness_is_to_the_prompt_to_words_or_to_a_picture(folder: Path) -> None:
    Image.new("RGB", (40, 40), "red").save("red.png")
    for name in ("clip-text", "clip-text:a red circle", "clip-image:red.png"):
        found = judge_of(name, "starter/clip-mini")
        assert isinstance(found, Likeness)
        assert (found.wanted is None) == (name == "clip-text")
    with pytest.raises(FileNotFoundError, match="there is no picture"):
        judge_of("clip-image:blue.png", "starter/clip-mini")
    with pytest.raises(ValueError, match="no text tower"):
        judge_of("clip-text", "starter/vit-mini")
