"""Pictures and texts to unit vectors: a frozen backbone, with the rows of a prompt set and of concepts."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from vpt.data.images import decode
from vpt.prompt import Site
from vpt.promptset import PromptSet
from vpt.tasks.device import resolve_device, resolve_precision
from vpt.tasks.tuned import Tuned
from vpt.text import encode_text, lay
from vpt.towers.backbone import Backbone
from vpt.towers.load import load
from vpt.towers.tokens import PLACEHOLDER

__all__ = ["Encoder", "opened", "placeholders"]


def placeholders(prompts: PromptSet) -> list[str]:
    """Names that a sentence can hold in angle brackets: those of a set's rows in the text tower, such as "my-mug"."""
    slots = dict.fromkeys(s.slot for s in prompts.rows if s.tower == "text" and PLACEHOLDER.fullmatch(s.slot))
    return [slot[1:-1] for slot in slots]


def opened(label: Mapping[str, Any], device: str = "auto") -> Backbone:
    """The backbone of a label (name, weights, size, pretrained) on a device; raises as ``towers.load.load`` does."""
    where = resolve_device(device)
    backbone = load(label["name"], **{k: label[k] for k in ("pretrained", "weights", "size") if k in label})
    for tower in backbone.towers.values():
        tower.model.to(where)
    return backbone


class Encoder:
    """What makes the vectors of an index and of its queries.

    prompts: rows that every picture and text is encoded with; its sentence goes around a text where it holds rows,
        such as ``"<ctx*4> {}."``. None: the backbone as it is.
    concepts: further sets, whose rows stand in a text where it says their names: "a photo of <my-mug> on grass".
    precision: auto, float32 or bf16, of pictures.
    Raises ValueError for a set that was learned on another backbone, and for a concept that is more than such rows.
    """

    def __init__(
        self,
        backbone: Backbone,
        prompts: PromptSet | None = None,
        concepts: Sequence[PromptSet] = (),
        *,
        precision: str = "float32",
    ) -> None:
        for given in [*([prompts] if prompts is not None else []), *concepts]:
            given.check(backbone.towers.values(), backbone.preprocessing)
        for concept in concepts:
            _refuse_more(concept)
        self.backbone, self.prompts = backbone, prompts
        base = prompts if prompts is not None else PromptSet(about=_plain(backbone))
        self.sentence = _sentence(base)
        self.tuned = Tuned(backbone, base, precision=resolve_precision(precision, backbone.image.device))
        self.concepts: dict[Site, Tensor] = {}
        for site, rows in ((s, r) for concept in concepts for s, r in concept.rows.items()):
            if site in self.concepts or site in base.rows:
                raise ValueError(
                    f"two of these files have rows for {site}. Give one, or learn under another name."
                )
            self.concepts[site] = rows.to(backbone.image.device)
        self._preprocess = backbone.preprocess

    @classmethod
    def open(
        cls,
        model: str | None = None,
        prompts: str | os.PathLike[str] | None = None,
        concepts: Sequence[str | os.PathLike[str]] = (),
        *,
        weights: str | None = None,
        size: int | None = None,
        device: str = "auto",
        precision: str = "float32",
    ) -> Encoder:
        """From names and files; the backbone is the one that the first file names where ``model`` is None.

        Raises BadPromptFile, FileNotFoundError, and ValueError as the constructor does, or where nothing is named.
        """
        files = [Path(f) for f in ([prompts] if prompts else []) + list(concepts)]
        sets = [PromptSet.load(f) for f in files]
        labels: list[dict[str, Any]] = [s.about.get("backbone") or {} for s in sets]
        made: dict[str, Any] = next((label for label in labels if label.get("name")), {})
        if not (name := model or made.get("name")):
            raise ValueError("which backbone? Give a model, or a prompt file that names one.")
        typed = {"name": name, "weights": weights, "size": size}
        asked = {k: v for k, v in typed.items() if v}
        backbone = opened({**(made if name == made.get("name") else {}), **asked}, device)
        return cls(backbone, sets[0] if prompts else None, sets[1:] if prompts else sets, precision=precision)

    @cached_property
    def _about(self) -> dict[str, Any]:
        label = self.backbone.label()
        base = self.tuned.prompts
        pool = base.about.get("pool", "own")
        return {
            "backbone": label,
            "fingerprint": label["fingerprints"]["image"],
            "rows": base.written("image") + (f" pooled {pool}" if pool != "own" else ""),
            "width": self.backbone.image.out,
        }

    def about(self) -> dict[str, Any]:
        """What vectors of pictures follow from: backbone (its label), fingerprint of the image tower with its
        preprocessing, rows (what is written in that tower, "" for nothing), width."""
        return dict(self._about)

    @property
    def preprocess(self) -> Any:
        """PIL picture to [3, height, width]."""
        return self._preprocess

    def pixels(self, images: Tensor) -> np.ndarray:
        """Unit vectors [n, width], float32, of preprocessed pictures [n, 3, height, width]."""
        return _unit(self.tuned.encode_image(images))

    def images(self, pictures: Sequence[Image.Image | str | os.PathLike[str]]) -> np.ndarray:
        """Unit vectors [n, width], float32. Raises UnreadableImage."""
        if not pictures:
            return np.zeros((0, self._about["width"]), np.float32)
        return self.pixels(torch.stack([self._preprocess(decode(p)) for p in pictures]))

    @torch.inference_mode()
    def texts(self, texts: Sequence[str]) -> np.ndarray:
        """Unit vectors [n, width], float32; a text longer than the context loses its last words, with a warning.

        Raises ValueError for a backbone without a text tower, for a name in angle brackets that no set has rows for,
        and for rows that belong to one picture or class.
        """
        method, tower = self.tuned.learner.method, self.tuned.learner.towers[1] or self._text_tower()
        rows = {s: r for s, r in method(self.tuned.learner.context()).items() if s.tower == "text"}
        if rows and (method.per_sample or method.class_specific):
            raise ValueError(
                "the text rows of this prompt set belong to a picture or to one class each, so other texts cannot be "
                "said with them. Search with a set whose rows are shared, or by picture."
            )
        rows |= self.concepts
        if empty := [i for i, text in enumerate(texts) if not text.strip()]:
            raise ValueError(f"query {empty[0] + 1} of {len(texts)} has no words. Say what to look for.")
        said = [self._said(text, rows) for text in texts]
        found = np.zeros((len(said), self._about["width"]), np.float32)
        uses = [_places(s) for s in said]
        for use in dict.fromkeys(uses):  # texts with the same placeholders pass together
            places = [i for i, u in enumerate(uses) if u == use]
            sentences = [self.backbone.tokens.sentence(said[i]) for i in places]
            found[places] = _unit(encode_text(tower, lay(tower, sentences), _repeated(rows, dict(use))))
        return found

    def _text_tower(self) -> Any:
        try:
            return self.backbone.text
        except ValueError as error:
            raise ValueError(f"{error} This index can be searched by picture only.") from None

    def _said(self, text: str, rows: dict[Site, Tensor]) -> str:
        """The text in the prompt's sentence, every placeholder with the number of its rows, cut to the context."""
        lengths = {s.slot: r.shape[-2] for s, r in rows.items()}
        own = {f"<{m[1]}>" for m in PLACEHOLDER.finditer(self.sentence)}
        named = {f"<{m[1]}>" for m in PLACEHOLDER.finditer(text)}
        if strange := sorted(named - lengths.keys()):
            there = ", ".join(s for s in lengths if PLACEHOLDER.fullmatch(s)) or "none"
            raise ValueError(
                f"no prompt set given has rows for {', '.join(strange)} in {text!r}; there are rows for {there}. Give "
                "the file that learned it as a concept."
            )
        counted = PLACEHOLDER.sub(lambda m: f"<{m[1]}*{lengths[f'<{m[1]}>']}>", text)
        sentence = "{}" if own & named else self.sentence
        last = max((m.end() for m in PLACEHOLDER.finditer(counted)), default=0)
        head, tail = counted[:last], counted[last:]
        if not tail.strip():
            return sentence.replace("{}", counted)
        template = sentence.replace("{}", f"{head} {{}}" if head else "{}")
        kept, cut = self.backbone.tokens.fitted(template, tail)
        if not cut:
            return sentence.replace("{}", counted)
        context = self.backbone.tokens.context
        warnings.warn(
            f"the query {text[:60]!r}.. is longer than the {context} tokens that {self.backbone.name} reads; it was "
            f"cut after {' '.join(kept.split()[-4:])!r}.",
            stacklevel=3,
        )
        return template.replace("{}", kept)


