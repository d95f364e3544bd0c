"""What the openers of towers share: steps that change x alone, reading at the end token, weights in step order."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from vpt.tower import Step, Stream

__all__ = ["at_ends", "in_order", "then"]


def then(f: Callable[[Any], Any]) -> Step:
    """A step that only changes x."""
    return lambda s: replace(s, x=f(s.x))


def at_ends(s: Stream) -> Tensor:
    """States at the end tokens: [batch, width], or [batch, K, width] where a row holds K sentences."""
    ends = s.places["end"].expand(len(s.x), -1)
    if ends.shape[1] == 1:
        return s.x[torch.arange(len(s.x), device=s.x.device), ends[:, 0]]
    return s.x.take_along_dim(ends[..., None], 1)


def in_order(m: nn.Module, names: Iterable[str]) -> Iterable[Tensor]:
    """Weights of the named parts, one after the other, in the order of their names."""
    state = m.state_dict(keep_vars=True)
    for part in names:
        yield from (t for k, t in state.items() if k == part or k.startswith(part + "."))
