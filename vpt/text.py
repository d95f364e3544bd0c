"""Sentences for text towers: laid out so that nothing is computed twice, and encoded with rows in their places.

Under a causal mask a token sees what stands before it and nothing else, so sentences that begin alike have the
same states there. **Packed**, they are one tree in one row of the batch: every common beginning once, each token at
the position that it has in its sentence, and a mask that lets it see its own ancestors. Nothing is padded and
nothing computed twice; the features are those of the sentences one by one, within float tolerance.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from vpt.encode import encode_grid
from vpt.prompt import Rows
from vpt.tower import Stream, Tower

__all__ = ["Sentence", "encode_text", "lay", "pack"]

GROUP = 384  # tokens in a packed row: attention grows with its square, and a new row repeats the beginning
BATCH = 32  # sentences in a batch that is not packed
# Tokens of one pass, where several sets of rows run side by side. A CPU takes one set a pass: several rows under one
# mask need a sixth more time there (ViT-B/32's text, 50 classes, 4 pictures: 847 ms against 721).
PASS = {"cpu": 1, "cuda": 4096, "mps": 4096}
GRAPH = (
    2 * 2**30
)  # bytes that backward may keep before chunks are computed anew, where nothing says what is free
KEPT = 10  # numbers of the model's width that a token of a frozen block keeps for backward: measured on ViT-B/32's text


@dataclass(frozen=True)
class Sentence:
    """Token ids from the start to the end token, without padding where the tower needs none.

    slots: places of each placeholder, in the order of its rows.
    group: which of several sets of rows [groups, n, width] the sentence takes (class-specific rows).
    """

    ids: tuple[int, ...]
    slots: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    group: int = 0

    def keys(self) -> list[tuple[int, str, int]]:
        """What each token is: its id, and the row that takes its place; equal beginnings are one in a tree."""
        keys = [(token, "", 0) for token in self.ids]
        for slot, places in self.slots.items():
            for row, place in enumerate(places):
                keys[place] = (0, slot, self.group * len(places) + row)
        return keys


def pack(sentences: Sequence[Sentence]) -> Stream:
    """One row of the batch that holds all sentences as a tree; "end" places [1, N] in their order."""
    nodes: dict[tuple[int, tuple[int, str, int]], int] = {}
    parents: list[int] = []
    depths: list[int] = []
    ids: list[int] = []
    ends: list[int] = []
    slots: dict[str, list[tuple[int, int]]] = {}
    for sentence in sentences:
        at = -1
        for place, key in enumerate(sentence.keys()):
            known = nodes.get((at, key))
            if known is None:
                known = nodes[at, key] = len(ids)
                parents.append(at)
                depths.append(place)
                ids.append(sentence.ids[place])
                if key[1]:
                    slots.setdefault(key[1], []).append((known, key[2]))
            at = known
        ends.append(at)
    seen = torch.eye(len(ids), dtype=torch.bool)
    for i, parent in enumerate(parents):
        if parent >= 0:
            seen[i] |= seen[parent]  # a parent stands before its children
    return Stream(
        torch.tensor([ids]),
        places={"end": torch.tensor([ends])}
        | {k: torch.tensor([[n for n, _ in v]]) for k, v in slots.items()},
        source={k: torch.tensor([[row for _, row in v]]) for k, v in slots.items()},
        positions=torch.tensor([depths]),
        mask=torch.zeros(seen.shape).masked_fill(~seen, -torch.inf),
    )


def _padded(tower: Tower, sentences: Sequence[Sentence], length: int | None) -> Stream:
    """Sentences one below the other, [N, length or that of the longest]."""
    assert tower.reading is not None
    length = length or max(len(s.ids) for s in sentences)
    rows = [[*s.ids, *[tower.reading.pad] * (length - len(s.ids))] for s in sentences]
    stream = tower.begin(torch.tensor(rows))
    places = {k: torch.tensor([s.slots[k] for s in sentences]) for k in sentences[0].slots}
    source = {
        k: torch.tensor([[s.group * len(s.slots[k]) + i for i in range(len(s.slots[k]))] for s in sentences])
        for k in sentences[0].slots
    }
    return Stream(stream.x, places={**stream.places, **places}, source=source, extra=stream.extra)


def lay(
    tower: Tower,
    sentences: Sequence[Sentence],
    *,
    packed: bool = True,
    group: int | None = None,
    batch: int = BATCH,
) -> list[Stream]:
    """Streams that hold the sentences in their order.

    packed: as trees of about ``group`` tokens (None: 384), where the tower is causal and reads at the end token; else,
    and with ``packed=False``, in batches, cut after their longest sentence where padding is not seen.
    """
    reading = tower.reading
    if reading is None:
        raise ValueError(f"the {tower.name!r} tower reads no sentences.")
    if not (packed and reading.causal):
        length = None if packed and reading.cuts else reading.context
        runs = [list(run) for _, run in groupby(sentences, lambda s: {k: len(v) for k, v in s.slots.items()})]
        parts = [run[i : i + batch] for run in runs for i in range(0, len(run), batch)]
        return [_padded(tower, part, length).to(tower.device) for part in parts]
    return [pack(part).to(tower.device) for part in _groups(sentences, group or GROUP)]


def _groups(sentences: Sequence[Sentence], size: int) -> Iterator[Sequence[Sentence]]:
    """Runs of sentences whose trees hold about ``size`` tokens, and about as many each."""
    own: list[int] = []
    before: list[tuple[int, str, int]] = []
    for s in sentences:
        keys = s.keys()
        same = next((i for i, (a, b) in enumerate(zip(keys, before, strict=False)) if a != b), len(before))
        own.append(len(keys) - min(same, len(keys)))
        before = keys
    count = max(1, round(sum(own) / size))
    share, start, held = sum(own) / count, 0, 0
    for i, n in enumerate(own):
        if held and held + n > share + 1e-9:
            yield sentences[start:i]
            start, held = i, 0
        held += n
    if start < len(sentences):
        yield sentences[start:]


def _tokens(s: Stream) -> int:
    """Of a stream of ids, or of one that stopped further up."""
    return s.x.shape[0] * s.x.shape[1]


def _graph(tower: Tower, streams: Sequence[Stream], sets: int) -> int:
    """Bytes that backward through all of it would keep."""
    tokens = sum(_tokens(s) for s in streams) * sets
    return tokens * tower.depth * tower.width * KEPT * 4


def _room(device: torch.device) -> int:
    """Bytes that a graph may take: a part of what is free, since several learning rates may train side by side."""
    if device.type != "cuda":
        return GRAPH
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return (torch.cuda.mem_get_info(device)[0] + unused) // 4


def encode_text(
    tower: Tower,
    streams: Sequence[Stream],
    rows: Rows,
    *,
    sets: int | None = None,
    recompute: bool | None = None,
    live: bool = True,
) -> Tensor:
    """Features [N, out] of N laid-out sentences; with ``sets`` of rows [sets, n, width], [sets, N, out].

    Without ``sets`` rows [K, n, width] are class-specific. Rows at a placeholder that no sentence of a stream holds
    are left out of it. recompute: keep the features of every stream only and
    compute it anew in backward, so that memory does not grow with N or ``sets``; None: where the graph would take more
    than a quarter of the device's free memory (on a CPU 2 GiB).
    """
    own = {k: r for k, r in rows.items() if k.tower == tower.name}
    if sets is None:
        own = {k: r.flatten(0, 1) if r.ndim == 3 else r for k, r in own.items()}
    learns = tower.learns_from is not None or any(r.requires_grad for r in own.values())
    grad = torch.is_grad_enabled() and learns
    most = PASS.get(tower.device.type, 1)
    passes = [[*_sets(own, sets, max(1, most // _tokens(s)))] for s in streams]
    if recompute is None:
        several = sum(map(len, passes)) > 1
        recompute = grad and several and _graph(tower, streams, sets or 1) > _room(tower.device)
    kept = partial(checkpoint, use_reentrant=False) if recompute and grad else lambda run, some: run(some)
    parts = [
        torch.cat([kept(partial(_one, tower, s, live), some) for some in every])
        for s, every in zip(streams, passes, strict=True)
    ]
    joined = torch.cat(parts, 1)
    return joined if sets is not None else joined[0]


def _sets(rows: Rows, sets: int | None, chunk: int) -> Iterator[Rows]:
    """Runs of ``chunk`` sets of rows; rows that are shared go with each."""
    if sets is None:
        yield rows
        return
    for start in range(0, sets, chunk):
        yield {k: r[start : start + chunk] if r.ndim == 3 else r for k, r in rows.items()}


def _one(tower: Tower, s: Stream, live: bool, rows: Rows) -> Tensor:
    """Features [sets, N, out] of one stream."""
    held = {site: r for site, r in rows.items() if not site.slot.startswith("<") or site.slot in s.places}
    found = encode_grid(tower, s, held, live=live)
    return found.flatten(1, -2)
