"""One batch for many users: every text and every picture with a prompt set of its own.

Sets of one **layout** (sites, and how many rows at each) lie side by side, and each sentence or picture takes its own.
Texts of all layouts are one packed tree (``text.py``): shallow and deep sets of any lengths share one pass, since rows
stand only where their own sentence has a placeholder. A text tower that cannot be packed takes one pass a layout, and
so do pictures: rows that one set opens would be seen by all. Features are those of :class:`Tuned` one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from vpt.encode import encode
from vpt.methods.method import Say
from vpt.prompt import Rows, Site
from vpt.promptset import PromptSet
from vpt.tasks.device import autocast
from vpt.tasks.tuned import Tuned
from vpt.text import Sentence, encode_text, lay
from vpt.tower import Tower
from vpt.towers.tokens import PLACEHOLDER

__all__ = ["encode_images", "encode_texts"]


@dataclass(frozen=True)
class _Own:
    """The rows of one set in one frozen tower, each [n, width]; sets of one ``layout`` lie side by side."""

    rows: Rows

    @cached_property
    def layout(self) -> Hashable:
        return tuple(sorted((site, len(r)) for site, r in self.rows.items()))

    @cached_property
    def mark(self) -> str:
        """Equal rows have equal marks."""
        return PromptSet(dict(self.rows)).hash()

    def fit(self, s: Sentence) -> bool:
        """Whether every row has its placeholder and every placeholder its row."""
        same = s.slots.keys() == {site.slot for site in self.rows}
        return same and all(len(r) == len(s.slots[site.slot]) for site, r in self.rows.items())


def _owned(asked: Sequence[tuple[Tuned, object]], name: str) -> tuple[Tower, dict[int, _Own | None]]:
    """The frozen tower, and what each Tuned (by id) writes to it; raises ValueError where the towers are several.

    None: it runs apart, since weights learned, or rows belong to one class or one picture.
    """
    if not asked:
        raise ValueError("nothing was asked. Give pairs of a prompt set with its backbone and what it reads.")
    first, own = asked[0][0].backbone, dict[int, _Own | None]()
    tower = getattr(first, name)  # raises for a backbone without texts
    for tuned in {id(tuned): tuned for tuned, _ in asked}.values():
        have, want = tuned.backbone.fingerprints.get(name), first.fingerprints[name]
        if have != want:
            raise ValueError(
                f"one batch needs one backbone; these sets are of {first.name} ({name} tower {want}) and "
                f"{tuned.backbone.name} ({have}). Encode the sets of each backbone in a batch of their own."
            )
        learner = tuned.learner
        used = learner.towers[("image", "text").index(name)]
        rows = {site: r for site, r in learner.method(learner.context()).items() if site.tower == name}
        frozen = used is None or used.model is tuned.backbone.towers[name].model
        own[id(tuned)] = _Own(rows) if frozen and all(r.ndim == 2 for r in rows.values()) else None
    return tower, own


def _beside(owns: Sequence[_Own], device: torch.device) -> tuple[dict[Site, Tensor], list[int]]:
    """Different sets of one layout as [sets, n, width] by site, and which of them each is."""
    sets = {own.mark: own.rows for own in owns}
    at = {mark: i for i, mark in enumerate(sets)}
    rows = {site: torch.stack([r[site] for r in sets.values()]).to(device) for site in owns[0].rows}
    return rows, [at[own.mark] for own in owns]


def _joined(found: Mapping[int, Tensor], normalize: bool) -> Tensor:
    joined = torch.stack([found[i] for i in range(len(found))])
    return F.normalize(joined, dim=-1) if normalize else joined


Read = tuple[Sequence[Sentence], _Own, Callable[[Tensor], Tensor]]
"""Sentences of one text, the rows that go into them, and what makes the text's [out] of their features [n, out]."""


def _read(tuned: Tuned, text: str, own: _Own | None) -> Read | None:
    """What one text needs of a pass that it shares; None where it has to run apart."""
    names = tuned.learner.method.named and not PLACEHOLDER.search(text)
    if names and (read := _read_names(tuned, text)) is not None:
        return read
    (sentence,) = tuned.sentences([text])
    return ([sentence], own, lambda features: features[0]) if own is not None and own.fit(sentence) else None


def _read_names(tuned: Tuned, name: str) -> Read | None:
    """The same for a method with texts of its own, such as a mean over templates: it is asked which first."""
    method, captions, noted = tuned.learner.method, tuned.learner.speech.captions, dict[str, None]()
    text, tokens = tuned.backbone.text, tuned.backbone.tokens

    def ask(encode: Callable[[Sequence[str]], Tensor]) -> Tensor | None:
        return method.texts(Say((name,), encode, encode([name]) if captions else None))

    def note(sentences: Sequence[str]) -> Tensor:
        noted.update(dict.fromkeys(sentences))
        return torch.zeros(len(sentences), text.out, device=text.device)

    def finish(features: Tensor) -> Tensor:
        known = dict(zip(noted, features, strict=True))
        own = ask(lambda sentences: torch.stack([known[s] for s in sentences]))
        assert own is not None
        return own[0]

    if ask(note) is None:
        return None
    whole = [tokens.fitted("{}", " ".join(s.split()))[0] for s in noted] if captions else list(noted)
    return tuned.backbone.sentences("{}", whole), _Own({}), finish


