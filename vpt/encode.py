"""The one loop over layers: run a frozen tower and write rows between its steps.

Writing has three rules. At the input, rows are added to the pixels that the slot names; a slot whose places
are known is overwritten; an unknown "prefix" or "suffix" is opened and remembered, so that the next layer of
a deep prompt meets the second rule. Below the first site nothing is recorded for backward. Work that nobody
reads is left out (liveness): rows that the next stage overwrites are keys and values only, and the last block
computes only what pooling reads.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from vpt.pixels import pixel_places
from vpt.prompt import Rows, Site
from vpt.tower import Block, Live, Stream, Tower

__all__ = ["advance", "encode", "encode_grid", "first", "tap", "write"]


def first(tower: Tower, sites: Iterable[Site]) -> str:
    """The lowest stage that is written to, or whose step learns; all below it is static."""
    stages = [s.stage for s in sites if s.tower == tower.name]
    if tower.learns_from is not None:
        stages.append(tower.learns_from)
    return min(stages, key=tower.index, default=tower.stages[-1])


def _insert(t: Tensor, dim: int, at: int, n: int) -> Tensor:
    """``t`` with n zeros opened along ``dim`` at ``at``."""
    shape = list(t.shape)
    shape[dim] = n
    return torch.cat([t.narrow(dim, 0, at), t.new_zeros(shape), t.narrow(dim, at, t.shape[dim] - at)], dim)


def _shut(mask: Tensor, at: int, n: int) -> Tensor:
    """A causal mask in which n tokens opened at ``at`` see nothing behind them, and nothing before them sees them."""
    place = torch.arange(mask.shape[-1], device=mask.device)
    new = (place >= at) & (place < at + n)
    return mask.masked_fill((place > place[:, None]) & (new | new[:, None]), -torch.inf)


def _check_room(tower: Tower, stage: str, slot: str) -> None:
    if slot == "suffix" and tower.causal and tower.index(stage) < tower.top:
        raise ValueError(
            f"rows at the end of a causal sequence are seen by no token, so a suffix at {tower.name}/{stage} does "
            "nothing. Use the slot 'prefix', behind the start token, or placeholders."
        )
    if tower.grows is not None and tower.index(stage) < tower.index(tower.grows):
        raise ValueError(
            f"no slot can be opened at {tower.name}/{stage}: positions or a fixed mask leave no room for "
            f"more rows below stage {tower.grows!r}. Open it from there on, or overwrite placeholders whose "
            "places are known."
        )


def _open(tower: Tower, s: Stream, slot: str, rows: Tensor) -> Stream:
    """Open a "prefix" or "suffix" slot and put rows [batch, n, width] into it."""
    if slot not in ("prefix", "suffix"):
        raise ValueError(
            f"the {tower.name!r} stream has no slot {slot!r}, only {sorted(s.places) or 'none'}. Give its "
            "positions as places of the stream, or use 'prefix' or 'suffix'."
        )
    _check_room(tower, s.stage, slot)
    at, n = (tower.prefix if slot == "prefix" else s.x.shape[1]), rows.shape[1]
    if tower.extend is not None:
        s = tower.extend(s, at, n)
    mask = None if s.mask is None else _insert(_insert(s.mask, -1, at, n), -2, at, n)
    if mask is not None and tower.causal:
        mask = _shut(mask, at, n)  # in a tree, too, all sentences stand behind the start token
    places = {k: torch.where(v >= at, v + n, v) for k, v in s.places.items()}
    places[slot] = torch.arange(at, at + n, device=s.x.device)[None]
    positions = None if s.positions is None else _insert(s.positions, -1, at, n)
    x = torch.cat([s.x[:, :at], rows, s.x[:, at:]], 1)
    return replace(s, x=x, places=places, positions=positions, mask=mask, grown=s.grown | {slot})


def _sourced(rows: Tensor, source: Tensor, batch: int) -> Tensor:
    """Pick for each place its row: [n, w], [batch, n, w] or, with a class axis, [K, n, w] -> [batch, m, w].

    With as many classes as samples the two axes look alike, and the batch is meant: class rows are then given
    flat, [K * n, w].
    """
    if rows.ndim == 3 and not (len(rows) == batch > 1):
        rows = rows.flatten(0, 1)  # a class axis is not a batch axis: its sets lie one behind the other
    rows = rows.expand(batch, -1, -1)
    return rows.take_along_dim(source.expand(batch, -1)[..., None], 1)


def _add_to_pixels(s: Stream, site: Site, rows: Tensor) -> Stream:
    if s.x.ndim != 4 or rows.shape[-1] != s.x.shape[1]:
        raise ValueError(
            f"rows for {site} are {rows.shape[-1]} wide, the input is {tuple(s.x.shape)}. Pixels [batch, "
            "channels, height, width] take rows of one value a channel; token ids take none: use the stage "
            "'embedded'."
        )
    places = s.places.get(site.slot)
    if places is None:
        places = pixel_places(site.slot, rows.shape[-2], s.x.shape[-2:]).to(s.x.device)[None]
    at = places[:, None].expand(len(s.x), s.x.shape[1], -1)
    x = s.x.flatten(2).scatter_add(2, at, rows.mT.to(s.x).expand_as(at))
    return replace(s, x=x.view_as(s.x), written=s.written | {site})


def write(tower: Tower, s: Stream, site: Site, rows: Tensor) -> Stream:
    """Put ``rows``, [n, width] or [batch, n, width], into a slot; at "input" they are one row a pixel."""
    slot, batch = site.slot, len(s.x)
    if s.stage == "input":
        return _add_to_pixels(s, site, rows)
    s = replace(s, written=s.written | {site})
    if rows.shape[-1] != s.x.shape[-1]:
        raise ValueError(f"rows for {site} are {rows.shape[-1]} wide, the sequence is {s.x.shape[-1]} wide.")
    rows = rows.to(s.x.dtype)
    if slot in s.source:
        rows = _sourced(rows, s.source[slot], batch)
    rows = rows.expand(batch, -1, -1)
    if slot not in s.places:
        return _open(tower, s, slot, rows)
    if s.places[slot].shape[-1] != rows.shape[1]:
        raise ValueError(
            f"{rows.shape[1]} rows for {site}, whose slot has {s.places[slot].shape[-1]} places. "
            "A deep prompt keeps one length for a slot."
        )
    at = s.places[slot].expand(batch, -1)[..., None].expand_as(rows)
    return replace(s, x=s.x.scatter(1, at, rows))


def _close(tower: Tower, s: Stream, slot: str) -> Stream:
    """Take a slot that the block will see as keys and values only out of the sequence."""
    s = replace(s, written=s.written | {Site(tower.name, s.stage, slot)})
    if slot not in s.places:
        return s
    places = s.places[slot][0]
    if tower.extend is not None:
        s = tower.extend(s, int(places[0]), -len(places))
    return s.without([slot])


def _climb(
    tower: Tower, s: Stream, here: Mapping[str, Tensor], above: Iterable[str], live: bool, trim: bool
) -> Stream:
    """One step, after writing ``here`` (rows by slot). live: rows in slots of ``above``, which the next stage
    overwrites, are keys and values only. trim: nobody reads more of this block's output than pooling does."""
    step = tower.steps[tower.index(s.stage)]
    fleeting: set[str] = set()
    if live and isinstance(step, Block) and s.mask is None and not tower.causal:
        fleeting = {"prefix", "suffix"}
        if not trim or tower.reads_rows:
            fleeting &= set(above)
    rows, kv = [], None
    for slot in sorted(here):
        if slot == "kv":
            kv = here[slot]
        elif slot in fleeting and (slot in s.grown or slot not in s.places):
            s = _close(tower, s, slot)
            rows.append(here[slot].to(s.x.dtype))
        else:
            s = write(tower, s, Site(tower.name, s.stage, slot), here[slot])
    read = None
    if live and trim and isinstance(step, Block) and tower.reads is not None:
        read = s.places[tower.reads] if isinstance(tower.reads, str) else tower.reads
    if not rows and kv is None and read is None:
        return step(s)
    if not isinstance(step, Block) or (kv is not None and s.mask is not None):
        raise ValueError(f"keys and values cannot join {tower.name}/{s.stage}: this step does not take them.")
    s = step.live(s, Live(tuple(rows), kv, read))
    if read is None:
        return s
    left = torch.arange(s.x.shape[1], device=s.x.device)[None]  # only what pooling reads is left
    return replace(s, places={tower.reads: left} if isinstance(tower.reads, str) else {}, grown=frozenset())


