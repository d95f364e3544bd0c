"""A sentence drawn with several seeds and strengths, beside what the frozen pipeline draws, into a folder."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

from vpt.tasks.draw import Settings
from vpt.tasks.pipeline import TunedPipeline
from vpt.towers.tokens import PLACEHOLDER
from vpt.workflow.drawn import Drawn, there, write_drawn

__all__ = ["Drawing", "slug"]

LONGEST = 60  # letters of a sentence in a file's name


@dataclass(frozen=True)
class Drawing:
    """What is drawn, and how. Rows of the grid are seeds; columns the picture without prompts, then the strengths.

    text: the sentence.  strengths: what rows are multiplied by.  before, word: see ``TunedPipeline.unprompted``.
    how: steps, guidance, size and frames of ``TunedPipeline.drawing``; None or absent: the pipeline's own.
    told: what every file says beside: model, prompts, command, vpt.
    """

    tuned: TunedPipeline
    text: str
    out: Path
    seeds: Sequence[int] = (1,)
    strengths: Sequence[float] = (1.0,)
    negative: str | None = None
    before: bool = False
    word: str = ""
    how: Mapping[str, Any] = field(default_factory=dict)
    told: Mapping[str, str] = field(default_factory=dict)
    batch_size: int = 0
    fps: float = 16

    @cached_property
    def settings(self) -> Settings:
        """With the pipeline's own defaults."""
        return self.tuned.settings(negative=self.negative, **self.how)

    @cached_property
    def columns(self) -> list[_Column]:
        """Without prompts, and every strength."""
        grid = len(self.strengths) > 1 or self.before
        columns = []
        if self.before:
            plain = self.tuned.unprompted(self.word)
            columns.append(_Column(plain, None, plain.words, "before", "-before"))
        for s in self.strengths:
            label = ("after" if len(self.strengths) == 1 else f"strength {s:g}") if grid else ""
            columns.append(_Column(self.tuned, s, {}, label, "" if s == 1 else f"-x{s:g}"))
        return columns

    @property
    def facts(self) -> dict[str, str]:
        """What all pictures have in common, in words."""
        s, size = self.settings, self.settings.size
        found = {
            "steps": str(s.steps),
            "guidance": "none" if s.guidance is None else f"{s.guidance:g}",
            "size": f"{size[0]}x{size[1]}" if size else "the pipeline's own",
            **({"frames": str(s.frames)} if s.frames else {}),
            **({"negative": s.negative} if s.negative else {}),
        }
        return found | {k: v for k, v in self.told.items() if k == "model"}

    @property
    def legend(self) -> dict[str, str]:
        """``facts``, and what the frozen pipeline was told where it drew too."""
        plain = {"before": _said(self.text, self.columns[0].words)} if self.before else {}
        return plain | self.facts

    def rows(self) -> list[list[Drawn]]:
        """Every file with its label, drawn already or not."""
        return [[self._one(column, seed) for column in self.columns] for seed in self.seeds]

    def missing(self) -> int:
        """How many files are not there yet. Raises ValueError for one that was drawn otherwise."""
        return sum(
            not there(self._one(column, seed).file, self._said(column, seed))
            for column in self.columns
            for seed in self.seeds
        )

    def draw(
        self, *, anew: bool = False, progress: Callable[[int, int], object] | None = None
    ) -> Iterator[Drawn]:
        """Draw and write what is missing, one by one; anew: also what is there.

        progress: see ``TunedPipeline.drawing``.  Raises ValueError for a file that was drawn otherwise.
        """
        if not anew:
            self.missing()  # refused before anything is drawn
        for column in self.columns:
            want = [(seed, self._one(column, seed), self._said(column, seed)) for seed in self.seeds]
            want = [(seed, d, said) for seed, d, said in want if anew or not there(d.file, said)]
            pictures = column.tuned.drawing(
                self.text,
                seeds=[seed for seed, *_ in want],
                negative=self.negative,
                strength=1.0 if column.strength is None else column.strength,
                batch_size=self.batch_size,
                progress=progress,
                **self.how,
            )
            for (_, d, said), picture in zip(want, pictures, strict=True):
                write_drawn(d.file, picture, said, self.fps)
                yield d

    def _one(self, column: _Column, seed: int) -> Drawn:
        ending = ".webp" if self.tuned.backbone.family.video else ".png"
        name = f"{slug(self.text)}-seed{seed}{column.ending}{ending}"
        label = f"seed {seed}, {column.label}" if column.label else f"seed {seed}"
        return Drawn(self.out / name, label, _said(self.text, column.words))

    def _said(self, column: _Column, seed: int) -> dict[str, str]:
        """What a file says of itself."""
        facts = {**self.facts, **self.told}
        if "negative" in facts:
            facts["negative"] = _said(facts["negative"], column.words)
        own = {"prompt": _said(self.text, column.words), "seed": str(seed)}
        if column.strength is None:
            return {**own, **facts, "prompts": "none"}
        return {**own, **facts, "strength": f"{column.strength:g}"}


@dataclass(frozen=True)
class _Column:
    """strength: None without prompts.  words: what placeholders are said by there.  ending: of names of files."""

    tuned: TunedPipeline
    strength: float | None
    words: Mapping[str, str]
    label: str
    ending: str


def slug(text: str) -> str:
    """A sentence as a file's name: its letters and digits, and where some are cut off a hash of the whole."""
    name = "-".join(re.findall(r"\w+", text.lower()))
    if len(name) <= LONGEST and name:
        return name
    cut = name[:LONGEST].rstrip("-")
    return "-".join(filter(None, (cut, sha256(text.encode("utf-8", "backslashreplace")).hexdigest()[:6])))


def _said(text: str, words: Mapping[str, str]) -> str:
    return PLACEHOLDER.sub(lambda found: words.get(f"<{found[1]}>", found[0]), text)
