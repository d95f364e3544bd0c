"""A prompt set bound to a loaded backbone: what all of these have."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from torch import Tensor

from vpt.promptset import PromptSet
from vpt.towers.backbone import Backbone

__all__ = ["Bound"]


class Bound:
    """Rows with their label, on the backbone they were learned on."""

    def __init__(self, backbone: Backbone, prompts: PromptSet, *, precision: str = "32-true") -> None:
        self.backbone, self.prompts, self.precision = backbone, prompts, precision
        self.device = backbone.image.device

    @property
    def rows(self) -> dict[Any, Tensor]:
        """Rows by site, as ``vpt.encode`` takes them."""
        return self.prompts.rows

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """What was measured: name, value, split, count and seed."""
        return list(self.prompts.about.get("metrics") or [])

    @property
    def protocol(self) -> dict[str, Any]:
        """How it was measured."""
        return dict(self.prompts.about.get("protocol") or {})

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the prompt file (or the baseline's weights file)."""
        return self.prompts.save(path)
