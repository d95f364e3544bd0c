"""Test-time adaptation over a data set: pictures in, an honest number out; a killed run goes on."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor
from torch.utils.data import DataLoader

from vpt.data.module import ImageData
from vpt.methods.method import Fixed
from vpt.objectives.classify import Classify
from vpt.prompt import Site
from vpt.promptset import write_atomically
from vpt.tasks.device import resolve_device, resolve_precision
from vpt.tasks.label import reaches
from vpt.tasks.learner import Learner
from vpt.tasks.test_time import Adaptation, Adapter, Views
from vpt.tasks.tuned import Tuned
from vpt.towers.backbone import Backbone

__all__ = ["Measured", "adapt", "from_words"]

WORDS = "a photo of a"  # as published for both methods
TOP = 5  # classes that are kept of a picture, enough for every metric


class Measured(NamedTuple):
    """metrics: name, value, split, count and seed.  protocol: how they were measured.
    pictures: key, label, and the most probable classes with their scores, in the order of the split."""

    metrics: list[dict[str, Any]]
    protocol: dict[str, Any]
    pictures: list[dict[str, Any]]


def from_words(backbone: Backbone, classes: Sequence[str], words: str = WORDS) -> Learner:
    """A learner whose rows are the embeddings of these words: "a photo of a", or with the name's place marked,
    "a blurry {} in the wild"."""
    parts = [part.strip() for part in words.split("{}", 1)]
    if not any(parts):
        raise ValueError(f"words={words!r} are none. Give what stands around a class name: {WORDS!r}.")
    said = [f"<ctx*{len(backbone.tokens.words(p))}>" if p else "" for p in parts]
    sentence = " {} ".join([*said, ""][:2]).strip()
    rows = {Site("text", "embedded", "<ctx>"): torch.cat([backbone.tokens.embed(p) for p in parts if p])}
    return Learner(Fixed(rows, named=True, sentence=f"{sentence}."), backbone, classes)


def _start(backbone: Backbone, data: ImageData, start: Tuned | str) -> Learner:
    """What every picture starts from, for the classes of the data."""
    if isinstance(start, str):
        return from_words(backbone, data.classes, start)
    same = tuple(start.classes) == tuple(data.classes)
    return (start if same else start.with_classes(data.classes)).learner


def adapt(
    backbone: Backbone,
    data: ImageData,
    rule: Adaptation = Adaptation(),  # noqa: B008  frozen
    *,
    start: Tuned | str = WORDS,
    side: int = 8,
    out: str | os.PathLike[str] | None = None,
    device: str = "auto",
    precision: str = "float32",
    progress: bool = True,
) -> Measured:
    """Adapt to every picture of the test split on its own, and measure.

    start: words around the class name, or a prompt that says names.  side: pictures that adapt side by side; the
        result does not depend on it.
    out: JSON lines, the settings and then one a picture; a run that finds its own settings there goes on.
    Views depend on (the data's seed, key) alone. Raises ValueError for a start that cannot adapt, and for a file of
    other settings.
    """
    target = resolve_device(device)
    data.bind(backbone.preprocessing)
    data.setup()
    if data.multilabel:
        raise ValueError("test-time methods choose one class a picture, and these data have several labels.")
    for tower in backbone.towers.values():
        tower.model.to(target)
    learner = _start(backbone, data, start).to(target)
    adapter = Adapter(learner, rule, resolve_precision(precision, target))
    own = {"preprocessing": reaches(backbone), "validation": "not used", "precision": adapter.precision}
    protocol = {**_protocol(data, rule, start), **own}
    pictures = data.pictures("test").through(Views(backbone.preprocessing, rule.views))
    kept = _Kept(out, {"backbone": backbone.label(), "protocol": protocol, "rows": _digest(adapter.rows)})
    # the same pictures side by side as in an unbroken run: then the bits are the same
    sides = [range(i, min(i + side, len(pictures))) for i in range(0, len(pictures), side)]
    todo = [list(part) for part in sides if any(pictures.items[i].key not in kept.found for i in part)]
    loader: DataLoader[Any] = DataLoader(pictures, batch_sampler=todo, num_workers=data.workers)
    console = Console(stderr=True)
    bar = partial(track, description=f"{rule.method} on test", console=console, transient=True)
    for batch in (bar if progress else _quietly)(loader):
        scores = adapter(batch["image"]).scores.cpu()
        kept.add([_record(*each) for each in zip(batch["key"], batch["label"].tolist(), scores, strict=True)])
    records = [kept.found[item.key] for item in pictures.items]
    metrics = [
        {"name": n, "value": v, "split": "test", "count": len(records), "seed": data.seed}
        for n, v in _metrics(data.classes, records).items()
        if rule.method == "tpt" or n != "top5"  # votes do not rank what no view named
    ]
    return Measured(metrics, protocol, records)


def _quietly(loader: Iterable[Any]) -> Iterable[Any]:
    return loader


def _protocol(data: ImageData, rule: Adaptation, start: Tuned | str) -> dict[str, Any]:
    """The data's label without what concerns training, and how each picture was adapted to."""
    told = {k: v for k, v in data.protocol().items() if k not in ("shots", "augment", "views", "weighted")}
    if isinstance(start, str):
        began: dict[str, Any] = {"words": start}
    else:
        began = {k: start.prompts.about.get(k) for k in ("method", "protocol")}
        began["classes"] = "its own" if tuple(start.classes) == tuple(data.classes) else "others"
    return {**told, **rule.label(), "sees": "one test picture at a time, without its label", "start": began}


def _digest(rows: Mapping[Site, Tensor]) -> str:
    found = hashlib.sha256()
    for site in sorted(rows):
        found.update(str(site).encode() + rows[site].float().cpu().numpy().tobytes())
    return found.hexdigest()[:16]


def _record(key: str, label: int, scores: Tensor) -> dict[str, Any]:
    best = scores.topk(min(TOP, len(scores)))
    return {"key": key, "label": label, "classes": best.indices.tolist(), "scores": best.values.tolist()}


def _metrics(classes: Sequence[str], records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The objective's metrics, which need a picture's most probable classes alone."""
    metrics = Classify(classes).metric()
    for at in range(0, len(records), 256):
        part = records[at : at + 256]
        scores = torch.zeros(len(part), len(classes))
        best = torch.tensor([r["classes"] for r in part])
        scores.scatter_(1, best, torch.tensor([r["scores"] for r in part]))
        metrics.update(scores, torch.tensor([r["label"] for r in part]))
    return {name: float(value) for name, value in metrics.compute().items()}


class _Kept:
    """Results by key, in a file of JSON lines where one is given: first the settings, then a line a picture."""

    def __init__(self, out: str | os.PathLike[str] | None, settings: Mapping[str, Any]) -> None:
        self.path = None if out is None else Path(out)
        self.found: dict[str, dict[str, Any]] = {}
        if self.path is None:
            return
        told = json.loads(json.dumps(settings))
        if self.path.exists():
            self._read(self.path, told)
        else:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self.path, _line(told))

    def _read(self, path: Path, told: Mapping[str, Any]) -> None:
        """What is there already; the line that a kill cut short is taken off."""
        text = path.read_bytes()
        whole = text[: text.rfind(b"\n") + 1]
        try:
            lines = [json.loads(line) for line in whole.splitlines()]
            before, self.found = lines[0], {r["key"]: r for r in lines[1:]}
            changed = [k for k in told if before.get(k) != told[k]]
        except (ValueError, LookupError, TypeError, AttributeError):
            raise ValueError(f"{path} is no file of such results. Choose another, or remove it.") from None
        if changed:
            raise ValueError(
                f"{path} holds results with another {', '.join(changed)}. Repeat its options to go on, or choose "
                "another file."
            )
        if len(whole) < len(text):
            write_atomically(path, whole)

    def add(self, records: Iterable[dict[str, Any]]) -> None:
        """Keep those that are new, on disk at once."""
        records = [r for r in records if r["key"] not in self.found]
        self.found |= {r["key"]: r for r in records}
        if self.path is not None:
            with self.path.open("ab") as file:
                file.write(b"".join(map(_line, records)))


def _line(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value).encode() + b"\n"
