"""``vpt predict``, ``vpt test`` and ``vpt validate``: a prompt file at work."""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from vpt.cli.names import class_names, positive
from vpt.header import Header, read_header

__all__ = ["picture_files", "run"]


def run(command: str, argv: list[str]) -> None:
    """Predict pictures, or measure on a split."""
    if command == "predict":
        _predict(argv)
    else:
        _measure(command, argv)


def _parser(command: str, description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f"vpt {command}", description=description)
    parser.add_argument("prompts", help="a file that vpt fit wrote")
    parser.add_argument("--model", help="backbone, where it is not the one that the file names")
    parser.add_argument("--weights", help="local checkpoint of the backbone")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--batch-size", type=positive)
    return parser


def _header(path: str) -> Header:
    """What the file says of itself; a file that cannot classify is refused before torch is loaded."""
    header = read_header(path)
    if not (header.about.get("head") or header.about.get("names")):
        raise ValueError(
            f"{path} holds rows without a head, so it names no classes. Use its rows in Python: "
            f"vpt.encode(backbone.image, pictures, vpt.PromptSet.load({path!r}).rows)."
        )
    return header


def _predict(argv: list[str]) -> None:
    parser = _parser("predict", "Name the classes of pictures.")
    parser.add_argument("pictures", nargs="+", help="picture files, or folders of them")
    parser.add_argument("--top", type=positive, default=1, help="classes a picture")
    parser.add_argument(
        "--classes", help="other names to choose from, for prompts that say names: a,b,c or a file"
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true")
    form.add_argument("--csv", action="store_true")
    args = parser.parse_args(argv)
    header = _header(args.prompts)
    if _task(header) == "retrieve" and not args.classes:
        raise ValueError(
            f"{args.prompts} was trained on captions, so it has no classes of its own. Give --classes, sentences or "
            "names to choose from, or find pictures by words: vpt index build, then vpt search."
        )
    files, classes = picture_files(args.pictures), class_names(args.classes) if args.classes else []

    from vpt.data.images import UnreadableImage, decode

    tuned = _load(args, header)
    tuned = tuned.with_classes(classes) if classes else tuned
    found: list[Any] = []
    bad: list[str] = []
    size = args.batch_size or 32
    for start in range(0, len(files), size):
        good = []
        for file in files[start : start + size]:
            try:
                good.append((str(file), decode(file)))
            except UnreadableImage as error:
                bad.append(str(error))
        predictions = tuned.predict([picture for _, picture in good], batch_size=size, top=args.top)
        found += [p._replace(picture=name) for (name, _), p in zip(good, predictions, strict=True)]
    if args.json:
        print(json.dumps([p._asdict() for p in found], indent=1))
    elif args.csv:
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow(["picture", "class", "probability"])
        writer.writerows((p.picture, name, f"{v:.6f}") for p in found for name, v in p.scores.items())
    else:
        _print_predictions(found)
    if bad:
        raise ValueError(f"{len(bad)} of {len(files)} pictures could not be read:\n  " + "\n  ".join(bad))


def _print_predictions(found: Sequence[Any]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table()
    table.add_column("picture", overflow="fold")  # a path is of use whole only
    table.add_column("class")
    table.add_column("probability")
    for p in found:
        for i, (name, value) in enumerate(p.scores.items()):
            table.add_row(escape(p.picture) if i == 0 else "", escape(name), f"{value:.3f}")
    Console().print(table)


def picture_files(given: list[str]) -> list[Path]:
    """Files as given; of folders, every picture below them, sorted."""
    from vpt.data.item import is_picture

    files: list[Path] = []
    for name in map(Path, given):
        if name.is_dir():
            inside = sorted(p for p in name.rglob("*") if is_picture(p))
            if not inside:
                raise ValueError(f"the folder {str(name)!r} holds no pictures.")
            files += inside
        elif name.is_file():
            files.append(name)
        else:
            raise FileNotFoundError(f"there is no picture or folder {str(name)!r}.")
    return files


def _load(args: argparse.Namespace, header: Header) -> Any:
    """The prompt file on its backbone: the one it names, unless options say where else it is."""
    from vpt.tasks.tuned import load_prompts
    from vpt.towers.load import load

    made, backbone = header.about.get("backbone") or {}, None
    name = args.model or made.get("name")
    if not name:
        raise ValueError(f"{args.prompts} names no backbone. Give it as --model, with --weights where local.")
    if args.model or args.weights:
        size = made.get("size") if name == made.get("name") else None
        backbone = load(name, weights=args.weights, size=size)
    return load_prompts(args.prompts, backbone, device=args.device)


def _measure(command: str, argv: list[str]) -> None:
    split = {"validate": "val", "test": "test"}[command]
    parser = _parser(command, f"Measure a prompt file on the {split} split.")
    parser.add_argument(
        "--data", help="folder, manifest, shards, torchvision:NAME, coop:NAME, digits, emoji or scenes"
    )
    parser.add_argument("--root", help="folder of downloads; for coop:NAME the one that holds the data sets")
    parser.add_argument("--config", help="the YAML file of the training run: its data section is used")
    parser.add_argument("--seed", type=int, help="of the split; by default the one that training used")
    parser.add_argument("--split-file", help="the split that training wrote")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(argv)
    header = _header(args.prompts)
    options = _data_options(command, args, header)

    from rich.console import Console
    from rich.progress import track

    from vpt.cli.fit import metrics_table
    from vpt.data.module import ImageData
    from vpt.tasks.measure import measure, measure_pairs

    tuned, errors = _load(args, header), Console(stderr=True)
    data = ImageData(**options)
    data.bind(tuned.backbone.preprocessing)
    data.setup()
    if not data.captioned and not tuned.tied and tuned.classes != data.classes:
        errors.print(f"the prompt now says the {len(data.classes)} names of these data")
        tuned = tuned.with_classes(data.classes, repeated=True)
    if not data.captioned:
        _refuse_other_classes(tuned.classes, data.classes)
    protocol = {**data.protocol(), "task": _task(header)}
    count = protocol["counts"].get(split)
    if not count:
        raise ValueError(f"{options['path']} has no {split} split.")
    _warn_of_another_split(tuned.protocol, protocol, split)
    progress = partial(track, description="measuring", console=errors, transient=True)
    if data.captioned:
        values = measure_pairs(tuned, data, split, track=progress)
        if cut := len(tuned.learner.cut):
            errors.print(f"{cut:,} captions were too long for the context and lost their last words")
    else:
        values = measure(tuned, data, split, track=progress).metrics
    metrics = [
        {"name": name, "value": value, "split": split, "count": count, "seed": protocol["seed"]}
        for name, value in values.items()
    ]
    if args.json:
        print(json.dumps({"metrics": metrics, "protocol": protocol}, indent=1))
    else:
        Console().print(metrics_table(metrics, protocol))


def _task(header: Header) -> str:
    """The objective that the file was trained for."""
    return str(header.about.get("task") or "classify")


def _data_options(command: str, args: argparse.Namespace, header: Header) -> dict[str, Any]:
    """Options of ImageData: of the config file or of the training run, and over them what was typed."""
    from vpt.cli.config import STARTS

    protocol = header.about.get("protocol") or {}
    captions = STARTS[_task(header)].data if _task(header) in STARTS else {}
    kept = ("seed", "shots", "val", "test", "subset")
    options = {k: protocol[k] for k in kept if protocol.get(k) is not None}
    if args.config:
        from vpt.cli.config import checked, sections

        section = sections(args.config).get("data") or {}
        typed = {"path": args.data} if args.data else {}
        content = {"task": {"objective": _task(header)}, "data": {**section, **typed}}
        options = checked(command, content, args.config).data.as_dict()
    typed = {k: getattr(args, k) for k in ("seed", "split_file", "batch_size", "root")} | {"path": args.data}
    options |= {k: v for k, v in typed.items() if v is not None} | captions
    if "path" not in options:
        raise ValueError("which pictures? Give --data, or the --config of the training run.")
    return options


def _refuse_other_classes(known: Sequence[str], found: Sequence[str]) -> None:
    if tuple(known) == tuple(found):
        return
    absent = [name for name in known if name not in found]
    extra = [name for name in found if name not in known]
    told = [f"{what} {', '.join(n[:5])}" for what, n in (("without", absent), ("besides", extra)) if n]
    raise ValueError(
        f"the prompt file knows {len(known)} classes, the data have {len(found)} "
        f"({'; '.join(told) or 'in another order'}). Measure on the classes that it was trained on."
    )


def _warn_of_another_split(trained: dict[str, Any], now: dict[str, Any], split: str) -> None:
    """The same data split otherwise: then pictures that trained may be measured on."""
    own = now["origin"].get(split) == "the source's own"
    if own or trained.get("data") != now["data"] or trained.get("split") == now["split"]:
        return
    print(
        f"vpt: this split ({now['split']}) is not the one of the training run ({trained.get('split')}), so "
        "it may hold pictures that were trained on. Give its --config, or its --seed and --split-file.",
        file=sys.stderr,
    )
