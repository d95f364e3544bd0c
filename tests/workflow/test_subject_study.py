"""Subjects drawn by every method: numbers against plain loops, and nothing that is there is made again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from pipelines import shared

import vpt
from vpt.data.painted import BACKGROUNDS
from vpt.data.scene_check import cut_out
from vpt.data.subjects import Subject, drawn_characters, pictures_in
from vpt.tasks.device import Machine
from vpt.tasks.task import Recipe
from vpt.towers.diffusion import open_pipeline
from vpt.towers.load import load
from vpt.towers.starter.clip_mini import load_clip_mini
from vpt.workflow.runs import Candidate, Runs
from vpt.workflow.subject_study import Eyes, Study
from vpt.workflow.tabulate import Cell

LEARNING = [Candidate("textual-inversion"), Candidate("dreambooth-lora", "LoRA")]


@pytest.fixture(scope="module")
def eyes() -> Eyes:
    return Eyes(load("starter/vit-mini"), load("starter/clip-mini"))


@pytest.fixture(scope="module")
def subjects(tmp_path_factory: pytest.TempPathFactory) -> list[Subject]:
    return drawn_characters(tmp_path_factory.mktemp("characters"), 3)


def study(eyes: Eyes, subjects: list[Subject], out: Path) -> Study:
    backbone = open_pipeline(shared("sd"), "diffusers/tiny", size=16)
    runs = Runs(backbone, out, Machine(progress=False))
    recipe = Recipe(objective="denoise", epochs=1)
    data = {"batch_size": 5, "captions": True}
    return Study(backbone, eyes, subjects, runs, recipe, data, each=2, how={"steps": 1, "guidance": 1.0})


def test_numbers_are_those_of_plain_loops(eyes: Eyes, subjects: list[Subject], tmp_path: Path) -> None:
    one = subjects[0]
    made = [[picture] for picture in [*pictures_in(one.folder), pictures_in(subjects[1].real)[0]]]
    found = study(eyes, subjects, tmp_path).numbers(one, made)

    model, tokenizer, _ = load_clip_mini()

    def unit(features: torch.Tensor) -> np.ndarray:
        return (features / features.norm(dim=-1, keepdim=True)).numpy()

    with torch.inference_mode():
        drawn, real = (
            [unit(model.encode_image(eyes.clip.preprocess(p)[None])[0]) for p in pictures]
            for pictures in ([some[0] for some in made], pictures_in(one.real))
        )
        said = [sentence.replace("a {}", "a creature") for sentence in one.sentences]
        texts = [unit(model.encode_text(tokenizer([text]))[0]) for text in said]
    assert found["CLIP-I"] == pytest.approx(np.mean([a @ b for a in drawn for b in real]), abs=1e-5)
    told = [float(a @ t) for a, t in zip(drawn, texts, strict=True)]
    assert found["CLIP-T"] == pytest.approx(np.mean(told), abs=1e-5)
    assert found["own"] == found["own, by pixels"] == pytest.approx(5 / 6)  # the last shows another


@pytest.mark.parametrize("whole", [True, False])
def test_own_compares_things_and_not_what_is_behind_them(
    eyes: Eyes, subjects: list[Subject], tmp_path: Path, whole: bool
) -> None:
    """By plain loops over pictures, on noise whose nearest subjects are anyone's."""
    rng = np.random.default_rng(0)
    one = subjects[0]
    made = [
        Image.blend(picture, Image.fromarray(rng.integers(0, 256, (64, 64, 3), np.uint8)), share)
        for picture in [*pictures_in(one.real)[:3], *pictures_in(subjects[1].real)[:3]]
        for share in (0.2, 0.6)
    ]

    def seen(picture: Image.Image) -> torch.Tensor:
        if not whole:
            picture = Image.fromarray((255 * cut_out(picture, 96)).round().astype(np.uint8))
        with torch.inference_mode():
            return F.normalize(vpt.encode(eyes.dino.image, eyes.dino.preprocess(picture)[None]), dim=-1)[0]

    real = [[seen(p) for p in pictures_in(s.real)] for s in subjects]
    nearest = [np.argmax([np.mean([float(seen(p) @ r) for r in rows]) for rows in real]) for p in made]
    found = study(eyes, subjects, tmp_path).numbers(one, [made[k : k + 2] for k in range(0, 12, 2)])
    name = "own, whole pictures" if whole else "own"
    assert found[name] == pytest.approx(np.mean([n == 0 for n in nearest]))


def test_pictures_that_obey_their_backgrounds_are_counted(
    eyes: Eyes, subjects: list[Subject], tmp_path: Path
) -> None:
    one = subjects[0]
    colours = ["white", *one.grounds[1:3], "purple", *one.grounds[4:]]
    assert "purple" not in one.grounds
    made = [[Image.new("RGB", (64, 64), BACKGROUNDS[colour])] for colour in colours]
    assert study(eyes, subjects, tmp_path).numbers(one, made)["background obeyed"] == 4 / 5


def test_a_table_is_made_once(
    eyes: Eyes, subjects: list[Subject], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = study(eyes, subjects[:2], tmp_path).table(LEARNING, (1, 2))
    names = ["real pictures", "its kind, frozen", "a description, frozen", "textual-inversion", "LoRA"]
    assert [line.name for line in first.lines] == names
    learned = first.lines[3]
    assert [r.seed for r in learned.runs] == [1, 1, 2, 2]
    cell = learned.cells["DINO-I"]
    assert isinstance(cell, Cell)
    assert len(cell.values) == 2
    assert cell.values[0] == pytest.approx(np.mean([r.metrics["DINO-I"] for r in learned.runs[:2]]))
    assert [line.costs["parameters"] for line in first.lines[1:4]] == [0, 0, 32]
    assert first.label["sentences"] == "6 a subject, 2 pictures each"

    def drawn(*_: Any, **__: Any) -> Any:
        raise AssertionError("it is there")

    monkeypatch.setattr("vpt.workflow.runs.fit", drawn)
    monkeypatch.setattr("vpt.tasks.pipeline.draw_batch", drawn)
    again = study(eyes, subjects[:2], tmp_path)
    assert again.table(LEARNING, (1, 2)).lines == first.lines
    assert again.sheet(LEARNING, 1).width > 0
