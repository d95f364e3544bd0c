"""Text encoders of diffusion pipelines laid open, and what stands in their place while a prompt is encoded.

CLIP's encoders are open from the embedding to the pooled state. Encoders of other kinds (T5, Gemma, Qwen, Mistral) are
open at their embedding layer, which is all that textual inversion writes to (arXiv 2208.01618); above it the library's
own forward runs as a whole.
"""

from __future__ import annotations

import copy
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any

import torch
from tokenizers import AddedToken, Regex, normalizers
from tokenizers.pre_tokenizers import Metaspace, WhitespaceSplit
from tokenizers.pre_tokenizers import Sequence as Sequence_
from torch import Tensor
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.clip.modeling_clip import CLIPTextModelOutput

from vpt.encode import advance, tap
from vpt.prompt import Rows
from vpt.tower import Stream, Tower
from vpt.towers.hf import open_clip_text
from vpt.towers.layered import sets_of
from vpt.towers.steps import then
from vpt.towers.tokens import PLACEHOLDER

__all__ = ["Reader", "Vocabulary", "open_encoder"]

CLIP = ("CLIPTextModel", "CLIPTextModelWithProjection")
KEPT = 256  # outputs of sentences without rows that are kept


def open_encoder(model: Any, name: str) -> Tower:
    """The tower of a transformers text encoder; frozen and in eval mode from here on."""
    if type(model).__name__ in CLIP:
        return replace(open_clip_text(model), name=name)
    model.requires_grad_(False).eval()
    embed = model.get_input_embeddings()

    def whole(s: Stream) -> Stream:
        return replace(s, x=model(inputs_embeds=s.x).last_hidden_state)

    config = getattr(model.config, "text_config", model.config)
    width = embed.weight.shape[1]
    return Tower(
        name,
        model,
        ("input", "embedded", "0", "normed"),
        (then(embed), lambda s: s, whole),
        width=width,
        out=width,
        grows="normed",
        traits={"class": type(model).__name__, "model": config.model_type},
    )


@dataclass(frozen=True)
class Vocabulary:
    """A copy of a tokenizer that knows placeholders: each stands for as many new tokens as it has rows.

    tokenizer: the copy; a processor where the pipeline takes one.  rows: placeholder to its number of rows.
    ids: new id to placeholder and row.  holder: an ordinary id that stands at the place of a row.
    """

    tokenizer: Any
    rows: Mapping[str, int]
    ids: Mapping[int, tuple[str, int]]
    holder: int

    @classmethod
    def of(cls, tokenizer: Any, rows: Mapping[str, int]) -> Vocabulary:
        """A copy of ``tokenizer`` with a token for every row of every placeholder, which takes the blank before it."""
        grown = copy.deepcopy(tokenizer)
        inner = getattr(grown, "tokenizer", grown)
        _joins(getattr(inner, "backend_tokenizer", None))
        ids: dict[int, tuple[str, int]] = {}
        for slot, n in rows.items():
            for i, token in enumerate(_spelt(slot, n)):
                inner.add_tokens([AddedToken(token, lstrip=True, rstrip=False, normalized=False)])
                ids[inner.convert_tokens_to_ids(token)] = (slot, i)
        special = set(inner.all_special_ids)
        return cls(grown, dict(rows), ids, next(i for i in range(len(special) + 1) if i not in special))

    def say(self, text: str, words: Mapping[str, str]) -> str:
        """The text with the tokens of its placeholders; one without rows here is said by its word."""

        def said(found: re.Match[str]) -> str:
            slot = f"<{found[1]}>"
            return "".join(_spelt(slot, self.rows[slot])) if slot in self.rows else words.get(slot, found[0])

        return PLACEHOLDER.sub(said, text)


def _joins(backend: Any) -> None:
    """T5 begins a word at every stretch of text, so also at a comma behind a placeholder; here at blanks alone."""
    split = getattr(backend, "pre_tokenizer", None)
    if not isinstance(split, Sequence_) or not isinstance(split[0], WhitespaceSplit):
        return  # others begin words at blanks as it is
    blanks = [normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip(left=False)]
    own = [backend.normalizer] if backend.normalizer is not None else []
    backend.normalizer = normalizers.Sequence([*own, *blanks])
    backend.pre_tokenizer = Metaspace(split[1].replacement, "first")


def _spelt(slot: str, n: int) -> list[str]:
    """In small letters, since some pipelines write prompts so."""
    return [f"<{slot.strip('<>').lower()}|{i}>" for i in range(n)]


