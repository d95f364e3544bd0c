"""Every notebook runs from top to bottom, and is committed without outputs."""

import re
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))


def outputs(notebook: Any, kind: str) -> list[str]:
    """Texts of a kind that the cells put out: what was printed, or data of that type."""
    found = []
    for cell in notebook.cells:
        for out in cell.get("outputs", []):
            if out.output_type == "stream" and kind == out.name:
                found.append(out.text)
            found += [v for k, v in out.get("data", {}).items() if k == kind]
    return found


def test_there_are_notebooks() -> None:
    assert [p.name for p in NOTEBOOKS] == [
        "01_classify_your_images.ipynb",
        "02_few_shot_with_clip.ipynb",
        "03_search_with_prompts.ipynb",
        "04_teach_a_new_concept.ipynb",
    ]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_notebook_is_committed_clean(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(not cell.outputs and cell.execution_count is None for cell in code)
    assert "widgets" not in notebook.metadata


def run(notebook: Any, folder: Path) -> str:
    """Run it in a folder; what it printed. Raises with the cell and its error."""
    resources = {"metadata": {"path": str(folder)}}
    NotebookClient(notebook, timeout=900, kernel_name="python3", resources=resources).execute()
    assert not outputs(notebook, "stderr")
    return "".join(outputs(notebook, "stdout"))


def test_classify_your_images_runs_and_shows_what_it_says(tmp_path: Path) -> None:
    notebook = nbformat.read(NOTEBOOKS[0], as_version=4)
    printed = run(notebook, tmp_path)
    found = re.findall(r"^(linear probe|vpt-deep) +(\d+\.\d)% of 169", printed, re.M)
    assert [name for name, _ in found] == ["linear probe", "vpt-deep"]
    assert min(float(top1) for _, top1 in found) > 40  # chance is 10
    assert (tmp_path / "runs" / "emoji.safetensors").is_file()
    assert "runs/emoji.safetensors: " in printed
    assert len(outputs(notebook, "image/png")) == 1
    assert any("label='" in text for text in outputs(notebook, "text/plain"))


def test_few_shot_with_clip_runs_and_shows_what_it_says(tmp_path: Path) -> None:
    notebook = nbformat.read(NOTEBOOKS[1], as_version=4)
    printed = run(notebook, tmp_path)
    found = dict(re.findall(r"^(.+?)  +(\d+\.\d)% of 169", printed, re.M))
    assert found.keys() == {"one sentence", "eighty sentences", "coop", "maple", "linear probe"}
    assert all(float(top1) > 30 for top1 in found.values())  # chance is 10
    novel = re.findall(r"^(.+?)  +(\d+\.\d)% of 83 test pictures of the novel half", printed, re.M)
    assert [name for name, _ in novel] == ["coop", "one sentence"]
    assert (tmp_path / "runs" / "coop.safetensors").stat().st_size < 20_000
    assert "'sentence': '<ctx*4> {}.'" in printed


def test_search_with_prompts_runs_and_shows_what_it_says(tmp_path: Path) -> None:
    notebook = nbformat.read(NOTEBOOKS[2], as_version=4)
    (cell,) = (c for c in notebook.cells if 'SCENES = "scenes:400"' in c.source)
    cell.source = cell.source.replace("scenes:400", "scenes:80")  # the same steps on fewer pictures
    printed = run(notebook, tmp_path)
    rows = re.findall(r"^(zero-shot|text rows|image rows|both)((?: +\d+\.\d){4}) +[\d,]+$", printed, re.M)
    assert [name for name, _ in rows] == ["zero-shot", "text rows", "image rows", "both"]
    shares = {name: [float(share) for share in numbers.split()] for name, numbers in rows}
    assert all(recall > 40 for found in shares.values() for recall in found)  # chance is about 10
    (told,) = re.findall(r"'t2i_r1': ([\d.]+)", "".join(outputs(notebook, "text/plain")))
    assert 100 * float(told) == pytest.approx(shares["zero-shot"][0], abs=0.11)
    assert "24 pictures, none embedded again" in printed
    assert "cannot be compared with them" in printed  # image rows against the first index
    assert [p.name for p in sorted(tmp_path.glob("index*"))] == ["index", "index-both"]
    assert (tmp_path / "found.html").read_text().count("<figure>") == 30
    assert len(outputs(notebook, "image/png")) == 4


def test_teach_a_new_concept_runs_and_shows_what_it_says(tmp_path: Path) -> None:
    notebook = nbformat.read(NOTEBOOKS[3], as_version=4)
    for cell in notebook.cells:  # the same lines, fewer steps
        cell.source = re.sub(r"^EPOCHS = \d+", "EPOCHS = 30", cell.source).replace("steps=20", "steps=5")
    printed = run(notebook, tmp_path)
    (size,) = re.findall(r"^runs/moko.safetensors: (\d+\.\d) kB, 1,024 numbers, 30 steps", printed, re.M)
    assert float(size) == pytest.approx((tmp_path / "runs/moko.safetensors").stat().st_size / 1e3, abs=0.05)
    ((before, after),) = re.findall(r"(\d\.\d+) before, (\d\.\d+) after", printed)
    assert float(after) < float(before)
    obeyed = re.findall(r"^(blue|orange) background, (before|after): \d of 5$", printed, re.M)
    assert obeyed == [(c, w) for c in ("blue", "orange") for w in ("before", "after")]
    (levels,) = re.findall(r"largest difference of a pixel: (\d+) of 255", printed)
    assert int(levels) <= 2  # one picture alone and one of five in a batch, rounded to 8 bits
    hits = dict(re.findall(r"^(a creature|a <moko>): (\d+) of the first 15 of 150 pictures", printed, re.M))
    assert hits.keys() == {"a creature", "a <moko>"}
    assert (tmp_path / "runs/moko-diffusers.safetensors").is_file()
    assert len(outputs(notebook, "image/png")) == 5
