"""vpt generate as a person would type it, on the smallest pipeline in a folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pipelines import sd

from vpt.cli import main
from vpt.prompt import Site
from vpt.promptset import PromptSet
from vpt.towers.load import load
from vpt.workflow.drawn import read_told

# diffusers 0.42 has a new name for it, which earlier ones do not know

Capture = pytest.CaptureFixture[str]
Concept = Callable[..., str]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("generate")
    sd().save_pretrained(root / "sd")
    return root


@pytest.fixture(scope="module")
def concept(folder: Path) -> Concept:
    """concept("mug", "dog"): a file with <mug>, whose rows are the embedding of "dog"."""
    backbone = load(f"diffusers/{folder / 'sd'}", size=16)

    def make(name: str, meaning: str, **about: Any) -> str:
        slot = f"<{name}>"
        label = {"task": "denoise", "placeholders": {slot: meaning}, "backbone": backbone.label()}
        rows = {Site("text", "embedded", slot): backbone.vectors("text", meaning)}  # type: ignore[attr-defined]
        return str(PromptSet(rows, about=label | about).save(folder / f"{name}.safetensors"))

    return make


def by_library(text: str, seed: int, **more: Any) -> np.ndarray:
    pipe = sd()
    call = {"height": 16, "width": 16, "num_inference_steps": 2, **more}
    return np.asarray(pipe(prompt=text, generator=torch.Generator().manual_seed(seed), **call).images[0])


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"))


def test_a_grid_of_seeds_and_strengths_beside_the_plain_word(
    folder: Path, concept: Concept, tmp_path: Path, capsys: Capture
) -> None:
    mug, cat = concept("mug", "dog"), concept("my-cat", "cat")
    out = tmp_path / "out"
    argv = [
        "generate",
        mug,
        f"{cat}=cat",
        "a <mug> with a <cat>",
        "--seed",
        "3",
        "--count",
        "2",
        "--steps",
        "2",
    ]
    argv += ["--strength", "0.5,1", "--before", "--html", "--negative", "red <cat>", "--guidance", "3"]
    argv += ["--out", str(out), "--device", "cpu"]
    assert main(argv) == 0, capsys.readouterr().err
    said = capsys.readouterr().out
    assert f"6 pictures in {out}\n" in said
    names = {f"a-mug-with-a-cat-seed{seed}{end}.png" for seed in (3, 4) for end in ("-before", "-x0.5", "")}
    assert {p.name for p in out.iterdir()} == names | {"a-mug-with-a-cat-sheet.png", "a-mug-with-a-cat.html"}

    want = by_library("a dog with a cat", 4, negative_prompt="red cat", guidance_scale=3.0)
    file = out / "a-mug-with-a-cat-seed4.png"
    assert np.array_equal(pixels(file), want)
    assert np.array_equal(pixels(out / "a-mug-with-a-cat-seed4-before.png"), want)  # its word means the same
    assert not np.array_equal(pixels(out / "a-mug-with-a-cat-seed4-x0.5.png"), want)

    told = read_told(file)
    assert told["prompts"].split("\n") == [
        f"{PromptSet.load(path).hash()} {Path(path).name}" for path in (mug, cat)
    ]
    assert told["command"].startswith("vpt generate ")
    assert "'a <mug> with a <cat>' --seed 3" in told["command"]
    rest = {k: told[k] for k in told if k not in ("prompts", "command", "vpt", "model")}
    assert rest == {
        "prompt": "a <mug> with a <cat>",
        "negative": "red <cat>",
        "seed": "4",
        "steps": "2",
        "guidance": "3",
        "strength": "1",
        "size": "16x16",
    }
    assert told["model"] == f"diffusers/{folder / 'sd'} size=16"
    before = read_told(out / "a-mug-with-a-cat-seed4-before.png")
    assert (before["prompt"], before["negative"], before["prompts"]) == (
        "a dog with a cat",
        "red cat",
        "none",
    )
    assert "strength" not in before
    page = (out / "a-mug-with-a-cat.html").read_text()
    assert page.count("<figure>") == 6
    assert "a dog with a cat" in page

    # the same command draws nothing again, and what was lost is drawn again to the bit
    stamps = {p: p.stat().st_mtime_ns for p in out.glob("*seed*.png")}
    file.unlink()
    assert main([*argv, "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert [Path(one["file"]).name for one in listed if one["seed"] == "4"] == [
        "a-mug-with-a-cat-seed4-before.png",
        "a-mug-with-a-cat-seed4-x0.5.png",
        "a-mug-with-a-cat-seed4.png",
    ]
    assert np.array_equal(pixels(file), want)
    assert all(p.stat().st_mtime_ns == stamp for p, stamp in stamps.items() if p != file)

    # drawn otherwise: refused before anything is drawn, unless asked for
    kept = {p: p.read_bytes() for p in out.iterdir()}
    other = [word if word != "2" or argv[i - 1] != "--steps" else "1" for i, word in enumerate(argv)]
    assert main([*other, "--count", "3"]) == 2
    assert "drawn otherwise (steps '2'; now steps '1')" in capsys.readouterr().err
    assert {p: p.read_bytes() for p in out.iterdir()} == kept
    assert main([*other, "--count", "1", "--strength", "1", "--replace", "--no-sheet"]) == 0
    assert read_told(out / "a-mug-with-a-cat-seed3.png")["steps"] == "1"


def test_one_picture_has_no_sheet(folder: Path, concept: Concept, tmp_path: Path, capsys: Capture) -> None:
    argv = ["generate", concept("mug", "dog"), "--out", str(tmp_path), "--device", "cpu", "--size", "24x16"]
    assert main([*argv, "a photo of <mug>", "--steps", "1"]) == 0, capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["a-photo-of-mug-seed1.png"]
    assert Image.open(tmp_path / "a-photo-of-mug-seed1.png").size == (16, 24)
    assert str(tmp_path / "a-photo-of-mug-seed1.png") in capsys.readouterr().out


def test_what_cannot_be_drawn_is_refused_before_the_pipeline_is_loaded(
    folder: Path, concept: Concept, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vpt.towers.load.load", lambda *_, **__: pytest.fail("the pipeline was loaded"))
    mug, cat, nameless = (
        concept("mug", "dog"),
        concept("cat", "cat"),
        concept("it", "dog", placeholders={"<it>": ""}),
    )
    head = PromptSet({Site("image", "0", "prefix"): torch.zeros(1, 4)}).save(tmp_path / "head.safetensors")
    bare = PromptSet({Site("text", "embedded", "<mug>"): torch.zeros(1, 4)}).save(
        tmp_path / "bare.safetensors"
    )
    timm = concept("other", "dog", backbone={"name": "open_clip/ViT-B-16:openai"})
    there = set(folder.rglob("*")) | set(tmp_path.rglob("*"))
    for argv, message in (
        (["a photo of <mug>"], "one prompt file at least and a sentence are wanted"),
        ([mug], "one prompt file at least and a sentence are wanted"),
        (["gone.safetensors", "a <mug>"], "there is no prompt file 'gone.safetensors'"),
        (
            [mug, cat, "a <mug> in a <box>"],
            "says <box>, which no prompt file holds. There are: <cat>, <mug>.",
        ),
        ([mug, "a <mug>", "--negative", "<box>"], "says <box>"),
        ([mug, cat, "a <mug>"], f"no text says <cat>, so {cat} would do nothing"),
        ([mug, mug, "a <mug>"], f"call its placeholder otherwise: {mug}=another-name"),
        ([f"{mug}=a b", "a <mug>"], "cannot be called 'a b': use letters"),
        ([nameless, "a <it>", "--before"], "does not say what <it> is, so --before has no word for it"),
        ([str(head), "a photo"], "writes to the image tower, which draws nothing"),
        ([str(bare), "a <mug>"], "names no pipeline. Give --model"),
        ([timm, "a <other>"], "open_clip/ViT-B-16:openai draws no pictures. Give --model"),
        ([mug, "a <mug>", "--out", f"{mug}/x"], f"{mug} is a file, so nothing can be written into"),
        ([mug, "a <mug>", "--size", "20"], "a multiple of 8 pixels, not 20"),
        ([mug, "a <mug>", "--strength", "1,1"], "no list of different numbers"),
        ([mug, "a <mug>", "--seed", "-1"], "no whole number from 0"),
    ):
        assert main(["generate", *argv]) == 2
        assert message in capsys.readouterr().err
    assert set(folder.rglob("*")) | set(tmp_path.rglob("*")) == there


def test_a_set_of_another_backbone_is_refused_with_both_fingerprints(
    folder: Path, concept: Concept, tmp_path: Path, capsys: Capture
) -> None:
    text = load(f"diffusers/{folder / 'sd'}", size=16).fingerprints["text"]
    made = {"name": f"diffusers/{folder / 'sd'}", "fingerprints": {"text": "f" * 16}}
    out = tmp_path / "out"
    assert main(["generate", concept("far", "dog", backbone=made), "a <far>", "--out", str(out)]) == 2
    told = capsys.readouterr().err
    assert "f" * 16 in told
    assert text in told
    assert not out.exists()


def test_a_sentence_that_is_too_long_is_told_once(
    folder: Path, concept: Concept, tmp_path: Path, capsys: Capture
) -> None:
    long = "red " * 90 + "<mug>"
    argv = ["generate", concept("mug", "dog"), long, "--steps", "1", "--count", "2", "--out", str(tmp_path)]
    assert main([*argv, "--device", "cpu"]) == 0
    assert capsys.readouterr().err.count("encoder reads, and lost <mug>") == 1
    assert all(len(p.name) < 100 for p in tmp_path.iterdir())
