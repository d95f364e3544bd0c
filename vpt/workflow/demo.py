"""The demo: frozen starters learn digits, emoji, to find scenes and to draw a character; a page says what it gave."""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from vpt.promptset import write_atomically
from vpt.tasks.device import Machine
from vpt.tasks.task import Recipe
from vpt.tasks.tuned import Tuned
from vpt.towers.backbone import Backbone
from vpt.towers.load import load
from vpt.workflow.compare import Candidate, Result, compare, label_of, summarise, to_csv
from vpt.workflow.demo_concept import TEACH, Teach, teach
from vpt.workflow.demo_search import HUNT, Hunt, search
from vpt.workflow.report import Chapter, Lesson, Searches, page
from vpt.workflow.study import Study

__all__ = ["SUBJECTS", "Budget", "Subject", "demo"]

BASE = "head alone (linear probe)"


@dataclass(frozen=True)
class Budget:
    """What every method gets: pictures a class, passes over them, pictures a step, seeds."""

    shots: int = 10
    epochs: int = 5
    batch_size: int = 10
    seeds: Sequence[int] = (1, 2, 3)


@dataclass(frozen=True)
class Subject:
    """A data set and the methods that are tried on it. data: options of ImageData besides the budget."""

    name: str
    title: str
    data: Mapping[str, Any]
    candidates: Sequence[Candidate]
    credits: str = ""


# One learning rate a method, the best on val pictures of seeds 11 to 13: of 1e-3, 2e-3, 5e-3, 1e-2 and 2e-2 on both
# data sets together (pixels: 5e-3, 1e-2, 3e-2; full: 1e-4, 3e-4, 1e-3). The controls have that of VPT-deep.
COMMON = (
    Candidate("linear", BASE, recipe={"lr": (5e-3,)}),
    Candidate("random-rows", "random rows, frozen", recipe={"lr": (5e-3,)}),
    Candidate("vpt-shallow", "VPT-shallow", recipe={"lr": (1e-2,)}),
    Candidate("vpt-deep", "VPT-deep", recipe={"lr": (5e-3,)}),
)
SUBJECTS = (
    Subject(
        "digits",
        "Handwritten digits",
        {"path": "digits", "test": 0.1},
        (
            *COMMON,
            Candidate("pixel", "pixel prompts", recipe={"lr": (1e-2,)}),
            Candidate("full", "full fine-tuning", recipe={"lr": (1e-3,)}),
        ),
        "Digits: scikit-learn's copy of UCI's Optical Recognition of Handwritten Digits, 8 x 8 pixels, CC BY 4.0.",
    ),
    Subject(
        "emoji",
        "Ten kinds of emoji",
        {"path": "emoji"},
        COMMON,
        "Emoji: Twemoji, Copyright Twitter, Inc and other contributors, CC BY 4.0, drawn over white.",
    ),
)


def demo(
    out: str | Path,
    budget: Budget = Budget(),
    *,
    subjects: Sequence[Subject] = SUBJECTS,
    hunts: Sequence[Hunt] = (HUNT,),
    lessons: Sequence[Teach] = (TEACH,),
    backbone: Backbone | str = "starter/vit-mini",
    clip: Backbone | str = "starter/clip-mini",
    draws: Backbone | str = "starter/sd-mini",
    device: str = "auto",
    told: Callable[[str], None] = print,
) -> tuple[list[Chapter], list[Searches], list[Lesson]]:
    """Compare, draw, try the prompt files in a fresh process, search, teach a word, and write ``out/index.html`` and
    the PNGs.

    backbone: of the subjects.  clip: of the hunts.  draws: of the lessons; hunts and lessons have budgets of their own.
    Runs that ``out`` holds are not repeated. Raises RuntimeError where a fresh process predicts otherwise.
    """
    out, started = Path(out), time.perf_counter()
    backbone = load(backbone) if isinstance(backbone, str) else backbone
    studies = [_study(s, backbone, budget, out / s.name, device, told) for s in subjects]
    told("reading the prompt files back in fresh processes; drawing and searching meanwhile")
    asked = [study.ask() for study in studies]
    reader = load(clip) if isinstance(clip, str) and (hunts or lessons) else clip
    found = [search(hunt, reader, out, device, told) for hunt in hunts]
    taught = [teach(lesson, draws, backbone, reader, out, device, told) for lesson in lessons]
    drawn = [study.draw() for study in studies]
    chapters = [
        study.chapter(pictures, *study.answer(*process))
        for study, pictures, process in zip(studies, drawn, asked, strict=True)
    ]
    for study, chapter in zip(studies, chapters, strict=True):
        for picture in chapter.pictures:
            write_atomically(study.out / f"{picture.name}.png", picture.light)
        write_atomically(
            study.out / "table.csv", to_csv(summarise(study.results), label_of(study.results)).encode()
        )
    facts = _facts(backbone, budget, time.perf_counter() - started)
    lead = _lead(backbone)
    if hunts:
        lead += " Then pictures are found by words: with a small CLIP as it is, and with learned rows."
    if lessons:
        lead += " Last, a small text-to-image model learns to draw a character from five pictures."
    html = page("What a few learned rows do to a frozen network", lead, chapters, facts, found, taught)
    write_atomically(out / "index.html", html.encode())
    return chapters, found, taught


