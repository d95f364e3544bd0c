"""Pixel prompts (VP), arXiv 2203.17274 (code: hjbahng/visual_prompting); output maps of AutoVP, 2310.08381.

A frame or a square of learned values is added to the picture after normalisation, without clamping. It needs
no sequence, so it works on every network, closed ones included. On a network with a classifier of its own, a
map from that classifier's classes to the task's may take the place of a head on features.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from vpt.encode import advance
from vpt.methods.method import Batches, Method
from vpt.pixels import border_size
from vpt.prompt import Context, Prompt, Site, normal
from vpt.tower import Tower

__all__ = ["ClipPixel", "Pixel", "frequency_map"]

CHANNELS = 3  # pictures are RGB
THICKNESS = 30 / 224  # of the shorter side, as published
SLOTS = {"padding": "border", "patch": "corner", "random-patch": "anywhere"}

Kind = Literal["padding", "patch", "random-patch"]
Mapped = Literal["frequency", "iterative", "full"]


class Pixel(Method):
    """Learned pixels.

    kind: "padding" a frame, "patch" a square at the top left, "random-patch" a square at a place drawn anew
        for each batch, in use as in training (as published).
    size: thickness of the frame or side of the square, in pixels; None: 30/224 of the picture's shorter side.
    init: "normal" N(0, 1) as published, "zeros" as in AutoVP.
    mapping: None: a head on features. Else the head maps the network's own logits to the task's classes:
        "frequency" gives each class the ``per_class`` classes of the network that its training pictures get
        most often, counted once before training; "iterative" counts again after every epoch; "full" learns
        the map.
    picture: side of the pictures in pixels, where it is not the network's own.
    """

    def __init__(
        self,
        image: Tower,
        *,
        kind: Kind = "padding",
        size: int | None = None,
        init: Literal["normal", "zeros"] = "normal",
        mapping: Mapped | None = None,
        per_class: int = 1,
        picture: int | None = None,
    ) -> None:
        super().__init__()
        height, width = (picture, picture) if picture else _picture(image)
        size = max(1, round(THICKNESS * min(height, width))) if size is None else size
        room = min(height, width) // (2 if kind == "padding" else 1)
        if not 1 <= size <= room:
            raise ValueError(
                f"size={size} does not fit pictures of {height} x {width}. Give 1 to {room} pixels."
            )
        if mapping is not None and (image.logits is None or not getattr(image.model, "num_classes", 0)):
            raise ValueError(
                f"mapping={mapping!r} reads the network's classifier; this {type(image.model).__name__} has "
                "none (0 classes). Leave mapping out, or load weights that come with a classifier."
            )
        n = border_size(size, height, width) if kind == "padding" else size * size
        start = normal(1.0) if init == "normal" else nn.init.zeros_
        self.image_prompt = Prompt(image.name, SLOTS[kind], ["input"], n, CHANNELS, init=start)
        self.mapping, self.per_class = mapping, per_class
        self.output = "features" if mapping is None else "logits"

    def forward(self, context: Context) -> dict[Site, Tensor]:
        return self.image_prompt(context)

    def head(self, width: int, classes: int) -> nn.Linear:
        """With a mapping, a linear map of ``width`` logits whose bias is 0; it learns for "full" only."""
        if self.mapping is None:
            return super().head(width, classes)
        if self.mapping != "full" and self.per_class * classes > width:
            raise ValueError(
                f"{classes} classes x per_class={self.per_class} are more than the {width} classes of the "
                "network. Lower per_class, or use mapping='full'."
            )
        head = nn.Linear(width, classes)
        nn.init.zeros_(head.bias)
        return head.requires_grad_(self.mapping == "full")

    def start(self, image: Tower, batches: Batches, head: nn.Linear | None) -> None:
        if self.mapping in ("frequency", "iterative"):
            self._count(image, batches, head)

    def after_epoch(
        self, epoch: int, epochs: int, image: Tower, batches: Batches, head: nn.Linear | None
    ) -> None:
        if self.mapping == "iterative":
            self._count(image, batches, head)

    @torch.no_grad()
    def _count(self, image: Tower, batches: Batches, head: nn.Linear | None) -> None:
        """Fill the head from what the network says of the training pictures under the prompt as it is now."""
        assert image.logits is not None
        assert head is not None
        classes, sources = head.weight.shape
        counts = torch.zeros(sources * classes, dtype=torch.long)
        rows = self(Context())
        for batch in batches():
            labels = batch["label"].cpu()
            if labels.ndim != 1:
                raise ValueError(f"mapping={self.mapping!r} counts one label a picture. Use mapping='full'.")
            seen = (
                image.logits(advance(image, batch["image"].to(image.device), rows, "normed")).argmax(-1).cpu()
            )
            counts += torch.bincount(seen * classes + labels, minlength=len(counts))
        head.weight.copy_(frequency_map(counts.view(sources, classes), self.per_class))


class ClipPixel(Pixel):
    """Pixel prompts on CLIP as published: no head, the classes' names said in one sentence."""

    named = True
    sentence = "This is a photo of a {}"

    def __init__(
        self,
        image: Tower,
        *,
        kind: Kind = "padding",
        size: int | None = None,
        init: Literal["normal", "zeros"] = "normal",
        picture: int | None = None,
    ) -> None:
        super().__init__(image, kind=kind, size=size, init=init, picture=picture)


def frequency_map(counts: Tensor, per_class: int) -> Tensor:
    """The weight [classes, sources] of AutoVP's frequency map: 1 / per_class where a source serves a class,
    else 0.

    counts: [sources, classes], how often pictures of a class were taken for a source. The largest count
    chooses first (of equal ones the lower source, then the lower class); a source serves one class, and a
    class gets ``per_class`` of them, so that its logit is their mean.
    """
    sources, classes = counts.shape
    served: dict[int, int] = {}  # source -> class
    filled = [0] * classes
    for flat in counts.flatten().argsort(descending=True, stable=True).tolist():
        source, label = divmod(flat, classes)
        if source not in served and filled[label] < per_class:
            served[source] = label
            filled[label] += 1
            if len(served) == per_class * classes:
                break
    weight = torch.zeros(classes, sources)
    weight[list(served.values()), list(served)] = 1 / per_class
    return weight


def _picture(image: Tower) -> tuple[int, int]:
    """Height and width of the pictures that a network was made for."""
    made_for = getattr(getattr(image.model, "patch_embed", None), "img_size", None)
    made_for = made_for or getattr(image.model, "image_size", None)  # open_clip's
    if made_for is None:
        made_for = (getattr(image.model, "pretrained_cfg", None) or {}).get("input_size", ())[1:]
    if len(made_for) != 2:
        name = type(image.model).__name__
        raise ValueError(f"{name} does not say how large its pictures are. Give picture= in pixels.")
    return int(made_for[0]), int(made_for[1])
