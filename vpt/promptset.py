"""The artifact: rows by site, a head where the task has one, and what is needed to use them again."""

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
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from vpt.header import BLANK, FORMAT, BadPromptFile, read_header, sealed
from vpt.prompt import Site
from vpt.tower import Tower

__all__ = [
    "PromptSet",
    "average",
    "fingerprint",
    "interpolate",
    "join",
    "renamed",
    "slerp",
    "write_atomically",
]


def fingerprint(tower: Tower, preprocessing: Mapping[str, Any] | None = None, *, states: bool = False) -> str:
    """16 hex digits that fix what a tower computes: its weights in step order, rounded to float16, its
    traits, and for pictures the preprocessing. Names of tensors and the classifier do not count.

    states: of its states alone, without what makes a feature of the last one; a text encoder that a CLIP and a
    diffusion pipeline share has these in common.
    """
    digest = hashlib.sha256()
    tensors = list(tower.canonical() if tower.canonical is not None else tower.model.state_dict().values())
    for t in tensors[: len(tensors) - tower.ends] if states else tensors:
        flat = t.detach().flatten().cpu()
        digest.update(str(t.numel()).encode())
        digest.update((flat.half() if flat.is_floating_point() else flat).numpy().tobytes())
    traits = {k: v for k, v in tower.traits.items() if not (states and k == "pool")}
    facts = {**traits, **{k: _plain(v) for k, v in (preprocessing or {}).items()}}
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
    weights: a baseline's learned weights, by parameter; such a file says ``kind: baseline`` and is no prompt
        set.
    about: the metadata of the file: format, method, task, protocol, backbone, preprocessing, classes,
        metrics, train, parents (see vpt/README.md). Keys that this version does not know are kept.
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

    def written(self, tower: str) -> str:
        """16 hex digits of what this set writes to, or changes in, a tower; "" for nothing.

        Features of a tower that two sets write alike are alike: an index of pictures holds for every set that says
        the same of "image". A method that is kept as a whole counts for every tower.
        """
        learned = {k: v for k, v in self.weights.items() if k.startswith("text.") == (tower == "text")}
        rows = {site: r for site, r in self.rows.items() if site.tower == tower}
        own = replace(self, rows=rows, head={}, weights=learned)
        return own.hash() if own.tensors() else ""

    def label(self) -> dict[str, Any]:
        """The metadata as written: format, version, date and sites filled in."""
        sites = [
            {"tower": s.tower, "stage": s.stage, "slot": s.slot, "n": r.shape[-2], "width": r.shape[-1]}
            | ({"axis": self.about.get("axis", "class"), "sets": r.shape[0]} if r.ndim == 3 else {})
            for s, r in self.rows.items()
        ]
        created = {"date": datetime.now(UTC).isoformat(timespec="seconds"), "vpt": _version()}
        tensors = sorted(self.tensors().keys() - {str(s) for s in self.rows})  # a missing one is noticed
        return {"created": created, **self.about, "format": FORMAT, "sites": sites, "tensors": tensors}

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the file: to a temporary name, then renamed. Raises ValueError if a number is not finite."""
        tensors = self.tensors()
        for name, t in tensors.items():
            if not t.isfinite().all():
                raise ValueError(f"{name} holds NaN or infinity, so nothing was written to {path}.")
        # in ASCII: class names that come from file names of another encoding hold lone surrogates
        data = save(tensors, {"vpt": json.dumps(self.label()), "check": BLANK})
        return write_atomically(path, sealed(data))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> PromptSet:
        """Read a file and check it whole; raises FileNotFoundError or BadPromptFile. Nothing in it is run."""
        header = read_header(path)
        try:
            tensors = load(Path(path).read_bytes())
        except SafetensorError as error:
            raise BadPromptFile(
                f"{path} is no safetensors file ({error}). Copy or download it again."
            ) from None
        for name, t in tensors.items():
            if t.is_floating_point() and not t.isfinite().all():
                raise BadPromptFile(f"{path}: {name} holds NaN or infinity. The file is damaged.")
        sites = [Site(s["tower"], s["stage"], s["slot"]) for s in header.about.get("sites") or []]
        rows = {str(s): tensors[str(s)] for s in sites}
        parts: dict[str, dict[str, Tensor]] = {"head": {}, "method": {}, "weights": {}}
        for name, t in tensors.items():
            room, _, key = name.partition("/")
            if room in parts and name not in rows:
                parts[room][key] = t
        return cls({s: rows[str(s)] for s in sites}, **parts, about=header.about)

    def check(self, towers: Iterable[Tower], preprocessing: Mapping[str, Any] | None = None) -> None:
        """Refuse towers that these rows were not learned on; raises ValueError with both values.

        A word learned by rows of text towers alone needs these alone, and of them the states: one that search learned
        can be drawn where the text encoder is shared, and the other way round.
        """
        have = {tower.name: tower for tower in towers}
        made = _fingerprints(self)
        if self.about.get("placeholders") and not self.weights and not self.method:
            kept = (self.about.get("backbone") or {}).get("states") or {}
            written = {site.tower for site in self.rows}
            shared = {
                n for n in written & kept.keys() & have.keys() if fingerprint(have[n], states=True) == kept[n]
            }
            if "context" not in written:  # whose rows mean what the encoders' states do
                made = {name: print_ for name, print_ in made.items() if name in written - shared}
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
            width = rows.shape[-1] if site.stage == "input" else tower.width
            width *= 2 if site.slot == "kv" else 1
            if rows.shape[-1] != width:
                raise ValueError(f"the rows at {site} are {rows.shape[-1]} wide, this tower takes {width}.")


def _version() -> str:
    try:
        return version("visual-prompt-tuning")
    except PackageNotFoundError:
        return "unknown"


def write_atomically(path: str | os.PathLike[str], data: bytes) -> Path:
    """Write bytes to a temporary neighbour and rename it: a kill leaves the old file or the new one."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_bytes(data)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    return path