def _plan(tower: Tower, s: Stream, rows: Rows) -> dict[int, dict[str, Tensor]]:
    """Rows of this tower still to be written, by stage and slot; refuses those that fit no sequence."""
    plan: dict[int, dict[str, Tensor]] = {}
    lengths = {slot: s.places[slot].shape[-1] for slot in s.grown}
    for site, value in rows.items():
        if site.tower != tower.name or site in s.written:
            continue
        if value.ndim not in (2, 3):
            raise ValueError(
                f"rows for {site} are {tuple(value.shape)}, wanted [n, width] or [batch, n, width]."
            )
        if value.ndim == 3 and site.slot not in s.source and len(value) not in (1, len(s.x)):
            raise ValueError(f"rows for {site} are for {len(value)} samples, the batch has {len(s.x)}.")
        if site.slot in ("prefix", "suffix"):
            if site.slot not in s.places:
                _check_room(tower, site.stage, site.slot)
            n = lengths.setdefault(site.slot, value.shape[-2])
            if n != value.shape[-2]:
                raise ValueError(
                    f"{value.shape[-2]} rows for {site}, and {n} for the same slot at another stage. A deep "
                    "prompt keeps one length for a slot."
                )
        plan.setdefault(tower.index(site.stage), {})[site.slot] = value
    return plan


