"""Prompt sets as embeddings files of other text-to-image tools. The other way round: ``embeddings.py``."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from vpt.importers.embeddings import CROSS_ATTENTION, LENGTHS, NEGATIVE
from vpt.promptset import PromptSet, write_atomically

__all__ = ["LAYOUTS", "write_embeddings"]

LAYOUTS: Mapping[str, Mapping[str, str]] = {
    "diffusers": {"text": "<token>"},  # pipe.load_textual_inversion reads these two
    "a1111": {"text": "string_to_param"},
    "kohya": {"text": "emb_params"},
    "sdxl": {"text": "clip_l", "text_2": "clip_g"},
    "sd3": {"text": "clip_l", "text_2": "clip_g", "text_3": "t5xxl"},
    "flux": {"text": "clip_l", "text_2": "t5xxl"},
    "t5": {"text": "t5xxl"},
    "xti": {"text": "IN01 .. OUT11"},
    "reneg": {"context": "a bare tensor"},
}
"""What each layout holds: towers, with their key in the file. ComfyUI reads "kohya", and those of named encoders."""

WIDTHS = {"clip_l": 768, "clip_g": 1280, "t5xxl": 4096}
ZIPPED = (".pt", ".bin")  # what torch.save writes; the only way to hold a name, or a tensor without one
SUFFIXES: Mapping[str, tuple[str, ...]] = dict.fromkeys(("a1111", "reneg"), ZIPPED)


def write_embeddings(
    prompts: PromptSet, path: str | os.PathLike[str], layout: str = "diffusers", *, name: str = ""
) -> Path:
    """Write the rows of one placeholder (or a whole negative context) as other tools read them, in float32.

    ``.safetensors`` or, with torch.save, ``.pt`` and ``.bin``; "a1111" and "reneg" are the latter. For SDXL diffusers
    takes the two tensors of the layout "sdxl" one by one, each with its encoder and tokenizer.
    name: the placeholder without its brackets, where the set has several.
    Raises ValueError, and writes nothing, where the layout cannot hold what the set holds.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"there is no layout {layout!r}. Choose one of {', '.join(LAYOUTS)}.")
    wanted = SUFFIXES.get(layout, (".safetensors", *ZIPPED))
    if (suffix := Path(path).suffix.lower()) not in wanted:
        raise ValueError(
            f"{path} ends in {suffix!r}; the layout {layout!r} is written as {' or '.join(wanted)}."
        )
    held = _held(prompts, layout, name)
    if isinstance(held, dict) and suffix == ".safetensors":
        return write_atomically(path, save(held))
    file = io.BytesIO()
    torch.save(held, file)
    return write_atomically(path, file.getvalue())


def _held(prompts: PromptSet, layout: str, name: str) -> Any:
    """What the file is to hold: tensors by key, AUTOMATIC1111's dictionary, or a tensor."""
    if layout == "reneg":
        return _negative(prompts)
    slot, rows = _chosen(prompts, name)
    _check(slot, rows, layout)
    if layout == "xti":
        if (axis := prompts.about.get("axis")) != "cross-attention":
            raise ValueError(
                f"the layout 'xti' holds a set of rows a cross-attention; these are one a {axis or 'class'}."
            )
        return {k: layer.clone() for k, layer in zip(CROSS_ATTENTION, rows["text"], strict=True)}
    if layout == "a1111":
        step = (prompts.about.get("train") or {}).get("step", 0)
        return {
            "string_to_token": {"*": 265},
            "string_to_param": {"*": rows["text"]},
            "name": slot.strip("<>"),
            "step": step if type(step) is int else 0,
            "sd_checkpoint": None,
            "sd_checkpoint_name": None,
        }
    keys = {"text": slot} if layout == "diffusers" else LAYOUTS[layout]
    return {key: rows[tower] for tower, key in keys.items()}


def _chosen(prompts: PromptSet, name: str) -> tuple[str, dict[str, Tensor]]:
    """The placeholder, and its rows by tower. Raises ValueError for a set that holds anything else."""
    sites = {
        s: s.stage == "embedded" and s.tower.startswith("text") and s.slot[:1] == "<" for s in prompts.rows
    }
    more = [str(s) for s, fits in sites.items() if not fits]
    more += [part for part in ("head", "method", "weights") if getattr(prompts, part)]
    if more or not sites:
        context = (
            " A negative context alone is written with the layout 'reneg'." if str(NEGATIVE) in more else ""
        )
        raise ValueError(
            f"this set holds {', '.join(more[:3]) or 'no rows'}; embeddings files hold rows at a placeholder of a text "
            f"encoder's embedding layer, and nothing else. Keep the prompt file.{context}"
        )
    slots = sorted({s.slot for s in sites})
    slot = f"<{name}>" if name or len(slots) > 1 else slots[0]
    if slot not in slots:
        asked = f"none called {slot}" if name else "an embeddings file holds one"
        raise ValueError(f"this set has the placeholders {', '.join(slots)}; {asked}. Say which.")
    return slot, {s.tower: _plain(s, r) for s, r in prompts.rows.items() if s.slot == slot}


def _check(slot: str, rows: Mapping[str, Tensor], layout: str) -> None:
    keys = LAYOUTS[layout]
    shapes = {tower: tuple(r.shape) for tower, r in rows.items()}
    if not _fits(layout, rows):
        other = [name for name in LAYOUTS if _fits(name, rows)]
        form = (
            f"{len(CROSS_ATTENTION)}, one a cross-attention, of [n, width]"
            if layout == "xti"
            else "[n, width]"
        )
        raise ValueError(
            f"the layout {layout!r} holds rows {form} for {', '.join(keys)}; those at {slot} are {shapes}. "
            f"Choose {' or '.join(other) or 'the prompt file, which holds them as they are'}."
        )
    for tower, key in keys.items():
        width = rows[tower].shape[-1]
        if key in WIDTHS and width != WIDTHS[key] and width in WIDTHS.values():
            raise ValueError(
                f"the layout {layout!r} holds {key}, which is {WIDTHS[key]} wide, for {tower!r}; those rows are "
                f"{width} wide. Choose the layout of the pipeline that they were learned on."
            )


def _fits(layout: str, rows: Mapping[str, Tensor]) -> bool:
    if rows.keys() != LAYOUTS[layout].keys():
        return False
    if layout == "xti":
        return rows["text"].ndim == 3 and len(rows["text"]) == len(CROSS_ATTENTION)
    return all(r.ndim == 2 for r in rows.values())


def _negative(prompts: PromptSet) -> Tensor:
    """The rows of a whole negative context, [n, width]."""
    rows = prompts.rows.get(NEGATIVE)
    if rows is None or len(prompts.tensors()) > 1 or rows.ndim != 2 or len(rows) not in LENGTHS:
        what = ", ".join(f"{key} {tuple(t.shape)}" for key, t in list(prompts.tensors().items())[:3])
        raise ValueError(
            f"the layout 'reneg' holds a whole negative context, {NEGATIVE} of {', '.join(map(str, LENGTHS))} rows, "
            f"and nothing else; this set holds {what or 'nothing'}. Keep the prompt file."
        )
    return _plain(NEGATIVE, rows)


def _plain(site: Any, rows: Tensor) -> Tensor:
    """Rows as files hold them. Raises ValueError for NaN and infinity."""
    rows = rows.detach().to("cpu", torch.float32).clone(memory_format=torch.contiguous_format)
    if not rows.isfinite().all():
        raise ValueError(f"the rows at {site} hold NaN or infinity, so nothing was written.")
    return rows