def _fingerprints(s: PromptSet) -> dict[str, str]:
    return (s.about.get("backbone") or {}).get("fingerprints") or {}


def _together(sets: Sequence[PromptSet], what: str) -> None:
    if len({tuple(sorted((k, tuple(v.shape)) for k, v in s.tensors().items())) for s in sets}) != 1:
        raise ValueError(f"{what} needs at least one prompt set, and all with the same sites and shapes.")
    prints = {json.dumps(_fingerprints(s), sort_keys=True) for s in sets}
    if len(prints) != 1:
        raise ValueError(f"{what} needs prompt sets of one backbone; these were learned on {len(prints)}.")
    if len({s.classes for s in sets}) != 1:
        raise ValueError(f"{what} needs prompt sets with the same classes in the same order.")


def _heritage(about: Mapping[str, Any], parents: Sequence[PromptSet]) -> dict[str, Any]:
    """The label of a set made from others: what was measured on the parents does not hold for it."""
    kept = {k: v for k, v in about.items() if k not in ("metrics", "train", "created")}
    return {**kept, "parents": [s.hash() for s in parents]}


def _mix(sets: Sequence[PromptSet], weights: Sequence[float], what: str) -> PromptSet:
    _together(sets, what)

    def mixed(part: str) -> dict[Any, Tensor]:
        first = getattr(sets[0], part)
        return {k: sum(w * getattr(s, part)[k] for w, s in zip(weights, sets, strict=True)) for k in first}

    about = _heritage(sets[0].about, sets)
    return PromptSet(mixed("rows"), mixed("head"), mixed("method"), mixed("weights"), about)


def average(sets: Sequence[PromptSet], weights: Sequence[float] | None = None) -> PromptSet:
    """Weighted mean of rows and heads (PromptSRC's prompt averaging, arXiv 2307.06948).

    weights: one a set, of any positive sum; None: all alike. Raises ValueError for sets of other sites,
    shapes, classes or backbones.
    """
    weights = [1.0] * len(sets) if weights is None else weights
    if len(weights) != len(sets) or (sets and not sum(weights) > 0):
        raise ValueError(
            f"an average of {len(sets)} sets needs as many weights of positive sum, not {weights}."
        )
    return _mix(sets, [w / sum(weights) for w in weights], "an average")


