"""What the savings in CLIP are worth: training steps of its prompt methods, ours against the plain way."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from statistics import median
from typing import Any, Literal

import torch
import torch.nn.functional as F
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor

from vpt.attention import cast_frozen, fastest_for
from vpt.bench.measure import Clock, Key, Work, check_json, in_turns, machine, peak_mb, write
from vpt.bench.vit import Precision
from vpt.encode import advance, encode
from vpt.methods.method import Seen
from vpt.tasks.device import resolve_device
from vpt.tasks.learner import Learner, build_method
from vpt.text import encode_text, lay
from vpt.tower import Stream
from vpt.towers.backbone import Backbone
from vpt.towers.load import load

__all__ = ["SHAPES", "Shape", "bench_clip"]

AGREE = 1e-3  # relative, of gradients in float32: rounding over a dozen layers at a logit scale of 14 is about 1e-5


@dataclass(frozen=True)
class Shape:
    """model, classes, batch.  targets: by method, how many times as fast as the plain way was asked for, with stored
    views and with fresh ones; in float32 on two cores."""

    model: str
    classes: int
    batch: int
    targets: Mapping[str, tuple[float | None, float | None]]
    smaller: Mapping[str, int] = field(
        default_factory=dict
    )  # batches of methods that the plain way takes minutes for


SHAPES = {
    "small": Shape(
        "open_clip/ViT-B-32",
        50,
        32,
        {
            "coop": (20.0, 3.0),
            "cocoop": (14.0, None),
            "kgcoop": (15.0, None),
            "prograd": (15.0, None),
            "maple": (None, 1.8),
            "ivlp": (None, 1.8),
            "promptsrc": (None, 1.6),
        },
        {"cocoop": 4},
    ),
    "published": Shape(
        "open_clip/ViT-B-16",
        100,
        4,
        {"maple": (None, 4.0), "ivlp": (None, 4.0), "promptsrc": (None, 3.0)},
    ),
}


def _names(count: int) -> list[str]:
    """ImageNet's class names, the first ``count``."""
    from open_clip import IMAGENET_CLASSNAMES

    return list(IMAGENET_CLASSNAMES[:count])


@dataclass(frozen=True)
class _Subject:
    """One method at one shape and precision."""

    backbone: Backbone
    method: str
    classes: tuple[str, ...]
    images: Tensor
    labels: Tensor
    precision: Precision = "float32"

    @cached_property
    def learner(self) -> Learner:
        torch.manual_seed(0)
        towers = dict(self.backbone.towers)
        if self.precision == "bfloat16":
            towers = {name: cast_frozen(tower) for name, tower in towers.items()}
        method = build_method(self.method, self.backbone, classes=len(self.classes))
        return Learner(method, self.backbone, self.classes, towers=towers).to(self.images.device).train()

    @property
    def writes_to_images(self) -> bool:
        return self.learner.low != self.learner.tower.stages[-1]

    @cached_property
    def stored(self) -> tuple[Stream, Tensor | None]:
        """The static part of these views, and their un-prompted features where the method compares with them."""
        with torch.no_grad(), self.arithmetic():
            s = advance(self.learner.tower, self.images, {}, self.learner.low)
            return s, encode(self.learner.tower, s) if self.learner.method.needs else None

    def arithmetic(self) -> Any:
        stack = ExitStack()
        if self.precision == "bfloat16":
            stack.enter_context(torch.autocast(self.images.device.type, torch.bfloat16))
        return stack

    def attention(self) -> Any:
        """The faster path, as training chooses it."""
        text = self.learner.towers[1]
        if self.writes_to_images or text is None:
            return fastest_for(self.learner.tower, self.images, torch.bfloat16)
        return fastest_for(text, self.learner.streams()[0].x, torch.bfloat16)

    def step(self, see: Callable[[], Seen], chosen: bool = True) -> Callable[[], tuple[Tensor, ...]]:
        """Forward, loss, and the gradients of what learns; chosen: with the attention path that was measured to be the
        faster one, which float32 has no use for."""
        chosen = chosen and self.precision == "bfloat16"
        method = self.learner.method
        learned = [p for p in method.parameters() if p.requires_grad]

        def run() -> tuple[Tensor, ...]:
            with self.arithmetic(), self.attention() if chosen else nullcontext():
                seen = see()
                parts = method.losses(seen, lambda logits: F.cross_entropy(logits.float(), self.labels))
                loss = method.total(parts)
            return torch.autograd.grad(loss, learned)

        return run

    def ours(self, fresh: bool = False) -> Seen:
        return self.learner.see(self.images) if fresh else self.learner.see(*self.stored)

    @cached_property
    def sentences(self) -> Mapping[str, list[Stream]]:
        """The class sentences, padded to the context as everybody has them, and cut after the longest."""
        backbone, method = self.backbone, self.learner.method
        said = backbone.sentences(method.sentence, self.classes, grouped=method.class_specific)
        whole = lay(backbone.text, said, packed=False, batch=len(said))
        longest = max(len(s.ids) for s in said)
        return {"plain": whole, "cut": [_cut(s, longest) for s in whole]}

    def plain(self, text: str = "plain", frozen: Tensor | None = None) -> Seen:
        """As the original code does it: pictures every step, 77 positions, CoCoOp's pictures one by one, no work left
        out. text: "cut" for shorter sentences.  frozen: stored image features."""
        learner, b = self.learner, self.backbone
        method, streams = learner.method, self.sentences[text]
        if frozen is None and (method.needs or not self.writes_to_images):
            with torch.no_grad():
                frozen = encode(b.image, self.images, live=False)
        rows = method(learner.context(len(self.images), frozen if method.needs else None))
        v = encode(b.image, self.images, rows, live=False) if self.writes_to_images else frozen
        assert v is not None
        if method.per_sample:
            each = [
                encode_text(b.text, streams, {k: r[i] for k, r in rows.items()}, live=False)
                for i in range(len(self.images))
            ]
            t = torch.stack(each)
        else:
            t = encode_text(b.text, streams, rows, live=False)
        seen = Seen(v, t, learner.scale, learner.bias, frozen, taught=learner.taught())
        return Seen(**{**vars(seen), "logits": method.logits(seen)})

    def floor(self) -> Callable[[], object]:
        """What cannot be left out: forward and backward through the library's own blocks of the packed words, and of
        the patches where rows enter among them."""
        learner = self.learner
        sets = len(self.images) if learner.method.per_sample else 1
        assert learner.towers[1] is not None
        parts = [(learner.towers[1], s, "embedded", sets) for s in learner.streams()]
        if self.writes_to_images:
            parts.append((learner.tower, self.stored[0], learner.low, 1))

        def run() -> object:
            out = []
            for tower, given, stage, copies in parts:
                with self.arithmetic():
                    with torch.no_grad():
                        s = advance(tower, given, {}, stage)
                    x = s.x.detach().repeat(copies, 1, 1).requires_grad_()
                    features = encode(tower, replace(s, x=x), {})
                out.append(torch.autograd.grad(features.float().sum(), x))
            return out

        return run


