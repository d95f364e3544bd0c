"""The artifact: rows by site, a head where the task has one, and what is needed to use them again. Plain data."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor

from vpt.header import FORMAT, BadPromptFile, read_header
from vpt.prompt import Site
from vpt.tower import Tower

__all__ = ["PromptSet", "average", "fingerprint", "interpolate", "join", "write_atomically"]


def fingerprint(tower: Tower, preprocessing: Mapping[str, Any] | None = None) -> str:
    """16 hex digits that fix what a tower computes: its weights in step order, rounded to float16, its traits, and
    for pictures the preprocessing. The same weights in another library give the same weights part."""
    digest = hashlib.sha256()
    tensors = tower.canonical() if tower.canonical is not None else tower.model.state_dict().values()
    for t in tensors:
        flat = t.detach().flatten().cpu()
        digest.update(str(t.numel()).encode())
        digest.update((flat.half() if flat.is_floating_point() else flat).numpy().tobytes())
    facts = {**tower.traits, **{k: _plain(v) for k, v in (preprocessing or {}).items()}}
    digest.update(json.dumps(facts, sort_keys=True).encode())
    return digest.hexdigest()[:16]


def _plain(value: Any) -> Any:
    """JSON's idea of a value: tuples and lists alike, floats to six digits."""
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return round(float(value), 6) if isinstance(value, float) else value


@dataclass(frozen=True)
class PromptSet:
    """Learned rows with their label.

    rows: by site, [n, width] or [K, n, width], float32.
    head: "weight" [classes, out] and "bias" [classes], or empty.
    method: tensors of methods whose rows depend on the input, by name.
    weights: a baseline's learned weights, by parameter; such a file says ``kind: baseline`` and is no prompt set.
    about: the metadata of the file: format, method, task, protocol, backbone, preprocessing, classes, metrics,
        train, parents (see vpt/README.md). Keys that this version does not know are kept.
    """

    rows: dict[Site, Tensor] = field(default_factory=dict)
    head: dict[str, Tensor] = field(default_factory=dict)
    method: dict[str, Tensor] = field(default_factory=dict)
    weights: dict[str, Tensor] = field(default_factory=dict)
    about: dict[str, Any] = field(default_factory=dict)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the head."""
        return tuple(self.about.get("classes") or ())

    def tensors(self) -> dict[str, Tensor]:
        """Everything that a file holds, by name."""
        named = {str(site): rows for site, rows in self.rows.items()}
        named |= {f"head/{k}": v for k, v in self.head.items()}
        named |= {f"method/{k}": v for k, v in self.method.items()}
        named |= {f"weights/{k}": v for k, v in self.weights.items()}
        return {k: v.detach().to("cpu", torch.float32).contiguous() for k, v in named.items()}

    def hash(self) -> str:
        """16 hex digits of the tensors: names what a set was composed from."""
        digest = hashlib.sha256()
        for name, t in sorted(self.tensors().items()):
            digest.update(name.encode() + t.numpy().tobytes())
        return digest.hexdigest()[:16]

    def label(self) -> dict[str, Any]:
        """The metadata as written: format, version, date and sites filled in."""
        sites = [
            {"tower": s.tower, "stage": s.stage, "slot": s.slot, "n": r.shape[-2], "width": r.shape[-1]}
            | ({"axis": "class", "sets": r.shape[0]} if r.ndim == 3 else {})
            for s, r in self.rows.items()
        ]
        created = {"date": datetime.now(UTC).isoformat(timespec="seconds"), "vpt": _version()}
        return {"created": created, **self.about, "format": FORMAT, "sites": sites}

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the file: to a temporary name, then renamed. Raises ValueError on rows that are not finite."""
        tensors = self.tensors()
        for name, t in tensors.items():
            if not t.isfinite().all():
                raise ValueError(f"{name} holds NaN or infinity, so nothing was written to {path}.")
        data = save(tensors, {"vpt": json.dumps(self.label(), ensure_ascii=False)})
        return write_atomically(path, data)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> PromptSet:
        """Read a file and check it whole; raises FileNotFoundError or BadPromptFile. Nothing in it is executed."""
        header = read_header(path)
        with open(path, "rb") as f:
            tensors = load(f.read())
        for name, t in tensors.items():
            if t.is_floating_point() and not t.isfinite().all():
                raise BadPromptFile(f"{path}: {name} holds NaN or infinity. The file is damaged.")
        sites = [Site(s["tower"], s["stage"], s["slot"]) for s in header.about.get("sites") or []]
        parts: dict[str, dict[str, Tensor]] = {"head": {}, "method": {}, "weights": {}}
        for name, t in tensors.items():
            room, _, key = name.partition("/")
            if room in parts:
                parts[room][key] = t
        return cls({s: tensors[str(s)] for s in sites}, **parts, about=header.about)

    def check(self, towers: Iterable[Tower], preprocessing: Mapping[str, Any] | None = None) -> None:
        """Refuse towers that these rows were not learned on; raises ValueError with both values."""
        made = (self.about.get("backbone") or {}).get("fingerprints") or {}
        have = {tower.name: tower for tower in towers}
        for name in {s.tower for s in self.rows} | made.keys():
            if name not in have:
                raise ValueError(f"this prompt set needs a {name!r} tower; the backbone has {sorted(have)}.")
        for name, want in made.items():
            got = fingerprint(have[name], preprocessing if name == "image" else None)
            if got != want:
                raise ValueError(
                    f"this prompt set was learned on another {name!r} tower: fingerprint {want}, of "
                    f"{(self.about.get('backbone') or {}).get('name')!r}; the backbone given has {got}. "
                    "Load the backbone that it names (weights and picture size count too)."
                )
        for site, rows in self.rows.items():
            tower = have[site.tower]
            tower.check([site])
            width = {"input": rows.shape[-1], "pooled": tower.out}.get(site.stage, tower.width)
            width *= 2 if site.slot == "kv" else 1
            if rows.shape[-1] != width:
                raise ValueError(f"the rows at {site} are {rows.shape[-1]} wide, this tower takes {width}.")


