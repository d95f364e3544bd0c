"""The demo's lesson on a tiny pipeline: what it says is what was measured, and what is there is not made again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pipelines import shared

from vpt.promptset import PromptSet
from vpt.tasks.task import Recipe
from vpt.towers.backbone import Backbone
from vpt.towers.diffusion import open_pipeline
from vpt.workflow.demo import demo
from vpt.workflow.demo_concept import TEACH, Teach, teach
from vpt.workflow.report import Lesson
from vpt.workflow.runs import Candidate

QUICK = Teach(
    Candidate("textual-inversion", "the new word", {"length": 2}, {"lr": (0.05,)}),
    Recipe(objective="denoise", epochs=1),
    how={"steps": 1, "guidance": 2.0},
)
Done = tuple[Path, list[str], Lesson]


@pytest.fixture(scope="module")
def draws() -> Backbone:
    return open_pipeline(shared("sd"), "diffusers/tiny", size=16)


@pytest.fixture(scope="module")
def done(
    draws: Backbone, backbone: Backbone, tiny_clip: Backbone, tmp_path_factory: pytest.TempPathFactory
) -> Done:
    out, told = tmp_path_factory.mktemp("demo"), []
    return out, told, teach(QUICK, draws, backbone, tiny_clip, out, "cpu", told.append)


def test_it_shows_what_taught_and_what_is_drawn(done: Done) -> None:
    out, told, lesson = done
    assert len(told) == 1
    assert told[0].startswith("concept: <moko> from 5 pictures: nearest its own in ")
    assert len(lesson.taught) == 5
    assert list(lesson.drawn) == [
        "a <moko>",
        "a <moko> on an orange background",
        "a <moko> on a blue background",
    ]
    for sentence, by in lesson.drawn.items():
        assert list(by) == [f"before: {sentence.replace('<moko>', 'creature')}", "after"]
        assert [len(pngs) for pngs in by.values()] == [4, 4]
        assert by["after"] != next(iter(by.values()))
    (file,) = out.glob("concept/moko/*/seed1/prompts.safetensors")
    assert sum(rows.numel() for rows in PromptSet.load(file).rows.values()) == 64
    assert str(file) in lesson.command


def test_what_it_says_follows_from_its_table(done: Done) -> None:
    _, _, lesson = done
    before, after = lesson.table
    assert (before[0], after[0]) == ("a creature", "a <moko>")
    assert (before[4], after[4]) == ("0", "64")
    learned = float(after[1]) > float(before[1]) and float(after[2]) > float(before[2])
    assert lesson.findings[0].startswith(f"The word was {'' if learned else 'not '}learned: {before[1]} %")
    kept = float(after[3]) >= 0.8 * float(before[3])
    assert ("still act" in lesson.findings[1]) == kept


def test_the_demo_puts_it_on_its_page_and_makes_nothing_again(
    done: Done, draws: Backbone, backbone: Backbone, tiny_clip: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, _, lesson = done

    def made(*_: Any, **__: Any) -> Any:
        raise AssertionError("it is there")

    monkeypatch.setattr("vpt.workflow.runs.fit", made)
    monkeypatch.setattr("vpt.tasks.pipeline.draw_batch", made)
    *_, (again,) = demo(
        out,
        subjects=(),
        hunts=(),
        lessons=[QUICK],
        backbone=backbone,
        clip=tiny_clip,
        draws=draws,
        device="cpu",
    )
    assert again == lesson
    html = (out / "index.html").read_text()
    for text in (lesson.title, *lesson.table[1][1:], *lesson.header):
        assert text in html
    assert html.count('<div class="drawn">') == 7
    assert html.count("data:image/png;base64") == 5 + 24


def test_a_network_that_draws_nothing_is_refused(
    backbone: Backbone, tiny_clip: Backbone, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="draws no pictures"):
        teach(QUICK, backbone, backbone, tiny_clip, tmp_path, "cpu", print)


def test_what_the_demo_teaches_builds(draws: Backbone) -> None:
    from vpt.tasks.kinds import kind_of
    from vpt.tasks.learner import build_method

    made = build_method(TEACH.candidate.method, draws, dict(TEACH.candidate.options))
    kind_of("denoise").check(TEACH.candidate.method, made, draws, TEACH.recipe)
