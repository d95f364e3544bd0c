"""What a prompt file says of itself, read with the standard library alone: ``vpt inspect`` imports no torch.

A prompt file is one safetensors file: eight bytes with the length of a JSON header, the header, the tensors.
The header's ``__metadata__`` holds one JSON text under ``vpt``, and under ``check`` the SHA-256 of the file
with that number left blank, so that a changed byte is noticed. Files without it are read too.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["BLANK", "FORMAT", "MAX_HEADER", "BadPromptFile", "Header", "read_header", "sealed"]

BLANK = "-" * 64  # stands where the check will be
FORMAT = 1  # the major format this version writes and reads
MAX_HEADER = 16 * 2**20  # bytes; class names and splits of any size fit, a forged length takes no memory
MAX_TENSOR_BYTES = 2**31
MAX_DIMENSIONS = 8
SIZES = {"BOOL": 1, "U8": 1, "I8": 1, "I16": 2, "U16": 2, "F16": 2, "BF16": 2, "I32": 4, "F32": 4}
SIZES |= {"I64": 8, "U64": 8, "U32": 4, "F64": 8}
KINDS: dict[str, type] = {"sites": list, "tensors": list, "classes": list, "backbone": dict, "head": dict}


class BadPromptFile(ValueError):
    """This file is no prompt set, or not a whole one."""


@dataclass(frozen=True)
class Header:
    """What read_header finds.

    bytes: file size.  tensors: name to (dtype, shape).  about: the metadata, described in vpt/README.md.
    """

    path: str
    bytes: int
    tensors: dict[str, tuple[str, tuple[int, ...]]]
    about: dict[str, Any]

    @property
    def parameters(self) -> int:
        """Numbers that were learned: rows and head."""
        return sum(math.prod(shape) for name, (_, shape) in self.tensors.items() if name != "class_features")


def read_header(path: str | os.PathLike[str]) -> Header:
    """Read and check the header; raises FileNotFoundError, or BadPromptFile that says what is wrong.

    Checked before any tensor is touched: the length, the JSON, that the tensors lie end to end and fill the
    file, the format number, and that every site that the metadata names has its tensor with its shape.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no prompt file {str(path)!r}.")
    size = path.stat().st_size
    with path.open("rb") as f:
        length = int.from_bytes(f.read(8), "little")
        if size < 8 or not 2 <= length <= min(size - 8, MAX_HEADER):
            raise BadPromptFile(
                f"{path} is no whole safetensors file: its header claims {length} bytes, the file has "
                f"{size}. Copy or download it again."
            )
        raw = f.read(length)
    try:
        header = json.loads(raw.decode("utf-8"))
        if not isinstance(header, dict) or raw[:1] != b"{":  # safetensors allows nothing in front of it
            raise TypeError("no JSON object")
        metadata = header.pop("__metadata__", {})
        tensors = {str(k): _tensor(k, v) for k, v in header.items()}
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise BadPromptFile(f"{path} has a damaged header ({error}). Copy or download it again.") from None
    _check_offsets(path, tensors, size - 8 - length)
    about = _about(path, metadata)
    _check_seal(path, metadata.get("check"))
    plain = {name: (dtype, shape) for name, (dtype, shape, _, _) in tensors.items()}
    _check_sites(path, plain, about)
    return Header(str(path), size, plain, about)


def sealed(data: bytes) -> bytes:
    """The file ``data``, which holds BLANK as its check, with the check filled in."""
    return data.replace(BLANK.encode(), hashlib.sha256(data).hexdigest().encode(), 1)


def _check_seal(path: Path, check: Any) -> None:
    if not isinstance(check, str) or len(check) != len(BLANK):
        return
    with path.open("rb") as f:
        head = f.read(8)
        head += f.read(int.from_bytes(head, "little"))
        digest = hashlib.sha256(head.replace(check.encode(), BLANK.encode(), 1))
        while block := f.read(2**20):
            digest.update(block)
    if digest.hexdigest() != check:
        raise BadPromptFile(
            f"{path} was altered or damaged: its check is {digest.hexdigest()[:16]}, it says {check[:16]}. "
            "Copy or download it again."
        )


