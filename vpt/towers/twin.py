"""A network's modules a second time, on the same weights."""

from __future__ import annotations

import copy
from typing import TypeVar

from torch import nn

__all__ = ["twin"]

Model = TypeVar("Model", bound=nn.Module)


def twin(model: Model) -> Model:
    """Modules of its own, whose settings, processors and added layers are nobody else's, on the same frozen tensors."""
    return copy.deepcopy(model, {id(t): t for t in (*model.parameters(), *model.buffers())})
