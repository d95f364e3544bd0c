"""``vpt search INDEX TEXT``: pictures by words, by a picture, or by a concept that was learned."""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from pathlib import Path
from typing import Any

from vpt.cli.names import positive

__all__ = ["run"]


def run(command: str, argv: list[str]) -> None:
    """Search and print, or write a page."""
    args = _parser().parse_args(argv)
    images = [Path(p) for p in args.image]
    if missing := [str(p) for p in images if not p.is_file()]:
        raise FileNotFoundError(f"there is no picture {missing[0]!r}.")
    texts = [*([args.text] if args.text is not None else []), *(_lines(args.queries) if args.queries else [])]
    if not (texts or images or args.concept):
        raise ValueError(
            f"what to look for? vpt search {args.index} 'a red bicycle', or --image FILE, or --concept FILE."
        )

    from vpt.search.index import Index

    index = Index.open(args.index)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", UserWarning)
        encoder = index.encoder(args.prompts, args.concept, device=args.device)
        texts = _with_concepts(texts, encoder, bool(images))
        found = index.search(encoder, texts=texts, images=images, k=args.top)
    for warning in told:
        print(f"vpt: {warning.message}", file=sys.stderr)

    from vpt.search.sheet import Answer, page

    asked = [*[(text, None) for text in texts], *[(str(path), path) for path in images]]
    answers = [Answer(name, path, hits) for (name, path), hits in zip(asked, found, strict=True)]
    if args.html:
        from vpt.promptset import write_atomically

        write_atomically(args.html, page(index, answers, thumbnail=args.thumbnail).encode())
    if args.json:
        print(json.dumps([_plain(index, a) for a in answers], indent=1))
    else:
        _print(index, answers)
        if args.html:
            print(f"page: {args.html}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vpt search",
        description="Find pictures of an index by words, by a picture, or by a concept that was learned. Several "
        "queries are answered one by one.",
    )
    parser.add_argument("index", help="folder that vpt index build wrote")
    parser.add_argument(
        "text", nargs="?", help="what to look for; it may name concepts: 'a <my-mug> on grass'"
    )
    parser.add_argument("--queries", help="a file with a text a line")
    parser.add_argument(
        "--image", action="append", default=[], metavar="FILE", help="a picture to find others like it"
    )
    parser.add_argument(
        "--concept",
        action="append",
        default=[],
        metavar="FILE",
        help="a file that learned a name in angle brackets; without a text, 'a photo of <name>' is looked for",
    )
    parser.add_argument("--prompts", help="a prompt file whose text rows every text is said with")
    parser.add_argument("--top", type=positive, default=10, help="pictures a query (default: 10)")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--html", metavar="PAGE", help="write a contact sheet, with the pictures in it")
    parser.add_argument(
        "--thumbnail", type=positive, default=320, help="longest side of its pictures, in pixels"
    )
    parser.add_argument("--device", default="auto")
    return parser


def _lines(path: str) -> list[str]:
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no file of queries {path!r}.")
    try:
        lines = [line.strip() for line in Path(path).read_text("utf-8-sig").splitlines()]
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text in UTF-8 ({error.reason}).") from None
    found = [line for line in lines if line]
    if not found:
        raise ValueError(f"{path} holds no queries. Wanted: a text a line.")
    return found


def _with_concepts(texts: list[str], encoder: Any, images: bool) -> list[str]:
    """The texts, or where there are none the names of the concepts. Raises ValueError for one that no text says."""
    names = list(dict.fromkeys(site.slot for site in encoder.concepts))
    if names and not texts and not images:
        return [f"a photo of {name}" for name in names]
    if unsaid := [name for name in names if not any(name in text for text in texts)]:
        raise ValueError(
            f"no text says {', '.join(unsaid)}, so the concept would do nothing. Write it into the text."
        )
    return texts


def _plain(index: Any, answer: Any) -> dict[str, Any]:
    hits = []
    for hit in answer.hits:
        item = index.item(hit.id)
        hits.append({"id": hit.id, "score": hit.score, "captions": list(item.captions), "file": item.file})
    return {"image" if answer.image else "query": answer.query, "hits": hits}


def _print(index: Any, answers: list[Any]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console()
    for answer in answers:
        captions = {hit.id: (index.item(hit.id).captions or ("",))[0] for hit in answer.hits}
        table = Table(title=escape(answer.query), title_justify="left")
        table.add_column("score", justify="right")
        table.add_column("picture", overflow="fold")  # an id is of use whole only
        if any(captions.values()):
            table.add_column("caption")
        for hit in answer.hits:
            more = [escape(captions[hit.id])] if any(captions.values()) else []
            table.add_row(f"{hit.score:.3f}", escape(hit.id), *more)
        console.print(table)
