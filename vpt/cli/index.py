"""``vpt index build|add|remove|info``: a folder that finds pictures again."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from vpt.cli.names import positive
from vpt.cli.use import picture_files

__all__ = ["run"]

MODEL = "starter/clip-mini"  # of a new index, where nothing else is said
KINDS = ("auto", "flat", "ivf", "hnsw")


def run(command: str, argv: list[str]) -> None:
    """Make, change or describe an index."""
    args = _parser().parse_args(argv)
    {"build": _build, "add": _add, "remove": _remove, "info": _info}[args.action](args)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vpt index", description="Embed a collection of pictures once, so that vpt search finds them."
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="build|add|remove|info")
    build = actions.add_parser(
        "build",
        help="embed a collection; given again, go on after a kill, or take in what is new",
        description="Embed every picture of a collection and fill a store. The same command goes on after a kill; on a "
        "finished index it embeds what is new or changed, and drops what left the collection.",
    )
    build.add_argument(
        "collection",
        nargs="?",
        help="folder, manifest, caption file, shards, digits, scenes, ..; left out, the store of an index is filled "
        "again from its vectors",
    )
    build.add_argument("--out", required=True, help="folder of the index")
    build.add_argument(
        "--model", help=f"backbone; by default the index's own, or that of --prompts, or {MODEL}"
    )
    build.add_argument("--prompts", help="a prompt file whose image rows every picture is embedded with")
    build.add_argument("--weights", help="local checkpoint of the backbone")
    build.add_argument("--size", type=positive, help="another picture size, in pixels")
    build.add_argument(
        "--root", help="folder of downloads, of a manifest's pictures, or of the sets of coop:NAME"
    )
    build.add_argument(
        "--kind",
        choices=KINDS,
        help="flat compares with every vector; ivf looks into the nearest lists; hnsw is a graph that cannot be "
        "changed later; auto (default) is flat below 100,000 pictures and ivf above",
    )
    build.add_argument(
        "--store",
        help="faiss (default), postgresql://user@host/database?table=NAME, or qdrant:http://HOST:6333/COLLECTION",
    )
    build.add_argument(
        "--workers",
        type=positive,
        help="embed in so many processes under Ray Data, on the machines of a running Ray (RAY_ADDRESS) or on this "
        "one; the index is the same",
    )
    build.add_argument(
        "--gpus-per-worker", type=float, help="a part of a GPU is allowed, such as 0.5; by default none"
    )
    add = actions.add_parser("add", help="add picture files", description="Add picture files to an index.")
    add.add_argument("index", help="folder of the index")
    add.add_argument(
        "pictures", nargs="+", help="picture files, or folders of them; their paths are their ids"
    )
    for some in (build, add):
        some.add_argument("--batch-size", type=positive, default=64)
        some.add_argument("--device", default="auto")
        some.add_argument(
            "--skip-unreadable", action="store_true", help="leave out pictures that are damaged"
        )
    remove = actions.add_parser(
        "remove", help="take pictures out", description="Take pictures out of an index."
    )
    remove.add_argument("index", help="folder of the index")
    remove.add_argument("ids", nargs="+", help="as vpt search prints them")
    info = actions.add_parser("info", help="say what an index holds", description="Say what an index holds.")
    info.add_argument("index", help="folder of the index")
    info.add_argument("--json", action="store_true")
    return parser


def _build(args: argparse.Namespace) -> None:
    there = (Path(args.out) / "index.json").is_file()
    if args.collection is None and not there:
        raise ValueError(
            f"there is no index in {args.out!r} to fill again. Which pictures? vpt index build COLLECTION --out "
            f"{args.out}."
        )
    if args.collection is None and (args.model or args.prompts):
        raise ValueError(
            "a model and prompts are for pictures to embed. Give the collection too, or leave them out."
        )
    if args.collection is None and args.workers:
        raise ValueError("workers are for pictures to embed. Give the collection too, or leave them out.")
    if args.gpus_per_worker is not None and not args.workers:
        raise ValueError(
            "--gpus-per-worker says what each of --workers N gets. Give that too, or leave it out."
        )

    from vpt.search.index import Index

    if args.collection is None:
        _say(Index.refill(args.out, kind=args.kind, store=args.store))
        return
    embedder = _embedder(args, there)  # first: it says what is missing before anything is loaded
    index = Index.build(
        args.out,
        _encoder(args, there),
        args.collection,
        embedder=embedder,
        root=args.root,
        kind=args.kind,
        store=args.store,
        batch_size=args.batch_size,
        skip_unreadable=args.skip_unreadable,
        progress=True,
    )
    print(index.embedded)
    _say_skipped(index.embedded.skipped)
    _say(index)


def _encoder(args: argparse.Namespace, there: bool) -> Any:
    from vpt.search.encoder import Encoder
    from vpt.search.index import Index

    if there and not (args.model or args.prompts or args.weights or args.size):
        return Index.open(args.out).encoder(device=args.device)
    model = args.model or (None if args.prompts else MODEL)
    return Encoder.open(model, args.prompts, weights=args.weights, size=args.size, device=args.device)


def _embedder(args: argparse.Namespace, there: bool) -> Callable[..., Any]:
    """``embed``, or what hands its work to Ray, where every worker makes the same encoder."""
    if not args.workers:
        from vpt.search.embed import embed

        return embed
    from vpt.search.ray_embed import embed_with_ray

    files = {k: os.path.abspath(v) for k in ("out", "prompts", "weights") if (v := getattr(args, k))}
    make = partial(_encoder, argparse.Namespace(**vars(args) | files), there)

    def embedded(_: object, source: object, items: Any, folder: Path, **options: Any) -> Any:
        more = {"workers": args.workers, "gpus": args.gpus_per_worker or 0}
        return embed_with_ray(make, args.collection, folder, root=args.root, items=items, **more, **options)

    return embedded


def _add(args: argparse.Namespace) -> None:
    files = picture_files(args.pictures)

    from vpt.search.index import Index

    index = Index.open(args.index)
    found = index.add(
        index.encoder(device=args.device),
        files,
        batch_size=args.batch_size,
        skip_unreadable=args.skip_unreadable,
        progress=True,
    )
    print(found)
    _say_skipped(found.skipped)
    _say(index)


def _remove(args: argparse.Namespace) -> None:
    from vpt.search.index import Index

    index = Index.open(args.index)
    print(f"{index.remove(args.ids):,} removed")
    _say(index)


def _say(index: Any) -> None:
    info = index.info()
    what = "'a red bicycle'" if info["text"] else "--image FILE"
    print(f"{info['pictures']:,} pictures in {info['folder']} ({info['about']})")
    print(f"  vpt search {info['folder']} {what}")


def _say_skipped(skipped: list[tuple[str, str]]) -> None:
    if skipped:
        print(f"{len(skipped)} could not be read and are left out:")
        print("\n".join(f"  {key}: {why}" for key, why in skipped))


def _info(args: argparse.Namespace) -> None:
    from vpt.search.index import Index

    info = Index.open(args.index).info()
    if args.json:
        print(json.dumps(info, indent=1))
        return
    print(
        f"{info['folder']}: {info['pictures']:,} pictures, {info['bytes'] / 1e6:.1f} MB, made by vpt {info['vpt']}"
    )
    lines = {
        "collection": info["collection"],
        "backbone": f"{info['backbone']}, image tower {info['fingerprint']}, {info['width']} channels",
        "image rows": info["image_rows"] or "none",
        "store": info["store"]
        + ("" if info["filled"] else " (not filled to the end: vpt index build --out fills it)"),
        "kind": f"{info['kind']}: {info['about']}" if info["store"] == "faiss" else "the database decides",
        "shards": f"{info['shards']} on disk; {info['removed']} pictures removed since",
        "serves": info["valid"],
    }
    print("\n".join(f"  {name:<11}{text}" for name, text in lines.items()))
    _say_skipped([tuple(pair) for pair in info["skipped"]])