def _tensor(name: str, entry: Any) -> tuple[str, tuple[int, ...], int, int]:
    dtype, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
    if dtype not in SIZES or len(shape) > MAX_DIMENSIONS:
        raise ValueError(f"tensor {name!r} has dtype {dtype!r} and {len(shape)} dimensions")
    if not all(type(n) is int and 0 <= n <= 2**63 for n in (*shape, begin, end)):
        raise ValueError(f"tensor {name!r} has an impossible shape or place")
    if math.prod(shape) * SIZES[dtype] != end - begin or end - begin > MAX_TENSOR_BYTES:
        raise ValueError(f"tensor {name!r} of shape {shape} does not take {end - begin} bytes")
    return dtype, shape, begin, end


def _check_offsets(path: Path, tensors: dict[str, tuple[str, tuple[int, ...], int, int]], room: int) -> None:
    at = 0
    for name, (_, _, begin, end) in sorted(tensors.items(), key=lambda item: item[1][2:]):
        if begin != at:
            raise BadPromptFile(f"{path} is damaged: tensor {name!r} begins at byte {begin}, expected {at}.")
        at = end
    if at != room:
        raise BadPromptFile(
            f"{path} was cut short or has trailing bytes: its tensors take {at} bytes, {room} are there. "
            "Copy or download it again."
        )


def _about(path: Path, metadata: Any) -> dict[str, Any]:
    text = metadata.get("vpt") if isinstance(metadata, dict) else None
    if not isinstance(text, str):
        raise BadPromptFile(
            f"{path} is a safetensors file but no prompt set: it has no 'vpt' metadata. "
            "Files of other tools are read by `vpt import`."
        )
    try:
        about = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadPromptFile(f"{path} has damaged metadata ({error}). Copy or download it again.") from None
    if not isinstance(about, dict) or type(about.get("format")) is not int:
        raise BadPromptFile(f"{path} names no format in its metadata. It was not written by vpt.")
    if about["format"] != FORMAT:
        newer = " Install a newer visual-prompt-tuning." if about["format"] > FORMAT else ""
        raise BadPromptFile(f"{path} has format {about['format']}, this vpt reads format {FORMAT}.{newer}")
    for key, kind in KINDS.items():
        if not isinstance(about.get(key), (kind, type(None))):
            raise BadPromptFile(f"{path} has damaged metadata: {key} is no {kind.__name__}.")
    return about


def _check_sites(path: Path, tensors: dict[str, tuple[str, tuple[int, ...]]], about: dict[str, Any]) -> None:
    named = set()
    for site in about.get("sites") or []:
        try:
            name = "/".join((site["tower"], site["stage"], site["slot"]))
            want = (int(site["n"]), int(site["width"]))
        except (KeyError, TypeError, ValueError, OverflowError):
            raise BadPromptFile(f"{path} has a damaged site in its metadata: {site!r}.") from None
        if name not in tensors:
            raise BadPromptFile(f"{path} is incomplete: it names the site {name} and holds no tensor for it.")
        if tensors[name][1][-2:] != want:
            raise BadPromptFile(
                f"{path}: the rows at {name} are {tensors[name][1]}, the metadata says {want}."
            )
        named.add(name)
    for name in tensors:
        if (
            name.count("/") == 2
            and not name.startswith(("method/", "head/", "weights/"))
            and name not in named
        ):
            raise BadPromptFile(
                f"{path} was altered: it holds rows at {name} that its metadata does not name."
            )
    wanted = {"head/weight", "head/bias"} if about.get("head") else set()
    missing = sorted((wanted | {str(name) for name in about.get("tensors") or []}) - tensors.keys())
    if missing:
        raise BadPromptFile(f"{path} is incomplete: it should hold {', '.join(missing[:3])} and does not.")
