"""``vpt concept``: a new word from a few pictures; with the pictures "scenes", what such words are worth."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vpt.cli.names import positive

__all__ = ["run"]


def run(command: str, argv: list[str]) -> None:
    """Learn and write the word, or measure ways to learn one."""
    args = _parser(command).parse_args(argv)
    if args.pictures == "scenes":
        _study(args)
    else:
        _learn(args)


def _parser(command: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"vpt {command}",
        description="Teach a CLIP a new word, such as <my-mug>, with 3 to 10 pictures of one thing. The file serves "
        "vpt search INDEX 'a photo of <my-mug> on grass' --concept FILE.",
    )
    parser.add_argument(
        "pictures", help='folder of pictures of the thing; "scenes" measures on a drawn character'
    )
    parser.add_argument("--name", default="my-concept", help="the word, without its brackets")
    parser.add_argument(
        "--word", default="thing", help="what kind of thing it is; its embedding is the start"
    )
    parser.add_argument(
        "--background", required=True, help="pictures with captions that it must be told from (see vpt fit)"
    )
    parser.add_argument("--limit", type=positive, default=1000, help="background pictures to train beside it")
    parser.add_argument("--method", choices=("concept", "polar"), default="concept")
    parser.add_argument("--length", type=positive, default=1, help="rows of the word")
    parser.add_argument(
        "--layers", type=positive, default=1, help="layers of the text tower that get their own"
    )
    parser.add_argument("--near", type=float, default=0.1, help="weight of staying near the word")
    parser.add_argument("--loss", choices=("infonce", "pull"), default="infonce")
    parser.add_argument("--epochs", type=positive, help="one epoch is one step over all pictures")
    parser.add_argument("--lr", type=float)
    parser.add_argument("--model", default="open_clip/ViT-B-16:openai")
    parser.add_argument("--weights", help="local checkpoint of the backbone")
    parser.add_argument("--out", help="folder of the prompt file, or of the measurement")
    parser.add_argument("--seeds", default="1", help="1,2,3 for scenes; the first one otherwise")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--json", action="store_true")
    return parser


def _opened(args: argparse.Namespace) -> tuple[Any, Any]:
    from vpt.tasks.device import Machine
    from vpt.towers.load import load

    backbone = load(args.model, weights=args.weights)
    return backbone, Machine(out=args.out, device=args.device, precision=args.precision)


def _learn(args: argparse.Namespace) -> None:
    from dataclasses import replace

    from rich.console import Console

    from vpt.cli.fit import metrics_table
    from vpt.tasks.concept import RECIPE, learn_concept

    changed: dict[str, Any] = {"loss": args.loss}
    changed |= {"epochs": args.epochs} if args.epochs else {}
    changed |= {"lr": (args.lr,)} if args.lr else {}
    rows = {"length": args.length, "layers": args.layers, "near": args.near}
    backbone, machine = _opened(args)
    tuned = learn_concept(
        backbone,
        args.pictures,
        args.background,
        name=args.name,
        word=args.word,
        method=args.method,
        options=rows if args.method == "concept" else {},
        recipe=replace(RECIPE, **changed),
        machine=machine,
        limit=args.limit,
        seed=_seeds(args)[0],
    )
    about = tuned.prompts.about
    if args.json:
        print(json.dumps({part: about[part] for part in ("metrics", "before", "protocol")}, indent=1))
        return
    table = metrics_table(about["metrics"], tuned.protocol)
    table.title = "what general search is worth with the new word beside it"
    Console().print(table)
    if args.out is None:
        print("Nothing was written; --out FOLDER keeps the file.")
        return
    file = Path(args.out) / ("prompts.safetensors" if args.method == "concept" else "baseline.safetensors")
    asked = f"--concept {file}" if args.method == "concept" else f"--prompts {file}"
    word = f"<{args.name}>" if args.method == "concept" else "sks"
    print(
        f'{about["kind"]}: {file} ({file.stat().st_size / 1e3:.1f} kB)\n  vpt search INDEX "a photo of {word}" {asked}'
    )


def _seeds(args: argparse.Namespace) -> list[int]:
    from vpt.cli.plan import numbers

    return numbers(args.seeds.split(","), "seeds", "vpt concept")


def _study(args: argparse.Namespace) -> None:
    from rich.console import Console

    from vpt.promptset import write_atomically
    from vpt.workflow.concept_study import markdown, study

    backbone, machine = _opened(args)
    seeds = _seeds(args)
    found = study(backbone, args.background, seeds, machine=machine, out=args.out)
    table = markdown(found)
    if args.json:
        print(json.dumps([asdict(f) for f in found], indent=1))
    else:
        Console(soft_wrap=True).print(table, markup=False)
    if args.out:
        write_atomically(Path(args.out) / "table.md", table.encode())
