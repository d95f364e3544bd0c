"""``vpt predict``, ``vpt test`` and ``vpt validate``: a prompt file at work."""

from __future__ import annotations

import argparse
import csv
import json
import sys
from pathlib import Path
from typing import Any

__all__ = ["run"]


def run(command: str, argv: list[str]) -> None:
    """Predict pictures, or measure on a split."""
    if command == "predict":
        _predict(argv)
    else:
        _measure(command, argv)


def _predict(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="vpt predict", description="Name the classes of pictures.")
    parser.add_argument("prompts", help="a file that vpt fit wrote")
    parser.add_argument("pictures", nargs="+", help="picture files, or folders of them")
    parser.add_argument("--model", help="backbone, where it is not the one that the file names")
    parser.add_argument("--weights", help="local checkpoint of the backbone")
    parser.add_argument("--top", type=int, default=1, help="classes a picture")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--batch-size", type=int, default=32)
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true")
    form.add_argument("--csv", action="store_true")
    args = parser.parse_args(argv)
    files = _pictures(args.pictures)

    from vpt.data.images import UnreadableImage, decode

    tuned = _load(args)
    good, bad = [], []
    for file in files:
        try:
            good.append((file, decode(file)))
        except UnreadableImage as error:
            bad.append(str(error))
    found = []
    for start in range(0, len(good), args.batch_size):
        part = good[start : start + args.batch_size]
        predictions = tuned.predict([image for _, image in part], top=args.top)
        found += [p._replace(picture=str(file)) for (file, _), p in zip(part, predictions, strict=True)]
    if args.json:
        print(json.dumps([p._asdict() for p in found], indent=1, ensure_ascii=False))
    elif args.csv:
        writer = csv.writer(sys.stdout)
        writer.writerow(["picture", "class", "probability"])
        writer.writerows((p.picture, name, f"{v:.6f}") for p in found for name, v in p.scores.items())
    else:
        from rich.console import Console
        from rich.table import Table

        table = Table("picture", "class", "probability")
        for p in found:
            for i, (name, v) in enumerate(p.scores.items()):
                table.add_row(p.picture if i == 0 else "", name, f"{v:.3f}")
        Console().print(table)
    if bad:
        raise ValueError(f"{len(bad)} of {len(files)} pictures could not be read:\n  " + "\n  ".join(bad))


def _pictures(given: list[str]) -> list[Path]:
    """Files as given; of folders, every picture below them, sorted."""
    from vpt.data.item import SUFFIXES

    files: list[Path] = []
    for name in map(Path, given):
        if name.is_dir():
            inside = sorted(p for p in name.rglob("*") if p.suffix.lower() in SUFFIXES)
            if not inside:
                raise ValueError(f"the folder {str(name)!r} holds no pictures.")
            files += inside
        elif name.is_file():
            files.append(name)
        else:
            raise FileNotFoundError(f"there is no picture or folder {str(name)!r}.")
    return files


def _load(args: argparse.Namespace) -> Any:
    from vpt.tasks.tuned import load_prompts
    from vpt.towers.load import load

    backbone = load(args.model, weights=args.weights) if args.model else None
    if args.weights and not args.model:
        raise ValueError("--weights needs --model, the architecture of the checkpoint.")
    return load_prompts(args.prompts, backbone, device=args.device)


def _measure(command: str, argv: list[str]) -> None:
    split = {"validate": "val", "test": "test"}[command]
    parser = argparse.ArgumentParser(prog=f"vpt {command}", description=f"Measure a prompt file on the {split} split.")
    parser.add_argument("prompts")
    parser.add_argument("--data", required=True)
    parser.add_argument("--seed", type=int, default=1, help="of the split, where the data have none of their own")
    parser.add_argument("--split-file", help="the split that training wrote")
    parser.add_argument("--model")
    parser.add_argument("--weights")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(argv)

    from rich.console import Console
    from rich.progress import track

    from vpt.cli.fit import metrics_table
    from vpt.data.module import ImageData

    tuned = _load(args)
    data = ImageData(args.data, seed=args.seed, batch_size=args.batch_size, split_file=args.split_file)
    data.bind(tuned.backbone.preprocessing)
    data.setup()
    if data.classes != tuned.classes:
        raise ValueError(
            f"the prompt file knows {len(tuned.classes)} classes ({', '.join(tuned.classes[:5])} ..), the data have "
            f"{len(data.classes)} ({', '.join(data.classes[:5])} ..). Measure on the classes that it was trained on."
        )
    loader = data.val_dataloader() if split == "val" else data.test_dataloader()
    if not loader:
        raise ValueError(f"{args.data} has no {split} split.")
    found = tuned.evaluate(track(loader, "measuring", console=Console(stderr=True), transient=True))
    protocol = data.protocol()
    count = protocol["counts"][split]
    metrics = [{"name": n, "value": v, "split": split, "count": count, "seed": args.seed} for n, v in found.metrics.items()]
    if args.json:
        print(json.dumps({"metrics": metrics, "protocol": protocol}, indent=1))
    else:
        Console().print(metrics_table(metrics, protocol))
