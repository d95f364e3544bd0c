"""``vpt fit``: train, choose, measure, save."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vpt.cli.config import parse

__all__ = ["metrics_table", "run"]


def run(command: str, argv: list[str]) -> None:
    """Train from the command line or a YAML file and print what came out."""
    config = parse(command, argv)
    from rich.console import Console

    from vpt.tasks.device import Machine
    from vpt.tasks.kinds import kind_of
    from vpt.tasks.task import Recipe
    from vpt.tasks.tune import fit
    from vpt.towers.load import load

    # a recipe that cannot be used is refused before a network is loaded
    recipe, machine = Recipe(**config.task.as_dict()), Machine(**config.trainer.as_dict())
    data = kind_of(recipe.objective).data(**config.data.as_dict())
    method, model = config.method.as_dict(), config.model.as_dict()
    backbone = load(model.pop("name"), **model)
    tuned = fit(backbone, data, method.pop("name"), method, recipe, machine)
    console = Console()
    console.print(metrics_table(tuned.metrics, tuned.protocol, tuned.prompts.about.get("before") or ()))
    if machine.out is None:
        console.print("Nothing was written; --out FOLDER keeps the prompt file.")
        return
    kind = tuned.prompts.about["kind"]
    file = Path(machine.out) / f"{'baseline' if kind == 'baseline' else 'prompts'}.safetensors"
    print(f"{kind}: {file} ({file.stat().st_size / 1e3:.1f} kB)")
    if recipe.objective in ("denoise", "reward"):
        slot = next(iter(tuned.prompts.about.get("placeholders") or {}), "a picture")
        print(f"  vpt generate {file} 'a photo of {slot} in the rain'")
    elif recipe.objective == "retrieve":
        print(f"  vpt index build PICTURES --prompts {file} --out INDEX")
        print(f"  vpt search INDEX 'WORDS' --prompts {file}")
    else:
        print(f"  vpt predict {file} PICTURE...")


def metrics_table(
    metrics: Sequence[Mapping[str, Any]],
    protocol: Mapping[str, Any],
    before: Sequence[Mapping[str, Any]] = (),
) -> Any:
    """A rich table of numbers with their split and count, those of the frozen model beside, the protocol below.

    metrics, before: name, value, split, count and seed of each, as in a prompt file.
    """
    from rich.markup import escape
    from rich.table import Table

    from vpt.workflow.runs import by_split
    from vpt.workflow.shown import shown_of

    counts = {m["split"]: f"{m['count']:,} pictures" for m in metrics}
    for split, captions in (protocol.get("captions") or {}).items():
        if split in counts:
            counts[split] += f", {captions:,} captions"
    told = ("data", "shots", "seed", "split", "selection")
    label = ", ".join(f"{k} {protocol[k]}" for k in told if protocol.get(k) is not None)
    table = Table("metric", caption=escape(label))
    columns: list[Mapping[str, float]] = []
    frozen = by_split(before)
    heads = {s: f"{s}\n" + n.replace(", ", "\n") if before else f"{s} ({n})" for s, n in counts.items()}
    for split, found in by_split(metrics).items():
        if split in frozen:
            table.add_column(f"{split},\nfrozen", justify="right")
            columns.append(frozen[split])
        table.add_column(heads[split], justify="right" if before else "left")
        columns.append(found)
    words = shown_of(protocol).words
    for name in words or dict.fromkeys(m["name"] for m in metrics):
        table.add_row(words.get(name, name), *(_number(name, found.get(name)) for found in columns))
    return table


def _number(name: str, value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if name.endswith("rank") else f"{value:.4f}"
