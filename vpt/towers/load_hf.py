"""transformers' models by name: ``hf/REPO`` of the hub, or ``hf/`` and a local folder."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file
from torch import nn
from transformers import AutoConfig, AutoImageProcessor, AutoTokenizer
from transformers.utils import logging

from vpt.tower import Tower
from vpt.towers.backbone import Backbone
from vpt.towers.hf import OPENED, open_hf
from vpt.towers.tokens import Tokens

__all__ = ["load_hf", "preprocessing_of_hf", "tokens_of_hf"]

# the class to build where a repository names none that opens
PLAIN = {
    "vit": "ViTModel",
    "dinov2": "Dinov2Model",
    "dinov2_with_registers": "Dinov2WithRegistersModel",
    "clip": "CLIPModel",
    "siglip": "SiglipModel",
}
RESAMPLING = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}
HALF, IMAGENET = ([0.5] * 3, [0.5] * 3), ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
OPENAI = ([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711])
# what the families' own processors do where a repository says nothing: mean and std, interpolation, crop
USUAL = {
    "vit": (HALF, "bilinear", 1.0, "squash"),
    "dinov2": (IMAGENET, "bicubic", 0.875, "center"),
    "dinov2_with_registers": (IMAGENET, "bicubic", 0.875, "center"),
    "clip": (OPENAI, "bicubic", 1.0, "center"),
    "siglip": (HALF, "bicubic", 1.0, "squash"),
}


def load_hf(rest: str, pretrained: bool, weights: str | None, size: int | None) -> Backbone:
    """The backbone behind ``hf/``; see :func:`vpt.towers.load.load`."""
    if weights is not None and not Path(weights).is_file():
        raise FileNotFoundError(f"there is no weights file {weights!r}.")
    config = _fetched(AutoConfig, rest, "config.json")
    model = _model(rest, _class_of(rest, config), config, pretrained, weights)
    towers = open_hf(model)
    image, found = towers["image"], _vision(config)
    if size is not None and any(size % side for side in image.patch):
        raise ValueError(f"size={size} is no multiple of the patches of {rest}, {image.patch} pixels.")
    options = {k: v for k, v in (("weights", weights), ("size", size)) if v}
    if not pretrained:
        options["pretrained"] = False
    try:
        processor = AutoImageProcessor.from_pretrained(rest)
    except (OSError, ValueError):  # a folder without one
        processor = None
    preprocessing = preprocessing_of_hf(processor, found, size)
    parts: Any = model
    return Backbone(
        f"hf/{rest}",
        towers,
        preprocessing,
        "transformers",
        options,
        (lambda: tokens_of_hf(rest, towers["text"])) if "text" in towers else None,
        float(parts.logit_scale.detach().exp()) if "text" in towers else 1.0,
        float(parts.logit_bias.detach()) if hasattr(parts, "logit_bias") else 0.0,
    )


def tokens_of_hf(rest: str, text: Tower) -> Tokens:
    """The repository's own tokenizer. Raises OSError where it is not there and the hub cannot be reached."""
    inner = _fetched(AutoTokenizer, rest, "tokenizer")
    assert text.reading is not None
    context = text.reading.context

    def call(texts: list[str]) -> torch.Tensor:
        return inner(
            texts, padding="max_length", max_length=context, truncation=True, return_tensors="pt"
        ).input_ids

    return Tokens(call, lambda words: len(inner(words, verbose=False).input_ids), text)


def preprocessing_of_hf(processor: Any, config: Any, size: int | None = None) -> dict[str, Any]:
    """An image processor as a timm data config; None: what the family does. size: for other pictures.

    Raises ValueError where the processor does what no data config says.
    """
    own = config.image_size if isinstance(config.image_size, int) else config.image_size[0]
    family = config.model_type.removesuffix("_vision_model")
    (mean, std), interpolation, pct, mode = USUAL[family]
    if processor is not None:
        if (
            not (processor.do_resize and processor.do_rescale)
            or abs(processor.rescale_factor * 255 - 1) > 1e-6
        ):
            raise ValueError(
                f"{type(processor).__name__} does not resize pictures, or scales them by "
                f"{processor.rescale_factor}; vpt resizes, and scales by 1/255. Change preprocessor_config.json."
            )
        norm = processor.do_normalize
        mean, std = (
            (list(processor.image_mean), list(processor.image_std)) if norm else ([0.0] * 3, [1.0] * 3)
        )
        interpolation = RESAMPLING[int(processor.resample)]
        own, pct, mode = _cropped(processor)
    return {
        "input_size": [3, size or own, size or own],
        "interpolation": interpolation,
        "mean": mean,
        "std": std,
        "crop_pct": pct,
        "crop_mode": mode,
    }


