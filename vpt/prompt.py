"""Where learned rows enter a frozen network, and the tables that make them.

A **site** is an address, a **prompt** a module that makes rows for sites, **rows** plain tensors by site.
Nothing here knows a network, a library or a loss.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

__all__ = ["Context", "LowRank", "Prompt", "Rows", "Shared", "Site", "Table"]
__all__ += ["fourier", "given", "normal", "uniform", "xavier"]

Init = Callable[[Tensor], object]


class Site(NamedTuple):
    """Where rows enter: ``Site("image", "3", "prefix")``. Hashes, sorts, and prints as ``image/3/prefix``.

    tower: name of the encoder, "image" or "text".
    stage: what the step that sees the rows reads: "input", "embedded", "placed", "0".. (blocks), "normed".
    slot: the place in the sequence: "prefix", "suffix", "kv", a pixel slot, or a placeholder such as "<ctx>".
    """

    tower: str
    stage: str
    slot: str

    def __str__(self) -> str:
        return "/".join(self)


Rows = Mapping[Site, Tensor]  # [n, width], or [batch, n, width] when they depend on the input or the user


class Context(NamedTuple):
    """What a method may know when it makes rows.

    batch: number of samples in the step (per-sample dropout needs it).
    features: un-prompted features [batch, out] by tower, for the towers that the method ``needs``.
    """

    batch: int = 1
    features: Mapping[str, Tensor] = {}


def normal(std: float = 0.02) -> Init:
    """N(0, std); 0.02 is CoOp's start (arXiv 2109.01134)."""
    return partial(nn.init.normal_, std=std)


def uniform(bound: float) -> Init:
    """U(-bound, bound)."""
    return partial(nn.init.uniform_, a=-bound, b=bound)


def xavier(patch: tuple[int, int], width: int) -> Init:
    """VPT's start (arXiv 2203.12119): U(-v, v), v = sqrt(6 / (3 * patch area + width of the prompt))."""
    return uniform(math.sqrt(6 / (3 * patch[0] * patch[1] + width)))


def given(vectors: Tensor) -> Init:
    """Start from ``vectors`` [n, width] (every layer the same) or [layers, n, width]."""

    def fill(table: Tensor) -> None:
        if vectors.shape[-2:] != table.shape[-2:] or (vectors.ndim == 3 and vectors.shape != table.shape):
            raise ValueError(
                f"these vectors are {tuple(vectors.shape)}, the table is {tuple(table.shape)} [layers, n, "
                "width]. Give [n, width] or one set a layer."
            )
        table.copy_(vectors.to(table))

    return fill


class Table(nn.Module):
    """Rows of their own for each layer: ``forward() -> [layers, n, width]``."""

    def __init__(self, layers: int, length: int, width: int, init: Init) -> None:
        super().__init__()
        self.rows = nn.Parameter(torch.empty(layers, length, width))
        with torch.no_grad():
            init(self.rows)

    def forward(self) -> Tensor:
        return self.rows

    @torch.no_grad()
    def fill(self, rows: Tensor) -> None:
        """Set the table to ``rows`` [layers, n, width]: starts that come from data use this."""
        self.rows.copy_(rows)


class Shared(nn.Module):
    """One set of rows [n, width] that every layer gets: ``forward() -> [layers, n, width]``."""

    def __init__(self, layers: int, length: int, width: int, init: Init) -> None:
        super().__init__()
        self.layers = layers
        self.rows = nn.Parameter(torch.empty(1, length, width))
        with torch.no_grad():
            init(self.rows)

    def forward(self) -> Tensor:
        return self.rows.expand(self.layers, -1, -1)

    @torch.no_grad()
    def fill(self, rows: Tensor) -> None:
        """Set the shared rows to the mean over layers of ``rows`` [layers, n, width]."""
        self.rows.copy_(rows.mean(0, keepdim=True))