def _study(
    subject: Subject, backbone: Backbone, budget: Budget, out: Path, device: str, told: Callable[[str], None]
) -> Study:
    """The runs of one data set."""
    data = {**subject.data, "shots": budget.shots, "batch_size": budget.batch_size}
    new: list[str] = []

    def seen(_: Tuned, r: Result) -> None:
        new.append(r.name)
        top1 = f"{100 * r.metrics['top1']:.1f} %"
        told(f"{subject.name}: {r.name}, seed {r.seed}: {top1} of the test pictures, {r.seconds:.1f} s")

    results = compare(
        backbone,
        data,
        subject.candidates,
        out=out,
        seeds=budget.seeds,
        recipe=Recipe(epochs=budget.epochs),
        machine=Machine(device=device, progress=False),
        seen=seen,
    )
    if len(new) < len(results):
        told(
            f"{subject.name}: {len(results) - len(new)} runs were in {out} already; delete it to repeat them"
        )
    return Study(
        subject.title,
        backbone,
        data,
        results,
        out,
        subject.candidates[0].name,
        device=device,
        credits=subject.credits,
    )


def _lead(backbone: Backbone) -> str:
    frozen = sum(p.numel() for p in backbone.image.model.parameters())
    return (
        f"{backbone.name} ({frozen / 1e6:.1f} million numbers, frozen) is taught two new tasks from a handful of "
        "pictures: by a head alone, by prompts (learned rows among its tokens, or learned pixels around the picture), "
        "and for comparison by changing all of it. Two controls show whether the prompts matter: the head alone, and "
        "a head on rows that stay at their random start, both with the same optimiser, pictures and budget."
    )


def _facts(backbone: Backbone, budget: Budget, seconds: float) -> dict[str, str]:
    """How it was made, for the foot of the page."""
    recipe = Recipe(epochs=budget.epochs)
    libraries = ", ".join(f"{lib} {version(lib)}" for lib in ("torch", "timm", "lightning"))
    return {
        "recipe": f"{recipe.optimizer}, {budget.epochs} epochs of {budget.shots} pictures a class in steps of "
        f"{budget.batch_size}, {recipe.schedule} after {recipe.warmup:g} epoch of warm-up, head started at 0. One "
        "learning rate a method, chosen beforehand on validation pictures of other seeds; both controls have that of "
        "VPT-deep. 'vpt compare --lr search' searches it anew.",
        "network": f"{backbone.name}, fingerprint {backbone.label()['fingerprints']['image']}",
        "machine": f"{_processor()}, {os.cpu_count()} logical cores, {torch.get_num_threads()} threads, "
        f"Python {platform.python_version()}, {libraries}, vpt {version('visual-prompt-tuning')}",
        "time": f"{seconds:.0f} seconds from loading the network to this page",
        "command": " ".join(["vpt", *sys.argv[1:]]) if sys.argv[1:2] == ["demo"] else "vpt.workflow.demo",
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
