"""The demo's lesson: a frozen text-to-image starter is taught a word by five pictures of a character it never met."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from shlex import quote

from vpt.data.subjects import CHARACTERS, Subject, drawn_characters
from vpt.tasks.device import Machine
from vpt.tasks.task import Recipe
from vpt.towers.backbone import Backbone
from vpt.towers.diffusion import Diffusion
from vpt.towers.load import load
from vpt.workflow.report import Lesson
from vpt.workflow.runs import Candidate, Result, Runs
from vpt.workflow.subject_study import Eyes, Study, pictures_of

__all__ = ["TEACH", "Teach", "teach"]

HEADER = (
    "the sentence says", "nearest its own, %", "likeness to real pictures", "background as asked, %", "learned",
    "file, kB", "seconds",
)  # fmt: skip
EACH = 4  # pictures a sentence
SHOWN = 3  # sentences on the page


@dataclass(frozen=True)
class Teach:
    """What is taught, and how. subject: one of the drawn characters; the others are what it is told from."""

    candidate: Candidate
    recipe: Recipe
    subject: str = CHARACTERS[0]
    batch_size: int = 5
    how: Mapping[str, float] = field(default_factory=lambda: {"steps": 20, "guidance": 4.0})
    seed: int = 1
    name: str = "concept"
    title: str = "A new word that can be drawn"


TEACH = Teach(
    Candidate("textual-inversion", "the new word", {"length": 4}),
    Recipe(objective="denoise", epochs=200, lr=(0.01,)),
)


def teach(
    lesson: Teach,
    draws: Backbone | str,
    dino: Backbone,
    clip: Backbone | str,
    out: Path,
    device: str,
    told: Callable[[str], None],
) -> Lesson:
    """Learn the word, and draw and measure sentences before and after; ``out`` is the folder of the whole demo.

    draws: a diffusion pipeline.  dino, clip: compare pictures (``Eyes``).  What ``out`` holds already is not made
    again. Raises ValueError for a pipeline that is none.
    """
    backbone = load(draws) if isinstance(draws, str) else draws
    clip = load(clip) if isinstance(clip, str) else clip
    if not isinstance(backbone, Diffusion):
        raise ValueError(f"{backbone.name} draws no pictures. Give a diffusion pipeline.")
    subjects = drawn_characters(out / lesson.name / "characters")
    one = next(s for s in subjects if s.name == lesson.subject)
    runs = Runs(backbone, out / lesson.name, Machine(device=device, progress=False))
    data = {"captions": True, "batch_size": lesson.batch_size}
    study = Study(
        backbone, Eyes(dino, clip), subjects, runs, lesson.recipe, data, EACH, lesson.how, batch_size=EACH
    )
    before, after = study.frozen(one), study.learned(lesson.candidate, one, lesson.seed)
    told(
        f"{lesson.name}: <{one.name}> from {len(list(one.folder.iterdir()))} pictures: nearest its own in "
        f"{_percent(before)} before, {_percent(after)} after, {after.seconds:.1f} s"
    )
    return Lesson(
        lesson.title,
        _protocol(lesson, one, backbone, after, len(subjects)),
        _findings(before, after),
        HEADER,
        [_line(f"a {one.word}", before), _line(f"a <{one.name}>", after)],
        [file.read_bytes() for file in sorted(one.folder.iterdir())],
        {
            sentence.replace("{}", f"<{one.name}>"): {
                f"before: {sentence.replace('{}', one.word)}": _pngs(study.frozen_folder(one), k),
                "after": _pngs(pictures_of(after), k),
            }
            for k, sentence in enumerate(one.sentences[:SHOWN])
        },
        f"vpt generate {quote(after.file)} {quote(f'a <{one.name}> on a white background')} --steps "
        f"{lesson.how['steps']:g} --guidance {lesson.how['guidance']:g}",
    )


def _pngs(folder: Path, k: int) -> list[bytes]:
    return [file.read_bytes() for file in sorted((folder / f"{k + 1:02}").glob("*.png"))]


def _line(said: str, r: Result) -> tuple[str, ...]:
    m = r.metrics
    return (
        said,
        f"{100 * m['own']:.0f}",
        f"{m['DINO-I']:.2f}",
        f"{100 * m['background obeyed']:.0f}",
        f"{r.parameters:,}",
        f"{r.bytes / 1e3:,.1f}",
        f"{r.seconds:.1f}",
    )


def _protocol(lesson: Teach, one: Subject, backbone: Diffusion, run: Result, count: int) -> str:
    settings = " and ".join(f"{k} {v:g}" for k, v in lesson.how.items())
    return (
        f"Five pictures of a drawn character that {backbone.name} never met ({one.told}) teach the word <{one.name}>: "
        f"{run.parameters:,} numbers in the text encoder's input, which start as the word {one.word} "
        f"({run.protocol['trained']}). {len(one.sentences)} sentences are drawn {EACH} times each, before and after, "
        f"from the same noise, with {settings}. Nearest its own: the character, cut out of its background, is more "
        f"like ten other pictures of it than like those of any other of {count} characters, by vit-mini's features; "
        f"one in {count} is chance. Likeness is the mean cosine of whole pictures' features. Backgrounds are read from "
        "the pixels."
    )


def _findings(before: Result, after: Result) -> list[str]:
    b, a = before.metrics, after.metrics
    learned = a["own"] > b["own"] and a["DINO-I"] > b["DINO-I"]
    kept = a["background obeyed"] >= 0.8 * b["background obeyed"]
    said = [
        f"The word was {'' if learned else 'not '}learned: {_percent(before)} of the pictures were nearest to this "
        f"character's before, {_percent(after)} after; likeness {b['DINO-I']:.2f}, then {a['DINO-I']:.2f}.",
        f"The other words of the sentence {'still act' if kept else 'suffer'}: the background is as asked in "
        f"{100 * b['background obeyed']:.0f} % before, {100 * a['background obeyed']:.0f} % after.",
        "One character and one seed: ten of them and other methods are in vpt table dreambooth --root characters.",
    ]
    return said


def _percent(r: Result) -> str:
    return f"{100 * r.metrics['own']:.0f} %"
