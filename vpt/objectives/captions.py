"""Which captions are true of which pictures: what keeps a true pair from being counted as a false one."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

__all__ = ["Captions"]


@dataclass(frozen=True)
class Captions:
    """The captions of a split. One that several pictures have is true of each of them.

    texts: every caption once, sorted, so that neighbours begin alike and packed text shares their beginnings.
    of: the numbers of each picture's captions, in its own order.
    """

    texts: tuple[str, ...]
    of: tuple[tuple[int, ...], ...]

    @classmethod
    def gather(cls, captions: Iterable[Sequence[str]]) -> Captions:
        """Of the captions of each picture, one or more a picture."""
        every = [tuple(dict.fromkeys(c)) for c in captions]
        texts = tuple(sorted({text for c in every for text in c}))
        number = {text: i for i, text in enumerate(texts)}
        return cls(texts, tuple(tuple(number[text] for text in c) for c in every))

    @cached_property
    def pictures(self) -> tuple[tuple[int, ...], ...]:
        """The numbers of each caption's pictures."""
        found: list[list[int]] = [[] for _ in self.texts]
        for picture, captions in enumerate(self.of):
            for caption in captions:
                found[caption].append(picture)
        return tuple(map(tuple, found))

    def drawn(self, pictures: Iterable[int], epoch: int, each: int, seed: int) -> Tensor:
        """Numbers [M] of the captions that these pictures bring in an epoch, each once.

        each: captions a picture, in turn, so that all come by; 0: all of them.
        """
        chosen: set[int] = set()
        for picture in pictures:
            own = self.of[picture]
            if each and each < len(own):
                order = random.Random(f"{seed}/{picture}").sample(own, len(own))
                chosen |= {order[(epoch * each + k) % len(own)] for k in range(each)}
            else:
                chosen |= set(own)
        return torch.tensor(sorted(chosen))

    def true(self, pictures: Tensor | None, captions: Tensor | None) -> Tensor:
        """Which of these captions are true of which pictures, [B, M]; None: all there are."""
        rows = range(len(self.of)) if pictures is None else pictures.tolist()
        columns = range(len(self.texts)) if captions is None else captions.tolist()
        found = torch.zeros(len(rows), len(columns), dtype=torch.bool)
        if len(rows) <= len(columns):
            place = {caption: j for j, caption in enumerate(columns)}
            pairs = [(i, place[c]) for i, p in enumerate(rows) for c in self.of[p] if c in place]
        else:
            there = {picture: i for i, picture in enumerate(rows)}
            pairs = [(there[p], j) for j, c in enumerate(columns) for p in self.pictures[c] if p in there]
        if pairs:
            found[tuple(torch.tensor(pairs).T)] = True
        return found
