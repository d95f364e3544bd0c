"""The data sets of a table: where they lie, and in which sentences their classes are named."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vpt.data.item import DataError
from vpt.data.protocols import templates
from vpt.data.sources import open_source
from vpt.methods import METHODS, method_class

__all__ = ["FGVC", "VTAB", "DataSet", "coop", "given", "sentences_for", "tasks", "there"]

# VTAB-1k (arXiv 1910.04867) by its groups: a task's name, and other names that its folder may have.
VTAB: dict[str, dict[str, tuple[str, ...]]] = {
    "Natural": {
        "caltech101": (),
        "cifar": ("cifar100",),
        "dtd": (),
        "oxford_flowers102": ("oxford_flowers", "flowers102"),
        "oxford_iiit_pet": ("oxford_pets", "pets"),
        "svhn": (),
        "sun397": (),
    },
    "Specialized": {
        "patch_camelyon": (),
        "eurosat": (),
        "resisc45": (),
        "diabetic_retinopathy": ("diabetic_retinopathy_detection", "retinopathy"),
    },
    "Structured": {
        "clevr_count": (),
        "clevr_distance": ("clevr_dist",),
        "dmlab": (),
        "kitti": (),
        "dsprites_location": ("dsprites_loc",),
        "dsprites_orientation": ("dsprites_ori",),
        "smallnorb_azimuth": ("smallnorb_azi",),
        "smallnorb_elevation": ("smallnorb_ele",),
    },
}
# The fine-grained tasks of VPT's paper (arXiv 2203.12119).
FGVC: dict[str, tuple[str, ...]] = {
    "cub": ("CUB_200_2011", "cub200"),
    "nabirds": (),
    "oxford_flowers": ("oxford_flowers102", "flowers102", "flowers"),
    "stanford_dogs": ("dogs",),
    "stanford_cars": ("cars",),
}
PLAIN = "a photo of a {}."
# what a sentence that names scenes ends like in the captions that the starter was trained on
OWN = {"scenes": "a {}"}


@dataclass(frozen=True)
class DataSet:
    """name: in the table.  data: path and root as ImageData takes them.  sentences: by "zero-shot", "kgcoop" and
    "prograd", see :func:`vpt.data.protocols.templates`."""

    name: str
    data: Mapping[str, Any]
    sentences: Mapping[str, str] = field(default_factory=dict)

    def options(self, method: str, options: Mapping[str, Any]) -> dict[str, Any]:
        """A method's options with this data set's sentences where they name none of their own."""
        return {**sentences_for(method, options, self.sentences), **options}


def sentences_for(method: str, options: Mapping[str, Any], sentences: Mapping[str, str]) -> dict[str, str]:
    """The options of a method that are sentences of a data set: ``teacher``, and ``template`` of what has no rows.

    Other methods that learn rows start from words of their own, as the papers have it.
    """
    known = inspect.signature(method_class(method)).parameters
    fixed = METHODS[method].options
    found = {}
    if "teacher" in known and "teacher" not in fixed and method in sentences:
        found["teacher"] = sentences[method]
    if method == "prograd" and method in sentences:  # whose rows start from its teacher's words
        found["words"] = sentences[method].partition("{}")[0].strip()
    ensemble = options.get("templates") or fixed.get("templates")
    if "template" in known and "template" not in fixed and not ensemble and "zero-shot" in sentences:
        found["template"] = sentences["zero-shot"]
    return found


def coop(name: str, root: str | Path | None) -> DataSet:
    """A data set of the CoOp line of work by its name. Raises DataError for a name that is none."""
    return DataSet(
        name, {"path": f"coop:{name}", "root": None if root is None else str(root)}, templates(name)
    )


def given(text: str, root: str | Path | None = None) -> DataSet:
    """A data set as typed: a path or another name of a source, or NAME=PATH to say how the table calls it."""
    name, equals, path = text.partition("=")
    if not equals or "/" in name:
        name, path = "", text
    if path.startswith("coop:"):
        found = coop(path.removeprefix("coop:"), root)
        return DataSet(name or found.name, found.data, found.sentences)
    sentence = OWN.get(path.partition(":")[0], PLAIN)
    short = (
        path
        if ":" in path
        else Path(path).stem
        if Path(path).suffix in (".csv", ".parquet")
        else Path(path).name
    )
    return DataSet(
        name or short or path, {"path": path}, dict.fromkeys(("zero-shot", "kgcoop", "prograd"), sentence)
    )


def tasks(
    kind: Mapping[str, Sequence[str]], root: str | Path | None, named: Iterable[DataSet] = ()
) -> list[DataSet]:
    """The tasks of VTAB or FGVC below ``root``: a folder, NAME.csv or NAME.parquet each; those ``named`` win.

    A task that is nowhere is given the path where it should be.
    """
    typed = {d.name: d for d in named}
    if strange := typed.keys() - kind.keys():
        raise ValueError(
            f"no task {', '.join(sorted(strange))}. There are {', '.join(kind)}: write --data TASK=PATH."
        )
    if root is None and kind.keys() - typed.keys():
        raise ValueError(
            f"where are the tasks? Give --root, the folder that holds {next(iter(kind))}/ and the others."
        )
    found = []
    for name, others in kind.items():
        places = [
            Path(root or ".") / f"{n}{end}" for n in (name, *others) for end in ("", ".csv", ".parquet")
        ]
        place = next((p for p in places if p.exists()), places[0])
        found.append(typed.get(name) or DataSet(name, {"path": str(place)}))
    return found


def there(
    sets: Sequence[DataSet], skip_missing: bool = False, least: int = 2
) -> tuple[list[DataSet], list[str]]:
    """Those that can be opened, and a line for each that cannot.

    least: classes that one must have.  Raises DataError that names all of them, unless they are to be skipped or none
    is left.
    """
    found, missing = [], []
    for d in sets:
        try:
            source = open_source(d.data["path"], d.data.get("root"))
            if source.multilabel:
                raise DataError(f"{source.name} has several labels a picture, and these tables are of one.")
            if len(source.classes) < least:
                raise DataError(f"it has {len(source.classes)} classes, and this table needs {least}.")
            found.append(d)
        except DataError as error:
            missing.append(f"{d.name}: {error}")
    if missing and (not skip_missing or not found):
        told = "\n  ".join(missing)
        more = " --skip-missing leaves them out, and the table says so." if found else ""
        raise DataError(
            f"{len(missing)} of {len(sets)} data sets cannot be opened:\n  {told}\n{more}".rstrip()
        )
    return found, missing
