"""Times taken in turns, memory counted tensor by tensor, and one format for both: a table and a JSON file."""

from __future__ import annotations

import json
import os
import platform
import random
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any, Literal

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vpt.attention import bf16_supported
from vpt.promptset import write_atomically

__all__ = ["Clock", "Key", "Work", "check_json", "in_turns", "machine", "peak_mb", "row", "show", "write"]

Clock = Literal["wall", "cpu"]
Key = tuple[str, str, str]  # work, variant, precision

PEAK_CPU = (
    "tensors alive at most during the work beyond those alive before it, without scratch of the kernels"
)
PEAK_CUDA = "torch.cuda.max_memory_allocated during the work beyond what was allocated before it"
PLAIN = "median over the turns of the time divided by that of the plain frozen forward of the same turn"
SHOWN = {"ms_median": 1, "ms_min": 1, "peak_mb": 1, "times_plain": 2, "times_floor": 2}  # digits
FLOOR = (
    "the same, divided by the time of variant 'floor' (patches alone, backward to the first prompted layer, the "
    "last block only for what pooling reads), or of the forward where there is no backward"
)


@dataclass(frozen=True)
class Work:
    """One thing to time. floor: the key of the work that it cannot do without, where there is one."""

    work: str
    variant: str
    precision: str
    run: Callable[[], object]
    floor: Key | None = None

    @property
    def key(self) -> Key:
        return (self.work, self.variant, self.precision)


def in_turns(
    works: Sequence[Work], repeats: int, device: torch.device, clock: Clock = "wall"
) -> dict[Key, list[float]]:
    """Milliseconds of each work, one of each in every turn, in an order drawn anew for each turn.

    Other load on the machine, or its clock rate, then disturbs all works alike. One turn before is warm-up.
    """
    wait = torch.accelerator.synchronize if device.type != "cpu" else lambda: None
    now = time.process_time if clock == "cpu" else time.perf_counter
    times: dict[Key, list[float]] = {work.key: [] for work in works}
    order, draw = list(works), random.Random(0)
    for turn in range(repeats + 1):
        draw.shuffle(order)
        for work in order:
            wait()
            start = now()
            work.run()
            wait()
            if turn:
                times[work.key].append(1e3 * (now() - start))
    return times


def row(
    work: Work, times: Mapping[Key, Sequence[float]], plain: Key | None, peak: float | None
) -> dict[str, Any]:
    """One row of the report; ratios are medians over turns, since both times of a turn met the same load."""

    def ratio(key: Key | None) -> float | None:
        if key is None:
            return None
        return round(median(a / b for a, b in zip(times[work.key], times[key], strict=True)), 4)

    taken = times[work.key]
    return {
        "work": work.work,
        "variant": work.variant,
        "precision": work.precision,
        "ms_median": round(median(taken), 3),
        "ms_min": round(min(taken), 3),
        "peak_mb": None if peak is None else round(peak, 2),
        "times_plain": ratio(plain),
        "times_floor": ratio(work.floor),
    }


class _Alive(TorchDispatchMode):
    """Counts the bytes of the storages that operators make while it is on, and their peak."""

    def __init__(self) -> None:
        super().__init__()
        self.known: set[int] = set()
        self.now = self.peak = 0

    def _gone(self, storage: int, size: int) -> None:
        self.known.discard(storage)
        self.now -= size

    def _meet(self, values: object, made_here: bool) -> None:
        for t in tree_leaves(values):
            if not isinstance(t, Tensor):
                continue
            storage = t.untyped_storage()
            if storage._cdata not in self.known:
                size = storage.nbytes() if made_here else 0
                self.known.add(storage._cdata)
                self.now += size
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._gone, storage._cdata, size)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self._meet((args, kwargs), made_here=False)  # what came from before is not counted, nor are its views
        out = func(*args, **(kwargs or {}))
        self._meet(out, made_here=True)
        return out


def peak_mb(run: Callable[[], object], device: torch.device) -> float:
    """Peak memory of one run in MB (10^6 bytes): PEAK_CUDA on CUDA, elsewhere PEAK_CPU.

    The resident set of the process would not do: what earlier works freed stays in it.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        torch.cuda.synchronize(device)
        return (torch.cuda.max_memory_allocated(device) - before) / 1e6
    with _Alive() as alive:
        run()
    return alive.peak / 1e6


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def machine(device: torch.device, **more: Any) -> dict[str, Any]:
    """What the numbers were taken on, with what they mean."""
    about = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "processor": _processor(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "bfloat16": bf16_supported(device)[1],
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "timm": version("timm"),
        "peak_mb_is": PEAK_CUDA if device.type == "cuda" else PEAK_CPU,
        "times_plain_is": PLAIN,
        "times_floor_is": FLOOR,
    }
    return {**about, **more}


def show(
    title: str,
    about: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    targets: Mapping[Key, str],
    units: tuple[str, str] = ("forwards", "floors"),
) -> None:
    """Print the report, a table for each precision.

    targets: by key, the most that was wanted and whether it was met.  units: heads of the two ratios.
    """
    console = Console()
    for precision in dict.fromkeys(r["precision"] for r in rows):
        console.print(
            _table(
                f"{title} {precision}".rstrip(),
                [r for r in rows if r["precision"] == precision],
                targets,
                units,
            )
        )
    for name, value in about.items():
        console.print(f"{name}: {value}", style="dim", highlight=False, markup=False)


def _table(
    title: str, rows: Sequence[Mapping[str, Any]], targets: Mapping[Key, str], units: tuple[str, str]
) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("work", no_wrap=True)
    for name in ("ms", "min", "MB", *units, "at most"):
        table.add_column(name, justify="right", no_wrap=True)
    for work in dict.fromkeys(r["work"] for r in rows):
        table.add_row(f"[bold]{work}[/bold]")
        for r in rows:
            if r["work"] == work:
                cells = [_cell(r[name], digits) for name, digits in SHOWN.items()]
                table.add_row(
                    f"  {r['variant']}", *cells, targets.get((work, r["variant"], r["precision"]), "")
                )
    return table


def _cell(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits if value < 100 else 0}f}"


def check_json(path: str | os.PathLike[str] | None) -> None:
    """Refuse a place that no report can be written to, before anything is measured."""
    if path is not None and Path(path).is_dir():
        raise ValueError(f"json={str(path)!r} is a folder. Give the name of a file, such as bench.json.")


def write(path: str | os.PathLike[str], about: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> None:
    """Write ``{"machine": .., "rows": [..]}``, to a temporary name first."""
    write_atomically(path, (json.dumps({"machine": about, "rows": rows}, indent=1) + "\n").encode())
