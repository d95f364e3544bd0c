"""``vpt table dreambooth``: how well each method draws each subject, and how much of the sentences is obeyed."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from vpt.cli.names import positive
from vpt.cli.plan import add_options, plan_of

__all__ = ["run"]

KEYS = ("model", "data", "task", "seeds", "methods", "root", "dino", "clip", "each", "steps", "guidance")
EYES = {  # by whether the subjects are the drawn characters: those at hand offline, or DreamBooth's own (section 4.1)
    True: {"dino": "starter/vit-mini", "clip": "starter/clip-mini"},
    False: {"dino": "timm/vit_small_patch16_224.dino", "clip": "open_clip/ViT-B-32:openai"},
}
CHARACTERS = "characters"  # what --root says for them
METHODS = "textual-inversion,p-plus,dreambooth-lora"
HELP = """\
DATA is a copy of github.com/google/dreambooth: prompts_and_classes.txt beside a folder for each subject. Subjects of
your own go the same way: write that file, a line NAME,KIND for each and two lists of sentences, and add the folders.
DATA can also be "characters": ten drawn creatures, whose sentences ask for backgrounds that are checked by their
pixels. They need no download, and are compared by the starters; the pipeline is yours.

Written into --out: table.md, table.csv, table.png, sheet.png, results.json, every prompt file and every picture.
Stopped, the same command goes on where it was.
"""


def run(command: str, argv: list[str]) -> None:
    """Make the table, print it in Markdown, and write it with its pictures."""
    args = _parser(command).parse_args(argv)
    plan = _plan(args)

    from rich.console import Console

    from vpt.promptset import write_atomically
    from vpt.workflow.drawn import write_drawn
    from vpt.workflow.plots import render
    from vpt.workflow.runs import Candidate
    from vpt.workflow.table_plots import draw
    from vpt.workflow.tabulate import markdown, to_csv

    out, console = Path(args.out), Console(stderr=True)
    subjects = _subjects(plan["root"], args.subjects, out)
    study = _study(args, plan, subjects, console)
    candidates = [Candidate(*m.values()) for m in plan["methods"]]
    table = study.table(candidates, plan["seeds"])
    text = markdown([table])
    light, dark = render(lambda look: draw(table, look, "similarities times 100, shares in percent"))
    files = {"table.md": text.encode(), "table.csv": to_csv([table]).encode()}
    for name, content in {**files, "table.png": light, "table-dark.png": dark}.items():
        write_atomically(out / name, content)
    write_drawn(out / "sheet.png", study.sheet(candidates, plan["seeds"][0]), {"model": study.backbone.name})
    print(text)


def _parser(command: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"vpt {command} dreambooth",
        description="DreamBooth's protocol (arXiv 2208.12242): every method learns every subject from its pictures and "
        "draws it in every sentence; DINO-I, CLIP-I and CLIP-T say how alike the pictures are to real ones and to the "
        "sentences.",
        epilog=HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_options(parser, KEYS)
    parser.add_argument("--root", help='the folder with the subjects, or "characters"')
    parser.add_argument("--subjects", help="some of them by their names, comma separated")
    parser.add_argument("--each", type=positive, help="pictures a sentence; 4 if not said, as published")
    parser.add_argument("--steps", type=positive, help="of drawing; the pipeline's own if not said")
    parser.add_argument("--guidance", type=float, help="of drawing; the pipeline's own if not said")
    parser.add_argument("--batch-size", type=positive, help="pictures a training step")
    parser.add_argument("--draw-batch", type=positive, help="pictures drawn at a time")
    parser.add_argument("--dino", help="the network that pictures are compared by")
    parser.add_argument("--clip", help="the CLIP that pictures and sentences are compared by")
    return parser


def _plan(args: argparse.Namespace) -> dict[str, Any]:
    """The YAML file with the options over it; every value checked, no picture opened."""
    args.methods = args.methods or (None if args.config else METHODS)
    typed = {
        "model": {"name": args.model},
        "data": {"batch_size": args.batch_size},
        "task": {"objective": "denoise", "epochs": args.epochs, "lr": args.lr},
    }
    plan, where = plan_of("table dreambooth", args, typed, KEYS, seeds=(1,))
    if plan["task"]["objective"] != "denoise":
        raise ValueError(f"{where}: objective is {plan['task']['objective']}, and these methods denoise.")
    if not plan["methods"]:
        raise ValueError("vpt table dreambooth needs --methods, or a --config that names them.")
    plan["root"] = args.root or plan.get("root")
    if plan["root"] is None:
        raise ValueError(
            "which subjects? Give --root, a copy of github.com/google/dreambooth, or --root characters."
        )
    eyes = EYES[plan["root"] == CHARACTERS]
    for key, default in {"each": 4, "steps": None, "guidance": None, **eyes}.items():
        plan[key] = plan.get(key, default) if getattr(args, key) is None else getattr(args, key)
    return plan


def _subjects(root: str, names: str | None, out: Path) -> list[Any]:
    from vpt.data import subjects

    published = {} if root == CHARACTERS else {s.name: s for s in subjects.dreambooth(root)}
    known = published or subjects.CHARACTERS
    wanted = names.split(",") if names else [*known]
    if strange := [name for name in wanted if name not in known]:
        raise ValueError(f"there is no subject {strange[0]}. There are {', '.join(known)}.")
    found = published or {s.name: s for s in subjects.drawn_characters(out / "characters")}
    return [found[name] for name in wanted]


def _study(args: argparse.Namespace, plan: dict[str, Any], subjects: list[Any], console: Any) -> Any:
    """The pipeline and both eyes, loaded and put where they compute."""
    from vpt.tasks.device import Machine, resolve_device
    from vpt.tasks.task import Recipe
    from vpt.towers.load import load
    from vpt.workflow.runs import Runs
    from vpt.workflow.subject_study import Eyes, Study

    model, device = dict(plan["model"]), resolve_device(args.device)
    backbone: Any = load(model.pop("name"), **model)
    eyes = Eyes(load(plan["dino"]), load(plan["clip"]))
    for network in (backbone, eyes.dino, eyes.clip):
        for tower in network.towers.values():
            tower.model.to(device)
    machine = Machine(device=args.device, precision=args.precision, progress=console.is_terminal)
    runs = Runs(
        backbone,
        args.out,
        machine,
        told=lambda text: console.print(text, markup=False, highlight=False),
    )
    return Study(
        backbone,
        eyes,
        subjects,
        runs,
        Recipe(**plan["task"]),
        plan["data"],
        plan["each"],
        {"steps": plan["steps"], "guidance": plan["guidance"]},
        args.draw_batch or 0,
    )
