"""Names and captions as the sentences that a text tower reads."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from vpt.prompt import Rows
from vpt.text import Sentence, encode_text, lay
from vpt.tower import Stream, Tower
from vpt.towers.backbone import Backbone
from vpt.towers.tokens import PLACEHOLDER, readable

__all__ = ["Speech", "bare"]

PART = 2048  # sentences laid out at once: a tree's mask takes more memory than its tokens


def bare(sentence: str) -> str:
    """A class sentence without its words: ``<ctx*4> {}.`` says captions as ``<ctx*4> {}``."""
    return " ".join(re.findall(r"<[\w-]+(?:\*\d+)?>|\{\}", sentence))


class Speech:
    """How a method says names, or captions, which are whole sentences: its rows stand before them, its words do not.

    rows_of: how many rows each slot of the text tower has.  grouped: each name has rows of its own.
    cut: captions that were too long for the context, and lost their last words.
    """

    def __init__(
        self,
        backbone: Backbone,
        sentence: str,
        rows_of: Callable[[], Mapping[str, int]],
        *,
        grouped: bool = False,
        captions: bool = False,
        packed: bool = True,
    ) -> None:
        self.sentence = bare(sentence) if captions else sentence
        self.grouped, self.captions, self.packed = grouped, captions, packed
        self.cut: set[str] = set()
        self._backbone, self._rows_of = backbone, rows_of

    def sentences(self, texts: Sequence[str]) -> list[Sentence]:
        """What is read for each text."""
        if not self.captions:
            return self._backbone.sentences(self.sentence, [readable(t) for t in texts], grouped=self.grouped)
        rows = self._rows_of()
        return [self._caption(text, self.sentence, rows) for text in texts]

    def _caption(self, caption: str, sentence: str, rows: Mapping[str, int]) -> Sentence:
        """A placeholder in the caption, such as ``<my-mug>``, holds all the rows of its slot, and the caption is then
        the whole sentence; other words in angle brackets are words."""
        tokens, caption = self._backbone.tokens, " ".join(caption.split())

        def whole(found: re.Match[str]) -> str:
            slot = f"<{found[1]}>"
            return f"<{found[1]}*{rows[slot]}>" if slot in rows else found[0]

        if {f"<{found[1]}>" for found in PLACEHOLDER.finditer(caption)} & rows.keys():
            return tokens.sentence(PLACEHOLDER.sub(whole, caption))
        short, shortened = tokens.fitted(sentence, caption)
        if shortened:
            self.cut.add(caption)
        return tokens.sentence(sentence, short)

    def lay(self, tower: Tower, sentences: Sequence[Sentence]) -> list[Stream]:
        """The sentences, laid out for a tower."""
        return lay(tower, sentences, packed=self.packed)

    def encode(self, tower: Tower, texts: Sequence[str], rows: Rows) -> Tensor:
        """Features [N, out] of texts as the method says them."""
        return torch.cat(
            [encode_text(tower, self.lay(tower, part), rows) for part in _parts(self.sentences(texts))]
        )

    def frozen(self, tower: Tower, sentences: Sequence[str]) -> Tensor:
        """Features [N, out] of whole sentences by the frozen tower, without rows."""
        if self.captions:
            told = [self._caption(sentence, "{}", {}) for sentence in sentences]
        else:
            told = self._backbone.sentences("{}", sentences)
        with torch.no_grad():
            return torch.cat([encode_text(tower, lay(tower, part), {}) for part in _parts(told)])


def _parts(sentences: Sequence[Sentence]) -> Iterator[Sequence[Sentence]]:
    for start in range(0, len(sentences), PART):
        yield sentences[start : start + PART]