@dataclass
class Reader:
    """Stands where a pipeline's text encoder stands, and is called as it is; rows are written at placeholders.

    rows: of this encoder's tower; [L, n, width] are L sets, and the batch then holds the sentences L times over.
    kept: outputs of sentences without rows, by their ids and by the model that read them, each once.
    seen: how often each placeholder was met in full.
    """

    model: Any
    tower: Tower
    vocabulary: Vocabulary
    rows: Rows
    kept: dict[Any, Any] = field(default_factory=dict)
    seen: Counter[str] = field(default_factory=Counter)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.__dict__["model"], name)

    def __call__(self, input_ids: Tensor, attention_mask: Tensor | None = None, **how: Any) -> Any:
        if hook := getattr(self.model, "_hf_hook", None):
            hook.pre_forward(self.model)  # an offloaded encoder comes to where its sentences are
        held = [self._held(row) for row in input_ids.tolist()]
        for found in held:
            self.seen.update({slot: len(at) // self.vocabulary.rows[slot] for slot, at in found.items()})
        if any(held) or any(not site.slot.startswith("<") for site in self.rows):
            return self._read(input_ids, held, attention_mask, how)
        masked = b"" if attention_mask is None else attention_mask.cpu().numpy().tobytes()
        where = (id(self.model), self.model.dtype, input_ids.device, tuple(input_ids.shape))
        key = (where, input_ids.cpu().numpy().tobytes(), masked, str(sorted(how.items())))
        if key not in self.kept:
            if len(self.kept) >= KEPT:
                self.kept.clear()
            # read while measuring, they serve training too
            with torch.inference_mode(False), torch.no_grad():
                mask = None if attention_mask is None else attention_mask.clone()
                self.kept[key] = self.model(input_ids.clone(), attention_mask=mask, **how)
        return self.kept[key]

    def _held(self, ids: Sequence[int]) -> dict[str, list[tuple[int, int]]]:
        """Where rows stand in a sentence: by placeholder, (place, row). Raises ValueError for one that was cut."""
        found: dict[str, list[tuple[int, int]]] = {}
        for place, token in enumerate(ids):
            if token in self.vocabulary.ids:
                slot, row = self.vocabulary.ids[token]
                found.setdefault(slot, []).append((place, row))
        for slot, at in found.items():
            if len(at) % (n := self.vocabulary.rows[slot]):
                raise ValueError(
                    f"the sentence is longer than the {len(ids)} tokens that {self.tower.name!r} reads and was cut "
                    f"within {slot}, which takes {n}. Shorten it, or say {slot} earlier."
                )
        return found

    def _streams(self, ids: Tensor, held: Sequence[dict[str, Any]]) -> Iterator[tuple[list[int], Stream]]:
        """Runs of sentences that hold the same placeholders equally often, with their numbers."""
        sets = sets_of(self.rows)
        known = torch.tensor(list(self.vocabulary.ids) or [-1], device=ids.device)
        plain = ids.masked_fill(torch.isin(ids, known), self.vocabulary.holder)

        def counts(i: int) -> list[tuple[str, int]]:
            return sorted((slot, len(at)) for slot, at in held[i].items())

        for _, run in groupby(sorted(range(len(ids)), key=counts), counts):
            some = list(run)
            places, source = {}, {}
            for slot in held[some[0]]:
                n = self.vocabulary.rows[slot]
                own = [i * sets // len(ids) if self._layered(slot) else 0 for i in some]
                places[slot] = torch.tensor([[p for p, _ in held[i][slot]] for i in some], device=ids.device)
                source[slot] = torch.tensor(
                    [[k * n + row for _, row in held[i][slot]] for i, k in zip(some, own, strict=True)],
                    device=ids.device,
                )
            s = self.tower.begin(plain[some])
            yield some, replace(s, places={**s.places, **places}, source=source)

    def _layered(self, slot: str) -> bool:
        return any(r.ndim == 3 for site, r in self.rows.items() if site.slot == slot)

    def _read(self, ids: Tensor, held: Sequence[Any], mask: Tensor | None, how: Mapping[str, Any]) -> Any:
        flat = {site: r.flatten(0, 1) if r.ndim == 3 else r for site, r in self.rows.items()}
        parts = []
        for some, s in self._streams(ids, held):
            own = {
                site: r for site, r in flat.items() if not site.slot.startswith("<") or site.slot in s.places
            }
            parts.append((some, self._run(s, own, None if mask is None else mask[some])))
        order = torch.tensor([i for some, _ in parts for i in some], device=ids.device).argsort()

        def joined(stage: str) -> Tensor:
            return torch.cat([found[stage].x for _, found in parts])[order]

        if not self._opened:
            return self.model(inputs_embeds=joined("embedded"), attention_mask=mask, **how)
        states = tuple(joined(str(i)) for i in range(self.tower.depth + 1))
        last, pooled = joined("normed"), joined("pooled")
        told = states if how.get("output_hidden_states") else None
        if type(self.model).__name__ == CLIP[0]:
            return BaseModelOutputWithPooling(
                last_hidden_state=last, pooler_output=pooled, hidden_states=told
            )
        return CLIPTextModelOutput(text_embeds=pooled, last_hidden_state=last, hidden_states=told)

    @property
    def _opened(self) -> bool:
        return type(self.model).__name__ in CLIP

    def _run(self, s: Stream, rows: Rows, mask: Tensor | None) -> dict[str, Stream]:
        if not self._opened:
            return {"embedded": advance(self.tower, s, rows, "embedded")}
        if mask is not None:
            x = self.model.get_input_embeddings()(s.x)
            s = replace(s, mask=create_causal_mask(self.model.config, x, attention_mask=mask, cache=None))
        return tap(self.tower, s, rows, at=[*range(self.tower.depth + 1), "normed", "pooled"])
