"""``vpt compare``: several methods on one split, and the table."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

__all__ = ["run"]


def run(command: str, argv: list[str]) -> None:
    """Run a comparison from a YAML file or from names, and print the table."""
    parser = argparse.ArgumentParser(
        prog="vpt compare",
        description="Train several methods on the same pictures, splits and budget; go on where a stopped one was.",
    )
    parser.add_argument("--config", help="YAML: model, data, task, seeds, methods (a list of names or of mappings)")
    parser.add_argument("--data", help="folder, manifest, shards, torchvision:NAME, digits or emoji")
    parser.add_argument("--model")
    parser.add_argument("--methods", help="names, comma separated")
    parser.add_argument("--seeds", help="numbers, comma separated")
    parser.add_argument("--shots", type=int)
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--lr", help="learning rates to choose from on val, comma separated, or 'search'")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--out", required=True)
    args = parser.parse_args(argv)
    plan = _plan(args)

    from rich.console import Console
    from rich.table import Table

    from vpt.promptset import write_atomically
    from vpt.tasks.task import Recipe
    from vpt.tasks.tune import Machine
    from vpt.towers.load import load
    from vpt.workflow.compare import HEADER, cells, compare, markdown, summarise, to_csv

    console = Console()
    model = plan["model"]
    backbone = load(model.pop("name"), **model)
    results = compare(
        backbone,
        plan["data"],
        [_candidate(m) for m in plan["methods"]],
        out=args.out,
        seeds=plan["seeds"],
        recipe=Recipe(**_tuples(plan["task"])),
        machine=Machine(device=args.device, precision=args.precision, progress=console.is_terminal),
        told=console.print,
    )
    rows = summarise(results, "map" if "map" in results[0].metrics else "top1")
    p = results[0].protocol
    table = Table(
        *HEADER,
        caption=f"test accuracy of {p['counts']['test']:,} pictures of {p['data']}, {p['shots'] or 'all'} a class, "
        f"{p['selection']}, lr from {p['lr_grid']} on val where several; std over seeds (n - 1)",
    )
    for row in rows:
        table.add_row(*cells(row))
    console.print(table)
    out = Path(args.out)
    write_atomically(out / "table.md", markdown(rows).encode())
    write_atomically(out / "table.csv", to_csv(rows).encode())


def _plan(args: argparse.Namespace) -> dict[str, Any]:
    """The YAML file with the options over it."""
    import yaml

    plan: dict[str, Any] = {}
    if args.config:
        if not Path(args.config).is_file():
            raise FileNotFoundError(f"there is no config file {args.config!r}.")
        plan = yaml.safe_load(Path(args.config).read_text()) or {}
    for key, main in (("model", "name"), ("data", "path")):
        if isinstance(plan.get(key), str):
            plan[key] = {main: plan[key]}
        given = getattr(args, key)
        plan[key] = {**(plan.get(key) or {}), **({main: given} if given else {})}
    plan["task"] = dict(plan.get("task") or {})
    for key, room in (("shots", "data"), ("epochs", "task")):
        if getattr(args, key) is not None:
            plan[room][key] = getattr(args, key)
    if args.lr:
        plan["task"]["lr"] = args.lr if args.lr == "search" else [float(v) for v in args.lr.split(",")]
    if args.methods:
        plan["methods"] = args.methods.split(",")
    plan["seeds"] = [int(s) for s in args.seeds.split(",")] if args.seeds else plan.get("seeds", [1, 2, 3])
    plan["model"].setdefault("name", "starter/vit-mini")
    if not plan["data"].get("path") or not plan.get("methods"):
        raise ValueError("vpt compare needs --data and --methods, or a --config that names both.")
    return plan


def _tuples(recipe: dict[str, Any]) -> dict[str, Any]:
    return {k: tuple(v) if isinstance(v, list) else v for k, v in recipe.items()}


def _candidate(entry: Any) -> Any:
    from vpt.workflow.compare import Candidate

    if isinstance(entry, str):
        return Candidate(entry)
    return Candidate(
        entry["name"], entry.get("label", ""), entry.get("options") or {}, _tuples(entry.get("task") or {})
    )
