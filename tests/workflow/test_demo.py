"""The demo from end to end on a tiny network: runs, pictures, page, and a fresh process that says the same."""

import io
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from vpt.cli import main
from vpt.header import read_header
from vpt.methods import METHODS
from vpt.tasks.learner import build_method
from vpt.towers.backbone import Backbone
from vpt.workflow.compare import Candidate
from vpt.workflow.demo import SUBJECTS, Budget, Subject, demo
from vpt.workflow.report import Chapter
from vpt.workflow.study import Study

BUDGET = Budget(shots=3, epochs=2, batch_size=5, seeds=(1, 2))
CANDIDATES = (
    Candidate("linear", "head alone", recipe={"lr": (1e-2,)}),
    Candidate("random-rows", "random rows", {"length": 2}, {"lr": (1e-2,)}),
    Candidate("vpt-deep", "VPT-deep", {"length": 2}, {"lr": (1e-2,)}),
)
Done = tuple[Path, list[str], list[Chapter]]


@pytest.fixture(scope="module")
def subjects(pictures: Path) -> list[Subject]:
    return [Subject("colours", "Three colours", {"path": str(pictures)}, CANDIDATES, "by nobody")]


@pytest.fixture(scope="module")
def done(backbone: Backbone, subjects: list[Subject], tmp_path_factory: pytest.TempPathFactory) -> Done:
    out, told = tmp_path_factory.mktemp("demo"), []
    chapters, *_ = demo(
        out,
        BUDGET,
        subjects=subjects,
        hunts=(),
        lessons=(),
        backbone=backbone,
        device="cpu",
        told=told.append,
    )
    return out, told, chapters


def test_it_leaves_a_page_pictures_tables_and_prompt_files(done: Done) -> None:
    out, told, (chapter,) = done
    assert len([line for line in told if "of the test pictures" in line]) == 6
    html = (out / "index.html").read_text()
    for line in chapter.table:
        for cell in line:
            assert cell in html
    for name in ("accuracy", "curves", "confusion", "predictions", "attention"):
        image = Image.open(out / "colours" / f"{name}.png")
        assert image.width == 880
    assert len((out / "colours" / "table.csv").read_text().splitlines()) == 4
    assert {r.seed for r in chapter.results} == {1, 2}
    assert len({(r.seed, r.protocol["split"]) for r in chapter.results}) == 2
    assert "3 pictures a class train (9 in all), 9 are for validation, 15 for the test" in chapter.protocol


def test_pictures_say_in_words_what_they_show(done: Done) -> None:
    _, _, (chapter,) = done
    shown = {p.name: p for p in chapter.pictures}
    for row in chapter.table:
        assert f"{row[0]} {row[1].split(' ')[0]} %" in shown["accuracy"].alt
    history = [
        read_header(r.file).about["train"]["history"][-1] for r in chapter.results if r.method == "vpt-deep"
    ]
    end = 100 * sum(row["val/top1"] for row in history) / 2
    assert f"VPT-deep {end:.1f} %" in shown["curves"].alt
    run = next(r for r in chapter.results if r.method == "vpt-deep")
    assert f"{round(run.metrics['top1'] * 15)} of 15 test pictures" in shown["confusion"].alt
    assert shown["predictions"].caption.startswith("12 test pictures drawn at random")


def test_a_fresh_process_said_what_stands_on_the_page(done: Done) -> None:
    out, _, (chapter,) = done
    assert len(chapter.fresh) == 6
    assert chapter.difference <= 1e-5
    files = sorted((out / "colours" / "pictures").iterdir())
    assert [f.read_bytes() for f in files] == [f.png for f in chapter.fresh]
    right = [Image.open(io.BytesIO(f.png)).size for f in chapter.fresh]
    assert set(right) == {(32, 32)}


def test_a_second_demo_repeats_no_run(
    done: Done, backbone: Backbone, subjects: list[Subject], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, _, (chapter,) = done
    said = [{"label": f.predicted, "probability": f.probability} for f in chapter.fresh]
    monkeypatch.setattr(subprocess, "Popen", _process(json.dumps(said)))
    told: list[str] = []
    (again,), *_ = demo(
        out,
        BUDGET,
        subjects=subjects,
        hunts=(),
        lessons=(),
        backbone=backbone,
        device="cpu",
        told=told.append,
    )
    assert told[0].startswith("colours: 6 runs were in ")
    assert again.table == chapter.table
    assert [p.light for p in again.pictures] == [p.light for p in chapter.pictures]


def _process(said: str, status: int = 0, error: str = "") -> Any:
    """A stand-in for a process that has ended."""

    class Ended:
        returncode = status

        def __init__(self, command: list[str], **_: object) -> None:
            assert command[:4] == [sys.executable, "-m", "vpt", "predict"]

        def communicate(self) -> tuple[str, str]:
            return said, error

    return Ended


def _study(done: Done, backbone: Backbone, subjects: list[Subject]) -> Study:
    out, _, (chapter,) = done
    data = {**subjects[0].data, "shots": 3, "batch_size": 5}
    return Study("t", backbone, data, chapter.results, out / "colours", "head alone", device="cpu")


def test_a_process_that_differs_or_fails_is_an_error(
    done: Done, backbone: Backbone, subjects: list[Subject], monkeypatch: pytest.MonkeyPatch
) -> None:
    said = [{"label": f.predicted, "probability": f.probability} for f in done[2][0].fresh]
    cases = [
        (_process("", 2, "vpt: no such file"), "failed on .*no such file"),
        (_process(json.dumps([{**s, "label": "pink"} for s in said])), "otherwise than this one.*pink"),
        (
            _process(json.dumps([{**s, "probability": s["probability"] + 1e-3} for s in said])),
            "by up to 1.0e-03",
        ),
    ]
    for process, message in cases:
        monkeypatch.setattr(subprocess, "Popen", process)
        study = _study(done, backbone, subjects)
        with pytest.raises(RuntimeError, match=message):
            study.answer(*study.ask())


def test_a_file_that_gives_another_number_than_training_did_is_an_error(
    done: Done, backbone: Backbone, subjects: list[Subject]
) -> None:
    study = _study(done, backbone, subjects)
    wrong = [replace(r, metrics={**r.metrics, "top1": r.metrics["top1"] - 0.1}) for r in study.results]
    with pytest.raises(RuntimeError, match=r"measured at .* after training and gives"):
        _ = replace(study, results=wrong).found


def test_what_the_demo_tries_exists(backbone: Backbone) -> None:
    tried = {s.name: [c.method for c in s.candidates] for s in SUBJECTS}
    assert tried["digits"] == ["linear", "random-rows", "vpt-shallow", "vpt-deep", "pixel", "full"]
    assert tried["emoji"] == tried["digits"][:4]
    for subject in SUBJECTS:
        rates = {c.method: c.recipe["lr"] for c in subject.candidates}
        assert rates["linear"] == rates["random-rows"] == rates["vpt-deep"]  # controls: the same optimiser
        for c in subject.candidates:
            assert c.method in METHODS
            build_method(c.method, backbone, c.options)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--shots", "0"], "no whole number of 1 or more"),
        (["--seeds", "1,1"], "different whole numbers"),
        (["--seeds", "one"], "different whole numbers"),
    ],
)
def test_options_that_cannot_be_are_refused(
    argv: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["demo", *argv]) == 2
    assert message in capsys.readouterr().err


def test_a_file_in_the_place_of_the_folder_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "out"
    file.write_text("mine")
    assert main(["demo", "--out", str(file)]) == 2
    assert "is a file. Give a folder" in capsys.readouterr().err
    assert file.read_text() == "mine"
