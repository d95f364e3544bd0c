"""How well a learned word finds its thing in context, on scenes with a character that the network never met."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from torch import Tensor

from vpt.data.concept import ConceptScenes, concept_scenes
from vpt.objectives.recall import ranked
from vpt.promptset import write_atomically
from vpt.tasks.concept import RECIPE, SKS, learn_concept
from vpt.tasks.device import Machine
from vpt.tasks.pairs import plainly
from vpt.tasks.tuned import Tuned
from vpt.towers.backbone import Backbone

__all__ = ["CANDIDATES", "Candidate", "Found", "found_in", "markdown", "study"]

NAME, WORD = "moko", "shape"


@dataclass(frozen=True)
class Candidate:
    """One line: how the character's word is learned; an empty method says the plain word."""

    label: str
    method: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    recipe: Mapping[str, Any] = field(default_factory=dict)

    @property
    def word(self) -> str:
        """What sentences say."""
        return {"": f"a {WORD}", "polar": SKS}.get(self.method, f"<{NAME}>")


CANDIDATES = (
    Candidate("the plain word"),
    Candidate("textual inversion, true pairs alone", "concept", {"near": 0.0}, {"loss": "pull"}),
    Candidate("POLAR", "polar", recipe={"loss": "pull", "epochs": 500}),
    Candidate("concept, near 0", "concept", {"near": 0.0}),
    Candidate("concept, near 0.1", "concept", {"near": 0.1}),
    Candidate("concept, 3 rows, near 0", "concept", {"length": 3, "near": 0.0}),
)


@dataclass(frozen=True)
class Found:
    """One line's numbers with one seed.

    context, alone: mAP of queries that say a context, and of the one that does not.  first: recall@1 in context.
    before, after: mean recall on the background's test pictures, by the frozen model and with what was learned.
    """

    label: str
    seed: int
    context: float
    alone: float
    first: float
    before: float = 0.0
    after: float = 0.0


def found_in(tuned: Tuned, scenes: ConceptScenes, word: str) -> dict[str, float]:
    """mAP in context and alone, and recall@1 in context, over the whole gallery."""
    pictures = scenes.pictures()
    gallery = torch.cat([_look(tuned, pictures[i : i + 64]) for i in range(0, len(pictures), 64)])
    queries = [f"a picture of {word} {context}" for context in scenes.contexts]
    true = torch.zeros(len(queries) + 1, len(gallery), dtype=torch.bool)
    for i, places in enumerate([*scenes.contexts.values(), scenes.everywhere]):
        true[i, list(places)] = True
    ranks, precision = ranked(tuned.encode_text([*queries, f"a picture of {word}"]).cpu(), gallery, true)
    return {
        "context": float(precision[:-1].mean()),
        "alone": float(precision[-1]),
        "first": float((ranks[:-1] == 1).float().mean()),
    }


def _look(tuned: Tuned, pictures: Sequence[Any]) -> Tensor:
    return tuned.encode_image(torch.stack([tuned.backbone.preprocess(p) for p in pictures])).cpu()


def study(
    backbone: Backbone,
    background: str,
    seeds: Sequence[int],
    candidates: Sequence[Candidate] = CANDIDATES,
    machine: Machine = Machine(),  # noqa: B008  frozen
    out: str | Path | None = None,
) -> list[Found]:
    """Every candidate with every seed: another character, other pictures, other contexts.

    out: ``results.json`` there keeps every line, so that a killed study goes on.
    """
    file = None if out is None else Path(out) / "results.json"
    known = [Found(**f) for f in json.loads(file.read_text())] if file and file.is_file() else []
    done = {(f.label, f.seed): f for f in known}
    for seed in seeds:
        for c in candidates:
            if (c.label, seed) not in done:
                quiet = replace(machine, out=None)
                done[c.label, seed] = _measured(backbone, background, concept_scenes(seed), c, seed, quiet)
                if file is not None:
                    write_atomically(file, json.dumps([asdict(f) for f in done.values()], indent=1).encode())
    return [done[c.label, seed] for c in candidates for seed in seeds]


def _measured(
    backbone: Backbone, background: str, scenes: ConceptScenes, c: Candidate, seed: int, machine: Machine
) -> Found:
    if not c.method:
        return Found(c.label, seed, **found_in(plainly(backbone), scenes, c.word))
    tuned = learn_concept(
        backbone,
        scenes,
        background,
        name=NAME,
        word=WORD,
        method=c.method,
        options=c.options,
        recipe=replace(RECIPE, **c.recipe),
        machine=machine,
        seed=seed,
    )
    before, after = (
        next(m["value"] for m in tuned.prompts.about[part] if m["name"] == "mean_recall")
        for part in ("before", "metrics")
    )
    return Found(c.label, seed, **found_in(tuned, scenes, c.word), before=before, after=after)


def markdown(found: Sequence[Found]) -> str:
    """A table in percent, mean and sample standard deviation over seeds."""
    lines = [
        "| word | in context, mAP | in context, recall@1 | alone, mAP | general recall, change in points |",
        "| --- | --- | --- | --- | --- |",
    ]
    for label in dict.fromkeys(f.label for f in found):
        mine = [f for f in found if f.label == label]
        told = [[100 * getattr(f, k) for f in mine] for k in ("context", "first", "alone")]
        told.append([100 * (f.after - f.before) for f in mine])
        lines.append(f"| {label} | {' | '.join(map(_spread, told))} |")
    return "\n".join(lines) + "\n"


def _spread(values: Sequence[float]) -> str:
    return f"{mean(values):.1f}" + (f" ± {stdev(values):.1f}" if len(values) > 1 else "")
