"""Diffusion pipelines by name: ``diffusers/REPO`` of the hub, or ``diffusers/`` and a local folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers import DiffusionPipeline, PipelineQuantizationConfig
from huggingface_hub import snapshot_download

from vpt.towers.diffusion import Diffusion, open_pipeline
from vpt.towers.families import family_of

__all__ = ["QUANTIZED", "load_diffusion"]

# what quantises the frozen network, by the names of diffusers' back ends with their arguments
QUANTIZED: dict[str, tuple[str, dict[str, Any]]] = {
    "bitsandbytes_4bit": (
        "bitsandbytes_4bit",
        {"load_in_4bit": True, "bnb_4bit_compute_dtype": torch.bfloat16},
    ),
    "bitsandbytes_8bit": ("bitsandbytes_8bit", {"load_in_8bit": True}),
    "quanto_int8": ("quanto", {"weights_dtype": "int8"}),
    "gguf": ("gguf", {"compute_dtype": torch.bfloat16}),
}
DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16, "float16": torch.float16}


def load_diffusion(
    rest: str,
    pretrained: bool = True,
    weights: str | None = None,
    size: int | None = None,
    quantize: str | None = None,
    dtype: str = "float32",
) -> Diffusion:
    """A frozen pipeline.

    rest: a repository of the hub, or a folder in diffusers' format.  pretrained: False builds random weights from its
    configs.  weights: a single file (.safetensors or .ckpt) of the same architecture.  size: side of the pictures in
    pixels, where it is not the network's own.  quantize: one of ``QUANTIZED``, for the network; its library must be
    installed.  dtype: of the weights.
    Raises ValueError for a family that vpt does not know and for what is no pipeline, OSError where the hub cannot be
    reached.
    """
    if quantize is not None and quantize not in QUANTIZED:
        raise ValueError(f"quantize={quantize!r}, wanted one of {', '.join(QUANTIZED)}, or none.")
    if dtype not in DTYPES:
        raise ValueError(f"dtype={dtype!r}, wanted one of {', '.join(DTYPES)}.")
    options = {k: v for k, v in (("weights", weights), ("size", size), ("quantize", quantize)) if v}
    if dtype != "float32":
        options["dtype"] = dtype
    folder = _folder(rest, pretrained and weights is None)
    if not pretrained and weights is None:
        pipe, options["pretrained"] = _random(folder), False
    else:
        pipe = _loaded(folder, rest, weights, quantize, DTYPES[dtype])
    return open_pipeline(pipe, f"diffusers/{rest}", options, size)


def _folder(rest: str, whole: bool) -> Path:
    """The folder of a pipeline: as given, or of the hub's files on this machine."""
    if Path(rest).is_dir():
        folder = Path(rest)
    else:
        try:
            patterns = None if whole else ["*.json", "*.txt", "*.model"]
            folder = Path(snapshot_download(rest, allow_patterns=patterns))
        except Exception as error:
            why = " ".join(str(error).split())[:200] or type(error).__name__
            raise OSError(
                f"diffusers/{rest} is not on this machine and the hub was not reached, or has no such repository "
                f"({why}). Give a folder in diffusers' format as diffusers/PATH."
            ) from error
    index = folder / "model_index.json"
    if not index.is_file():
        raise ValueError(
            f"diffusers/{rest} is no pipeline: it has no model_index.json. Give the folder that holds it."
        )
    kind = json.loads(index.read_text()).get("_class_name")
    family_of(type(str(kind), (), {"encode_prompt": None})())  # refuses others before gigabytes are read
    return folder


def _loaded(folder: Path, rest: str, weights: str | None, quantize: str | None, dtype: torch.dtype) -> Any:
    more: dict[str, Any] = {"dtype": dtype}
    if quantize is not None:
        backend, arguments = QUANTIZED[quantize]
        network = "unet" if (folder / "unet").is_dir() else "transformer"
        more["quantization_config"] = PipelineQuantizationConfig(
            quant_backend=backend, quant_kwargs=arguments, components_to_quantize=[network]
        )
    try:
        if weights is not None:
            kind = getattr(diffusers, json.loads((folder / "model_index.json").read_text())["_class_name"])
            return kind.from_single_file(weights, config=str(folder), **more)
        return DiffusionPipeline.from_pretrained(folder, **more)
    except Exception as error:
        why = " ".join(str(error).split())[:300] or type(error).__name__
        raise ValueError(
            f"{weights or f'diffusers/{rest}'} does not hold this pipeline's weights ({why})."
        ) from error


def _random(folder: Path) -> Any:
    """A pipeline of random weights from the configs in a folder."""
    index = json.loads((folder / "model_index.json").read_text())
    parts: dict[str, Any] = {}
    for name, value in index.items():
        if name.startswith("_") or not isinstance(value, list):
            continue
        library, kind = value
        if kind is None:
            parts[name] = None
            continue
        made = getattr(transformers if library == "transformers" else diffusers, kind)
        if issubclass(made, torch.nn.Module):
            own = json.loads((folder / name / "config.json").read_text())
            parts[name] = (
                made(made.config_class(**own)) if library == "transformers" else made.from_config(own)
            )
        else:
            parts[name] = made.from_pretrained(folder / name)
    options = {k: v for k, v in index.items() if not k.startswith("_") and not isinstance(v, list)}
    return getattr(diffusers, index["_class_name"])(**parts, **options)
