"""Names to backbones: ``timm/NAME[.TAG]``, ``open_clip/ARCH[:PRETRAINED]``, ``hf/REPO``, ``diffusers/REPO``,
``starter/NAME``."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path
from typing import Any

import timm
from timm.data import resolve_data_config
from torch import nn

from vpt.towers.backbone import Backbone
from vpt.towers.starter import CLIP_STARTERS, DRAWING_STARTERS, STARTERS
from vpt.towers.vit import open_timm

__all__ = ["Backbone", "load", "preprocessing_of"]


def preprocessing_of(model: nn.Module, size: int | None = None) -> dict[str, Any]:
    """The data config that the weights were evaluated with, as plain values; size: for other pictures."""
    config = resolve_data_config({}, model=model)
    if size is not None:
        config["input_size"] = (config["input_size"][0], size, size)
    keys = ("input_size", "interpolation", "mean", "std", "crop_pct", "crop_mode")
    return {k: list(v) if isinstance(v, tuple) else v for k, v in config.items() if k in keys}


def load(
    name: str,
    *,
    pretrained: bool = True,
    weights: str | None = None,
    size: int | None = None,
    quantize: str | None = None,
    dtype: str = "float32",
) -> Backbone:
    """Load a frozen backbone.

    name: ``timm/vit_small_patch16_224.augreg_in21k`` (any ``timm.create_model`` name; without "/" a name is
        taken for timm's), ``open_clip/ViT-B-16:openai``, ``hf/google/vit-base-patch16-224`` (a repository of
        transformers' ViT, DINOv2, CLIP or SigLIP, or a folder), ``diffusers/REPO`` (a text-to-image pipeline, or a
        folder), or ``starter/vit-mini``, ``starter/clip-mini`` and ``starter/sd-mini``, which come with this package
        and need no network.
    pretrained: False builds random weights.
    weights: a local checkpoint in place of the hub's (.safetensors, .pth, or .npz where timm reads them). Its
        classifier may have any number of classes, or be left out.
    size: another picture size in pixels, where the architecture allows it.
    quantize, dtype: of a diffusion pipeline, see :mod:`vpt.towers.load_diffusion`.
    Raises ValueError for an unknown name, with the nearest that exist, and for weights or a size that do not
    fit; OSError where the hub cannot be reached.
    """
    family, _, rest = name.partition("/")
    if not rest:
        family, rest = "timm", name
    if family != "diffusers" and (quantize or dtype != "float32"):
        raise ValueError(
            f"quantize and dtype are for diffusion pipelines, and {name} is none. Leave both out."
        )
    if family == "starter":
        known = [*STARTERS, *CLIP_STARTERS, *DRAWING_STARTERS]
        if rest not in known:
            raise ValueError(f"no starter {rest!r}. There are {', '.join(known)}.")
        if weights or not pretrained or size:
            raise ValueError(f"starter/{rest} is loaded as it is: leave out weights, pretrained and size.")
        if rest in CLIP_STARTERS:
            from vpt.towers.load_clip import backbone_of  # open_clip takes seconds to import

            clip, tokenizer, _ = CLIP_STARTERS[rest]()
            return backbone_of(clip, name, tokenizer)
        if rest in DRAWING_STARTERS:
            from vpt.towers.diffusion import open_pipeline  # diffusers takes seconds to import

            return open_pipeline(DRAWING_STARTERS[rest](), name)
        model = STARTERS[rest]()
    elif family == "timm":
        model = _timm_model(rest, pretrained, weights, size)
    elif family == "open_clip":
        from vpt.towers.load_clip import load_open_clip  # open_clip takes seconds to import

        return load_open_clip(rest, pretrained, weights, size)
    elif family == "hf":
        from vpt.towers.load_hf import load_hf  # transformers takes seconds to import

        return load_hf(rest, pretrained, weights, size)
    elif family == "diffusers":
        from vpt.towers.load_diffusion import load_diffusion  # diffusers takes seconds to import

        return load_diffusion(rest, pretrained, weights, size, quantize, dtype)
    else:
        raise ValueError(
            f"unknown family {family!r} in {name!r}. Backbones are timm/NAME, open_clip/ARCH:WEIGHTS, hf/REPO, "
            "diffusers/REPO or starter/NAME."
        )
    options = {k: v for k, v in (("weights", weights), ("size", size)) if v}
    if not pretrained:
        options["pretrained"] = False
    tower = open_timm(model)
    if size is not None and any(size % side for side in tower.patch):
        raise ValueError(f"size={size} is no multiple of the patches of {rest}, {tower.patch} pixels.")
    return Backbone(f"{family}/{rest}", {"image": tower}, preprocessing_of(model, size), "timm", options)


def _check_name(name: str) -> None:
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        near = get_close_matches(architecture, timm.list_models(), 5)
        hint = f"; near it: {', '.join(near)}" if near else ""
        raise ValueError(f"timm has no model {architecture!r}{hint}. `vpt models` lists what there is.")
    tags = [n.partition(".")[2] for n in timm.list_models(f"{architecture}.*", pretrained=True)]
    if tag and tag not in tags:
        raise ValueError(f"{architecture} has no weights tagged {tag!r}, but: {', '.join(tags) or 'none'}.")


def _timm_model(name: str, pretrained: bool, weights: str | None, size: int | None) -> nn.Module:
    _check_name(name)
    options: dict[str, Any] = {}
    known = timm.get_pretrained_cfg(name)
    if size is not None and (known is None or known.fixed_input_size):  # others take any size as they are
        options["img_size"] = size
    if weights is not None:
        options |= _from_file(name, weights)
        pretrained = True
    try:
        return timm.create_model(name, pretrained=pretrained, **options)
    except Exception as error:
        if isinstance(error, TypeError) and "img_size" in str(error):
            raise ValueError(f"{name} takes no other picture size. Leave out size={size}.") from error
        if weights is not None:
            raise _misfit(name, weights, error) from error
        if isinstance(error, OSError):
            raise OSError(
                f"the weights of {name} are not on this machine and the hub was not reached ({error}). Give "
                "a file as weights=, or pretrained=False for random weights."
            ) from error
        raise


def _from_file(name: str, weights: str) -> dict[str, Any]:
    """Options of ``timm.create_model`` that read the file through timm's filters for this architecture."""
    if not Path(weights).is_file():
        raise FileNotFoundError(f"there is no weights file {weights!r}.")
    source = {"file": weights, "custom_load": weights.endswith((".npz", ".npy")), "label_offset": 0}
    if source["custom_load"]:
        return {"pretrained_cfg_overlay": source}
    try:
        state = timm.models.load_state_dict(weights)
    except Exception as error:  # whatever a file of another kind makes the readers raise
        raise _misfit(name, weights, error) from error
    known = timm.get_pretrained_cfg(name)
    classifier = known.classifier if known is not None else None
    heads = [classifier] if isinstance(classifier, str) else list(classifier or ())
    classes = next((len(state[f"{head}.weight"]) for head in heads if f"{head}.weight" in state), 0)
    return {"num_classes": classes, "pretrained_cfg_overlay": {**source, "num_classes": classes}}


def _misfit(name: str, weights: str, error: Exception) -> ValueError:
    why = " ".join(str(error).split())[:300] or type(error).__name__
    return ValueError(
        f"{weights} does not hold the weights of {name} ({why}). Give a state dict of this architecture, "
        "as .safetensors or .pth."
    )
