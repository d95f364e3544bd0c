"""Linear probe by gradient: the head alone learns, on the features of the network as it is."""

from __future__ import annotations

from vpt.methods.method import Method
from vpt.tower import Tower

__all__ = ["Linear"]


class Linear(Method):
    """No rows. Under the same optimiser, views and budget as the prompts it is compared with."""

    def __init__(self, image: Tower) -> None:
        super().__init__()