def _cropped(processor: Any) -> tuple[int, float, str]:
    """Side of the picture, its share of the resized picture, and how it is cut."""
    resized, cut = _plain(processor.size), _plain(getattr(processor, "crop_size", None))
    crops = bool(cut) and getattr(processor, "do_center_crop", False)
    if "shortest_edge" not in resized:
        if crops and cut["height"] != resized["height"]:
            raise ValueError(
                f"resizing to {resized} and cutting {cut} out of it is no crop that timm's data config has."
            )
        return int(resized["height"]), 1.0, "squash"
    edge = int(resized["shortest_edge"])
    side = int(cut["height"]) if crops else edge
    share = side / edge
    if math.floor(side / share) != edge:  # timm divides, and rounds down
        share = math.nextafter(share, 0)
    return side, share, "center"


def _plain(size: Any) -> Mapping[str, int]:
    return {} if size is None else {k: v for k, v in dict(size).items() if v is not None}


def _vision(config: Any) -> Any:
    return getattr(config, "vision_config", config)


def _fetched(what: Any, rest: str, file: str) -> Any:
    try:
        return what.from_pretrained(rest)
    except Exception as error:  # the hub's and the readers' many ways to say no
        why = " ".join(str(error).split())[:300] or type(error).__name__
        if Path(rest).is_dir():
            raise ValueError(f"the folder {rest} has no {file} that transformers reads ({why}).") from error
        raise OSError(
            f"the {file} of hf/{rest} is not on this machine and the hub was not reached, or has no such repository "
            f"({why}). Give a folder as hf/PATH."
        ) from error


def _class_of(rest: str, config: Any) -> Any:
    named = next((name for name in config.architectures or () if name in OPENED), None)
    name = named or PLAIN.get(config.model_type)
    if name is None:
        raise ValueError(
            f"hf/{rest} is a {config.model_type!r} model of transformers, which vpt does not open. Those that open: "
            f"{', '.join(PLAIN)}. Others are often in timm or open_clip under timm/NAME or open_clip/NAME."
        )
    return getattr(transformers, name)


def _model(rest: str, kind: Any, config: Any, pretrained: bool, weights: str | None) -> nn.Module:
    if not pretrained and weights is None:
        return kind(config)
    source, state = (rest, None) if weights is None else (None, _read(weights))
    where = f"hf/{rest}" if weights is None else str(weights)
    try:
        with _silent():
            model, report = kind.from_pretrained(
                source, config=config, state_dict=state, output_loading_info=True, dtype=torch.float32
            )
    except Exception as error:
        why = " ".join(str(error).split())[:300] or type(error).__name__
        if weights is None and isinstance(error, OSError):
            raise OSError(
                f"the weights of hf/{rest} are not on this machine and the hub was not reached ({why}). Give a file "
                "as weights=, or pretrained=False for random weights."
            ) from error
        raise ValueError(f"{where} does not hold the weights of {kind.__name__} ({why}).") from error
    missing = sorted(k for k in report["missing_keys"] if not k.startswith("pooler."))
    if missing:
        raise ValueError(
            f"{where} does not hold the weights of {kind.__name__}: {len(missing)} are missing, the first "
            f"{missing[0]!r}. Give a state dict of this architecture."
        )
    return model


def _read(weights: str) -> Any:
    try:
        if weights.endswith(".safetensors"):
            return load_file(weights)
        return torch.load(weights, map_location="cpu", weights_only=True)
    except Exception as error:
        why = " ".join(str(error).split())[:200] or type(error).__name__
        raise ValueError(f"{weights} is no state dict that can be read safely ({why}).") from error


@contextmanager
def _silent() -> Iterator[None]:
    """transformers prints a table of weights that it did not use; what is missing is raised here."""
    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
