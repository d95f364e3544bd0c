"""Strings to sentences: a library's own tokenizer, and where the placeholders of a template stand."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from vpt.encode import advance
from vpt.text import Sentence
from vpt.tower import Tower

__all__ = ["Tokens", "of_open_clip", "readable"]

PLACEHOLDER = re.compile(r"<([\w-]+)(?:\*(\d+))?>")
HOLDERS = ("X", "a", "the", "of", ".")  # words that hold a place; the first two that are one token are used


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
        pieces = PLACEHOLDER.split(template)  # words, slot, count, words, slot, count, .., words
        words, counts = [w.replace("{}", name) for w in pieces[::3]], [int(n or 1) for n in pieces[2::3]]
        owners = [f"<{slot}>" for slot, n in zip(pieces[1::3], counts, strict=True) for _ in range(n)]

        def written(holder: str) -> str:
            held = [" ".join([holder] * n) for n in counts]
            return "".join(f"{w}{h}" for w, h in zip(words, [*held, ""], strict=True))

        holders = self._holders if owners else ("",)
        text = written(holders[0])
        self._check(text, name or template)
        rows = self.call([written(holder) for holder in holders]).tolist()
        places = [i for i, ids in enumerate(zip(*rows, strict=True)) if len(set(ids)) > 1]
        if len(places) != len(owners):
            raise ValueError(
                f"the {len(owners)} placeholders of {template!r} take {len(places)} tokens beside {name!r}. Put a "
                "blank between a placeholder and a word."
            )
        slots: dict[str, tuple[int, ...]] = {}
        for slot, place in zip(owners, places, strict=True):
            slots[slot] = (*slots.get(slot, ()), place)
        return Sentence(tuple(self._cut(rows[0])), slots, group)

    def fitted(self, template: str, name: str) -> tuple[str, bool]:
        """The name, without its last words where the sentence would be longer than the context, and whether it was cut.

        Raises ValueError for a template that leaves no room for a word.
        """
        words = name.split()
        room = self.context - self._long(template, "")
        if self._long(template, name) <= self.context:
            return name, False
        kept, low = len(words), 0
        while low < kept - 1:  # the most words that fit lie in [low, kept)
            middle = (low + kept) // 2
            fits = self._long(template, " ".join(words[:middle])) <= self.context
            low, kept = (middle, kept) if fits else (low, middle)
        if not low:
            raise ValueError(
                f"{template!r} leaves {max(room, 0)} of {self.context} tokens, and {words[0]!r} takes more. Learn "
                "fewer rows, or shorten the sentence."
            )
        return " ".join(words[:low]), True

    def _long(self, template: str, name: str) -> int:
        """Tokens of a sentence with start and end, its rows included."""
        holder = self._holders[0] if PLACEHOLDER.search(template) else ""

        def held(found: re.Match[str]) -> str:
            return " ".join([holder] * int(found[2] or 1))

        return self.length(PLACEHOLDER.sub(held, template).replace("{}", name))

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

    @cached_property
    def _holders(self) -> tuple[str, str]:
        """Two words that are one token wherever they stand: where their sentences differ, rows go."""
        found = [w for w in HOLDERS if self.length(" ".join([w] * 3)) - self.length(w) == 2]
        if len(found) < 2:
            raise ValueError("this tokenizer has too few words of one token to hold the places of rows.")
        return found[0], found[1]

    def _first(self) -> int:
        """Where the first word of a sentence stands: behind the start token, if there is one."""
        a, b = self.call(list(self._holders)).tolist()
        return next(i for i, (x, y) in enumerate(zip(a, b, strict=True)) if x != y)

    def words(self, text: str) -> list[int]:
        """Ids of the words alone, without start, end and padding."""
        first = self._first()
        n = self.length(text) - self.length("")
        return self.call([text])[0].tolist()[first : first + n]

    @torch.no_grad()
    def embed(self, text: str) -> Tensor:
        """The embeddings of these words, [n, width]: where rows start from words."""
        first, n = self._first(), len(self.words(text))
        ids = self.call([text]).to(self.tower.device)
        return advance(self.tower, ids, {}, "embedded").x[0, first : first + n].float()


def of_open_clip(tokenizer: Any, tower: Tower) -> Tokens:
    """open_clip's tokenizers: CLIP's own BPE, or a Hugging Face one behind its cleaning."""
    assert tower.reading is not None
    # a tokenizer cuts at a length of its own, whatever the tower has
    context = min(tokenizer.context_length, tower.reading.context)
    tower = replace(tower, reading=tower.reading._replace(context=context))
    inner = getattr(tokenizer, "tokenizer", None)
    if inner is None:
        return Tokens(tokenizer, lambda text: len(tokenizer.encode(text)) + 2, tower)
    more = getattr(tokenizer, "tokenizer_mode", "") == "clips"  # a class token behind the padding
    return Tokens(tokenizer, lambda text: len(inner(tokenizer.clean_fn(text))["input_ids"]) + more, tower)
