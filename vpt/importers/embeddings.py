"""Embeddings files of text-to-image tools as prompt sets. The other way round: ``embeddings_out.py``.

Textual inversion (arXiv 2208.01618) as diffusers, AUTOMATIC1111, rinongal's code, kohya-ss, ComfyUI, OneTrainer and
Replicate write it, kohya's P+ (arXiv 2303.09522), and ReNeg's negative embeddings (arXiv 2412.19637).
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vpt.importers.checkpoint import checked, few, read_tensors
from vpt.prompt import Site
from vpt.promptset import PromptSet

__all__ = ["CROSS_ATTENTION", "LENGTHS", "NEGATIVE", "read_embeddings"]

File = str | os.PathLike[str]

CROSS_ATTENTION = (
    *("IN01", "IN02", "IN04", "IN05", "IN07", "IN08"),
    *("OUT03", "OUT04", "OUT05", "OUT06", "OUT07", "OUT08", "OUT09", "OUT10", "OUT11"),
    "MID",
)
"""The 16 cross-attentions of SD 1.x by kohya's names, in the order of diffusers' ``unet.attn_processors``: down, up,
mid. That is not the order in which they run, which has mid before up."""

LENGTHS = (77, 120, 256, 300, 512)
"""Tokens that a whole conditioning sequence has: CLIP, PixArt-alpha, T5 in SD 3, PixArt-Sigma and Sana, T5 in Flux."""

NEGATIVE = Site("context", "embedded", "negative")

NAME = re.compile(r"[\w-]+")
ENCODERS = ("clip_l", "clip_g", "t5xxl")
ALIASES = {"text_encoders_0": "clip_l", "text_encoders_1": "clip_g", "t5": "t5xxl"}  # Replicate; OneTrainer
NAMELESS = (
    "emb_params",
    "emp_params",
    "gemma",
    "gemma2_2b",
)  # no word: kohya, OneTrainer (its spelling), ComfyUI
MADE_FOR = {
    (768,): "SD 1.x (CLIP-L)",
    (1024,): "SD 2.x (OpenCLIP-H)",
    (1280,): "the second encoder of SDXL (OpenCLIP-G)",
    (768, 1280): "SDXL (CLIP-L and OpenCLIP-G)",
    (768, 1280, 4096): "SD 3 (CLIP-L, OpenCLIP-G and T5-XXL)",
    (768, 4096): "Flux (CLIP-L and T5-XXL)",
    (2304,): "Sana (Gemma-2-2B)",
    (4096,): "a pipeline with T5-XXL, such as PixArt",
}
PAPERS = {"textual-inversion": "2208.01618", "p-plus": "2303.09522", "context": "2412.19637"}
WANTED = (
    "one tensor under a token, 'emb_params', 'string_to_param', 'clip_l' with 'clip_g' or 't5xxl', kohya's 16 keys "
    "'IN01' to 'OUT11', or a tensor alone"
)


class Found(NamedTuple):
    """rows: [n, width], or [16, n, width], by encoder ("" where the file does not say which).  token: its word, or "".
    code: whose layout it is.  more: what else the file says of its making."""

    rows: dict[str, Tensor]
    token: str
    code: str
    more: Mapping[str, Any] = {}


def read_embeddings(path: File, name: str = "", *, encoders: Mapping[str, int] | None = None) -> PromptSet:
    """An embeddings file (``.safetensors``, or ``.pt``, ``.bin`` and the like) as a prompt set; nothing in it is run.

    Rows [n, width] stand at a placeholder of "text" (CLIP-L, or the only encoder), "text_2" (OpenCLIP-G; T5 beside
    CLIP-L alone) and "text_3" (T5 beside both). Kohya's P+ gives rows [16, n, width] in the order of
    ``CROSS_ATTENTION``. A bare tensor as long as a conditioning sequence (``LENGTHS``) is a whole negative context.
    name: the placeholder without its brackets; by default the file's token, or else the name of the file.
    encoders: width of each text encoder ("text", "text_2", "text_3") and of "context", where the pipeline is known.
    Raises FileNotFoundError, and ValueError for other files, names that are none, and widths that do not fit.
    """
    if name and (not NAME.fullmatch(name) or name == "ctx"):
        raise ValueError(
            f"a placeholder cannot be called {name!r}. Use letters, digits, - and _, such as my-mug; ctx is taken."
        )
    held = read_tensors(path)
    if isinstance(held, Tensor) and held.ndim in (2, 3) and held.shape[-2] in LENGTHS:
        return _context(path, held, name, encoders)
    found = _found(path, held)
    rows = {_tower(key, found.rows, encoders): r for key, r in found.rows.items()}
    _check_fit(path, rows, encoders)
    word = name or _name(found.token) or _name(Path(path).stem) or "my-concept"
    method = "p-plus" if any(r.ndim == 3 for r in rows.values()) else "textual-inversion"
    about = _label(path, method, max(r.shape[-2] for r in rows.values()), found.code, found.more)
    about["placeholders"] = {f"<{word}>": ""}
    if method == "p-plus":
        about |= {"axis": "cross-attention", "layers": list(CROSS_ATTENTION)}
    return PromptSet({Site(tower, "embedded", f"<{word}>"): r for tower, r in rows.items()}, about=about)


def _context(path: File, held: Tensor, name: str, encoders: Mapping[str, int] | None) -> PromptSet:
    rows = _rows(path, "the negative embedding", held[0] if held.ndim == 3 and len(held) == 1 else held)
    if name:
        raise ValueError(
            f"{path} holds {len(rows)} rows without a token, which is a whole negative embedding: it stands at no "
            f"placeholder such as <{name}>. Leave the name out."
        )
    if "context" in (encoders or {}):
        _check_fit(path, {"context": rows}, encoders)
    about = _label(path, "context", len(rows), "AMD-AIG-AIMA/ReNeg")
    about["method"]["options"]["side"] = NEGATIVE.slot
    return PromptSet({NEGATIVE: rows}, about=about)


def _label(path: File, method: str, length: int, code: str, more: Mapping[str, Any] = {}) -> dict[str, Any]:
    return {
        "kind": "prompt set",
        "method": {"name": method, "options": {"length": length}, "paper": PAPERS[method]},
        "task": "denoise",
        "protocol": {"label": "imported, not measured here"},
        "metrics": [],
        "train": {"imported": Path(path).name, "code": code, **more},
    }


def _found(path: File, held: Any) -> Found:
    """What the file holds, by its keys."""
    if isinstance(held, Tensor):
        return Found({"": _rows(path, "its rows", held)}, "", "a bare tensor")
    state = {ALIASES.get(str(k), str(k)): v for k, v in held.items()} if isinstance(held, Mapping) else {}
    if len(state) < len(held if isinstance(held, Mapping) else ()):
        raise ValueError(f"{path} holds the same encoder under two names: {few(map(str, held))}.")
    if out := [k for k in state if k.removesuffix("_out") != k and k[:-4] in (*ENCODERS, "t5", *NAMELESS)]:
        raise ValueError(
            f"{path} holds rows for the output of a text encoder ({', '.join(out)}), which OneTrainer alone writes in. "
            "Train it there without output embeddings."
        )
    if "string_to_param" in state:
        return _string_to_param(path, state)
    if state.keys() == set(CROSS_ATTENTION):
        layers = [_rows(path, key, state[key]) for key in CROSS_ATTENTION]
        if len({layer.shape for layer in layers}) > 1:
            raise ValueError(
                f"{path}: its layers have rows of shapes {sorted({tuple(r.shape) for r in layers})}."
            )
        return Found({"": torch.stack(layers)}, "", "kohya-ss/sd-scripts")
    if state and state.keys() <= set(ENCODERS):
        code = "replicate/cog-sdxl" if "text_encoders_0" in held else "clip_l, clip_g, t5xxl"
        return Found({k: _rows(path, k, state[k]) for k in ENCODERS if k in state}, "", code)
    if len(state) == 1:
        ((key, value),) = state.items()
        rows = {"": _rows(path, f"the rows of {key!r}", value)}
        if key in NAMELESS:
            return Found(rows, "", "kohya-ss/sd-scripts" if key == "emb_params" else "Nerogar/OneTrainer")
        return Found(rows, key, "huggingface/diffusers")
    what = (
        f"{len(state)} keys that begin with {few(state)}"
        if state
        else f"a {type(held).__name__} without keys"
    )
    raise ValueError(f"{path} is no embeddings file of a kind known here: it holds {what}; wanted {WANTED}.")


def _string_to_param(path: File, state: Mapping[str, Any]) -> Found:
    """AUTOMATIC1111's layout, which is rinongal's with a name."""
    terms = state["string_to_param"]
    if not isinstance(terms, Mapping) or len(terms) != 1:
        what = f"{len(terms)} tokens" if isinstance(terms, Mapping) else f"a {type(terms).__name__}"
        raise ValueError(f"{path}: string_to_param should hold one token, found {what}.")
    ((token, value),) = terms.items()
    named = isinstance(state.get("name"), str)
    kept = {k: state.get(k) for k in ("step", "sd_checkpoint", "sd_checkpoint_name")}
    return Found(
        {"": _rows(path, "the rows of string_to_param", value)},
        state["name"] if named else str(token),
        "AUTOMATIC1111/stable-diffusion-webui" if named else "rinongal/textual_inversion",
        {k: v for k, v in kept.items() if type(v) in (int, str)},
    )


def _rows(path: File, what: str, value: Any) -> Tensor:
    """A value of the file as rows [n, width]; one vector [width] is a row."""
    rows = checked(path, what, value, 1 if isinstance(value, Tensor) and value.ndim == 1 else 2)
    if not rows.numel():
        raise ValueError(f"{path}: {what} are empty, of shape {tuple(rows.shape)}.")
    return rows[None] if rows.ndim == 1 else rows


def _tower(key: str, keys: Mapping[str, Any], encoders: Mapping[str, int] | None) -> str:
    """The tower of a key; T5 is the last encoder of whatever pipeline has it."""
    if key == "clip_g":
        return "text_2"
    if key != "t5xxl":
        return "text"
    if last := max((n for n in encoders or () if n.startswith("text")), default=""):
        return last
    return "text_3" if "clip_g" in keys else "text_2" if "clip_l" in keys else "text"


def _check_fit(path: File, rows: Mapping[str, Tensor], encoders: Mapping[str, int] | None) -> None:
    """Refuse rows that no encoder of the pipeline takes."""
    if encoders is None:
        return
    widths = tuple(sorted({r.shape[-1] for r in rows.values()}))
    for tower, r in rows.items():
        if encoders.get(tower) != r.shape[-1]:
            have = ", ".join(f"{name!r} of {width}" for name, width in encoders.items())
            likely = MADE_FOR.get(widths, "another pipeline")
            raise ValueError(
                f"{path} holds rows {r.shape[-1]} wide for the encoder {tower!r}, and this pipeline has {have}. Such a "
                f"file is likely made for {likely}: give a pipeline of that kind."
            )


def _name(token: str) -> str:
    """A token as a placeholder's name: "<cat toy>" is cat-toy; "" for one without letters, and for ctx."""
    name = "-".join(NAME.findall(token)).strip("-")
    return "" if name == "ctx" else name
