"""vpt concept as it is typed: a folder of pictures to a file that search takes."""

from __future__ import annotations

from pathlib import Path

import pytest

from vpt.cli import main
from vpt.data.concept import concept_scenes
from vpt.header import read_header


@pytest.fixture
def shown(tmp_path: Path) -> Path:
    """Five pictures of a character."""
    scenes, folder = concept_scenes(1), tmp_path / "moko"
    folder.mkdir()
    for item in scenes.splits()["all"]:
        scenes.read(item).save(folder / f"{item.key}.png")
    return folder


def test_a_word_is_learned_and_written(
    shown: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    typed = [str(shown), "--name", "moko", "--word", "shape", "--background", "scenes:40", "--epochs", "3"]
    typed += ["--model", "starter/clip-mini", "--device", "cpu", "--precision", "float32", "--out", str(out)]
    assert main(["concept", *typed]) == 0
    said = capsys.readouterr().out
    file = out / "prompts.safetensors"
    assert f'vpt search INDEX "a photo of <moko>" --concept {file}' in said
    about = read_header(file).about
    assert about["placeholders"] == {"<moko>": "shape"}
    assert [s["slot"] for s in about["sites"]] == ["<moko>"]
    assert {m["name"]: m["value"] for m in about["metrics"]} == {
        m["name"]: m["value"] for m in about["before"]
    }


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (["--name", "my mug"], "cannot be called"),
        (["--background", "no-such-folder"], "no pictures with captions"),
    ],
)
def test_what_cannot_be_learned_is_refused(
    shown: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], typed: list[str], said: str
) -> None:
    base = {"--background": "scenes:40", "--model": "starter/clip-mini", "--out": str(tmp_path / "out")}
    base |= dict([typed])
    assert main(["concept", str(shown), *[w for pair in base.items() for w in pair]]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_too_few_pictures_are_refused(shown: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for file in sorted(shown.iterdir())[2:]:
        file.unlink()
    assert main(["concept", str(shown), "--background", "scenes:40", "--model", "starter/clip-mini"]) == 2
    assert "has 2 pictures, wanted 3 to 10" in capsys.readouterr().err