@torch.inference_mode()
def encode_texts(asked: Sequence[tuple[Tuned, str]], *, normalize: bool = False) -> Tensor:
    """Features [N, out] of texts, each said as its own set's :meth:`Tuned.encode_text` says it.

    One pass for each packed row of about 384 tokens. Apart run text towers with learned weights, and rows for which the
    sentence has no placeholder (MMRL's). normalize: to unit length. Raises ValueError for sets of several backbones,
    and where a set refuses the text.
    """
    tower, owned = _owned(asked, "text")
    found: dict[int, Tensor] = {}
    shared: dict[int, Read] = {}
    apart: dict[Hashable, list[int]] = {}
    for i, (tuned, text) in enumerate(asked):
        if (read := _read(tuned, text, owned[id(tuned)])) is not None:
            shared[i] = read
        else:
            apart.setdefault((id(tuned), *PLACEHOLDER.findall(text)), []).append(i)
    for places in apart.values():
        features = asked[places[0]][0].encode_text([asked[i][1] for i in places])
        found |= zip(places, features.to(tower.device), strict=True)
    if shared:
        features = _said(tower, [(s, own) for sentences, own, _ in shared.values() for s in sentences])
        parts = features.split([len(sentences) for sentences, _, _ in shared.values()])
        found |= {i: finish(part) for (i, (_, _, finish)), part in zip(shared.items(), parts, strict=True)}
    return _joined(found, normalize)


def _said(tower: Tower, said: Sequence[tuple[Sentence, _Own]]) -> Tensor:
    """Features [N, out] of sentences with their rows; slots of one layout get a name of their own."""
    layouts: dict[Hashable, list[int]] = {}
    for i, (_, own) in enumerate(said):
        layouts.setdefault(own.layout, []).append(i)
    rows: dict[Site, Tensor] = {}
    sentences: dict[int, Sentence] = {}
    runs: list[list[int]] = []
    for number, places in enumerate(layouts.values()):
        sets, groups = _beside([said[i][1] for i in places], tower.device)
        rows |= {site._replace(slot=f"{site.slot}@{number}"): r for site, r in sets.items()}
        for i, group in zip(places, groups, strict=True):
            slots = {f"{slot}@{number}": at for slot, at in said[i][0].slots.items()}
            sentences[i] = replace(said[i][0], slots=slots, group=group)
        runs.append(sorted(places, key=lambda i: sentences[i].group))  # what begins alike comes into one tree
    order = [i for run in runs for i in run]
    streams = [
        s for run in ([order] if tower.causal else runs) for s in lay(tower, [sentences[i] for i in run])
    ]
    found = [
        encode_text(tower, [s], {site: r for site, r in rows.items() if site.slot in s.places})
        for s in streams
    ]
    return torch.cat(found)[torch.tensor(order, device=tower.device).argsort()]


@torch.inference_mode()
def encode_images(asked: Sequence[tuple[Tuned, Tensor]], *, normalize: bool = False) -> Tensor:
    """Features [N, out] of preprocessed pictures [3, height, width], each as its own set's encode_image gives them.

    One pass for all of one layout, pooling, precision and size; image towers with learned weights run apart. normalize:
    to unit length. Raises ValueError for sets of several backbones, and for poolings of different width.
    """
    tower, owned = _owned(asked, "image")
    groups: dict[Hashable, list[int]] = {}
    for i, (tuned, image) in enumerate(asked):
        own = owned[id(tuned)]
        how = id(tuned) if own is None else (own.layout, tuned.learner.method.pool, tuned.precision)
        groups.setdefault((how, image.shape), []).append(i)
    found: dict[int, Tensor] = {}
    for places in groups.values():
        first, rows = asked[places[0]][0], dict[Site, Tensor]()
        images = torch.stack([asked[i][1].to(tower.device) for i in places])
        if owns := [own for i in places if (own := owned[id(asked[i][0])]) is not None]:
            sets, at = _beside(owns, tower.device)
            # rows that the whole batch shares go through a block once
            rows = {site: r[0] if len(r) == 1 else r[at] for site, r in sets.items()}
        with autocast(first.device, first.precision):
            features = encode(first.tower, images, rows) if owns else first.encode_image(images)
        found |= zip(places, features.to(tower.device), strict=True)
    if len(n := {len(f) for f in found.values()}) > 1:
        raise ValueError(
            f"these sets pool to {sorted(n)} numbers. Encode those of each in a batch of their own."
        )
    return _joined(found, normalize)
