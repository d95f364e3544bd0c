"""Other tools' prompts for CLIP as prompt sets of a loaded backbone."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from vpt.importers.dassl import SIGNS, Found, read_dassl
from vpt.promptset import PromptSet
from vpt.tower import Tower

__all__ = ["import_clip_prompts"]


class Backbone(Protocol):
    """What an import needs to know of a loaded backbone."""

    @property
    def towers(self) -> Mapping[str, Tower]: ...

    @property
    def preprocessing(self) -> Mapping[str, Any]: ...

    def label(self) -> dict[str, Any]: ...


def import_clip_prompts(
    path: str | os.PathLike[str],
    backbone: Backbone,
    *,
    method: str | None = None,
    classes: Sequence[str] = (),
    sentence: str | None = None,
) -> PromptSet:
    """A checkpoint of CoOp's line of work, or peft's prompt-tuning file, as a prompt set for ``backbone``.

    method, sentence: as in :func:`vpt.importers.dassl.read_dassl`.
    classes: names; class-specific rows need them, in the order of training. MMRL tells names beside them by the class
        token's feature alone, as it was published for names that were not trained on.
    Raises ValueError, with both values, where towers, layers, widths or classes do not fit.
    """
    found = read_dassl(path, method, sentence=sentence)
    _check_fit(path, found, backbone)
    rows, about, name = found["rows"], found["about"], found["method_name"]
    sets = next((len(r) for r in rows.values() if r.ndim == 3), None)
    if sets is not None and sets != len(classes):
        raise ValueError(
            f"{path} holds rows of their own for {sets} classes, and {len(classes)} names were given. Give the names "
            "that it was trained on, in that order."
        )
    state = found["method"]
    if name == "cocoop":  # its rows depend on the picture, so the method is kept as a whole
        state, rows = {"text_prompt.table.rows": next(iter(rows.values()))[None], **state}, {}
    elif name == "mmrl":  # so it is where rows are read back
        rows = {}
    paper, code, _ = SIGNS[name]
    label = {
        "kind": "prompt set",
        "method": {"name": name, "options": found["options"], "paper": paper},
        "task": "classify",
        "protocol": {"label": "imported, not measured here"},
        "backbone": backbone.label(),
        "preprocessing": dict(backbone.preprocessing),
        "classes": list(classes),
        "metrics": [],
        "train": {"imported": Path(path).name, "code": code}
        | {k: about[k] for k in ("code", "epoch", "val_result") if k in about},
        "pool": "own",
        "names": {"sentence": about["sentence"], "class_specific": sets is not None},
    }
    return PromptSet(rows, method=state, about=label)


def _check_fit(path: str | os.PathLike[str], found: Found, backbone: Backbone) -> None:
    """Refuse rows that no tower of the backbone takes."""
    towers, named = backbone.towers, backbone.label().get("name")
    for site, rows in found["rows"].items():
        tower = towers.get(site.tower)
        if tower is None:
            raise ValueError(
                f"{path} holds rows for a {site.tower!r} tower; {named} has {', '.join(sorted(towers))}. Give the CLIP "
                "that they were learned on, such as open_clip/ViT-B-16-quickgelu:openai."
            )
        if tower.closed:
            tower.check([site])  # says why
        if site.stage.isdigit() and int(site.stage) >= tower.depth:
            raise ValueError(
                f"{path} holds rows for block {site.stage} of the {site.tower!r} tower; that of {named} has "
                f"{tower.depth} blocks, 0 to {tower.depth - 1}."
            )
        if rows.shape[-1] != tower.width:
            raise ValueError(
                f"the rows of {path} at {site} are {rows.shape[-1]} wide, the {site.tower!r} tower of {named} takes "
                f"{tower.width}. Load the backbone that they were learned on."
            )
        tower.check([site])
    for name in ("image", "text") if found["method_name"] == "mmrl" else ():
        last = max(int(site.stage) for site in found["rows"] if site.tower == name)
        if last != towers[name].depth - 1:
            raise ValueError(
                f"{path} holds rows up to block {last}, the last of its {name!r} tower; that of {named} has "
                f"{towers[name].depth} blocks. Load the backbone that they were learned on."
            )
    out = towers["image"].out
    for key, axis in (("meta_net.0.weight", 1), ("projection", 1)):
        if key in found["method"] and (wide := found["method"][key].shape[axis]) != out:
            raise ValueError(
                f"{path}: {key} is made for image features of {wide} channels, {named} gives {out}. Load the backbone "
                "that it was learned on."
            )
