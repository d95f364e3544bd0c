"""What is drawn into a folder: names of files, labels, and videos. vpt generate is tested on pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pipelines import shared

from vpt.prompt import Site
from vpt.promptset import PromptSet
from vpt.tasks.pipeline import TunedPipeline
from vpt.towers.diffusion import open_pipeline
from vpt.workflow.drawn import read_told
from vpt.workflow.generate import Drawing, slug


def tuned(family: str, size: int) -> TunedPipeline:
    backbone = open_pipeline(shared(family), f"diffusers/{family}", size=size)
    rows = {Site("text", "embedded", "<c>"): backbone.vectors("text", "dog")}
    return TunedPipeline(backbone, PromptSet(rows, about={"placeholders": {"<c>": "dog"}}))


def test_names_of_files_are_readable_and_differ() -> None:
    assert slug("A photo of <my-mug>, in the Rain!") == "a-photo-of-my-mug-in-the-rain"
    assert slug("写真 <my-mug>") == "写真-my-mug"
    assert slug("???").isalnum()
    long = slug("word " * 50 + "a"), slug("word " * 50 + "b")
    assert len(set(long)) == 2
    assert all(len(name) < 70 and name.startswith("word-word") for name in long)


def test_columns_are_labelled_by_what_differs(tmp_path: Path) -> None:
    model = tuned("sd", 16)

    def labels(**how: object) -> list[list[str]]:
        drawing = Drawing(model, "a <c>", tmp_path, **how)  # type: ignore[arg-type]
        return [[d.label for d in row] for row in drawing.rows()]

    assert labels(seeds=(1, 2)) == [["seed 1"], ["seed 2"]]
    assert labels(before=True) == [["seed 1, before", "seed 1, after"]]
    assert labels(strengths=(0, 1.25)) == [["seed 1, strength 0", "seed 1, strength 1.25"]]
    drawing = Drawing(model, "a <c>", tmp_path, before=True, negative="x")
    assert drawing.legend["before"] == "a dog"
    assert drawing.legend["guidance"] == "7.5"
    assert [d.prompt for d in drawing.rows()[0]] == ["a dog", "a <c>"]
    assert not any(tmp_path.iterdir())


def test_a_video_is_written_as_one_file_that_says_how_it_was_made(tmp_path: Path) -> None:
    how = {"steps": 1, "size": 32, "frames": 5}
    drawing = Drawing(tuned("wan", 32), "a <c>", tmp_path, seeds=(2,), how=how, told={"model": "wan"}, fps=10)
    assert drawing.missing() == 1
    (written,) = drawing.draw()
    assert written.file == tmp_path / "a-c-seed2.webp"
    assert read_told(written.file)["frames"] == "5"
    assert read_told(written.file)["model"] == "wan"
    video = shared("wan")(
        prompt="a dog",
        num_inference_steps=1,
        height=32,
        width=32,
        num_frames=5,
        output_type="pil",
        generator=torch.Generator().manual_seed(2),
    ).frames[0]
    opened = Image.open(written.file)
    assert opened.n_frames == 5  # type: ignore[attr-defined]
    for i, frame in enumerate(video):
        opened.seek(i)
        far = np.abs(np.asarray(opened.convert("RGB")).astype(float) - np.asarray(frame)).mean()
        assert far < 12  # WebP loses a little
    assert drawing.missing() == 0
    assert list(drawing.draw()) == []


def test_a_folder_of_another_drawing_is_left_as_it_is(tmp_path: Path) -> None:
    model = tuned("sd", 16)
    (one,) = Drawing(model, "a <c>", tmp_path, how={"steps": 1}).draw()
    kept = one.file.read_bytes()
    with pytest.raises(ValueError, match="steps '1'; now steps '2'"):
        list(Drawing(model, "a <c>", tmp_path, seeds=(0, 1), how={"steps": 2}).draw())
    assert [p.name for p in tmp_path.iterdir()] == [one.file.name]
    assert one.file.read_bytes() == kept
    assert len(list(Drawing(model, "a <c>", tmp_path, how={"steps": 2}).draw(anew=True))) == 1
    assert one.file.read_bytes() != kept
