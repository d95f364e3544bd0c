"""``vpt compare``: several methods on one split, and the table."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from vpt.cli.config import MAIN, checked, rates, read_yaml

__all__ = ["run"]

KEYS = ("model", "data", "task", "seeds", "search", "methods")
SEARCHES = ("every seed", "first seed")  # on which learning rates are chosen


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
    from vpt.workflow.compare import HEADER, cells, compare, markdown, summarise, to_csv

    console = Console()
    recipe, candidates = Recipe(**plan["task"]), _candidates(plan)
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
    rows = summarise(results, "map" if "map" in results[0].metrics else "top1")
    p = results[0].protocol
    table = Table(
        *HEADER,
        caption=f"test accuracy of {p['counts']['test']:,} pictures of {escape(p['data'])}, "
        f"{p['shots'] or 'all'} a class, {p['selection']}; where a method had several lr, val of "
        f"{plan['search']} chose; std over seeds (n - 1)",
    )
    for row in rows:
        table.add_row(*map(escape, cells(row)))
    console.print(table)
    out = Path(args.out)
    write_atomically(out / "table.md", markdown(rows).encode())
    write_atomically(out / "table.csv", to_csv(rows).encode())


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vpt compare",
        description="Train several methods on the same pictures, splits and budget. A comparison that was "
        "stopped goes on where it was.",
    )
    parser.add_argument("--config", help="YAML: model, data, task, seeds, methods (names or mappings)")
    parser.add_argument("--data", help="folder, manifest, shards, torchvision:NAME, digits or emoji")
    parser.add_argument("--model", help="timm/NAME[.TAG] or starter/NAME")
    parser.add_argument("--methods", help="names, comma separated")
    parser.add_argument("--seeds", help="numbers, comma separated")
    parser.add_argument(
        "--search-once", action="store_true", help="choose among rates on the first seed only, for all seeds"
    )
    parser.add_argument("--shots", type=int, help="pictures a class")
    parser.add_argument("--epochs", type=int)
    parser.add_argument(
        "--lr", help="for all methods: rates to choose from on val, comma separated, or search"
    )
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--out", required=True, help="folder for the runs, results.json and the table")
    return parser


def _plan(args: argparse.Namespace) -> dict[str, Any]:
    """The YAML file with the options over it, every method's part checked; lists of task are tuples."""
    where = args.config or "vpt compare"
    plan: dict[str, Any] = read_yaml(args.config) if args.config else {}
    if wrong := plan.keys() - set(KEYS):
        raise ValueError(
            f"{where} has the key {', '.join(sorted(map(str, wrong)))}. There are {', '.join(KEYS)}."
        )
    for key in ("model", "data", "task"):
        value = plan.get(key) or {}
        plan[key] = {MAIN[key]: value} if isinstance(value, str) else dict(value)
    typed = {
        "model": {"name": args.model},
        "data": {"path": args.data, "shots": args.shots},
        "task": {"epochs": args.epochs, "lr": args.lr},
    }
    for key, options in typed.items():
        plan[key] |= {k: v for k, v in options.items() if v is not None}
    plan["methods"] = args.methods.split(",") if args.methods else plan.get("methods") or []
    plan["methods"] = [_entry(entry, where) for entry in plan["methods"]]
    for name in typed[
        "task"
    ]:  # an option holds for all methods, also for those that say otherwise in the file
        for entry in plan["methods"] if typed["task"][name] is not None else []:
            entry["task"].pop(name, None)
    plan["seeds"] = _seeds(args.seeds.split(",") if args.seeds else plan.get("seeds", [1, 2, 3]), where)
    plan["search"] = SEARCHES[1] if args.search_once else plan.get("search", SEARCHES[0])
    if plan["search"] not in SEARCHES:
        raise ValueError(f"{where}: search is {plan['search']!r}, wanted {' or '.join(SEARCHES)}.")
    if not plan["data"].get("path") or not plan["methods"]:
        raise ValueError("vpt compare needs --data and --methods, or a --config that names both.")
    if "seed" in plan["data"]:
        raise ValueError(f"{where}: the seeds of a comparison are given as seeds: [1, 2, 3], not in data.")
    return _checked(plan, where)


def _entry(entry: Any, where: str) -> dict[str, Any]:
    """One of ``methods``: a name, or a mapping of name, label, options and task."""
    entry = {"name": entry} if isinstance(entry, str) else entry
    if (
        not isinstance(entry, dict)
        or "name" not in entry
        or entry.keys() - {"name", "label", "options", "task"}
    ):
        raise ValueError(f"{where}: a method is a name or has name, label, options and task; got {entry!r}.")
    return {
        "name": entry["name"],
        "label": entry.get("label") or "",
        "options": dict(entry.get("options") or {}),
        "task": dict(entry.get("task") or {}),
    }


def _seeds(given: Any, where: str) -> list[int]:
    try:
        seeds = [int(s) for s in given]
    except (TypeError, ValueError):
        seeds = []
    if not seeds:
        raise ValueError(f"{where}: seeds are {given!r}, wanted whole numbers such as 1,2,3.")
    return seeds


def _checked(plan: dict[str, Any], where: str) -> dict[str, Any]:
    """The plan with its values as ``vpt fit`` reads them; refuses what the data or a method do not know."""

    def read(**sections: Any) -> Any:
        if "lr" in sections["task"]:
            sections["task"] = {**sections["task"], "lr": rates(sections["task"]["lr"])}
        return checked("compare", {"data": plan["data"], **sections}, where)

    for entry in plan["methods"]:
        found = read(task=entry["task"], method={"name": entry["name"], **entry["options"]})
        entry["options"] = {k: found.method[k] for k in entry["options"]}
        entry["task"] = {k: found.task[k] for k in entry["task"]}
    found = read(task=plan["task"], model=plan["model"])
    kept = {room: {k: found[room][k] for k in plan[room]} for room in ("task", "data", "model")}
    return {**plan, **kept, "model": {**kept["model"], "name": found.model.name}}


def _candidates(plan: dict[str, Any]) -> list[Any]:
    from vpt.workflow.compare import Candidate

    return [Candidate(m["name"], m["label"], m["options"], m["task"]) for m in plan["methods"]]
