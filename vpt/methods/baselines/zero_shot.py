"""Class names in hand-written sentences, nothing learned: prompt engineering, which prompt tuning is compared with.

One template or a mean over templates (CLIP, arXiv 2103.00020), descriptions of each class (CuPL, arXiv 2209.03320),
and random words behind the name (WaffleCLIP, arXiv 2306.07282), the control of descriptions.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vpt.methods.method import Method, Say, Seen
from vpt.methods.templates import checked, ensemble
from vpt.towers.tokens import readable

__all__ = ["Descriptions", "Waffle", "ZeroShot"]


class ZeroShot(Method):
    """Names in a template.

    template: a sentence, ``{}`` is the name.
    templates: in its place an ensemble by name, such as imagenet-80: the normalised mean of normalised features.
    """

    named = True
    trains = False

    def __init__(self, *, template: str = "a photo of a {}.", templates: str = "") -> None:
        super().__init__()
        self.sentence = checked(template)
        self.templates = ensemble(templates) if templates else (template,)

    def texts(self, say: Say) -> Tensor:
        return F.normalize(_said(say, self.templates).mean(0), dim=-1)

    def logits(self, seen: Seen) -> Tensor:
        """Text features count as :meth:`texts` gives them: a mean of cosines is a product with their mean."""
        assert seen.text is not None
        return seen.scale * F.normalize(seen.image.float(), dim=-1) @ seen.text.float().mT + seen.bias


class Descriptions(ZeroShot):
    """Sentences of each class, written by a person or a language model; normalised mean of normalised features.

    descriptions: a JSON file, {"class name": ["whole sentence", ...], ...}, or its content.  Names are those of the
        data, blanks and underscores alike; names of no class are allowed.
    templates: an ensemble by name whose sentences join those of each class, with the same weight each; empty: none.
    Raises ValueError for a file of another form, and, once the classes are known, for a class that it lacks.
    """

    def __init__(self, *, descriptions: str | dict[str, list[str]] = "", templates: str = "") -> None:
        super().__init__()
        read = _read(descriptions) if isinstance(descriptions, str) else descriptions
        self.kept = {"descriptions": _sentences(read, descriptions if isinstance(descriptions, str) else "")}
        self.by_name = {readable(name).casefold(): told for name, told in self.kept["descriptions"].items()}
        self.templates = ensemble(templates) if templates else ()

    def texts(self, say: Say) -> Tensor:
        found = [self.by_name.get(readable(name).casefold(), []) for name in say.classes]
        if missing := [name for name, told in zip(say.classes, found, strict=True) if not told]:
            raise ValueError(
                f"the descriptions lack {len(missing)} of {len(found)} classes: {', '.join(missing[:5])}"
                f"{', ...' if len(missing) > 5 else ''}. Give every class a list of sentences."
            )
        own = F.normalize(say.encode([sentence for told in found for sentence in told]).float(), dim=-1)
        sums = torch.stack([part.sum(0) for part in own.split([len(told) for told in found])])
        if self.templates:
            sums = sums + _said(say, self.templates).sum(0)
        return F.normalize(sums, dim=-1)


class Waffle(ZeroShot):
    """Random words and random letters behind each name, the same for all classes; the score is the mean of cosines.

    words, letters: sentences of each kind.  seed: what they are drawn by.  before: what stands before the name.
    Words are whole words of CLIP's vocabulary (the authors' own list is another), cut to the mean length of the words
    in class names, as many as a class name has on average; letters are a to z (theirs are those of descriptions).
    """

    def __init__(
        self, *, words: int = 15, letters: int = 15, seed: int = 1, before: str = "A photo of a"
    ) -> None:
        super().__init__(template=f"{before} {{}}.")
        if words < 0 or letters < 0 or not words + letters:
            raise ValueError(f"words is {words} and letters is {letters}, wanted 0 or more, and not both 0.")
        self.words, self.letters, self.seed, self.before = words, letters, seed, before

    def sentences(self, classes: Sequence[str]) -> tuple[str, ...]:
        """Templates for these classes."""
        draw = random.Random(self.seed)
        names = [readable(name).split(" ") for name in classes]
        count = max(1, round(sum(map(len, names)) / len(names)))
        length = round(sum(sum(map(len, n)) / len(n) for n in names) / len(names))
        vocabulary = [word[:length] for word in _vocabulary()]
        told = [" ".join(draw.choices(vocabulary, k=count)) for _ in range(self.words)]
        groups = round(sum(len(n) - 1 for n in names) / len(names)) + 1
        longest = -(-sum(max(map(len, n)) for n in names) // len(names))  # rounded up
        each = longest // groups + 1
        alphabet = "abcdefghijklmnopqrstuvwxyz"
        for _ in range(self.letters):
            told.append(", ".join("".join(draw.choices(alphabet, k=each)) for _ in range(groups)))
        return tuple(f"{self.before} {{}}, which {_verb(w)}{w}." for w in told)

    def texts(self, say: Say) -> Tensor:
        return _said(say, self.sentences(say.classes)).mean(0)


def _said(say: Say, templates: Sequence[str]) -> Tensor:
    """Normalised features [templates, K, out]."""
    return torch.stack([F.normalize(say(template).float(), dim=-1) for template in templates])


def _read(path: str) -> Any:
    wanted = 'a JSON file such as {"red square": ["a square that is red.", "..."], "...": ["..."]}'
    if not path:
        raise ValueError(f"descriptions are missing. Give {wanted}.")
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(
            f"the descriptions {path} cannot be read ({error.strerror}). Give {wanted}."
        ) from None
    except ValueError as error:
        raise ValueError(f"{path} is no JSON ({error}). Give {wanted}.") from None


def _sentences(read: Any, path: str) -> dict[str, list[str]]:
    """The content, checked; path: where it stood, for errors."""
    where = f" of {path}" if path else ""
    if not isinstance(read, Mapping) or not read:
        raise ValueError(
            f"the descriptions{where} are a {type(read).__name__}, wanted class names with lists of sentences."
        )
    for name, told in read.items():
        if not isinstance(told, list) or not told or not all(isinstance(t, str) and t.strip() for t in told):
            raise ValueError(
                f"the descriptions{where} say {str(told)[:60]!r} of {name!r}, wanted a list of sentences."
            )
    return {name: list(told) for name, told in read.items()}


@cache
def _vocabulary() -> tuple[str, ...]:
    """Whole words of CLIP's tokenizer, in its order."""
    from open_clip.tokenizer import SimpleTokenizer  # seconds

    entries = [t.removesuffix("</w>") for t in SimpleTokenizer().encoder if t.endswith("</w>")]
    return tuple(t for t in entries if len(t) > 2 and t.isascii() and t.isalpha())


def _verb(words: str) -> str:
    """What makes a sentence of a description, as the authors choose it."""
    if words.startswith(("has", "often", "typically", "may", "can")):
        return ""
    return "is " if words.startswith(("a", "used")) else "has "
