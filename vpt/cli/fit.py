"""``vpt fit``: train, choose, measure, save."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vpt.cli.config import parse

__all__ = ["metrics_table", "run"]


def run(command: str, argv: list[str]) -> None:
    """Train from the command line or a YAML file and print what came out."""
    config = parse(command, argv)
    from rich.console import Console

    from vpt.data.module import ImageData
    from vpt.tasks.device import Machine
    from vpt.tasks.task import Recipe
    from vpt.tasks.tune import fit
    from vpt.towers.load import load

    # a recipe that cannot be used is refused before a network is loaded
    recipe, machine = Recipe(**config.task.as_dict()), Machine(**config.trainer.as_dict())
    data, method, model = ImageData(**config.data.as_dict()), config.method.as_dict(), config.model.as_dict()
    backbone = load(model.pop("name"), **model)
    tuned = fit(backbone, data, method.pop("name"), method, recipe, machine)
    console = Console()
    console.print(metrics_table(tuned.metrics, tuned.protocol))
    if machine.out is None:
        console.print("Nothing was written; --out FOLDER keeps the prompt file.")
        return
    kind = tuned.prompts.about["kind"]
    file = Path(machine.out) / f"{'baseline' if kind == 'baseline' else 'prompts'}.safetensors"
    print(f"{kind}: {file} ({file.stat().st_size / 1e3:.1f} kB)\n  vpt predict {file} PICTURE...")


def metrics_table(metrics: list[dict[str, Any]], protocol: dict[str, Any]) -> Any:
    """A rich table of numbers with their split and count, the protocol below."""
    from rich.markup import escape
    from rich.table import Table

    splits = list(dict.fromkeys(m["split"] for m in metrics))
    counts = {m["split"]: m["count"] for m in metrics}
    told = ("data", "shots", "seed", "split", "selection")
    label = ", ".join(f"{k} {protocol[k]}" for k in told if protocol.get(k) is not None)
    table = Table("metric", *(f"{s} ({counts[s]:,} pictures)" for s in splits), caption=escape(label))
    for name in dict.fromkeys(m["name"] for m in metrics):
        found = {m["split"]: m["value"] for m in metrics if m["name"] == name}
        table.add_row(name, *(f"{found[s]:.4f}" if s in found else "" for s in splits))
    return table
