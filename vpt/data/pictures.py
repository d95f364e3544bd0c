"""Items to tensors: decoded pictures kept, transforms, and augmentation that depends on its seed alone."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from timm.data import create_transform
from timm.data.transforms import str_to_interp_mode
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import transforms

from vpt.data.images import UnreadableImage, decode
from vpt.data.item import Item, Source
from vpt.data.order import Place, seed_of

Augment = Literal["none", "flip", "crop", "fgvc", "randaugment"]
Transform = Callable[[Image.Image], Tensor]
_CONFIG = ("input_size", "interpolation", "mean", "std", "crop_pct", "crop_mode")


class Decoded:
    """A source's pictures as RGB, kept as uint8 while all that are kept fit ``budget`` bytes."""

    def __init__(self, source: Source, budget: int):
        self._source, self._left = source, budget
        self._kept: dict[str, np.ndarray] = {}

    @property
    def source_name(self) -> str:
        """Name of the source."""
        return self._source.name

    def encoded(self, item: Item) -> bytes | Image.Image:
        """What the source holds. Raises UnreadableImage where it cannot be read at all."""
        try:
            return self._source.read(item)
        except OSError as error:
            raise UnreadableImage(item.key, error.strerror or str(error)) from error

    def get(self, item: Item, encoded: bytes | Image.Image | None = None) -> Image.Image:
        """The picture; ``encoded`` saves a second reading. Raises UnreadableImage."""
        if item.key in self._kept:
            return Image.fromarray(self._kept[item.key])
        image = decode(self.encoded(item) if encoded is None else encoded, item.key)
        pixels = np.asarray(image)
        if pixels.nbytes <= self._left:
            self._left -= pixels.nbytes
            self._kept[item.key] = pixels
        return image


def eval_transform(preprocess: Mapping[str, Any]) -> Transform:
    """timm's own evaluation transform for a data config; gives float32 [3, H, W]."""
    return create_transform(**_config(preprocess), is_training=False)


def train_transform(preprocess: Mapping[str, Any], augment: Augment) -> Transform:
    """Random view of a picture, float32 [3, H, W].

    flip: the evaluation transform and a flip. crop: RandomResizedCrop (8 to 100 %) and a flip. fgvc: resize
    to 8/7 of the input size, random crop, flip (VPT, arXiv 2203.12119). randaugment: crop, then timm's
    RandAugment.
    """
    config = _config(preprocess)
    _, height, width = config["input_size"]
    flip = transforms.RandomHorizontalFlip()
    if augment == "none":
        return eval_transform(preprocess)
    if augment == "flip":
        return transforms.Compose([flip, eval_transform(preprocess)])
    if augment == "fgvc":
        whole = {
            **config,
            "crop_pct": 1.0,
            "crop_mode": "squash",
        }  # the crop below has the right size already
        larger = transforms.Resize(
            round(min(height, width) * 8 / 7), str_to_interp_mode(config["interpolation"])
        )
        crop = transforms.RandomCrop((height, width), pad_if_needed=True)
        return transforms.Compose([larger, crop, flip, eval_transform(whole)])
    given = {k: config[k] for k in ("input_size", "interpolation", "mean", "std")}
    # mmax9: at magnitude 10 timm posterizes to 0 bits, which Pillow refuses
    policy = "rand-m9-mmax9-mstd0.5-inc1" if augment == "randaugment" else None
    return create_transform(**given, is_training=True, color_jitter=0.0, auto_augment=policy)


def _config(preprocess: Mapping[str, Any]) -> dict[str, Any]:
    config = {name: preprocess[name] for name in _CONFIG if name in preprocess}
    size = config.get("input_size")
    if size is None or len(size) != 3 or size[0] != 3:
        raise ValueError(
            f"preprocess has input_size {size}. Wanted: (3, height, width), as timm's data configs have it."
        )
    return {"interpolation": "bilinear", **config}


@contextmanager
def seeded(*parts: object) -> Iterator[None]:
    """Python's, numpy's and torch's global generators (CPU) seeded by ``parts``, and put back afterwards."""
    seed = seed_of(*parts)
    python, numpy, torch_ = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    try:
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002 (timm's transforms use the global one)
        torch.default_generator.manual_seed(seed)
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
        torch.set_rng_state(torch_)


class Pictures(Dataset[dict[str, Any]]):
    """Items as dictionaries: image float32 [3, H, W], label (int or float32 [K]), index, view, key.

    Asked by index, or by (epoch, index). The view of epoch e is ``e`` when ``views`` is 0, else
    ``e % views``, and the random part of a view depends on (seed, view, key) alone.
    Without ``augmented`` the view is 0.
    """

    def __init__(
        self,
        items: Sequence[Item],
        decoded: Decoded,
        transform: Transform,
        classes: int | None = None,
        *,
        augmented: bool = False,
        augment: Augment = "none",
        views: int = 0,
        seed: int = 0,
    ):
        """classes: number of classes for multi-hot labels; None for single labels."""
        self.items, self._decoded, self._transform, self._classes = items, decoded, transform, classes
        self._augmented, self.augment, self._views, self._seed = augmented, augment, views, seed

    def __len__(self) -> int:
        return len(self.items)

    @property
    def source(self) -> str:
        """Name of where the pictures come from."""
        return self._decoded.source_name

    def view_name(self, view: int) -> str:
        """What the view of a picture depends on besides the picture."""
        return f"{self.augment}/{self._seed}/{view}" if self._augmented else "as for evaluation"

    def __getitem__(self, place: int | Place) -> dict[str, Any]:
        epoch, index = place if isinstance(place, tuple) else (0, place)
        item = self.items[index]
        image = self._decoded.get(item)
        view = 0 if not self._augmented else epoch % self._views if self._views else epoch
        if self._augmented:
            with seeded("view", self._seed, view, item.key):
                pixels = self._transform(image)
        else:
            pixels = self._transform(image)
        return {"image": pixels, "label": self._label(item), "index": index, "view": view, "key": item.key}

    def through(self, transform: Transform) -> Pictures:
        """The same pictures under another, random transform, whose draws depend on (seed, key) alone."""
        return Pictures(
            self.items, self._decoded, transform, self._classes, augmented=True, views=1, seed=self._seed
        )

    def facts(self) -> list[dict[str, Any]]:
        """Label, index and key of every picture, without reading it."""
        return [{"label": self._label(t), "index": i, "key": t.key} for i, t in enumerate(self.items)]

    def _label(self, item: Item) -> int | Tensor:
        if not isinstance(item.label, tuple):
            return item.label
        hot = torch.zeros(self._classes or 0)
        hot[list(item.label)] = 1.0
        return hot
