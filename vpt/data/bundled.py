"""Pictures that come with a library: scikit-learn's digits and torchvision's data sets by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from vpt.data.item import DataError, Item
from vpt.data.labels import check_labels

# The names torchvision's sets give to our splits, tried in this order.
_THEIRS = {
    "train": ("train", "trainval", "train-standard"),
    "val": ("val", "valid", "validation"),
    "test": ("test",),
}


class Digits:
    """scikit-learn's 1,797 handwritten digits, 8 x 8, gray, without splits."""

    name = "digits"
    multilabel = False

    def __init__(self) -> None:
        from sklearn.datasets import load_digits

        digits = load_digits()
        self._pixels = np.rint(digits.images * (255 / 16)).astype(np.uint8)
        self._labels = [int(label) for label in digits.target]
        self.classes = tuple(str(name) for name in digits.target_names)

    def splits(self) -> dict[str, list[Item]]:
        return {"all": [Item(f"{i:04d}", label, offset=i) for i, label in enumerate(self._labels)]}

    def read(self, item: Item) -> Image.Image:
        return Image.fromarray(self._pixels[item.offset])


class TorchVision:
    """A classification set of torchvision.datasets, downloaded to ``root`` when it is not there."""

    multilabel = False

    def __init__(self, name: str, root: Path):
        make = _constructor(name)
        self.name = f"torchvision:{name}"
        self._sets = _open_splits(make, name, root)
        labels = {split: _labels(data) for split, data in self._sets.items()}
        self._items = {
            split: [Item(f"{split}/{i:06d}", label, split, i) for i, label in enumerate(found)]
            for split, found in labels.items()
        }
        self.classes = _class_names(self._sets, labels)
        for items in self._items.values():
            check_labels(items, self.classes, self.name)

    def splits(self) -> dict[str, list[Item]]:
        return self._items

    def read(self, item: Item) -> Image.Image:
        image = self._sets[item.file][item.offset][0]
        return image if isinstance(image, Image.Image) else Image.fromarray(np.asarray(image))


def _constructor(name: str) -> Callable[..., Any]:
    import torchvision.datasets as sets

    make = getattr(sets, name, None)
    if name in sets.__all__ and isinstance(make, type):
        parameters = inspect.signature(make).parameters
        needed = [
            p.name
            for p in parameters.values()
            if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD and p.name != "root"
        ]
        if not needed and "root" in parameters:
            return make
        raise DataError(
            f"torchvision:{name} is not a plain classification set (it needs {needed or 'no root'}). "
            "Export it to a folder of class folders or a manifest."
        )
    import difflib

    near = difflib.get_close_matches(name, sets.__all__, 3, 0.4)
    raise DataError(
        f"torchvision has no data set {name!r}. Close names: {', '.join(near) or ', '.join(sets.__all__)}."
    )


def _open_splits(make: Callable[..., Any], name: str, root: Path) -> dict[str, Any]:
    parameters = inspect.signature(make).parameters

    def opened(**which: object) -> Any:
        try:
            return make(root=str(root), **which)
        except (RuntimeError, FileNotFoundError) as absent:
            if "download" not in parameters:
                raise DataError(
                    f"torchvision:{name} is not under {root}, and cannot be downloaded: {absent}"
                ) from absent
        try:
            return make(root=str(root), download=True, **which)
        except (OSError, RuntimeError) as error:
            raise DataError(
                f"torchvision:{name} is not under {root}, and the download failed: {error}. "
                "Put its files there by hand, or name the folder that has them (root)."
            ) from error

    root.mkdir(parents=True, exist_ok=True)
    if "train" in parameters:
        return {"train": opened(train=True), "test": opened(train=False)}
    if "split" not in parameters:
        return {"all": opened()}
    found = {}
    for split, theirs in _THEIRS.items():
        for word in theirs:
            try:
                found[split] = opened(split=word)
                break
            except ValueError as error:
                if isinstance(error, DataError):
                    raise  # torchvision says ValueError for a split that the set does not have
    return found


def _labels(data: Any) -> list[int]:
    """Labels without decoding a picture where the set keeps them in a list, else one by one."""
    for attribute in ("targets", "_labels", "labels", "y"):
        kept = getattr(data, attribute, None)
        if isinstance(kept, Sequence | np.ndarray | Tensor) and len(kept) == len(data):
            return [int(label) for label in kept]
    return [int(data[i][1]) for i in range(len(data))]


def _class_names(sets: dict[str, Any], labels: dict[str, list[int]]) -> tuple[str, ...]:
    names = next((getattr(data, "classes", None) for data in sets.values()), None)
    if names:
        # torchvision's ImageNet keeps synonyms as tuples
        return tuple(name if isinstance(name, str) else str(name[0]) for name in names)
    return tuple(str(i) for i in range(max(max(found) for found in labels.values()) + 1))
