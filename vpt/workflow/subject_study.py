"""How well subjects are drawn: DreamBooth's protocol (arXiv 2208.12242, section 4.1), any method, any pipeline.

Every method learns every subject from its pictures, and draws it in every sentence. **DINO-I** and **CLIP-I** are the
mean cosine of all pairs of a drawn and a real picture, by features of a network trained without labels and of a CLIP;
**CLIP-T** that of a drawn picture and its sentence, in which the subject is called by its kind. **own** is how often a
drawn picture is, by the first network, nearer to its own subject's real pictures than to those of every other subject.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from vpt.data.scene_check import cut_out, look_at
from vpt.data.subjects import Subject, pictures_in
from vpt.encode import encode
from vpt.promptset import PromptSet
from vpt.tasks.label import recipe_of
from vpt.tasks.pairs import plainly
from vpt.tasks.pipeline import TunedPipeline
from vpt.tasks.task import Recipe
from vpt.tasks.tuned import load_prompts
from vpt.towers.backbone import Backbone
from vpt.towers.diffusion import Diffusion
from vpt.workflow.drawn import Drawn, sheet
from vpt.workflow.generate import Drawing
from vpt.workflow.runs import Candidate, Result, Runs
from vpt.workflow.tabulate import Cell, Line, Table

__all__ = ["KIND", "TOLD", "Eyes", "Study", "pictures_of"]

KIND, TOLD = "its kind, frozen", "a description, frozen"
REAL = "real pictures"
BATCH = 32  # pictures that eyes look at
CUT = 96  # pixels of things cut out that eyes look at
SHOWN = 2  # sentences on the sheet


@dataclass(frozen=True)
class Eyes:
    """What compares pictures. dino: a network without labels, whose features are compared.  clip: one that reads."""

    dino: Backbone
    clip: Backbone

    @torch.inference_mode()
    def look(self, backbone: Backbone, pictures: Sequence[Image.Image]) -> Tensor:
        """Features of unit length, [pictures, out]."""
        device = next(backbone.image.model.parameters()).device
        parts = []
        for start in range(0, len(pictures), BATCH):
            shown = torch.stack([backbone.preprocess(p) for p in pictures[start : start + BATCH]])
            parts.append(F.normalize(encode(backbone.image, shown.to(device)).float(), dim=-1).cpu())
        return torch.cat(parts)

    def read(self, texts: Sequence[str]) -> Tensor:
        """Features of unit length, [texts, out]."""
        return plainly(self.clip).encode_text(list(texts), normalize=True).float().cpu()


@dataclass(frozen=True)
class Study:
    """Subjects, and how they are drawn and looked at.

    data: options of ImageData.  recipe: for all methods.  each: pictures a sentence, from noise of seeds 1 and up.
    how: steps and guidance of ``TunedPipeline.drawing``.  batch_size: pictures drawn at a time, 0: its own choice.
    """

    backbone: Diffusion
    eyes: Eyes
    subjects: Sequence[Subject]
    runs: Runs
    recipe: Recipe = Recipe(objective="denoise")  # noqa: RUF009  frozen
    data: Mapping[str, Any] = field(default_factory=dict)
    each: int = 4
    how: Mapping[str, Any] = field(default_factory=dict)
    batch_size: int = 0

    def table(self, candidates: Sequence[Candidate], seeds: Sequence[int]) -> Table:
        """Every method on every subject with every seed; runs and pictures that are there are not made again."""
        lines = [self._real(), *self._frozen()]
        for c in candidates:
            found = {seed: [self.learned(c, subject, seed) for subject in self.subjects] for seed in seeds}
            lines.append(_line(c.name, c.method, list(found.values())))
        columns = tuple(dict.fromkeys(name for line in lines for name in line.cells))
        return Table("dreambooth", columns, tuple(lines), self._label(seeds, lines), self._notes())

    def sheet(self, candidates: Sequence[Candidate], seed: int) -> Image.Image:
        """Real pictures above what each method drew of them with its first noise; a column a subject."""
        rows = [[Drawn(_first(s.real), f"{REAL}: {s.name}", s.name) for s in self.subjects]]
        for k in range(min(SHOWN, *(len(s.sentences) for s in self.subjects))):
            folders = [(KIND, [(s.word, self.frozen_folder(s)) for s in self.subjects])]
            for c in candidates:
                runs = [(s, self._run(c, s, seed)) for s in self.subjects]
                folders.append((c.name, [(f"<{s.name}>", pictures_of(run)) for s, run in runs]))
            for name, places in folders:
                said = [
                    (_said(s.sentences[k], thing), place)
                    for s, (thing, place) in zip(self.subjects, places, strict=True)
                ]
                rows.append(
                    [Drawn(_first(_sentence(place, k)), f"{name}: {text}", text) for text, place in said]
                )
        return sheet("what was learned, and what was drawn", rows, self._facts())

    @cached_property
    def _kept(self) -> dict[str, dict[str, Any]]:
        """Of every subject: its real pictures as each eye sees them, and cut out."""
        found = {}
        for s in self.subjects:
            pictures = pictures_in(s.real)
            kept: dict[str, Any] = {
                "dino": self.eyes.look(self.eyes.dino, pictures),
                "clip": self.eyes.look(self.eyes.clip, pictures),
            }
            if s.grounds:
                kept["pixels"] = np.stack([cut_out(p) for p in pictures])
                kept["thing"] = self.eyes.look(self.eyes.dino, _things(pictures))
            found[s.name] = kept
        return found

    def learned(self, c: Candidate, s: Subject, seed: int) -> Result:
        """A method on a subject, and what a table says of it: trained and drawn where it is not there yet."""
        run = self._run(c, s, seed)
        made = self.draw(load_prompts(run.file, self.backbone), s, f"<{s.name}>", pictures_of(run))
        return replace(run, metrics=self.numbers(s, made))

    def frozen(self, s: Subject, name: str = KIND) -> Result:
        """The same of the pipeline as it came, told the kind of thing, or its description."""
        self.runs.told(f"{s.name}, {name}")
        made = self.draw(self._plain, s, s.told if name == TOLD else s.word, self.frozen_folder(s, name))
        return _nothing_learned(name, self.numbers(s, made))

    def frozen_folder(self, s: Subject, name: str = KIND) -> Path:
        """Where the pictures of :meth:`frozen` are, a folder a sentence."""
        return self.runs.out / s.name / name.partition(",")[0].replace(" ", "-")

    def _run(self, c: Candidate, s: Subject, seed: int) -> Result:
        own = replace(c, options={**c.options, "concept": s.name, "word": s.word})
        data = {**self.data, "path": str(s.folder), "concept": s.name}
        return self.runs.train(own, data, seed, self.recipe, place=[s.name])

    def _frozen(self) -> list[Line]:
        """The pipeline as it came: told the kind of thing and, where there is a description, that."""
        ways = [KIND, *([TOLD] if all(s.told for s in self.subjects) else [])]
        return [_line(name, "", [[self.frozen(s, name) for s in self.subjects]]) for name in ways]

    @cached_property
    def _plain(self) -> TunedPipeline:
        return TunedPipeline(self.backbone, PromptSet())

    def draw(self, tuned: TunedPipeline, s: Subject, thing: str, folder: Path) -> list[list[Image.Image]]:
        """Pictures of every sentence; those that are in the folder are not drawn again."""
        found = []
        for k, sentence in enumerate(s.sentences):
            drawing = self._drawing(tuned, _said(sentence, thing), _sentence(folder, k))
            for _ in drawing.draw():
                pass
            found.append([d.still for row in drawing.rows() for d in row])
        return found

    def _drawing(self, tuned: TunedPipeline, text: str, folder: Path) -> Drawing:
        told = {"model": self.backbone.name, "vpt": version("visual-prompt-tuning")}
        seeds = range(1, self.each + 1)
        return Drawing(tuned, text, folder, seeds, how=self.how, told=told, batch_size=self.batch_size)

    def numbers(self, s: Subject, made: Sequence[Sequence[Image.Image]]) -> dict[str, float]:
        """What a table says of a subject's pictures, given by sentence."""
        every = [picture for some in made for picture in some]
        seen = {name: self.eyes.look(getattr(self.eyes, name), every) for name in ("dino", "clip")}
        kinds = self.eyes.read([_said(sentence, s.word) for sentence in s.sentences])
        each = torch.arange(len(s.sentences)).repeat_interleave(torch.tensor([len(some) for some in made]))
        found = {
            "DINO-I": _pairs(seen["dino"], self._kept[s.name]["dino"]),
            "CLIP-I": _pairs(seen["clip"], self._kept[s.name]["clip"]),
            "CLIP-T": float((seen["clip"] * kinds[each]).sum(-1).mean()),
            "own": self._own(s, "dino", _near(seen["dino"])),
        }
        if s.grounds:
            # sentences ask for what is behind a thing, and its real pictures show something else there
            found["own, whole pictures"] = found["own"]
            found["own"] = self._own(s, "thing", _near(self.eyes.look(self.eyes.dino, _things(every))))
            cut = np.stack([cut_out(p) for p in every])

            def near(kept: np.ndarray) -> np.ndarray:
                return np.stack([1 - np.abs(cut - one).mean((1, 2, 3)) for one in kept]).mean(0)

            found["pixels"] = float(near(self._kept[s.name]["pixels"]).mean())
            found["own, by pixels"] = self._own(s, "pixels", near)
            asked = [
                (look_at(p).background == s.grounds[k])
                for k, p in zip(each, every, strict=True)
                if s.grounds[k]
            ]
            found["background obeyed"] = fmean(asked)
        return found

    def _own(self, s: Subject, eye: str, near: Callable[[Any], np.ndarray]) -> float:
        """How often the subject is the one whose real pictures are nearest."""
        names = [one.name for one in self.subjects]
        found = np.stack([near(self._kept[name][eye]) for name in names])
        return float((found.argmax(0) == names.index(s.name)).mean())

    def _real(self) -> Line:
        """Real pictures among themselves: what similarities could be."""
        found = []
        for s in self.subjects:
            of = self._kept[s.name]
            numbers = {f"{eye.upper()}-I": _pairs(of[eye], of[eye], itself=True) for eye in ("dino", "clip")}
            found.append(_nothing_learned(REAL, numbers))
        return _line(REAL, "", [found])

    def _facts(self) -> dict[str, str]:
        return self._drawing(self._plain, "", Path()).facts

    def _label(self, seeds: Sequence[int], lines: Iterable[Line]) -> dict[str, str]:
        counts = sorted({len(s.sentences) for s in self.subjects})
        facts = self._facts()
        return {
            "subjects": str(len(self.subjects)),
            "sentences": f"{' to '.join(map(str, counts))} a subject, {self.each} pictures each",
            "seeds of training": ", ".join(map(str, seeds)),
            "drawn with": ", ".join(f"{k} {v}" for k, v in facts.items()),
            "DINO-I by": self.eyes.dino.name,
            "CLIP-I and CLIP-T by": self.eyes.clip.name,
            "trained": "; ".join(
                f"{line.name}: {line.runs[0].protocol['trained']}" for line in lines if line.method
            ),
        }

    def _notes(self) -> tuple[str, ...]:
        notes = [
            "Similarities are cosines times 100; own and obeyed are in percent. own: nearest, on the mean, to its own "
            f"subject's real pictures among the {len(self.subjects)} subjects."
        ]
        if self.subjects[0].grounds:
            notes.append(
                "own compares the things cut out of their backgrounds, which sentences ask for. pixels: one minus "
                "the mean absolute difference of the things cut out, at 32 px. background obeyed: "
                "by its pixels the background has the colour that the sentence asks for."
            )
        return tuple(notes)