def _version() -> str:
    try:
        return version("visual-prompt-tuning")
    except PackageNotFoundError:
        return "unknown"


def write_atomically(path: str | os.PathLike[str], data: bytes) -> Path:
    """Write bytes to a temporary neighbour and rename it, so that a kill leaves the old file or the new one."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_bytes(data)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    return path


def _together(sets: Sequence[PromptSet], what: str) -> None:
    if len({tuple(sorted((str(k), tuple(v.shape)) for k, v in s.rows.items())) for s in sets}) != 1:
        raise ValueError(f"{what} needs prompt sets with the same sites and shapes.")
    prints = {json.dumps((s.about.get("backbone") or {}).get("fingerprints"), sort_keys=True) for s in sets}
    if len(prints) != 1:
        raise ValueError(f"{what} needs prompt sets of one backbone; these were learned on {len(prints)}.")


def _mix(sets: Sequence[PromptSet], weights: Sequence[float], what: str) -> PromptSet:
    _together(sets, what)

    def mixed(part: str) -> dict[Any, Tensor]:
        first = getattr(sets[0], part)
        return {k: sum(w * getattr(s, part)[k] for w, s in zip(weights, sets, strict=True)) for k in first}

    about = {k: v for k, v in sets[0].about.items() if k not in ("metrics", "train")}
    about["parents"] = [s.hash() for s in sets]
    return PromptSet(mixed("rows"), mixed("head"), mixed("method"), mixed("weights"), about)


def average(sets: Sequence[PromptSet], weights: Sequence[float] | None = None) -> PromptSet:
    """Weighted mean of rows and heads (PromptSRC's prompt averaging, arXiv 2307.06948); equal weights by default."""
    weights = weights or [1 / len(sets)] * len(sets)
    return _mix(sets, weights, "an average")


def interpolate(a: PromptSet, b: PromptSet, t: float) -> PromptSet:
    """(1 - t) a + t b, t in [0, 1]."""
    return _mix([a, b], [1 - t, t], "an interpolation")


def join(a: PromptSet, b: PromptSet) -> PromptSet:
    """Both sets' rows; at one site the later wins. The head and the label are those of ``b`` where it has them."""
    about = {**a.about, **b.about, "parents": [a.hash(), b.hash()]}
    return replace(b, rows={**a.rows, **b.rows}, head=b.head or a.head, method={**a.method, **b.method}, about=about)
