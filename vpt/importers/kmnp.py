"""Checkpoints of the original VPT code (KMnP/vpt, arXiv 2203.12119)."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from vpt.importers.checkpoint import checked, few, read_checkpoint
from vpt.prompt import Site
from vpt.promptset import PromptSet
from vpt.tower import Tower

__all__ = ["import_prompts", "read_vpt_checkpoint"]


class Backbone(Protocol):
    """What an import needs to know of a loaded backbone."""

    @property
    def image(self) -> Tower: ...

    @property
    def preprocessing(self) -> Mapping[str, Any]: ...

    def label(self) -> dict[str, Any]: ...


def import_prompts(
    path: str | os.PathLike[str], method: str, backbone: Backbone, *, classes: Sequence[str] | None = None
) -> PromptSet:
    """A checkpoint of the original VPT code (KMnP/vpt, arXiv 2203.12119) as a prompt set for ``backbone``.

    method: "vpt-shallow" or "vpt-deep", what the file must hold.
    classes: names in the order of the file's head; by default their numbers.
    Raises ValueError, with both values, where layers, widths or classes do not fit.
    """
    rows, head = read_vpt_checkpoint(path)
    found = "vpt-shallow" if len(rows) == 1 else "vpt-deep"
    if method != found:
        raise ValueError(
            f"{path} holds rows of {len(rows)} layers, which is {found}, not {method}. Import it as {found}."
        )
    image = backbone.image
    image.check(list(rows)[:1])  # a closed tower says why
    if len(rows) > image.depth:
        raise ValueError(f"{path} holds rows of {len(rows)} layers; this backbone has {image.depth} blocks.")
    for site, value in rows.items():
        if value.shape[-1] != image.width:
            raise ValueError(
                f"the rows of {path} at {site} are {value.shape[-1]} wide, this backbone takes {image.width}. Load "
                "the backbone that they were learned on; rows saved in front of a projection need its full checkpoint."
            )
    if head and head["weight"].shape[1] != image.out:
        raise ValueError(
            f"the head of {path} reads {head['weight'].shape[1]} channels, this backbone gives {image.out}."
        )
    count = len(head["weight"]) if head else 0
    names = list(classes) if classes is not None else [str(i) for i in range(count)]
    if len(names) != count:
        raise ValueError(
            f"{len(names)} class names for a head of {count} classes in {path}. Give one name a class."
        )
    length = next(iter(rows.values())).shape[0]
    layers = "first" if len(rows) == 1 else f"0..{len(rows) - 1}"
    about = {
        "kind": "prompt set",
        "method": {"name": method, "options": {"length": length, "layers": layers}, "paper": "2203.12119"},
        "task": "classify",
        "protocol": {"label": "imported, not measured here"},
        "backbone": backbone.label(),
        "preprocessing": dict(backbone.preprocessing),
        "classes": names,
        "metrics": [],
        "train": {"imported": Path(path).name, "code": "KMnP/vpt"},
        "pool": "own",
    }
    return PromptSet(rows, head, about=about | ({"head": {"reads": "features"}} if head else {}))


def read_vpt_checkpoint(path: str | os.PathLike[str]) -> tuple[dict[Site, Tensor], dict[str, Tensor]]:
    """Rows by site and the head ("weight" [classes, out], "bias" [classes], or empty) of a VPT checkpoint.

    Reads the prompts-only files (``prompt_ep{n}.pth``) and whole state dicts (also MAE's and MoCo's), bare or
    under "model" or "state_dict". A projection is folded into the rows. Raises ValueError for files without
    prompts, for Swin's prompts and for heads of several layers, which no prompt set holds.
    """
    state = _state(read_checkpoint(path))
    if "shallow_prompt" in state:
        first, deep = state["shallow_prompt"], state.get("deep_prompt")
        projection = None
    else:
        stem = next((s for s in ("enc.transformer.", "enc.") if f"{s}prompt_embeddings" in state), None)
        if stem is None:
            raise ValueError(f"{path} holds no VPT prompts; its keys begin with {few(state)}.")
        if f"{stem}deep_prompt_embeddings_0" in state:
            raise ValueError(
                f"{path} holds prompts for Swin, which enter inside windows: vpt has no such site."
            )
        first, deep = state[f"{stem}prompt_embeddings"], state.get(f"{stem}deep_prompt_embeddings")
        projection = [state.get(f"{stem}prompt_proj.{part}") for part in ("weight", "bias")]
    layers = [checked(path, "the first layer's rows", first, 3)]
    if deep is not None:
        layers.append(checked(path, "the deep rows", deep, 3))
    if len(layers[0]) != 1 or layers[-1].shape[1:] != layers[0].shape[1:]:
        raise ValueError(
            f"{path} holds rows of shapes {[tuple(t.shape) for t in layers]}, not [1, n, d] and [L, n, d]."
        )
    rows = torch.cat(layers)
    if projection is not None and projection[0] is not None:
        rows = F.linear(
            rows, *(checked(path, "the projection", p, n) for p, n in zip(projection, (2, 1), strict=True))
        )
    sites = {Site("image", str(i), "prefix"): r.clone() for i, r in enumerate(rows)}
    return sites, _head(path, state)


def _head(path: str | os.PathLike[str], state: Mapping[str, Any]) -> dict[str, Tensor]:
    own = {k for k in state if k.startswith("head.")}
    wanted = {"head.last_layer.weight": 2, "head.last_layer.bias": 1}
    if not own:
        return {}
    if own != wanted.keys():
        raise ValueError(
            f"{path} has a head of several layers ({', '.join(sorted(own))}); a prompt set holds one."
        )
    return {key.rpartition(".")[2]: checked(path, key, state[key], ndim) for key, ndim in wanted.items()}


def _state(found: Any) -> dict[str, Any]:
    """The flat dictionary of a checkpoint, without the prefix of DataParallel."""
    for key in ("model", "state_dict"):
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
    if not isinstance(found, Mapping):
        found = {}
    return {str(k).removeprefix("module."): v for k, v in found.items()}