def interpolate(a: PromptSet, b: PromptSet, t: float) -> PromptSet:
    """(1 - t) a + t b, t in [0, 1]. Raises ValueError like :func:`average`."""
    return _mix([a, b], [1 - t, t], "an interpolation")


def slerp(a: PromptSet, b: PromptSet, t: float) -> PromptSet:
    """From ``a`` to ``b`` on the sphere, t in [0, 1]: a row turns with constant speed, and its length goes linearly.

    The mean of two directions is shorter than both, and an encoder reads a short row as a weaker one; here it keeps its
    length. A row of length 0 has no direction, so it is interpolated, as heads and a method's own tensors are.
    Raises ValueError like :func:`average`, and for rows that point in opposite directions, between which there is no
    way of its own.
    """
    mixed = interpolate(a, b, t)
    if t not in (0, 1):  # the ends are exact
        mixed.rows.update({site: _turned(site, a.rows[site], b.rows[site], t) for site in a.rows})
    return mixed


def _turned(site: Site, a: Tensor, b: Tensor, t: float) -> Tensor:
    """Rows [.., n, width] on the way from ``a`` to ``b``."""
    x, y = a.double(), b.double()
    lengths = x.norm(dim=-1, keepdim=True), y.norm(dim=-1, keepdim=True)
    some = (lengths[0] > 0) & (lengths[1] > 0)
    u, v = (torch.where(some, r / n, 0.0) for r, n in zip((x, y), lengths, strict=True))
    # between nearly equal directions an arc cosine loses half its digits, this does not
    angle = 2 * torch.atan2((u - v).norm(dim=-1, keepdim=True), (u + v).norm(dim=-1, keepdim=True))
    if bool((some & (angle > torch.pi - 1e-6)).any()):
        raise ValueError(f"rows at {site} point in opposite directions, so there is no way between them.")
    turns = some & (angle > 1e-6)
    sine = torch.where(turns, angle.sin(), 1.0)
    way = ((1 - t) * angle).sin() / sine * u + (t * angle).sin() / sine * v
    length = (1 - t) * lengths[0] + t * lengths[1]
    return torch.where(turns, length * way, (1 - t) * x + t * y).to(a.dtype)


def renamed(s: PromptSet, old: str, new: str) -> PromptSet:
    """The set with the placeholder ``old``, such as "<my-mug>", called ``new``. Raises ValueError for one it lacks, and
    for a name that it has already."""
    words = dict(s.about.get("placeholders") or {})
    slots = {site.slot for site in s.rows if site.slot.startswith("<")} | words.keys()
    if old not in slots or (new in slots and new != old):
        what = "has no" if old not in slots else f"would have two called {new}: it is there beside"
        raise ValueError(
            f"this prompt set {what} {old}; its placeholders: {', '.join(sorted(slots)) or 'none'}."
        )
    rows = {site._replace(slot=new) if site.slot == old else site: r for site, r in s.rows.items()}
    said = {"placeholders": {new if k == old else k: v for k, v in words.items()}} if words else {}
    return replace(s, rows=rows, about={**s.about, **said})


def join(a: PromptSet, b: PromptSet) -> PromptSet:
    """Both sets' rows and placeholders; at one site the later wins. Head and label: those of ``b`` where it has them.

    Raises ValueError when they were learned on different weights of a tower.
    """
    prints = {**_fingerprints(a), **_fingerprints(b)}
    for name, print_ in _fingerprints(a).items():
        if prints[name] != print_:
            raise ValueError(
                f"these sets were learned on different {name!r} towers, {print_} and {prints[name]}: no join."
            )
    about = _heritage({**a.about, **b.about}, (a, b))
    if a.head and not b.head:  # the names go with the head
        about |= {k: a.about[k] for k in ("classes", "head") if k in a.about}
    if prints:
        about["backbone"] = {**about["backbone"], "fingerprints": prints}
    if words := {**(a.about.get("placeholders") or {}), **(b.about.get("placeholders") or {})}:
        about["placeholders"] = words
    return PromptSet(
        {**a.rows, **b.rows}, b.head or a.head, {**a.method, **b.method}, {**a.weights, **b.weights}, about
    )