class LowRank(nn.Module):
    """Rows as a product of two thin tables, [layers, n, rank] @ [rank, width], the second for all layers.

    The first factor starts at N(0, 1) / sqrt(rank), so that the product starts as ``init`` fills the second.
    """

    def __init__(self, layers: int, length: int, width: int, init: Init, *, rank: int) -> None:
        super().__init__()
        if not 1 <= rank < width:
            raise ValueError(f"a low-rank table {width} wide needs a rank from 1 to {width - 1}, not {rank}.")
        self.mix = nn.Parameter(torch.randn(layers, length, rank) / math.sqrt(rank))
        self.basis = nn.Parameter(torch.empty(rank, width))
        with torch.no_grad():
            init(self.basis)

    def forward(self) -> Tensor:
        return self.mix @ self.basis

    @torch.no_grad()
    def fill(self, rows: Tensor) -> None:
        """Set the product to the best approximation of ``rows`` [layers, n, width] at this rank."""
        u, s, v = torch.linalg.svd(rows.flatten(0, 1).float(), full_matrices=False)
        rank = min(len(self.basis), len(s))
        self.mix.zero_(), self.basis.zero_()
        self.mix[..., :rank].copy_((u[:, :rank] * s[:rank]).unflatten(0, rows.shape[:2]))
        self.basis[:rank].copy_(v[:rank])


def fourier(fraction: float) -> Callable[[Tensor], Tensor]:
    """VFPT's rows (arXiv 2411.01327): of n rows [..., n, width] the first floor(fraction * n) enter as the
    real part of the Fourier transform over rows of the transform over channels; the others as they are."""

    def transform(rows: Tensor) -> Tensor:
        n = int(fraction * rows.shape[-2])
        waves = torch.fft.fft2(rows[..., :n, :]).real if n else rows[..., :0, :]
        return torch.cat([waves, rows[..., n:, :]], -2)

    return transform


class Prompt(nn.Module):
    """A learned table for one slot of one tower: ``length`` rows of ``width`` channels at each of ``stages``.

    table: makes the table from (layers, length, width, init); :class:`Table`, :class:`Shared`, or
        ``partial(LowRank, rank=4)``.
    init: fills it in place.
    through: reparameterises each row, e.g. VPT's projection (arXiv 2203.12119). Folded when saved: a prompt
        set holds what ``forward`` returns.
    inner: width of the table in front of ``through``; by default ``width``.
    dropout: as published for VPT, drawn for each sample, so rows become [batch, n, width] while it is on.
    transform: applied to the rows last, e.g. :func:`fourier`.
    """

    def __init__(
        self,
        tower: str,
        slot: str,
        stages: Iterable[str | int],
        length: int,
        width: int,
        *,
        table: Callable[[int, int, int, Init], nn.Module] = Table,
        init: Init | None = None,
        through: nn.Module | None = None,
        inner: int | None = None,
        dropout: float = 0.0,
        transform: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.sites = [Site(tower, str(stage), slot) for stage in stages]
        if not self.sites or len(set(self.sites)) < len(self.sites):
            raise ValueError(f"a prompt needs stages that differ, got {[s.stage for s in self.sites]}.")
        if length < 1:
            raise ValueError(f"a prompt needs at least 1 row, got length={length}.")
        self.table = table(len(self.sites), length, inner or width, init or normal())
        self.through = through or nn.Identity()
        self.dropout = nn.Dropout(dropout)
        self.transform = transform

    def fill(self, rows: Tensor) -> None:
        """Start the table from ``rows`` [layers, n, width]."""
        cast(Any, self.table).fill(rows)

    def forward(self, context: Context = Context()) -> dict[Site, Tensor]:  # noqa: B008  a constant
        """Rows by site, [n, width]; [batch, n, width] while dropout is on."""
        rows = self.through(self.table())
        if self.training and self.dropout.p > 0:
            rows = self.dropout(rows[:, None].expand(-1, context.batch, -1, -1))
        if self.transform is not None:
            rows = self.transform(rows)
        return dict(zip(self.sites, rows, strict=True))
