"""What the savings in a vision transformer are worth: steps and inference in plain frozen forwards."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from statistics import median
from typing import Any, Literal

import torch
import torch.nn.functional as F
from rich.console import Console
from torch import Tensor, nn

from vpt.attention import bf16_supported, cast_frozen, fastest_for
from vpt.bench.measure import Clock, Key, Work, check_json, in_turns, machine, peak_mb, row, show, write
from vpt.encode import advance, encode
from vpt.prompt import Prompt, Site
from vpt.tasks.device import resolve_device
from vpt.tower import Stream, Tower
from vpt.towers.load import load

__all__ = ["Precision", "bench_vit", "plain_way"]

Precision = Literal["float32", "bfloat16"]
CLASSES = 100
AGREE = 1e-4  # relative; float32 rounding over a dozen layers is about 1e-6

# What was asked of vit_tiny_patch16_224 in float32 on two cores, in plain frozen forwards.
MODEL = "vit_tiny_patch16_224"
TARGETS = {"vpt-deep": 2.35, "vpt-last-third": 1.35, "vpt-last-third-stored": 0.7, "inference": 1.06}
BF16_TARGET = 2.5  # times as fast as float32, on a processor that multiplies faster in bfloat16


def plain_way(tower: Tower, images: Tensor, rows: Mapping[str, Tensor]) -> Tensor:
    """Features [batch, out] as the original code computes them (KMnP/vpt, vit_prompt/vit.py).

    rows: [n, width] by stage, from any stage on. They replace those of the layer below, every block runs
    whole, and everything is under autograd.
    """
    s, at, opened = tower.begin(images), tower.prefix, 0
    for stage, step in zip(tower.stages, tower.steps, strict=False):
        if stage in rows:
            new = rows[stage].to(s.x.dtype).expand(len(s.x), -1, -1)
            if not opened:
                places = {"prefix": torch.arange(at, at + new.shape[1], device=s.x.device)[None]}
                s = s if tower.extend is None else tower.extend(s, at, new.shape[1])
                s = replace(s, places=places, grown=frozenset(places))
            s = replace(s, x=torch.cat([s.x[:, :at], new, s.x[:, at + opened :]], 1))
            opened = new.shape[1]
        s = step(replace(s, stage=stage))
    return s.x


@dataclass(frozen=True)
class _Subject:
    """What is measured at one precision. tower: as the library has it; ours: with weights cast once."""

    tower: Tower
    ours: Tower
    images: Tensor
    labels: Tensor
    head: nn.Linear
    precision: Precision

    @property
    def unit(self) -> Key:
        """The key of the plain frozen forward."""
        return ("forward", "frozen, plain", self.precision)

    @contextmanager
    def arithmetic(self, chosen: bool = True) -> Iterator[None]:
        """autocast in bfloat16; chosen: with the attention path that was measured to be the faster one."""
        with ExitStack() as stack:
            if self.precision == "bfloat16":
                stack.enter_context(torch.autocast(self.images.device.type, torch.bfloat16))
                if chosen:
                    stack.enter_context(fastest_for(self.tower, self.images, torch.bfloat16))
            yield

    def loss(self, features: Tensor) -> Tensor:
        return F.cross_entropy(self.head(features).float(), self.labels)

    def step(
        self, features: Callable[[], Tensor], prompt: nn.Module | None = None, chosen: bool = True
    ) -> Callable[[], object]:
        """Forward, loss, and the gradients of the rows and the head."""
        learned = [*self.head.parameters(), *([] if prompt is None else prompt.parameters())]

        def run() -> object:
            with self.arithmetic(chosen):
                loss = self.loss(features())
            return torch.autograd.grad(loss, learned)

        return run

    def floor(self, inputs: Tensor | Stream, stage: str) -> Callable[[], object]:
        """What rows from ``stage`` on cannot do without: forward, and backward to there, patches alone, the last
        block only for what pooling reads."""
        prompted = frozenset(
            {Site(self.ours.name, stage, "prefix")}
        )  # else nothing is left out of the last block

        def run() -> object:
            with self.arithmetic():
                with torch.no_grad():
                    low = advance(self.ours, inputs, {}, stage)
                x = low.x.detach().requires_grad_()
                loss = self.loss(encode(self.ours, replace(low, x=x, written=prompted)))
            return torch.autograd.grad(loss, [x, *self.head.parameters()])

        return run

    def forward(self, features: Callable[[], Tensor], chosen: bool = True) -> Callable[[], Tensor]:
        """The features alone, without autograd."""

        def run() -> Tensor:
            with torch.no_grad(), self.arithmetic(chosen):
                return features()

        return run


def _prompt(tower: Tower, stages: Sequence[str], n: int) -> Prompt:
    torch.manual_seed(n)
    return Prompt(tower.name, "prefix", stages, n, tower.width).to(tower.device)


def _ours(tower: Tower, inputs: Tensor | Stream, prompt: Prompt) -> Tensor:
    return encode(tower, inputs, prompt())


def _plain(tower: Tower, images: Tensor, prompt: Prompt) -> Tensor:
    return plain_way(tower, images, {site.stage: rows for site, rows in prompt().items()})


def _stages(tower: Tower) -> tuple[list[str], list[str]]:
    """All blocks, and those of the last third."""
    every = [str(i) for i in range(tower.depth)]
    return every, every[tower.depth - max(tower.depth // 3, 1) :]


def _works(b: _Subject, counts: Sequence[int]) -> list[Work]:
    """Everything that is timed at one precision."""
    every, late = _stages(b.tower)
    with b.arithmetic(), torch.no_grad():
        stored = advance(b.ours, b.images, {}, late[0])
        features = encode(b.ours, b.images)
    whole = b.forward(partial(encode, b.tower, b.images), chosen=False)
    works = [Work(*b.unit, whole, b.unit)]

    def add(work: str, variant: str, run: Callable[[], object], floor: Key | None = None) -> None:
        works.append(Work(work, variant, b.precision, run, floor))

    deep_floor: Key = ("vpt-deep", "floor", b.precision)
    add("vpt-deep", "floor", b.floor(b.images, every[0]), deep_floor)
    for n in counts:
        deep = _prompt(b.tower, every, n)
        add("vpt-deep", f"ours, {n} rows", b.step(partial(_ours, b.ours, b.images, deep), deep), deep_floor)
        plain = b.step(partial(_plain, b.tower, b.images, deep), deep, chosen=False)
        add("vpt-deep", f"plain way, {n} rows", plain, deep_floor)
    if b.precision == "bfloat16":  # what each of the two savings of bfloat16 is worth alone
        deep = _prompt(b.tower, every, counts[0])
        uncast = b.step(partial(_ours, b.tower, b.images, deep), deep)
        add("vpt-deep", f"{counts[0]} rows, weights not cast", uncast, deep_floor)
        usual = b.step(partial(_ours, b.ours, b.images, deep), deep, chosen=False)
        add("vpt-deep", f"{counts[0]} rows, default attention", usual, deep_floor)
    inputs: dict[str, Tensor | Stream] = {"vpt-last-third": b.images, "vpt-last-third-stored": stored}
    for work, given in inputs.items():
        late_floor: Key = (work, "floor", b.precision)
        add(work, "floor", b.floor(given, late[0]), late_floor)
        for n in counts:
            part = _prompt(b.tower, late, n)
            add(work, f"ours, {n} rows", b.step(partial(_ours, b.ours, given, part), part), late_floor)
    for n in counts:
        deep = _prompt(b.tower, every, n)
        add("inference", f"ours, {n} rows", b.forward(partial(_ours, b.ours, b.images, deep)), b.unit)
        plain = b.forward(partial(_plain, b.tower, b.images, deep), chosen=False)
        add("inference", f"plain way, {n} rows", plain, b.unit)
    add("linear probe", "encode each step", b.step(b.forward(partial(encode, b.ours, b.images))), b.unit)
    add("linear probe", "features stored", b.step(lambda: features))
    return works


def _agreement(tower: Tower, images: Tensor, counts: Sequence[int]) -> dict[str, float]:
    """Largest relative difference of ours and the plain way, features and gradients of the rows, in float32.

    Raises RuntimeError when it is more than rounding: a comparison of times would mean nothing.
    """
    worst = {"features": 0.0, "gradients": 0.0}
    for n in counts:
        for stages in _stages(tower):
            prompt = _prompt(tower, stages, n)
            features = [_ours(tower, images, prompt), _plain(tower, images, prompt)]
            weights = torch.linspace(-1, 1, features[0].shape[-1], device=images.device)
            (learned,) = prompt.parameters()
            gradients = [torch.autograd.grad((f * weights).square().sum(), learned)[0] for f in features]
            for name, (ours, plain) in (("features", features), ("gradients", gradients)):
                apart = float(((ours - plain).norm() / plain.norm()).detach())
                worst[name] = max(worst[name], apart)
                if not apart <= AGREE:
                    raise RuntimeError(
                        f"ours and the plain way differ by {apart:.1e} in {name} with {n} rows in "
                        f"{len(stages)} layers, more than {AGREE:.0e}. Their times cannot be compared; please "
                        "report this."
                    )
    return worst


def _checked(tower: Tower, model: str, rows: Sequence[int], repeats: int, batch: int) -> None:
    if tower.closed:
        raise ValueError(f"{model} takes no rows: {tower.closed}")
    if not rows or min(rows) < 1 or len(set(rows)) < len(rows):
        raise ValueError(f"rows={list(rows)}: give numbers of rows from 1 on, each once.")
    if repeats < 1 or batch < 1:
        raise ValueError(f"repeats={repeats}, batch={batch}: both must be at least 1.")


def _precisions(asked: Sequence[Precision] | None, device: torch.device) -> list[Precision]:
    pays, why = bf16_supported(device)
    if asked is None:
        if not pays:
            Console().print(f"bfloat16 is left out, since {why}; --precisions asks for it all the same.")
        return ["float32", "bfloat16"] if pays else ["float32"]
    unknown = set(asked) - {"float32", "bfloat16"}
    if unknown or not asked:
        raise ValueError(f"precisions={list(asked)}: choose of float32 and bfloat16.")
    return list(dict.fromkeys(asked))


def _targets(model: str, device: torch.device, rows: Sequence[Mapping[str, Any]]) -> dict[Key, str]:
    """What was asked of a row, beside what was measured."""
    if model.removeprefix("timm/") != MODEL or device.type != "cpu":
        return {}
    said = {}
    for r in rows:
        wanted = TARGETS.get(r["work"])
        if r["precision"] == "float32" and r["variant"].startswith("ours") and wanted is not None:
            met = "met" if r["times_plain"] <= wanted else "missed"
            said[r["work"], r["variant"], r["precision"]] = f"{wanted} {met}"
    return said


def _compare_precisions(times: Mapping[Key, Sequence[float]], counts: Sequence[int]) -> None:
    for n in counts:
        full, half = (times.get(("vpt-deep", f"ours, {n} rows", p)) for p in ("float32", "bfloat16"))
        if full and half:
            gain = median(a / b for a, b in zip(full, half, strict=True))
            Console().print(
                f"VPT-deep step, {n} rows: bfloat16 {gain:.2f}x as fast as float32 "
                f"(wanted: {BF16_TARGET}x, where bfloat16 pays)"
            )


def bench_vit(
    *,
    model: str = MODEL,
    batch: int = 16,
    rows: Sequence[int] = (10, 50, 100),
    precisions: Sequence[Precision] | None = None,
    repeats: int = 7,
    device: str = "cpu",
    threads: int | None = None,
    clock: Clock = "wall",
    json: str | None = None,
) -> dict[str, Any]:
    """Time VPT our way, the plain way and its floor, in turns; print a table, return and write the report.

    model: a backbone's name; random weights are used, since times do not depend on them.
    rows: prompt rows a layer to try.  precisions: float32, bfloat16; by default bfloat16 where it pays.
    repeats: turns, after one for warm-up.  device: auto, cpu, cuda, cuda:N, mps.
    threads: of PyTorch on the CPU; by default as many as it takes.
    clock: "wall", or "cpu" for a busy machine: the processor time of this process, with threads=1 on a CPU.
    json: file for ``{"machine": .., "rows": [..]}``; the machine's entry says what each number means.
    Raises ValueError for options that cannot be, RuntimeError if ours and the plain way give other results.
    """
    check_json(json)
    where = resolve_device(device)
    if clock == "cpu" and (where.type != "cpu" or threads != 1):
        raise ValueError(
            "clock='cpu' counts the processor time of one thread: give device=cpu and threads=1."
        )
    chosen = _precisions(precisions, where)
    name = model if "/" in model else f"timm/{model}"
    backbone = load(name, pretrained=name.startswith("starter/"))
    tower, size = backbone.image, backbone.preprocessing["input_size"]
    _checked(tower, name, rows, repeats, batch)
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        tower.model.to(where)
        images = torch.randn(batch, *size, generator=torch.Generator().manual_seed(0)).to(where)
        agreement = _agreement(tower, images[:2], rows)
        works = []
        for precision in chosen:
            ours = cast_frozen(tower) if precision == "bfloat16" else tower
            labels = torch.arange(batch, device=where) % CLASSES
            head = nn.Linear(tower.out, CLASSES).to(where)
            works += _works(_Subject(tower, ours, images, labels, head, precision), rows)
        times = in_turns(works, repeats, where, clock)
        about = machine(
            where, model=name, batch=batch, repeats=repeats, clock=clock, ours_against_plain_way=agreement
        )
        unit = {w.precision: w.key for w in works if w.work == "forward"}
        report = [row(w, times, unit[w.precision], peak_mb(w.run, where)) for w in works]
    finally:
        torch.set_num_threads(before)
    show(f"vpt bench vit: {name}, batch {batch},", about, report, _targets(name, where, report))
    _compare_precisions(times, rows)
    if json is not None:
        write(json, about, report)
    return {"machine": about, "rows": report}
