"""VFPT, Visual Fourier Prompt Tuning, arXiv 2411.01327 (code: runtsang/VFPT).

VPT-deep where the first part of every layer's rows enters as the real part of their Fourier transform over
rows and channels, after the projection and dropout. No new parameters; start and recipe are VPT's.
"""

from __future__ import annotations

from torch import Tensor, nn

from vpt.methods.method import Method, layers_of
from vpt.prompt import Context, Prompt, Site, xavier
from vpt.prompt import fourier as fourier_of
from vpt.tower import Tower

__all__ = ["VFPT"]


class VFPT(Method):
    """VPT's rows, part of them as waves.

    length, layers, project, dropout: as in :class:`vpt.methods.vpt.VPT`.
    fourier: of each layer's rows the first floor(fourier * length) are transformed: 0 is VPT, 1 all of them.
        The authors search it for each task.
    """

    def __init__(
        self,
        image: Tower,
        *,
        length: int = 10,
        layers: str = "all",
        fourier: float = 0.5,
        project: int | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if not 0 <= fourier <= 1:
            raise ValueError(f"fourier={fourier} is no part of the rows. Give 0 (VPT) to 1 (all of them).")
        through = None
        if project:
            through = nn.Linear(project, image.width)
            nn.init.kaiming_normal_(through.weight, a=0, mode="fan_out")
        inner = project or image.width
        self.image_prompt = Prompt(
            image.name,
            "prefix",
            layers_of(image, layers),
            length,
            image.width,
            init=xavier(image.patch, inner),
            through=through,
            inner=inner,
            dropout=dropout,
            transform=fourier_of(fourier),
        )

    def forward(self, context: Context) -> dict[Site, Tensor]:
        return self.image_prompt(context)
