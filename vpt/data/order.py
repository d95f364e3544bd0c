"""Which pictures form which batch: a pure function of seed, epoch and process."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Sampler

Place = tuple[int, int]  # epoch, index of the item


def seed_of(*parts: object) -> int:
    """A 63-bit seed from any values, equal on every machine."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "big") >> 1


def process() -> tuple[int, int]:
    """(rank, world size) of torch.distributed; (0, 1) without it."""
    dist = torch.distributed
    return (
        (dist.get_rank(), dist.get_world_size()) if dist.is_available() and dist.is_initialized() else (0, 1)
    )


class BatchOrder(Sampler[list[Place]]):
    """Training batches of places (epoch, index); each process gets its share of every global batch.

    size: number of items. batch: size of the GLOBAL batch, a process's share is ``[rank::world]``.
    weights: one a picture, to draw with replacement in proportion [size]; None shuffles.

    The last short batch is left out unless it is the only one, and then is cut to a multiple of the world
    size, so that all processes weigh alike. StatefulDataLoader stores the iterator's state, so that a resumed
    run goes on at the next batch.
    """

    def __init__(self, size: int, batch: int, seed: int, weights: Sequence[float] | None = None):
        self.size, self.batch, self.seed, self.epoch = size, batch, seed, 0
        self.weights = None if weights is None else torch.tensor(weights, dtype=torch.float64)

    @property
    def sampler(self) -> BatchOrder:
        """Lightning sets the epoch of ``dataloader.batch_sampler.sampler``."""
        return self

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def order(self, epoch: int) -> Tensor:
        """All indices of one epoch in order [size], int64."""
        stream = torch.Generator().manual_seed(seed_of("order", self.seed, epoch))
        if self.weights is None:
            return torch.randperm(self.size, generator=stream)
        return torch.multinomial(self.weights, self.size, replacement=True, generator=stream)

    def __len__(self) -> int:
        return max(1, self.size // self.batch)

    def __iter__(self) -> Iterator[list[Place]]:
        rank, world = process()
        if self.batch % world or self.size < world:
            raise ValueError(
                f"the batch size {self.batch} counts all processes: with {self.size} pictures and {world} "
                f"processes, make it a multiple of {world}, and have at least {world} pictures."
            )
        return _Batches(self, rank, world)


class _Batches(Iterator[list[Place]]):
    """One epoch. Its epoch is read at the first batch: loaders make iterators before they set the epoch."""

    def __init__(self, order: BatchOrder, rank: int, world: int):
        self._of, self._rank, self._world = order, rank, world
        self._epoch: int | None = None
        self._done = 0
        self._order: Tensor | None = None

    def __next__(self) -> list[Place]:
        if self._done >= len(self._of):
            raise StopIteration
        if self._order is None:
            self._epoch = self._of.epoch if self._epoch is None else self._epoch
            self._order = self._of.order(self._epoch)
        start = self._done * self._of.batch
        batch = self._order[start : start + self._of.batch].tolist()
        self._done += 1
        even = len(batch) - len(batch) % self._world
        return [(int(self._epoch or 0), i) for i in batch[:even][self._rank :: self._world]]

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": self._of.epoch if self._epoch is None else self._epoch, "done": self._done}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        finished = state["done"] >= len(self._of)  # the end of an epoch is the start of the next
        self._epoch, self._done = (state["epoch"] + 1, 0) if finished else (state["epoch"], state["done"])
        self._of.epoch = self._epoch