def _places(said: str) -> tuple[tuple[str, int], ...]:
    """Which placeholders a sentence holds, and how many places each takes in all."""
    found: dict[str, int] = {}
    for m in PLACEHOLDER.finditer(said):
        found[f"<{m[1]}>"] = found.get(f"<{m[1]}>", 0) + int(m[2] or 1)
    return tuple(sorted(found.items()))


def _repeated(rows: dict[Site, Tensor], places: dict[str, int]) -> dict[Site, Tensor]:
    """Rows that are written: those of placeholders as often as they are said, and those of other slots as they are."""
    kept = {s: r for s, r in rows.items() if s.slot in places or not PLACEHOLDER.fullmatch(s.slot)}
    return {s: r.repeat(places.get(s.slot, len(r)) // len(r), 1) for s, r in kept.items()}


def _unit(features: Tensor) -> np.ndarray:
    return F.normalize(features.float(), dim=-1).cpu().numpy()


def _plain(backbone: Backbone) -> dict[str, Any]:
    """The label of an empty set: texts as they are, where there is a text tower."""
    if "text" in backbone.towers:
        return {"names": {"sentence": "{}", "class_specific": False}}
    return {"head": {"reads": "features"}}


def _sentence(prompts: PromptSet) -> str:
    """What goes around a query: a sentence that holds rows, since without it they are not said; else nothing."""
    sentence = str((prompts.about.get("names") or {}).get("sentence") or "{}")
    return sentence if "{}" in sentence and PLACEHOLDER.search(sentence) else "{}"


def _refuse_more(concept: PromptSet) -> None:
    more = [str(s) for s in concept.rows if s.tower != "text" or not PLACEHOLDER.fullmatch(s.slot)]
    more += [name for name in ("method", "weights") if getattr(concept, name)]
    if more or not concept.rows:
        raise ValueError(
            f"this concept file holds {', '.join(more) or 'no rows'}; wanted rows at placeholders of the text tower "
            "alone, which can stand beside others in one query. Give the file as prompts instead."
        )
