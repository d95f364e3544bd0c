"""Names to backbones: ``timm/NAME[.TAG]``, ``starter/NAME``, or a local checkpoint with its architecture."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import timm
from PIL import Image
from timm.data import create_transform, resolve_data_config
from torch import Tensor, nn

from vpt.promptset import fingerprint
from vpt.tower import Tower
from vpt.towers.starter import STARTERS
from vpt.towers.vit import open_timm

__all__ = ["Backbone", "load", "preprocessing_of"]


@dataclass(frozen=True)
class Backbone:
    """What a user names and downloads: frozen towers and their preprocessing.

    preprocessing: timm's data config of these weights: input_size (channels, height, width), interpolation, mean,
        std, crop_pct, crop_mode. Part of the image tower's fingerprint.
    """

    name: str
    towers: dict[str, Tower]
    preprocessing: Mapping[str, Any]
    library: str
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def image(self) -> Tower:
        """The image tower."""
        return self.towers["image"]

    @property
    def preprocess(self) -> Callable[[Image.Image], Tensor]:
        """PIL picture to a normalised [3, height, width], as the weights were evaluated."""
        return create_transform(**self.preprocessing, is_training=False)

    @property
    def logits(self) -> Callable[..., Tensor]:
        """The network's own classifier, of the stream at "normed"; None where it has none."""
        return self.image.logits  # type: ignore[return-value]

    def label(self) -> dict[str, Any]:
        """What a prompt set says of its backbone: name, options, fingerprints, library versions."""
        prints = {n: fingerprint(t, self.preprocessing if n == "image" else None) for n, t in self.towers.items()}
        libraries = {lib: version(lib) for lib in ("torch", self.library)}
        return {"name": self.name, **self.options, "fingerprints": prints, "libraries": libraries}


def preprocessing_of(model: nn.Module) -> dict[str, Any]:
    """The data config that the weights were evaluated with, as plain values."""
    config = resolve_data_config({}, model=model)
    keys = ("input_size", "interpolation", "mean", "std", "crop_pct", "crop_mode")
    return {k: list(v) if isinstance(v, tuple) else v for k, v in config.items() if k in keys}


def load(name: str, *, pretrained: bool = True, weights: str | None = None, size: int | None = None) -> Backbone:
    """Load a frozen backbone.

    name: ``timm/vit_small_patch16_224.augreg_in21k`` (any ``timm.create_model`` name; without "/" a name is
        taken for timm's) or ``starter/vit-mini``, which comes with this package and needs no network.
    pretrained: False builds random weights.  weights: a local checkpoint in place of the hub's.
    size: another picture size in pixels, where the architecture allows it.
    Raises ValueError for an unknown name, with the nearest that exist.
    """
    family, _, rest = name.partition("/")
    if not rest:
        family, rest = "timm", name
    if family == "starter":
        if rest not in STARTERS:
            raise ValueError(f"no starter {rest!r}. There is {', '.join(STARTERS)}.")
        if weights or not pretrained or size:
            raise ValueError(f"starter/{rest} is loaded as it is: leave out weights, pretrained and size.")
        model = STARTERS[rest]()
    elif family == "timm":
        model = _timm_model(rest, pretrained, weights, size)
    else:
        raise ValueError(f"unknown family {family!r} in {name!r}. Backbones are named timm/NAME or starter/NAME.")
    options = {k: v for k, v in (("weights", weights), ("size", size)) if v}
    if not pretrained:
        options["pretrained"] = False
    tower = open_timm(model)
    return Backbone(f"{family}/{rest}", {"image": tower}, preprocessing_of(model), "timm", options)


def _timm_model(name: str, pretrained: bool, weights: str | None, size: int | None) -> nn.Module:
    if not timm.is_model(name):
        near = timm.list_models(f"*{name.split('.')[0]}*")[:5]
        raise ValueError(
            f"timm has no model {name!r}" + (f"; near it: {', '.join(near)}." if near else ".")
            + " `vpt models` lists what there is."
        )
    options: dict[str, Any] = {}
    if weights is not None:
        if not Path(weights).is_file():
            raise FileNotFoundError(f"there is no weights file {weights!r}.")
        options["checkpoint_path"] = weights
    if size is not None:
        options["img_size"] = size
    try:
        return timm.create_model(name, pretrained=pretrained and weights is None, **options)
    except TypeError as error:
        if size is not None and "img_size" in str(error):
            raise ValueError(f"{name} takes no other picture size. Leave out size={size}.") from error
        raise
