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

__all__ = ["CoOp"]

SLOT = "<ctx>"


class CoOp(Method):
    """Rows in the class sentence.

    length: rows; with ``words`` their number.  place: of the class name, "end", "middle" or "front".
    words: start from these words' embeddings, such as "a photo of a"; empty: N(0, 0.02).
    class_specific: rows of its own for every class; words, where given, win over it (as published).
    """

    named = True

    def __init__(
        self,
        text: Tower,
        tokens: Tokens,
        classes: int,
        *,
        length: int = 16,
        place: Literal["end", "middle", "front"] = "end",
        words: str = "",
        class_specific: bool = False,
    ) -> None:
        super().__init__()
        start: Init = normal(0.02)
        if words:
            vectors = tokens.embed(words)
            length, start, class_specific = len(vectors), given(vectors), False
        self.class_specific, self.length, self.sets = class_specific, length, classes if class_specific else 1
        self.sentence = _sentence(length, place)
        self.text_prompt = Prompt(text.name, SLOT, ["embedded"], self.sets * length, text.width, init=start)

    def forward(self, context: Context) -> dict[Site, Tensor]:
        rows = self.text_prompt(context)
        if self.class_specific:
            return {site: r.unflatten(0, (self.sets, self.length)) for site, r in rows.items()}
        return rows


def _sentence(length: int, place: str) -> str:
    if place == "middle":
        half = length // 2
        front = f"<ctx*{half}> " if half else ""
        return f"{front}{{}} <ctx*{length - half}>."
    return f"{{}} <ctx*{length}>." if place == "front" else f"<ctx*{length}> {{}}."
