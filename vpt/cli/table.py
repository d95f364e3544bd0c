"""``vpt table``: the protocols of the literature over data sets, methods and seeds, in one resumable command."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from vpt.cli.plan import add_options, numbers, plan_of

__all__ = ["run"]

KINDS = ("few-shot", "base-to-novel", "cross-dataset", "domain-shift", "vtab", "fgvc")
KEYS = (
    *("model", "data", "task", "seeds", "search", "methods"),
    *("root", "datasets", "sets", "source", "shots", "recipe"),
)
RECIPES = ("published", "scaled")
OURS = ("path", "seed", "shots", "subset", "join_val", "split_file", "root")  # what the protocol decides
SHOTS = {"few-shot": (1, 2, 4, 8, 16), "base-to-novel": (16,), "cross-dataset": (16,), "domain-shift": (16,)}
SEEDS = {"vtab": (42, 44, 82, 100, 800), "fgvc": (42, 44, 82, 100, 800)}  # those of VPT's paper
HELP = """\
few-shot        1, 2, 4, 8 and 16 pictures a class, seeds 1, 2, 3
base-to-novel   trained on the first half of the classes; measured on it and on the other half, each among its own
                names, with their harmonic mean, and on all classes among all names (joint)
cross-dataset   trained on one data set (--source), measured on others
domain-shift    trained on ImageNet, measured on its variants
vtab            VTAB-1k: 800 and 200 pictures choose the learning rate, then 1,000 train, five seeds
fgvc            five fine-grained data sets, five seeds
dreambooth      30 subjects drawn in 25 sentences each; its options: vpt table dreambooth --help

Which pictures: --root DATA holds the data sets of the CoOp line of work as KaiyangZhou/CoOp, DATASETS.md lays them
out (the files of each: configs/datasets/); --datasets takes some of them by name, without it all. --data adds others:
a folder, shards, a manifest, torchvision:NAME or scenes, with NAME=PATH for a name of its own.
vtab and fgvc: --root DATA holds a folder (or NAME.csv, NAME.parquet) for each task, called
  {vtab}