def _cut(s: Stream, length: int) -> Stream:
    return Stream(s.x[:, :length], places=s.places, source=s.source, extra=s.extra)


def _works(b: _Subject, shape: str) -> list[Work]:
    """A method's variants at one shape and precision."""
    plain: Key = (f"{b.method}, {shape}", "plain way", b.precision)
    works = [Work(*plain, b.step(b.plain, False), plain)]

    def add(variant: str, run: Callable[[], object]) -> None:
        works.append(Work(plain[0], variant, b.precision, run, plain))

    if not b.writes_to_images:
        if b.method == "coop":  # which saving gave what
            features = encode(b.backbone.image, b.images)
            add("features stored", b.step(partial(b.plain, frozen=features)))
            add("... and text cut", b.step(partial(b.plain, "cut", features)))
        add("ours, stored views", b.step(b.ours))
    add("ours, fresh views", b.step(partial(b.ours, True)))
    add("floor", b.floor())
    return works


def _many(backbone: Backbone, count: int) -> list[Work]:
    """CoOp's text with many classes: in one packed row, in groups, and in groups computed anew in backward."""
    learner = Learner(build_method("coop", backbone), backbone, _names(count)).train()
    said = backbone.sentences(learner.method.sentence, learner.classes)
    weights = torch.randn(count, backbone.text.out, generator=torch.Generator().manual_seed(0))

    def step(streams: Sequence[Stream], recompute: bool) -> object:
        features = encode_text(backbone.text, streams, learner.method(learner.context()), recompute=recompute)
        loss = (F.normalize(features, dim=-1) * weights.to(features.device)).sum()
        return torch.autograd.grad(loss, list(learner.method.parameters()))

    grouped = lay(backbone.text, said)
    one: Key = (f"coop's text, {count} classes", "one packed row", "float32")
    return [
        Work(*one, partial(step, lay(backbone.text, said, group=10**9), False), one),
        Work(one[0], "in groups", "float32", partial(step, grouped, False), one),
        Work(one[0], "in groups, computed anew", "float32", partial(step, grouped, True), one),
    ]


def _agree(b: _Subject) -> float:
    """Largest relative difference between our gradient and the plain way's; raises RuntimeError above rounding."""
    ours, fresh, plain = b.step(b.ours)(), b.step(partial(b.ours, True))(), b.step(b.plain)()
    worst = 0.0
    for a in (ours, fresh):
        for g, want in zip(a, plain, strict=True):
            worst = max(worst, float((g - want).norm() / want.norm().clamp_min(1e-12)))
    if not worst <= AGREE:
        raise RuntimeError(
            f"{b.method}: ours and the plain way differ by {worst:.1e} in their gradients, more than {AGREE:.0e}. "
            "Their times cannot be compared; please report this."
        )
    return worst


def _row(
    work: Work, times: Mapping[Key, Sequence[float]], peak: float, target: float | None
) -> dict[str, Any]:
    mine, plain = times[work.key], times[work.floor or work.key]
    return {
        "work": work.work,
        "variant": work.variant,
        "precision": work.precision,
        "ms_median": round(median(mine), 2),
        "ms_min": round(min(mine), 2),
        "times_as_fast": round(median(p / m for p, m in zip(plain, mine, strict=True)), 3),
        "peak_mb": round(peak, 3),
        "target": target,
    }