def advance(
    tower: Tower,
    inputs: Tensor | Stream,
    rows: Rows,
    until: str | int,
    *,
    live: bool = True,
    trim: bool = False,
) -> Stream:
    """Run inputs (or a stream that stopped early) to stage ``until``, writing rows up to there and at it.

    Below ``first(tower, rows)`` there is no autograd, so ``advance(tower, images, {}, first(tower, rows))``
    is a cache to encode from. live: leave out work that nobody reads. trim: only the pooled output will be
    read. Raises ValueError when a site lies below a stream that stopped above it, when the tower cannot take
    it, or when rows are of another batch, width or length than their slot.
    """
    s = inputs if isinstance(inputs, Stream) else tower.begin(inputs)
    tower.check(rows)
    plan = _plan(tower, s, rows)
    now, stop, low = tower.index(s.stage), tower.index(until), tower.index(first(tower, rows))
    if stop < now:
        raise ValueError(f"this stream is at stage {s.stage} already, above {until}, and cannot go back.")
    if s.x.requires_grad:
        low = now  # rows written earlier, or an input that learns
    if plan and min(plan) < now:
        raise ValueError(
            f"this stream stopped at stage {s.stage}, above the first rows (stage "
            f"{tower.stages[min(plan)]}). Make the cache with advance(tower, x, {{}}, first(tower, rows))."
        )
    # un-prompted features equal the library's to the bit; rows behind the blocks need their place
    trim = trim and bool(plan or s.written) and max(plan, default=-1) < tower.top
    grad = torch.is_grad_enabled()
    for i in range(now, stop):
        with torch.set_grad_enabled(grad and i >= low):
            s = _climb(tower, s, plan.get(i, {}), plan.get(i + 1, ()), live, trim and i + 1 == tower.top)
        s = replace(s, stage=tower.stages[i + 1])
    for slot in sorted(plan.get(stop, {})):
        s = write(tower, s, Site(tower.name, s.stage, slot), plan[stop][slot])
    return s


def encode(tower: Tower, inputs: Tensor | Stream, rows: Rows | None = None, *, live: bool = True) -> Tensor:
    """Features [batch, out] of inputs, or of a stream that stopped early.

    live: leave out work that nobody reads; ``live=False`` is the plain way, equal within float tolerance.
    >>> import torch
    >>> from vpt.towers.vit import tiny
    >>> tower, rows = tiny(), {Site("image", "0", "prefix"): torch.zeros(5, 32)}
    >>> encode(tower, torch.zeros(2, 3, 32, 32), rows).shape
    torch.Size([2, 32])
    """
    return advance(tower, inputs, rows or {}, tower.stages[-1], live=live, trim=True).x


def tap(
    tower: Tower, inputs: Tensor | Stream, rows: Rows | None = None, *, at: Iterable[str | int]
) -> dict[str, Stream]:
    """The streams at several stages of one pass, rows of these stages included.

    ``tap(tower, x, at=[11, "pooled"])`` gives both by name. Everything is computed in full, since a tapped
    stream may be read anywhere.
    """
    s: Tensor | Stream = inputs
    found: dict[str, Stream] = {}
    for stage in sorted(map(str, at), key=tower.index):
        s = found[stage] = advance(tower, s, rows or {}, stage, live=False)
    return found


def encode_grid(tower: Tower, s: Stream, rows: Rows, *, live: bool = True) -> Tensor:
    """K sets of rows [K, n, width] with each of C sequences: [K, C, out]. Rows [n, width] serve all sets."""
    own, count = {k: r for k, r in rows.items() if k.tower == tower.name}, len(s.x)
    sets = max((len(r) for r in own.values() if r.ndim == 3), default=1)
    own = {k: r.repeat_interleave(count, 0) if r.ndim == 3 else r for k, r in own.items()}
    s = s.samples(lambda t: t.repeat(sets, *[1] * (t.ndim - 1)))
    return encode(tower, s, own, live=live).unflatten(0, (sets, count))