def _pairs(a: Any, b: Any, itself: bool = False) -> float:
    """Mean cosine over all pairs; itself: without those of a picture and itself."""
    found = a @ b.T
    return float((found.sum() - found.diagonal().sum()) / (len(a) * (len(a) - 1)) if itself else found.mean())


def _near(seen: Tensor) -> Callable[[Any], np.ndarray]:
    """Of every picture [n, width]: its mean cosine with a subject's real ones."""
    return lambda kept: (seen @ kept.T).mean(1).numpy()


def _things(pictures: Sequence[Image.Image]) -> list[Image.Image]:
    return [Image.fromarray((255 * cut_out(p, CUT)).round().astype(np.uint8)) for p in pictures]


def _said(sentence: str, thing: str) -> str:
    """The sentence with the thing in it: "an orange creature" where it says "a {}"."""
    article = "an" if thing[:1] in "aeiou" else "a"
    return sentence.replace("a {}", f"{article} {thing}").replace("{}", thing)


def pictures_of(run: Result) -> Path:
    """Where the pictures of a run are, a folder a sentence."""
    return Path(run.file).parent / "pictures"


def _sentence(folder: Path, k: int) -> Path:
    return folder / f"{k + 1:02}"


def _first(folder: Path) -> Path:
    return sorted(f for f in folder.iterdir() if not f.name.startswith("."))[0]


def _nothing_learned(name: str, numbers: dict[str, float]) -> Result:
    protocol = {"trained": recipe_of({"steps": 0})}
    return Result(name, "", 0, numbers, 0, 0, 0.0, 0.0, 0.0, 0.0, "", protocol)


def _line(name: str, method: str, by_seed: Sequence[Sequence[Result]]) -> Line:
    """A value a seed: the mean over subjects."""
    columns = by_seed[0][0].metrics
    cells: dict[str, Cell | str] = {
        column: Cell(tuple(fmean(r.metrics[column] for r in found) for found in by_seed))
        for column in columns
    }
    return Line(name, method, cells, tuple(r for found in by_seed for r in found))
