"""``vpt test-time``: adapt to each test picture on its own."""

from __future__ import annotations

import argparse
import json
from typing import Any

from vpt.cli.config import read_yaml
from vpt.cli.names import positive

__all__ = ["run"]


def run(command: str, argv: list[str]) -> None:
    """Adapt, measure and print."""
    args = _arguments(command, argv)

    from vpt.tasks.test_time import Adaptation

    # refused before anything is loaded
    rule = Adaptation(args.method, args.views, args.fraction, args.steps, args.lr)

    from rich.console import Console

    from vpt.cli.fit import metrics_table
    from vpt.data.module import ImageData
    from vpt.tasks.adapt import adapt

    start, backbone = _start(args)
    names = ("seed", "val", "test", "split_file", "root", "subset", "workers")
    given = {k: v for k in names if (v := getattr(args, k)) is not None}
    found = adapt(
        backbone,
        ImageData(args.data, **given),
        rule,
        start=start,
        side=args.side,
        out=args.out,
        device=args.device,
        precision=args.precision,
    )
    if args.json:
        print(json.dumps({"metrics": found.metrics, "protocol": found.protocol}, indent=1))
        return
    Console().print(metrics_table(found.metrics, found.protocol))
    label = rule.label()
    print(f"{args.method}: {label['kept']} of {label['views']} views of a picture, one picture at a time")
    if args.out:
        print(f"results: {args.out}")


def _arguments(command: str, argv: list[str]) -> argparse.Namespace:
    """What was typed, over what a YAML file says."""
    parser, first = _parser(command), argparse.ArgumentParser(add_help=False)
    first.add_argument("--config")
    config = first.parse_known_args(argv)[0].config
    said = read_yaml(config) if config else {}
    known = {a.dest for a in parser._actions if a.nargs != 0} - {"config"}
    if wrong := said.keys() - known:
        raise ValueError(
            f"{config} has the key {', '.join(sorted(map(str, wrong)))}. There are {', '.join(sorted(known))}."
        )
    return parser.parse_args(
        [*(f"--{k.replace('_', '-')}={v}" for k, v in said.items() if v is not None), *argv]
    )


def _parser(command: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"vpt {command}",
        description="Adapt a CLIP to each test picture on its own, without labels: TPT (2209.07511) tunes the words "
        "around the class name on views of the picture, ZERO (2405.18330) lets the views vote.",
    )
    parser.add_argument("--config", help="YAML file of these options; what is typed wins")
    parser.add_argument(
        "--data",
        required=True,
        help="folder, manifest, shards, torchvision:NAME, coop:NAME, digits, emoji or scenes",
    )
    parser.add_argument("--method", choices=("tpt", "zero"), default="tpt")
    parser.add_argument("--model", help="backbone, such as open_clip/ViT-B-16:openai")
    parser.add_argument("--weights", help="local checkpoint of the backbone")
    parser.add_argument(
        "--prompts", help="start from this prompt file (of coop, for example), not from words"
    )
    parser.add_argument(
        "--words", help='start from these words, "a photo of a" by default; {} marks the name'
    )
    parser.add_argument("--views", type=positive, default=64, help="of a picture, itself included")
    parser.add_argument(
        "--fraction", type=float, help="of views kept, 0.1 for tpt and 0.3 for zero by default"
    )
    parser.add_argument("--steps", type=positive, default=1, help="of tpt")
    parser.add_argument("--lr", type=float, default=5e-3, help="of tpt")
    parser.add_argument("--side", type=positive, default=8, help="pictures side by side; changes no result")
    parser.add_argument("--out", help="file of JSON lines, one a picture; a killed run goes on from it")
    parser.add_argument("--seed", type=int, help="of split and views")
    parser.add_argument("--val", type=float, help="share split off for val, as in vpt fit")
    parser.add_argument("--test", type=float, help="share split off for test, as in vpt fit")
    parser.add_argument("--split-file", help="splits that are written once and reused")
    parser.add_argument("--root", help="folder of downloads; for coop:NAME the one that holds the data sets")
    parser.add_argument("--subset", choices=("all", "base", "novel"), help="which half of the classes")
    parser.add_argument("--workers", type=int, help="processes that make views")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", choices=("auto", "float32", "bf16"), default="float32")
    parser.add_argument("--json", action="store_true")
    return parser


def _start(args: argparse.Namespace) -> tuple[Any, Any]:
    """What every picture starts from, and the backbone."""
    from vpt.tasks.adapt import WORDS

    if args.prompts and args.words:
        raise ValueError("--prompts and --words are two starts. Give one of them.")
    if not args.model and not args.prompts:
        raise ValueError("which backbone? Give --model, such as open_clip/ViT-B-16:openai, or a prompt file.")

    from vpt.tasks.tuned import load_prompts
    from vpt.towers.load import load

    backbone = load(args.model, weights=args.weights) if args.model else None
    if not args.prompts:
        return args.words or WORDS, backbone
    tuned = load_prompts(args.prompts, backbone, device=args.device)
    return tuned, tuned.backbone
