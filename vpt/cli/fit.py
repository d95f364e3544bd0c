"""``vpt fit``: train, choose, measure, save."""

from __future__ import annotations

from typing import Any

from vpt.cli.config import parse

__all__ = ["run"]


def run(command: str, argv: list[str]) -> None:
    """Train from the command line or a YAML file and print what came out."""
    config = parse(command, argv)
    from rich.console import Console

    from vpt.data.module import ImageData
    from vpt.tasks.task import Recipe
    from vpt.tasks.tune import Machine, fit
    from vpt.towers.load import load

    def plain(section: str) -> dict[str, Any]:
        return {k: v for k, v in config[section].as_dict().items()}

    model, method, data = plain("model"), plain("method"), plain("data")
    backbone = load(model.pop("name"), **model)
    name = method.pop("name")
    recipe = Recipe(**{k: tuple(v) if k == "lr" else v for k, v in plain("task").items()})
    machine = Machine(**plain("trainer"))
    tuned = fit(backbone, ImageData(**data), name, method, recipe, machine)
    console = Console()
    console.print(metrics_table(tuned.metrics, tuned.protocol))
    if machine.out:
        kind = tuned.prompts.about["kind"]
        file = next(f for f in ("prompts", "baseline") if (kind == "baseline") == (f == "baseline"))
        path = f"{machine.out}/{file}.safetensors"
        size = _kilobytes(path)
        console.print(f"{kind}: {path} ({size})\n  vpt predict {path} PICTURE...")


def _kilobytes(path: str) -> str:
    from pathlib import Path

    return f"{Path(path).stat().st_size / 1e3:.1f} kB"


def metrics_table(metrics: list[dict[str, Any]], protocol: dict[str, Any]) -> Any:
    """A rich table of numbers with their split and count, the protocol below."""
    from rich.table import Table

    splits = list(dict.fromkeys(m["split"] for m in metrics))
    counts = {m["split"]: m["count"] for m in metrics}
    label = ", ".join(f"{k} {v}" for k, v in protocol.items() if k in ("data", "shots", "seed", "split", "selection"))
    table = Table("metric", *(f"{s} ({counts[s]:,} pictures)" for s in splits), caption=label)
    for name in dict.fromkeys(m["name"] for m in metrics):
        found = {m["split"]: m["value"] for m in metrics if m["name"] == name}
        table.add_row(name, *(f"{found[s]:.4f}" if s in found else "" for s in splits))
    return table
