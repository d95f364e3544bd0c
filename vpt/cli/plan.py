"""What ``vpt compare`` and ``vpt table`` read: methods with what differs between them, from YAML and from options."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

from vpt.cli.config import MAIN, STARTS, checked, rates, read_yaml

__all__ = ["SEARCHES", "add_options", "numbers", "plan_of"]

SEARCHES = ("every seed", "first seed")  # on which learning rates are chosen


def add_options(parser: argparse.ArgumentParser, keys: Sequence[str]) -> None:
    """What both commands take; keys: of their YAML."""
    add = parser.add_argument
    add("--config", help=f"YAML with {', '.join(keys)}; options win over it")
    add("--model", help="open_clip/NAME[:TAG], timm/NAME[.TAG], hf/REPO or starter/NAME")
    add("--methods", help="names, comma separated")
    add("--seeds", help="numbers, comma separated")
    add("--epochs", type=int)
    add("--lr", help="for all methods: rates to choose from on val, comma separated, or search")
    add("--device", default="auto")
    add("--precision", default="auto")
    add("--out", required=True, help="folder for the runs, results.json and the table")


def plan_of(
    command: str,
    args: argparse.Namespace,
    typed: Mapping[str, Mapping[str, Any]],
    keys: Sequence[str],
    model: str = "",
    search: str = SEARCHES[0],
    seeds: Sequence[int] = (1, 2, 3),
) -> tuple[dict[str, Any], str]:
    """The YAML file with the options over it, every method's part checked, and what messages call it.

    args: with config, methods and seeds, and maybe search_once.  typed: options by section, None for those not given;
    an option holds for all methods, also for those that say otherwise in the file.  keys: that the file may have;
    others than model, data, task, methods, seeds and search are left as they are.  model, search, seeds: where
    nothing is said; model "": the one that the objective starts from.
    """
    where = args.config or f"vpt {command}"
    plan: dict[str, Any] = read_yaml(args.config) if args.config else {}
    if wrong := plan.keys() - set(keys):
        raise ValueError(
            f"{where} has the key {', '.join(sorted(map(str, wrong)))}. There are {', '.join(keys)}."
        )
    for key in ("model", "data", "task"):
        value = plan.get(key) or {}
        plan[key] = {MAIN[key]: value} if isinstance(value, str) else dict(value)
        plan[key] |= {k: v for k, v in typed.get(key, {}).items() if v is not None}
    objective = str(plan["task"].get("objective", "classify"))
    if command == "table" and objective != "classify":
        raise ValueError(
            f"{where}: the tables are of accuracy, and the objective is {objective}. Use vpt compare, which ranks by "
            "what its objective measures."
        )
    start = STARTS.get(objective, STARTS["classify"])  # what is none is refused below
    plan["model"].setdefault("name", model or start.model)
    plan["data"] = {**start.data, **plan["data"]}
    plan["task"] = {**start.task, **plan["task"]}
    plan["methods"] = args.methods.split(",") if args.methods else plan.get("methods") or []
    plan["methods"] = [_entry(entry, where) for entry in plan["methods"]]
    for name, value in typed.get("task", {}).items():
        for entry in plan["methods"] if value is not None else []:
            entry["task"].pop(name, None)
    plan["seeds"] = numbers(args.seeds.split(",") if args.seeds else plan.get("seeds", seeds), "seeds", where)
    plan["search"] = SEARCHES[1] if getattr(args, "search_once", False) else plan.get("search", search)
    if plan["search"] not in SEARCHES:
        raise ValueError(f"{where}: search is {plan['search']!r}, wanted {' or '.join(SEARCHES)}.")
    if "seed" in plan["data"]:
        raise ValueError(f"{where}: the seeds of a comparison are given as seeds: [1, 2, 3], not in data.")
    return _checked(command, plan, where), where


def numbers(given: Any, what: str, where: str) -> list[int]:
    """Whole numbers; raises ValueError for none, and for what is none."""
    try:
        found = [int(n) for n in given]
    except (TypeError, ValueError):
        found = []
    if not found:
        raise ValueError(f"{where}: {what} are {given!r}, wanted whole numbers such as 1,2,3.")
    return found


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


def _checked(command: str, plan: dict[str, Any], where: str) -> dict[str, Any]:
    """The plan with its values as ``vpt fit`` reads them; refuses what the data or a method do not know.

    Lists of task are tuples. A table's data have no path of their own.
    """
    data = {"path": "none", **plan["data"]}

    def read(**sections: Any) -> Any:
        if "lr" in sections["task"]:
            sections["task"] = {**sections["task"], "lr": rates(sections["task"]["lr"])}
        return checked(command, {"data": data, **sections}, where)

    for entry in plan["methods"]:
        found = read(task=entry["task"], method={"name": entry["name"], **entry["options"]})
        entry["options"] = {k: found.method[k] for k in entry["options"]}
        entry["task"] = {k: found.task[k] for k in entry["task"]}
    found = read(task=plan["task"], model=plan["model"])
    kept = {room: {k: found[room][k] for k in plan[room]} for room in ("task", "data", "model")}
    return {**plan, **kept, "model": {**kept["model"], "name": found.model.name}}
