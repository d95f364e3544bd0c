"""CoOp, Context Optimization, arXiv 2109.01134 (code: KaiyangZhou/CoOp), as published.

Learned rows stand for the words of the sentence around a class name: in front of it ("end", the name's place), half
before and half behind, or behind. They get the positions of the words they stand for.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from vpt.methods.method import Method
from vpt.prompt import Context, Init, Prompt, Site, given, normal
from vpt.tower import Tower
from vpt.towers.tokens import Tokens

__all__ = ["CoOp", "beginning"]

SLOT = "<ctx>"


class CoOp(Method):
    """Rows in the class sentence.

    length: rows, by default 16, or as many as ``words`` are.
    place: of the class name, "end", "middle" or "front".
    words: start from these words' embeddings, such as "a photo of a"; empty: N(0, 0.02).
    class_specific: rows of its own for every class; words, where given, win over it (as published).
    """

    named = True
    usual = 16  # rows where neither length nor words say

    def __init__(
        self,
        text: Tower,
        tokens: Tokens,
        classes: int,
        *,
        length: int | None = None,
        place: Literal["end", "middle", "front"] = "end",
        words: str = "",
        class_specific: bool = False,
    ) -> None:
        super().__init__()
        length, start = beginning(tokens, words, length, self.usual)
        class_specific = class_specific and not words
        self.class_specific, self.length, self.sets = class_specific, length, classes if class_specific else 1
        self.sentence = _sentence(length, place)
        self.text_prompt = Prompt(text.name, SLOT, ["embedded"], self.sets * length, text.width, init=start)

    def forward(self, context: Context) -> dict[Site, Tensor]:
        rows = self.text_prompt(context)
        if self.class_specific:
            return {site: r.unflatten(0, (self.sets, self.length)) for site, r in rows.items()}
        return rows


def beginning(tokens: Tokens, words: str, length: int | None, usual: int) -> tuple[int, Init]:
    """The number of rows and their start: the words' embeddings, or N(0, 0.02) where there are none.

    Raises ValueError for a length that is not that of the words.
    """
    if not words:
        return usual if length is None else length, normal(0.02)
    vectors = tokens.embed(words)
    if length not in (None, len(vectors)):
        raise ValueError(
            f"length is {length}, and the words {words!r} that rows start from are {len(vectors)} tokens. Leave length "
            "out, or give words='' for rows that start at random."
        )
    return len(vectors), given(vectors)


def _sentence(length: int, place: str) -> str:
    if place == "middle":
        half = length // 2
        front = f"<ctx*{half}> " if half else ""
        return f"{front}{{}} <ctx*{length - half}>."
    return f"{{}} <ctx*{length}>." if place == "front" else f"<ctx*{length}> {{}}."
