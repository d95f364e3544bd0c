"""A frozen encoder laid open as a list of steps, and the batch that climbs it.

A **tower** is a list of steps between named stages; a **stream** is a batch that knows its places. A tower
calls its library's own modules in their own order and knows no method.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from vpt.prompt import Site

__all__ = ["Block", "Live", "Reading", "Step", "Stream", "Tower"]


@dataclass(frozen=True)
class Stream:
    """A batch on its way up a tower. One that stopped early is a cache: the loop resumes it.

    x: [batch, length, width]; at "input" pixels [batch, channels, height, width], or ids [batch, length].
    stage: what reads x next.
    places: slot to positions in the sequence, [batch, m] or [1, m] when all samples agree.
    source: slot to [batch or 1, m], which of the slot's (flattened) rows goes to each place; absent: the
        first to the first. Packed text needs it, where K classes lie side by side in one row of the batch.
    grown: slots that lengthened the sequence; pooling does not see them.
    positions: position of each token where it is not its index, [batch or 1, length].
    mask: additive attention mask, broadcast to [batch, heads, length, length].
    extra: what else a tower hands from step to step (rotary angles, position bias), shared by all samples.
    written: sites already written, so that a resumed stream does not write them twice.
    """

    x: Tensor
    stage: str = "input"
    places: Mapping[str, Tensor] = field(default_factory=dict)
    source: Mapping[str, Tensor] = field(default_factory=dict)
    grown: frozenset[str] = frozenset()
    positions: Tensor | None = None
    mask: Tensor | None = None
    extra: Mapping[str, Tensor] = field(default_factory=dict)
    written: frozenset[Site] = frozenset()

    def each(self, f: Callable[[Tensor], Tensor]) -> Stream:
        """The stream with ``f`` applied to every tensor that it carries."""

        def all_of(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
            return {k: f(v) for k, v in tensors.items()}

        return replace(
            self,
            x=f(self.x),
            places=all_of(self.places),
            source=all_of(self.source),
            positions=None if self.positions is None else f(self.positions),
            mask=None if self.mask is None else f(self.mask),
            extra=all_of(self.extra),
        )

    def to(self, *args: Any, **kwargs: Any) -> Stream:
        """Move, and cast what is floating: places stay integers."""
        dtype = kwargs.pop("dtype", None)
        moved = [a for a in args if not isinstance(a, torch.dtype)]
        dtype = next((a for a in args if isinstance(a, torch.dtype)), dtype)

        def move(t: Any) -> Tensor:
            return t.to(*moved, dtype=dtype if dtype and t.is_floating_point() else t.dtype, **kwargs)

        return self.each(move)

    def samples(self, f: Callable[[Tensor], Tensor]) -> Stream:
        """The stream with ``f`` applied to what has one entry a sample; what is shared stays."""
        batch = len(self.x)

        def some(t: Tensor, ndim: int = 2) -> Tensor:
            return f(t) if t.ndim >= ndim and len(t) == batch > 1 else t

        return replace(
            self,
            x=f(self.x),
            places={k: some(v) for k, v in self.places.items()},
            source={k: some(v) for k, v in self.source.items()},
            positions=None if self.positions is None else some(self.positions),
            mask=None if self.mask is None else some(self.mask, 4),
        )

    def own(self) -> Tensor:
        """x without the rows that slots added, [batch, length of the frozen network, width]."""
        if not self.grown:
            return self.x  # at once: building the index makes the CPU wait for a GPU
        return self.without(self.grown).x

    def without(self, slots: Collection[str]) -> Stream:
        """The stream with the rows of these grown slots taken out again."""
        places = torch.cat([self.places[slot][0] for slot in slots])
        gone = torch.zeros(self.x.shape[1], dtype=torch.bool, device=self.x.device)
        gone[places] = True
        kept = gone.byte().argsort(stable=True)[
            : len(gone) - len(places)
        ]  # a boolean index would wait for the GPU
        shift = (~gone).cumsum(0) - 1  # old position -> new position
        mask = self.mask
        return replace(
            self,
            x=self.x[:, kept],
            places={k: shift[v] for k, v in self.places.items() if k not in slots},
            grown=self.grown - set(slots),
            positions=None if self.positions is None else self.positions[:, kept],
            mask=None if mask is None else mask.index_select(-1, kept).index_select(-2, kept),
        )


Step = Callable[[Stream], Stream]


@dataclass(frozen=True)
class Live:
    """What a block may leave out.

    rows: sets [n, width] or [batch, n, width] that are keys and values only.
    kv: keys and values themselves, side by side, [n, 2 * width] or [batch, n, 2 * width].
    read: how many leading tokens, or which places [batch or 1, m], are read afterwards; None: all.
    """

    rows: Sequence[Tensor] = ()
    kv: Tensor | None = None
    read: int | Tensor | None = None


@runtime_checkable
class Block(Protocol):
    """A step that can leave out work nobody reads (see :class:`Live`)."""

    def __call__(self, s: Stream) -> Stream: ...

    def live(self, s: Stream, live: Live) -> Stream: ...


def _start(x: Tensor) -> Stream:
    return Stream(x)


class Reading(NamedTuple):
    """How a text tower reads sentences.

    context: positions that it has.  pad: id behind the end token.
    causal: a token sees nothing behind it and features are read at the end token: sentences can be packed.
    cuts: what stands behind the longest sentence of a batch is not seen and can be left out.
    """

    context: int
    pad: int = 0
    causal: bool = False
    cuts: bool = False


@dataclass(frozen=True)
class Tower:
    """One frozen encoder laid open. ``steps[i]`` reads ``stages[i]`` and leaves ``stages[i + 1]``.

    name: "image", "text".                    model: the library's own module, untouched.
    width: channels of the sequence.          out: channels of the pooled features.
    prefix: class and register tokens (of a text the start token) in front, behind which the slot "prefix" opens.
    reads: what pooling reads: so many leading tokens, the places of a slot, or (None) the whole sequence.
    patch: height and width of a patch in pixels (VPT's start needs it).
    begin: makes a stream of inputs.
    grows: the lowest stage at which a slot may be opened; below it, fixed positions or a fixed mask leave no
        room. None: every stage.
    extend: (stream, place, n) -> stream whose extras allow for n rows opened at ``place``.
    logits: the network's own classifier, of the stream at "normed"; None where there is none.
    reopen: opens another module of the same kind (a copy that learns, a copy in bfloat16).
    canonical: the weights in step order, for the fingerprint; traits: what else fixes the function.
    ends: how many of the last canonical weights only make features of the last state, such as a projection.
    closed: why no rows can enter the sequence; empty for an open tower.
    learns_from: lowest stage whose step holds weights that learn (baselines only).
    reads_rows: pooling reads the outputs of rows, so they stay alive to the end.
    reading: how a text tower reads; None for pictures.
    """

    name: str
    model: nn.Module
    stages: tuple[str, ...]
    steps: tuple[Step, ...]
    width: int
    out: int
    prefix: int = 0
    reads: int | str | None = None
    patch: tuple[int, int] = (1, 1)
    begin: Callable[[Tensor], Stream] = _start
    grows: str | None = None
    extend: Callable[[Stream, int, int], Stream] | None = None
    logits: Callable[[Stream], Tensor] | None = None
    reopen: Callable[[nn.Module], Tower] | None = None
    canonical: Callable[[], Iterable[Tensor]] | None = None
    traits: Mapping[str, Any] = field(default_factory=dict)
    ends: int = 0
    closed: str = ""
    learns_from: str | None = None
    reads_rows: bool = False
    reading: Reading | None = None

    @property
    def depth(self) -> int:
        """Number of blocks; 0 for a closed tower."""
        return max(sum(stage.isdigit() for stage in self.stages) - 1, 0)

    @property
    def causal(self) -> bool:
        """A token sees nothing behind it, nor do rows; for texts that are read at their end token."""
        return self.reading is not None and self.reading.causal

    @property
    def top(self) -> int:
        """Index of the stage behind the last block."""
        return -1 if self.closed else self.index(self.depth)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next((p.device for p in self.model.parameters()), torch.device("cpu"))

    def index(self, stage: str | int) -> int:
        """Position of a stage in ``stages``; raises ValueError that lists them."""
        try:
            return self.stages.index(str(stage))
        except ValueError:
            why = f" ({self.closed})" if self.closed else ""
            raise ValueError(
                f"the {self.name!r} tower has no stage {str(stage)!r}, only {', '.join(self.stages)}{why}."
            ) from None

    def check(self, sites: Iterable[Site]) -> None:
        """Refuse sites of this tower that it cannot take, with the reason; before any data are read."""
        for site in sites:
            if site.tower != self.name:
                continue
            if self.closed and site.stage != "input":
                raise ValueError(
                    f"rows cannot enter at {site}: {self.closed} Its pixels can be prompted (method pixel), "
                    "and a linear probe works on its features."
                )
            at = self.index(site.stage)
            if at == len(self.steps):
                raise ValueError(
                    f"rows cannot enter at {site}: it is what the {self.name!r} tower gives back."
                )
            step = self.steps[at]
            if site.slot == "kv" and not isinstance(step, Block):
                raise ValueError(
                    f"rows cannot enter at {site}: the step there is no attention block whose keys and "
                    "values vpt can open exactly. Use the slot 'prefix'."
                )

    def pooling(self, how: str) -> Tower:
        """The tower with another output, VPT's variants (arXiv 2203.12119, figure 6): "own" as the library
        pools; "image" the mean of the patches, "prompt" of the rows' outputs, "global" of both, normed."""
        if how == "own":
            return self
        if how not in ("image", "prompt", "global"):
            raise ValueError(f"no pooling {how!r}. Choose own, image, prompt or global.")
        if self.closed:
            raise ValueError(f"pooling {how!r} needs an open sequence: {self.closed}")
        return replace(
            self,
            steps=(*self.steps[:-1], _Mean(how, self.prefix)),
            reads=None,
            out=self.width,
            reads_rows=how != "image",
        )

    def learning(self, names: Callable[[str], bool], from_stage: str) -> Tower:
        """A copy of the tower, on a copy of the model, whose parameters that ``names`` accepts learn.

        from_stage: the lowest stage whose step holds one of them. For baselines; the frozen tower stays as
            it is.
        """
        if self.reopen is None:
            raise ValueError(f"the {self.name!r} tower cannot be opened again on a copy of its model.")
        twin = self.reopen(copy.deepcopy(self.model))
        found = False
        for name, p in twin.model.named_parameters():
            p.requires_grad_(names(name))
            found |= p.requires_grad
        if not found:
            raise ValueError(f"no parameter of {type(self.model).__name__} was chosen to learn.")
        twin, pool = replace(twin, learns_from=from_stage), self.steps[-1]
        return twin.pooling(pool.how) if isinstance(pool, _Mean) else twin


@dataclass(frozen=True)
class _Mean:
    how: str
    prefix: int

    def __call__(self, s: Stream) -> Stream:
        parts = []
        if self.how != "prompt":
            parts.append(s.own()[:, self.prefix :])
        if self.how != "image":
            if not s.grown:
                raise ValueError(f"pooling {self.how!r} reads the outputs of rows, and none were written.")
            parts += [s.x[:, s.places[slot][0]] for slot in sorted(s.grown)]
        return replace(s, x=torch.cat(parts, 1).mean(1))
