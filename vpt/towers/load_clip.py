"""open_clip's models by name: ``open_clip/ARCH[:PRETRAINED]``, its hub and folder schemes, local checkpoints."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import open_clip
from open_clip.model import get_model_preprocess_cfg
from torch import nn

from vpt.towers.backbone import Backbone
from vpt.towers.clip import open_clip_model
from vpt.towers.tokens import of_open_clip

__all__ = ["backbone_of", "load_open_clip", "preprocessing_of_clip"]

SCHEMES = ("hf-hub:", "local-dir:")


def load_open_clip(rest: str, pretrained: bool, weights: str | None, size: int | None) -> Backbone:
    """The backbone behind ``open_clip/``; see :func:`vpt.towers.load.load`."""
    scheme = next((s for s in SCHEMES if rest.startswith(s)), "")
    name, _, tag = (rest, "", "") if scheme else rest.partition(":")
    if not scheme:
        name = name.replace("/", "-")
        _check(name, tag, pretrained, weights)
    if weights is not None and not Path(weights).is_file():
        raise FileNotFoundError(f"there is no weights file {weights!r}.")
    # a tag also says activation and preprocessing, which a file of the same weights needs as well
    known = open_clip.get_pretrained_cfg(name, tag) if tag else {}
    source = weights or (tag if pretrained else "")
    loaded = bool(source) if not scheme else pretrained and weights is None
    try:
        with _silent():
            model = open_clip.create_model(
                name,
                pretrained=(source or None) if not scheme else None,
                load_weights=loaded,
                require_pretrained=loaded,  # else a hub without the file means random weights
                pretrained_text=False,
                force_quick_gelu=bool(known.get("quick_gelu")),
                force_preprocess_cfg=known,
                force_image_size=size,
            )
            if scheme and weights is not None:  # create_model reads a file for its own architectures only
                open_clip.load_checkpoint(model, weights)
    except Exception as error:
        raise _refusal(name, tag, weights, error) from error
    options = {k: v for k, v in (("weights", weights), ("size", size)) if v}
    if not pretrained:
        options["pretrained"] = False
    return backbone_of(model, f"open_clip/{rest}", name, options)


def backbone_of(
    model: nn.Module, name: str, architecture: str | Callable[..., Any], options: dict[str, Any] | None = None
) -> Backbone:
    """The backbone of an open_clip model that is already built; architecture: whose tokenizer it has, or one."""
    towers = open_clip_model(model)
    found: Any = model

    def tokens() -> Any:
        if callable(architecture):
            return of_open_clip(architecture, towers["text"])
        try:
            return of_open_clip(open_clip.get_tokenizer(architecture), towers["text"])
        except Exception as error:
            raise OSError(
                f"the tokenizer of {architecture} is not on this machine and the hub was not reached ({error})."
            ) from error

    bias = found.logit_bias
    return Backbone(
        name,
        towers,
        preprocessing_of_clip(model),
        "open_clip_torch",
        options or {},
        tokens,
        float(found.logit_scale.detach().exp()),
        0.0 if bias is None else float(bias.detach()),
    )


def preprocessing_of_clip(model: nn.Module) -> dict[str, Any]:
    """open_clip's evaluation transform as a timm data config; equal to the bit (tested).

    Raises ValueError for resize_mode "longest", which no set of weights in open_clip's list has.
    """
    config = get_model_preprocess_cfg(model)
    size = config["size"]
    height, width = (size, size) if isinstance(size, int) else size
    mode, interpolation = config.get("resize_mode") or "shortest", config.get("interpolation") or "bicubic"
    if mode == "longest":
        raise ValueError(
            "this model was evaluated with pictures padded with black (resize_mode 'longest'), which timm's data "
            "config cannot say. Choose 'shortest' or 'squash' in its preprocess_cfg."
        )
    if mode == "shortest" and height != width:
        interpolation = "bicubic"  # open_clip does not hand the other on, so the weights were evaluated so
    default = open_clip.constants
    return {
        "input_size": [3, height, width],
        "interpolation": interpolation,
        "mean": list(config.get("mean") or default.OPENAI_DATASET_MEAN),
        "std": list(config.get("std") or default.OPENAI_DATASET_STD),
        "crop_pct": 1.0,
        "crop_mode": {"shortest": "center", "squash": "squash"}[mode],
    }


def _check(name: str, tag: str, pretrained: bool, weights: str | None) -> None:
    """Raises ValueError, with a list of what there is, for an unknown architecture or tag, and for no weights."""
    if name not in open_clip.list_models():
        near = get_close_matches(name, open_clip.list_models(), 5)
        hint = f"; near it: {', '.join(near)}" if near else ""
        raise ValueError(f"open_clip has no architecture {name!r}{hint}. `vpt models` lists what there is.")
    tags = open_clip.list_pretrained_tags_by_model(name)
    if tag and tag not in tags:
        raise ValueError(f"{name} has no weights tagged {tag!r}, but: {', '.join(tags) or 'none'}.")
    if pretrained and not tag and weights is None:
        listed = ", ".join(f"open_clip/{name}:{t}" for t in tags) or "none in open_clip"
        raise ValueError(
            f"open_clip/{name} says no weights. There are: {listed}. Or give a file as weights=, or pretrained=False."
        )


def _refusal(name: str, tag: str, weights: str | None, error: Exception) -> Exception:
    why = " ".join(str(error).split())[:300] or type(error).__name__
    if weights is not None:
        return ValueError(
            f"{weights} does not hold the weights of {name} ({why}). Give a state dict of this architecture."
        )
    if "Required pretrained" in why:
        return OSError(
            f"{name} has a config and no weights. Give a checkpoint as weights=, or pretrained=False for random "
            "weights."
        )
    reached = ("hub", "connect", "download", "resolve", "offline", "timed out", "huggingface")
    if isinstance(error, OSError) or any(word in why.lower() for word in reached):
        return OSError(
            f"{name}{':' + tag if tag else ''} needs files that are not on this machine, and the hub was not reached "
            f"({why}). Give a checkpoint as weights=, or pretrained=False for random weights."
        )
    return ValueError(f"open_clip could not build {name}: {why}.")


@contextmanager
def _silent() -> Iterator[None]:
    """open_clip logs a warning for random weights that were asked for."""
    logger = logging.getLogger()
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
