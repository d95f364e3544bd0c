"""P+ (arXiv 2303.09522, section 3): every cross-attention of a U-Net reads a context of its own.

The contexts lie side by side in one sequence; while the U-Net is asked, each cross-attention's processor, set through
diffusers' public ``set_attn_processor``, hands on its own part. Afterwards the processors are those from before.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from vpt.prompt import Rows
from vpt.towers.twin import twin

__all__ = ["cross_attentions", "layered", "layered_twin", "sets_of"]


def cross_attentions(network: Any) -> list[str]:
    """Names of a U-Net's cross-attentions, in the order of ``attn_processors``: down, up, middle; [] for others."""
    processors = getattr(network, "attn_processors", {}) if hasattr(network, "down_blocks") else {}
    return [name for name in processors if name.endswith("attn2.processor")]


def sets_of(rows: Rows) -> int:
    """How many cross-attentions have rows of their own; 1 where all read the same."""
    return max((len(r) for r in rows.values() if r.ndim == 3), default=1)


class _Part:
    """A processor that reads part ``number`` of ``count`` of the context."""

    def __init__(self, inner: Any, number: int, count: int) -> None:
        self.inner, self.number, self.count = inner, number, count

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        *args: Any,
        **more: Any,
    ) -> Tensor:
        if encoder_hidden_states is not None:
            encoder_hidden_states = encoder_hidden_states.chunk(self.count, dim=1)[self.number]
        known = inspect.signature(self.inner.__call__).parameters
        given = {k: v for k, v in more.items() if k in known}
        return self.inner(attn, hidden_states, encoder_hidden_states, *args, **given)


@contextmanager
def layered(network: Any, count: int) -> Iterator[None]:
    """While it is open, each of ``count`` cross-attentions reads its own part of the context. 1: nothing changes.

    Raises ValueError for a network that is no U-Net, or has another number of cross-attentions.
    """
    if count == 1:
        yield
        return
    names = cross_attentions(network)
    if len(names) != count:
        what = f"has {len(names)} cross-attentions" if names else "is no U-Net, so it has no cross-attentions"
        raise ValueError(
            f"these rows are {count} sets, one a cross-attention (P+), and {type(network).__name__} {what}. Use "
            "textual-inversion, whose rows every layer reads."
        )
    before = dict(network.attn_processors)
    if all(isinstance(before[name], _Part) for name in names):  # for good, by ``layered_twin``
        yield
        return
    network.set_attn_processor({**before, **_parts(before, names)})
    try:
        yield
    finally:
        network.set_attn_processor(before)


def layered_twin(network: Any) -> Any:
    """The network on the same weights, each of whose cross-attentions reads its own part for good.

    For activations that backward computes anew, when :func:`layered` is closed again.
    """
    other = twin(network)
    before = dict(other.attn_processors)
    other.set_attn_processor({**before, **_parts(before, cross_attentions(other))})
    return other


def _parts(processors: Mapping[str, Any], names: Sequence[str]) -> dict[str, _Part]:
    return {name: _Part(processors[name], i, len(names)) for i, name in enumerate(names)}
