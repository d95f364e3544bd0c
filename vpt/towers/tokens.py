"""Strings to sentences: a library's own tokenizer, and where the placeholders of a template stand."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vpt.text import Sentence
from vpt.tower import Tower

__all__ = ["Tokens", "readable"]

PLACEHOLDER = re.compile(r"<([\w-]+)(?:\*(\d+))?>")
HOLDERS = ("X", "a", "the", "x", ".")  # words that hold a place; the first that is one token is used


def readable(name: str) -> str:
    """A class name as sentences take it: blanks in place of underscores (as all of CoOp's line of work does)."""
    return " ".join(name.replace("_", " ").split())


@dataclass(frozen=True)
class Tokens:
    """call: the tokenizer, strings to ids [N, context].  length: tokens of a string, uncut, with start and end.
    tower: the text tower that reads them."""

    call: Callable[[list[str]], Tensor]
    length: Callable[[str], int]
    tower: Tower

    @property
    def context(self) -> int:
        """The most tokens of a sentence, start and end included."""
        assert self.tower.reading is not None
        return self.tower.reading.context

    def __call__(self, texts: str | Sequence[str]) -> Tensor:
        """Ids [N, context] of plain strings. Raises ValueError for one that is too long."""
        given = [texts] if isinstance(texts, str) else list(texts)
        for text in given:
            self._check(text, text)
        return self.call(given)

    def _check(self, text: str, named: str) -> None:
        if (n := self.length(text)) > self.context:
            raise ValueError(
                f"{named!r} takes {n} tokens with start and end, and this text tower has {self.context} positions. "
                "Shorten the name or the template, or learn fewer rows."
            )

    def sentence(self, template: str, name: str = "", group: int = 0) -> Sentence:
        """One sentence of a template: ``{}`` is the name, ``<ctx*4>`` (or ``<ctx>`` for one) holds rows.

        Several placeholders of one slot take its rows in their order. group: see :class:`vpt.text.Sentence`.
        Raises ValueError for a sentence that is longer than the context, with the name and its length.
        """
        text, marks, at = "", [], 0
        template = template.replace("{}", name)
        holder = self._holder() if PLACEHOLDER.search(template) else ""
        for found in PLACEHOLDER.finditer(template):
            text += template[at : found.start()]
            n = int(found.group(2) or 1)
            marks.append((f"<{found.group(1)}>", text, n))
            text += " ".join([holder] * n)
            at = found.end()
        text += template[at:]
        self._check(text, name or template)
        row = self.call([text])[0].tolist()
        slots: dict[str, tuple[int, ...]] = {}
        for slot, before, n in marks:
            start = (
                _common(row, self.call([before.rstrip()])[0].tolist()) if before.strip() else self._first()
            )
            slots[slot] = (*slots.get(slot, ()), *range(start, start + n))
        return Sentence(tuple(self._cut(row)), slots, group)

    def _cut(self, row: list[int]) -> list[int]:
        """Ids up to the end token where nothing behind it counts, and without padding where that is not seen."""
        reading = self.tower.reading
        assert reading is not None
        if reading.causal:
            end = int(self.tower.begin(torch.tensor([row])).places["end"][0, 0])
            return row[: end + 1]
        if reading.cuts:
            while row and row[-1] == reading.pad:
                row = row[:-1]
        return row

    def _holder(self) -> str:
        """A word that is one token wherever it stands."""
        for word in HOLDERS:
            if self.length(" ".join([word] * 3)) - self.length(word) == 2:
                return word
        raise ValueError(
            "this tokenizer has no word that is one token, so nothing can hold the place of rows."
        )

    def _first(self) -> int:
        """Where the first word of a sentence stands: behind the start token, if there is one."""
        a, b = (self.call([word])[0].tolist() for word in HOLDERS[:2])
        return _common(a, b)

    def words(self, text: str) -> list[int]:
        """Ids of the words alone, without start, end and padding."""
        first = self._first()
        n = self.length(text) - self.length("")
        return self.call([text])[0].tolist()[first : first + n]


def _common(a: list[int], b: list[int]) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=True)) if x != y), len(a))


def of_open_clip(tokenizer: Any, tower: Tower) -> Tokens:
    """open_clip's tokenizers: CLIP's own BPE, or a Hugging Face one behind its cleaning."""
    inner = getattr(tokenizer, "tokenizer", None)
    if inner is None:
        return Tokens(tokenizer, lambda text: len(tokenizer.encode(text)) + 2, tower)
    return Tokens(tokenizer, lambda text: len(inner(tokenizer.clean_fn(text))["input_ids"]), tower)
