"""Prompts tuned for a reward, as a person would type it."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest
from pipelines import sd

from vpt.cli import main
from vpt.cli.config import parse
from vpt.data.prompts import PromptData
from vpt.header import read_header
from vpt.tasks.kinds import kind_of
from vpt.tasks.learner import build_method
from vpt.tasks.task import Recipe
from vpt.towers.diffusion import Diffusion, open_pipeline

ROOT = Path(__file__).parents[2] / "configs" / "reward"


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> Diffusion:
    """What every command loads; ``colours:red`` is a reward."""
    module = ModuleType("colours")
    module.red = lambda p, t: p[:, 0].mean((1, 2)) - p[:, 1].mean((1, 2))  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "colours", module)
    backbone = open_pipeline(sd(), "diffusers/tiny", size=16)
    monkeypatch.setattr("vpt.towers.load.load", lambda name, **_: backbone)
    return backbone


@pytest.mark.filterwarnings("ignore:the reward on held-out pictures:UserWarning")
def test_fit_tunes_prompts_in_a_file(
    tiny: Diffusion, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said, out = tmp_path / "said.txt", tmp_path / "run"
    said.write_text("a <my-mug>\na red <my-mug>\n")
    typed = [
        "fit",
        "--task",
        "reward",
        "--data",
        str(said),
        "--reward",
        "colours:red",
        "--val",
        "0",
        "--seeds",
        "1",
    ]
    typed += ["--method", "textual-inversion", "--concept", "my-mug", "--word", "dog", "--epochs", "1"]
    typed += [
        "--inference-steps",
        "2",
        "--last",
        "2",
        "--progress",
        "false",
        "--out",
        str(out),
        "--device",
        "cpu",
    ]
    assert main(typed) == 0
    shown = capsys.readouterr().out
    assert "reward" in shown
    assert "2 pictures" in shown
    assert f"vpt generate {out}/prompts.safetensors 'a photo of <my-mug> in the rain'" in shown
    about = read_header(out / "prompts.safetensors").about
    assert (about["task"], about["protocol"]["data"]) == ("reward", "said")
    assert about["train"]["reward"] == "colours:red"
    assert about["placeholders"] == {"<my-mug>": "dog"}


def test_help_lists_what_prompts_take(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "--task", "reward", "--help"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "a file of prompts to measure on" in shown
    assert "--data.augment" not in shown


@pytest.mark.parametrize("file", sorted(ROOT.glob("*.yaml")), ids=lambda f: f.stem)
def test_a_config_builds(file: Path, tiny: Diffusion) -> None:
    found = parse("fit", ["--config", str(file)])
    data, recipe, options = (
        PromptData(**found.data.as_dict()),
        Recipe(**found.task.as_dict()),
        found.method.as_dict(),
    )
    name = options.pop("name")
    kind = kind_of(recipe.objective)
    assert isinstance(data, kind.data)
    kind.check(
        name,
        build_method(name, tiny, options),
        tiny,
        Recipe(**{**found.task.as_dict(), "reward": "colours:red"}),
    )