def _show(about: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> None:
    console = Console()
    table = Table(title="vpt bench clip", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("step", "precision"):
        table.add_column(name, no_wrap=True)
    for name in ("ms", "min", "MB", "times as fast", "wanted"):
        table.add_column(name, justify="right", no_wrap=True)
    for work in dict.fromkeys(r["work"] for r in rows):
        table.add_row(f"[bold]{work}[/bold]")
        for r in (r for r in rows if r["work"] == work):
            wanted = ""
            if r["target"] is not None:
                wanted = f"{r['target']:.3g} {'met' if r['times_as_fast'] >= r['target'] else 'missed'}"
            numbers = (f"{r['ms_median']:.0f}", f"{r['ms_min']:.0f}", f"{r['peak_mb']:.0f}")
            faster = f"{r['times_as_fast']:.2f}"
            table.add_row(f"  {r['variant']}", r["precision"], *numbers, faster, wanted)
    console.print(table)
    for name, value in about.items():
        console.print(f"{name}: {value}", style="dim", highlight=False, markup=False)


def _subjects(
    shape: Shape, methods: Sequence[str] | None, precision: Precision, device: torch.device
) -> list[_Subject]:
    backbone = load(shape.model, pretrained=False)
    for tower in backbone.towers.values():
        tower.model.to(device)
    made = []
    for method in shape.targets:
        if methods is None or method in methods:
            batch = shape.smaller.get(method, shape.batch)
            draw = torch.Generator().manual_seed(0)
            images = torch.randn(batch, *backbone.preprocessing["input_size"], generator=draw).to(device)
            labels = (torch.arange(batch) % shape.classes).to(device)
            names = tuple(_names(shape.classes))
            made.append(_Subject(backbone, method, names, images, labels, precision))
    return made


def bench_clip(
    *,
    shapes: Sequence[Literal["small", "published"]] = ("small", "published"),
    methods: Sequence[str] | None = None,
    precision: Precision = "float32",
    many: int = 1000,
    repeats: int = 3,
    device: str = "cpu",
    threads: int | None = None,
    clock: Clock = "wall",
    json: str | None = None,
) -> dict[str, Any]:
    """Time training steps of the CLIP methods our way and the plain way, in turns, with random weights.

    shapes: "small" is ViT-B/32, 50 classes, batch 32 (CoCoOp 4); "published" ViT-B/16, 100 classes, batch 4.
    methods: of coop, cocoop, kgcoop, prograd, maple, ivlp, promptsrc; by default all.
    many: classes of the last table, CoOp's text in one row and in groups; 0 leaves it out.
    repeats: turns, after one for warm-up.  device: auto, cpu, cuda, cuda:N, mps.  threads, clock: as in bench vit.
    json: file for ``{"machine": .., "rows": [..]}``.
    Raises ValueError for options that cannot be, RuntimeError if ours and the plain way give other gradients.
    """
    check_json(json)
    where = resolve_device(device)
    known = {m for s in SHAPES.values() for m in s.targets}
    if methods is not None and (wrong := set(methods) - known):
        raise ValueError(
            f"methods={sorted(wrong)} are not measured here. Choose of {', '.join(sorted(known))}."
        )
    if clock == "cpu" and (where.type != "cpu" or threads != 1):
        raise ValueError(
            "clock='cpu' counts the processor time of one thread: give device=cpu and threads=1."
        )
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    report: list[dict[str, Any]] = []
    agreement: dict[str, float] = {}
    try:
        for name in shapes:
            for b in _subjects(SHAPES[name], methods, precision, where):
                if precision == "float32":
                    agreement[f"{b.method}, {name}"] = _agree(b)
                stored, fresh = SHAPES[name].targets[b.method]
                wanted = {"ours, stored views": stored, "ours, fresh views": fresh}
                report += _measured(_works(b, name), repeats, where, clock, wanted)
        if many:
            backbone = load(SHAPES["small"].model, pretrained=False)
            backbone.text.model.to(where)
            for count in sorted({many // 10, many}):
                works = _many(backbone, count)
                report += _measured(works, repeats, where, clock, {"in groups, computed anew": 1 / 1.2})
        about = machine(where, repeats=repeats, clock=clock, gradients_differ_by=agreement)
    finally:
        torch.set_num_threads(before)
    about = {k: v for k, v in about.items() if k not in ("times_plain_is", "times_floor_is")}
    about["times_as_fast_is"] = "median over the turns of the first line's time divided by this one's"
    _show(about, report)
    if json is not None:
        write(json, about, report)
    return {"machine": about, "rows": report}


def _measured(
    works: Sequence[Work],
    repeats: int,
    device: torch.device,
    clock: Clock,
    wanted: Mapping[str, float | None],
) -> list[dict[str, Any]]:
    times = in_turns(works, repeats, device, clock)
    return [_row(w, times, peak_mb(w.run, device), wanted.get(w.variant)) for w in works]
