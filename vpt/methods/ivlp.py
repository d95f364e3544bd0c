"""IVLP, independent vision-language prompting (baseline of MaPLe, arXiv 2210.03117), and VPT (2203.12119) in CLIP.

Rows in both towers that know nothing of each other. Text rows take the places of the sentence's first words and are
replaced before the blocks above; image rows stand at the end of the sequence, enter before CLIP's pre-norm without a
position, and are replaced before the blocks above (code: muzairkhattak/multimodal-prompt-learning).
"""

from __future__ import annotations

from functools import partial

from torch import Tensor

from vpt.methods.coop import SLOT
from vpt.methods.method import Method, deep
from vpt.prompt import Context, LowRank, Prompt, Site, Table
from vpt.tower import Tower
from vpt.towers.tokens import Tokens

__all__ = ["IVLP", "ClipVPT", "start_with_words"]


def start_with_words(prompt: Prompt, tokens: Tokens, words: str, length: int) -> str:
    """Fill the first layer of text rows with the first ``length`` words and return the sentence.

    As published, words are used for at most 4 rows; words beyond the rows stay in the sentence, and more rows than
    words start at random.
    """
    vectors = tokens.embed(words) if words and length <= 4 else None
    if vectors is None or len(vectors) < length:
        return f"<ctx*{length}> {{}}."
    rows = prompt.table().detach().clone()
    rows[0] = vectors[:length]
    prompt.fill(rows)
    rest = " ".join(words.split()[length:])
    return f"<ctx*{length}> {rest} {{}}." if rest else f"<ctx*{length}> {{}}."


class IVLP(Method):
    """Rows in both towers.

    length, image_length: rows a layer; 0: none in that tower.  layers, image_layers: how many layers get their own.
    words: the first text rows start from these.
    rank: rows of each tower as a product of two thin tables (the low-rank variant).
    """

    named = True

    def __init__(
        self,
        image: Tower,
        text: Tower,
        tokens: Tokens,
        *,
        length: int = 2,
        image_length: int = 2,
        layers: int | None = None,
        image_layers: int | None = None,
        words: str = "a photo of a",
        rank: int | None = None,
    ) -> None:
        super().__init__()
        if not length and not image_length:
            raise ValueError("length and image_length are both 0: nothing would learn.")
        table = partial(LowRank, rank=rank) if rank else Table
        self.text_prompt = self.image_prompt = None
        if length:
            stages = deep("embedded", layers or text.depth, text)
            self.text_prompt = Prompt(text.name, SLOT, stages, length, text.width, table=table)
            self.sentence = start_with_words(self.text_prompt, tokens, words, length)
        if image_length:
            stages = deep("placed", image_layers or image.depth, image)
            self.image_prompt = Prompt(image.name, "suffix", stages, image_length, image.width, table=table)

    def forward(self, context: Context) -> dict[Site, Tensor]:
        rows: dict[Site, Tensor] = {}
        for prompt in (self.text_prompt, self.image_prompt):
            rows |= prompt(context) if prompt is not None else {}
        return rows


class ClipVPT(IVLP):
    """VPT in CLIP's image tower: IVLP without text rows, names said in ``template``."""

    def __init__(
        self,
        image: Tower,
        text: Tower,
        tokens: Tokens,
        *,
        length: int = 8,
        layers: int | None = None,
        template: str = "a photo of a {}.",
        rank: int | None = None,
    ) -> None:
        super().__init__(image, text, tokens, length=0, image_length=length, image_layers=layers, rank=rank)
        self.sentence = template
