"""``vpt compare``: several methods on one split, and the table."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from vpt.cli.plan import add_options, plan_of

__all__ = ["run"]

KEYS = ("model", "data", "task", "seeds", "search", "methods")


def run(command: str, argv: list[str]) -> None:
    """Run a comparison from a YAML file or from names, and print the table."""
    args = _arguments().parse_args(argv)
    plan = _plan(args)

    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from vpt.promptset import write_atomically
    from vpt.tasks.device import Machine
    from vpt.tasks.task import Recipe
    from vpt.towers.load import load
    from vpt.workflow.compare import (
        Candidate,
        cells,
        columns_of,
        compare,
        header,
        label_of,
        markdown,
        summarise,
        to_csv,
    )
    from vpt.workflow.shown import shown_of
    from vpt.workflow.tabulate import in_a_line

    console = Console()
    recipe, candidates = Recipe(**plan["task"]), [Candidate(*m.values()) for m in plan["methods"]]
    machine = Machine(device=args.device, precision=args.precision, progress=console.is_terminal)
    model = dict(plan["model"])
    results = compare(
        load(model.pop("name"), **model),
        plan["data"],
        candidates,
        out=args.out,
        seeds=plan["seeds"],
        search=plan["search"],
        recipe=recipe,
        machine=machine,
        told=lambda text: console.print(text, markup=False),
    )
    rows, p, told = summarise(results), results[0].protocol, label_of(results)
    table = Table(
        *header(rows),
        caption=f"test {shown_of(p).title} of {p['counts']['test']:,} pictures of {escape(p['data'])}; "
        f"{escape(in_a_line(told))}; std over seeds (n - 1)",
    )
    columns = columns_of(rows)
    for row in rows:
        table.add_row(*map(escape, cells(row, columns)))
    console.print(table)
    out = Path(args.out)
    write_atomically(out / "table.md", markdown(rows, told).encode())
    write_atomically(out / "table.csv", to_csv(rows, told).encode())


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vpt compare",
        description="Train several methods on the same pictures, splits and budget. A comparison that was "
        "stopped goes on where it was.",
    )
    parser.add_argument("--data", help="folder, manifest, shards, torchvision:NAME, digits, emoji or scenes")
    parser.add_argument(
        "--search-once", action="store_true", help="choose among rates on the first seed only, for all seeds"
    )
    parser.add_argument("--shots", type=int, help="pictures a class; with captions in all")
    parser.add_argument("--task", help="classify labelled pictures, or retrieve: pictures with captions")
    parser.add_argument("--general", help="other pictures with captions, measured before and after")
    add_options(parser, KEYS)
    return parser


def _plan(args: argparse.Namespace) -> dict[str, Any]:
    """The YAML file with the options over it, every method's part checked."""
    typed = {
        "model": {"name": args.model},
        "data": {"path": args.data, "shots": args.shots},
        "task": {"objective": args.task, "general": args.general, "epochs": args.epochs, "lr": args.lr},
    }
    plan, _ = plan_of("compare", args, typed, KEYS)
    if not plan["data"].get("path") or not plan["methods"]:
        raise ValueError("vpt compare needs --data and --methods, or a --config that names both.")
    return plan
