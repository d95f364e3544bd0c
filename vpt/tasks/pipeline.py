"""A prompt set bound to a diffusion pipeline: arguments for its call, and pictures."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch

from vpt.prompt import Rows
from vpt.promptset import PromptSet
from vpt.tasks.bound import Bound
from vpt.tasks.diffusion import layers_of
from vpt.towers.diffusion import Diffusion
from vpt.towers.layered import layered

__all__ = ["TunedPipeline"]


class TunedPipeline(Bound):
    """Rows for the text encoders and the context of a pipeline; ``pipe(**tuned.embeds("a <my-mug> in the rain"))``."""

    backbone: Diffusion

    def __init__(self, backbone: Diffusion, prompts: PromptSet, *, precision: str = "32-true") -> None:
        super().__init__(backbone, prompts, precision=precision)
        self.pipe = backbone.pipe

    @property
    def words(self) -> dict[str, str]:
        """Placeholders, each with the word that it started from, which encoders without rows for it read."""
        return dict(self.prompts.about.get("placeholders") or {})

    def rows_at(self, strength: float = 1.0) -> Rows:
        """The rows, on the device of the pipeline; multiplied by ``strength``."""
        return {site: (r * strength).to(self.device) for site, r in self.rows.items()}

    def embeds(
        self,
        prompt: str | Sequence[str],
        pipe: Any = None,
        *,
        negative: str | Sequence[str] | None = None,
        strength: float = 1.0,
        guided: bool = True,
    ) -> dict[str, Any]:
        """Keyword arguments for a call of this pipeline, or of another of its family (image-to-image, inpainting,
        ControlNet), that draw the prompt with the rows in it. For P+ call it within :meth:`layers`.

        Raises ValueError for a placeholder without rows; warns where a prompt is longer than the context.
        """
        with torch.no_grad():
            return self.backbone.embeds(
                prompt, self.rows_at(strength), negative=negative, words=self.words, pipe=pipe, guided=guided
            )

    def layers(self, pipe: Any = None) -> AbstractContextManager[None]:
        """While it is open, rows of P+ reach their own cross-attentions; other rows need it not."""
        pipe = self.pipe if pipe is None else pipe
        network = getattr(pipe, "unet", None) or pipe.transformer
        return layered(network, layers_of(self.rows))
