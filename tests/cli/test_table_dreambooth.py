"""vpt table dreambooth as a person would type it, on the smallest pipeline in a folder."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image
from pipelines import sd

from vpt.cli import main

Capture = pytest.CaptureFixture[str]

PLAN = """
model: {{name: diffusers/{folder}, size: 16}}
task: {{epochs: 1}}
methods: [textual-inversion, {{name: context, label: four rows of context, options: {{length: 4}}}}]
root: {root}
each: 1
steps: 1
dino: starter/vit-mini
clip: starter/clip-mini
"""


def plan(tmp_path: Path, root: str) -> list[str]:
    sd().save_pretrained(tmp_path / "sd")
    file = tmp_path / "plan.yaml"
    file.write_text(PLAN.format(folder=tmp_path / "sd", root=root))
    return ["table", "dreambooth", "--config", str(file), "--out", str(tmp_path / "out")]


def subjects(root: Path) -> Path:
    """DreamBooth's layout, with one subject of two pictures."""
    (root / "teapot").mkdir(parents=True)
    for i in range(2):
        Image.new("RGB", (20, 20), (200, 90 * i, 30)).save(root / "teapot" / f"{i}.jpg")
    line = "'a {0} {1} in the %s'.format(unique_token, class_token)"
    lists = "\n".join(f"prompt_list = [\n{line % place}\n]" for place in ("jungle", "snow"))
    (root / "prompts_and_classes.txt").write_text(f"subject_name,class\nteapot,teapot\n\n{lists}\n")
    return root


def test_a_table_with_its_pictures(tmp_path: Path, capsys: Capture) -> None:
    command = plan(tmp_path, str(subjects(tmp_path / "data")))
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "| four rows of context |" in printed
    assert "DINO-I by: starter/vit-mini" in printed
    assert "background obeyed" not in printed  # nobody can check what photographs show behind a teapot
    out = tmp_path / "out"
    assert (out / "table.md").read_text() == printed.removesuffix("\n")
    assert (out / "table.csv").read_text().count("\n") > 8
    assert all(Image.open(out / name).width > 100 for name in ("table.png", "sheet.png"))
    assert main(command) == 0  # what is there is not made again
    assert capsys.readouterr().out == printed


def test_what_cannot_be_run_is_told_before_anything_is_loaded(tmp_path: Path, capsys: Capture) -> None:
    def told(*words: str) -> str:
        assert main(["table", "dreambooth", "--out", str(tmp_path / "out"), *words]) == 2
        return capsys.readouterr().err

    assert "Give --root, a copy of github.com/google/dreambooth, or --root characters" in told()
    assert "no method 'coop2'" in told("--root", "characters", "--methods", "coop2")
    assert "no prompts_and_classes.txt" in told("--root", str(tmp_path))
    assert "no subject mug. There are moko" in told("--root", "characters", "--subjects", "mug")
    assert not (tmp_path / "out" / "results.json").exists()