or  {fgvc}.
In a folder: train/CLASS/*.jpg, val/CLASS/*.jpg, test/CLASS/*.jpg, or shards train-000000.tar and so on. VTAB-1k's 800
are train and its 200 are val; where there is no val, a fifth of train is split off by seed.

Stopped, the same command goes on where it was. Results with different protocols are never in one table.
"""


def run(command: str, argv: list[str]) -> None:
    """Make the table, print it in Markdown, and write table.md, table.csv and table.png."""
    if argv[:1] == ["dreambooth"]:  # drawn, not classified: other options, and other numbers
        from vpt.cli import table_dreambooth

        return table_dreambooth.run(command, argv[1:])
    args = _arguments(any(word in argv for word in ("-h", "--help"))).parse_args(argv)
    plan = _plan(args)

    from rich.console import Console

    from vpt.promptset import write_atomically
    from vpt.tasks.device import Machine
    from vpt.towers.load import load
    from vpt.workflow import table as tables
    from vpt.workflow.plots import render
    from vpt.workflow.runs import Runs
    from vpt.workflow.table_plots import draw
    from vpt.workflow.tabulate import markdown, to_csv

    ask, missing = _ask(args, plan)
    console = Console(stderr=True)
    machine = Machine(device=args.device, precision=args.precision, progress=console.is_terminal)
    model, out = dict(plan["model"]), Path(args.out)
    backbone = load(model.pop("name"), **model)
    runs = Runs(backbone, out, machine, told=lambda text: console.print(text, markup=False, highlight=False))
    found = tables.tables(ask, tables.run(ask, runs), missing)
    text = markdown(found)
    light, dark = render(lambda look: draw(found[0], look))
    files = {"table.md": text.encode(), "table.csv": to_csv(found).encode()}
    for name, content in {**files, "table.png": light, "table-dark.png": dark}.items():
        write_atomically(out / name, content)
    print(text)


def _arguments(explain: bool = False) -> argparse.ArgumentParser:
    told = ""
    if explain:
        from textwrap import fill

        from vpt.workflow.sets import FGVC, VTAB

        names = fill(", ".join(n for group in VTAB.values() for n in group), 116, subsequent_indent="  ")
        told = HELP.format(vtab=names, fgvc=", ".join(FGVC))
    parser = argparse.ArgumentParser(
        prog="vpt table",
        description="Numbers under the protocols of the literature: mean and spread over seeds, with what they cost.",
        epilog=told,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("kind", choices=(*KINDS, "dreambooth"))
    parser.add_argument("--root", help="the folder that holds the data sets")
    parser.add_argument("--datasets", help="names, comma separated; by default all of the kind")
    parser.add_argument(
        "--data", action="append", help="another data set, PATH or NAME=PATH; may be repeated"
    )
    parser.add_argument("--source", help="what is trained on: a name or a path (cross-dataset, domain-shift)")
    parser.add_argument("--skip-missing", action="store_true", help="leave out data sets that are not there")
    parser.add_argument("--shots", help="pictures a class, comma separated")
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--augment", help="random views of training pictures: none, flip, crop, ..")
    parser.add_argument("--views", type=int, help="how many fixed ones; 0: fresh ones every epoch")
    parser.add_argument(
        "--recipe",
        choices=RECIPES,
        help="what the label says: published only where all epochs, batches and rates are those of the papers; "
        "scaled if not said. It is a word, and changes no option",
    )
    add_options(parser, KEYS)
    return parser


def _plan(args: argparse.Namespace) -> dict[str, Any]:
    """The YAML file with the options over it; every value checked, no picture opened."""
    typed = {
        "model": {"name": args.model},
        "data": {"batch_size": args.batch_size, "augment": args.augment, "views": args.views},
        "task": {"epochs": args.epochs, "lr": args.lr},
    }
    seeds = SEEDS.get(args.kind, (1, 2, 3))
    model = "starter/vit-mini" if args.kind in SEEDS else "starter/clip-mini"
    plan, where = plan_of("table", args, typed, KEYS, model=model, search="first seed", seeds=seeds)
    if ours := sorted(plan["data"].keys() & set(OURS)):
        raise ValueError(
            f"{where}: data says {', '.join(ours)}, which a table decides by its protocol. Data sets are named by "
            "root, datasets and sets."
        )
    if not plan["methods"]:
        raise ValueError("vpt table needs --methods, or a --config that names them.")
    for key, value in {"root": args.root, "source": args.source, "recipe": args.recipe}.items():
        plan[key] = value or plan.get(key)
    plan["recipe"] = plan["recipe"] or "scaled"
    if plan["recipe"] not in RECIPES:
        raise ValueError(f"{where}: recipe is {plan['recipe']!r}, wanted {' or '.join(RECIPES)}.")
    plan["datasets"] = args.datasets.split(",") if args.datasets else plan.get("datasets") or []
    plan["sets"] = args.data or plan.get("sets") or []
    shots = args.shots.split(",") if args.shots else plan.get("shots") or SHOTS.get(args.kind, ())
    shots = [shots] if isinstance(shots, int) else shots
    plan["shots"] = numbers(shots, "shots", where) if shots else []
    if plan["shots"] and args.kind in SEEDS:
        raise ValueError(
            f"{where}: {args.kind} trains on all pictures of a task, so there are no shots. Leave them out."
        )
    return plan


def _ask(args: argparse.Namespace, plan: dict[str, Any]) -> tuple[Any, list[str]]:
    """The table as it is run, and lines on the data sets that are left out; every one is opened."""
    from vpt.tasks.task import Recipe
    from vpt.workflow.runs import Candidate
    from vpt.workflow.sets import there
    from vpt.workflow.table import Ask

    sets, source = _sets(args.kind, plan)
    sets, missing = there(sets, args.skip_missing, least=4 if args.kind == "base-to-novel" else 2)
    if source is not None:
        there([source], skip_missing=False)
    ask = Ask(
        args.kind,
        [Candidate(*m.values()) for m in plan["methods"]],
        sets,
        source,
        plan["shots"],
        plan["seeds"],
        plan["search"],
        Recipe(**plan["task"]),
        plan["data"],
        plan["recipe"],
    )
    return ask, missing


def _sets(kind: str, plan: dict[str, Any]) -> tuple[list[Any], Any]:
    """The data sets to measure on, and the one to train on where that is another."""
    from vpt.data.protocols import datasets, shifts
    from vpt.workflow.sets import FGVC, VTAB, coop, given, tasks

    root, names = plan["root"], plan["datasets"]
    sets = [given(text, root) for text in plan["sets"]]
    if kind in SEEDS:
        all_tasks = FGVC if kind == "fgvc" else {n: o for group in VTAB.values() for n, o in group.items()}
        if strange := set(names) - all_tasks.keys():
            raise ValueError(
                f"{kind} has no task {', '.join(sorted(strange))}. It has {', '.join(all_tasks)}."
            )
        names = names or ([] if root else [d.name for d in sets]) or list(all_tasks)
        return tasks({n: all_tasks[n] for n in all_tasks if n in names}, root, sets), None
    source = None
    if kind in ("cross-dataset", "domain-shift"):
        text = plan["source"] or "imagenet"
        plain = text in datasets() and not Path(text).exists()
        source = coop(text, root) if plain else given(text, root)
    every = shifts() if kind == "domain-shift" else datasets()
    if not names and not sets:
        if root is None:
            raise ValueError(
                f"which pictures? Give --root, the folder that holds {next(iter(every.values())).folder}/ and the "
                "others of the CoOp line of work, or --data PATH."
            )
        names = list(every)
    found = [coop(name, root) for name in names] + sets
    found = [d for d in found if source is None or d.data != source.data]
    titles = [d.name for d in found]
    if len(set(titles)) < len(titles):
        raise ValueError(f"two data sets have one name: {', '.join(titles)}. Write --data NAME=PATH.")
    return found, source
