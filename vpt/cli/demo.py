"""``vpt demo``: starters learn digits, emoji, to find scenes and to draw a character, offline; a page is written."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path
from textwrap import wrap
from typing import Any

from vpt.cli.names import positive

__all__ = ["run"]


def run(command: str, argv: list[str]) -> None:
    """Run the demo and print its table and what it found."""
    args = _arguments().parse_args(argv)
    out = Path(args.out)
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out {args.out} is a file. Give a folder, new or of an earlier demo.")

    from rich.console import Console

    from vpt.workflow.demo import Budget, demo

    given = {k: getattr(args, k) for k in ("shots", "epochs", "seeds") if getattr(args, k) is not None}
    plain = Console()
    console = plain if plain.is_terminal else Console(width=100)  # a log has no width
    chapters, found, taught = demo(
        out,
        Budget(**given),
        device=args.device,
        told=lambda text: console.print(text, markup=False, highlight=False),
    )
    console.print(_table(chapters))
    for chapter in chapters:
        console.print(f"\n{chapter.title}", style="bold")
        for sentence in [chapter.protocol, *chapter.findings]:
            console.print(f"- {sentence}", markup=False, highlight=False)
        console.print(_fresh(chapter), markup=False, highlight=False)
    parts: list[tuple[Any, str]] = [(one, "Search") for one in found]
    parts += [(one, "Draw") for one in taught]
    for part, invited in parts:
        console.print(_grid(part.header, [(part.title, part.table)]))
        console.print(part.title, style="bold")
        for sentence in [part.protocol, *part.findings]:
            console.print(f"- {sentence}", markup=False, highlight=False)
        console.print(f"- {invited} yourself: {part.command}", markup=False, highlight=False)
    console.print(f"\nThe page: {out / 'index.html'}", highlight=False)


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vpt demo",
        description="Adapt the starter network to digits and emoji in several ways, and others to finding "
        "scenes by words and to drawing a new character, offline and on a CPU in a few minutes. What the folder holds "
        "already is not computed again.",
    )
    parser.add_argument(
        "--out", default="demo-out", help="folder for the page, pictures, tables and prompt files"
    )
    parser.add_argument("--shots", type=positive, help="training pictures a class, of digits and emoji")
    parser.add_argument("--epochs", type=positive, help="of digits and emoji")
    parser.add_argument("--seeds", type=_seeds, help="numbers, comma separated, of digits and emoji")
    parser.add_argument("--device", default="auto")
    return parser


def _seeds(text: str) -> tuple[int, ...]:
    parts = text.split(",")
    if not all(part.strip().isdecimal() for part in parts) or len(set(map(int, parts))) < len(parts):
        raise argparse.ArgumentTypeError(f"{text!r} is no list of different whole numbers such as 1,2,3")
    return tuple(map(int, parts))


def _table(chapters: Sequence[Any]) -> Any:
    """All data sets in one table."""
    from vpt.workflow.report import HEADER

    kept = [i for i, name in enumerate(HEADER) if name not in ("step, ms", "lr")]  # the page has these too
    sections = [(c.title, [[line[i] for i in kept] for line in c.table]) for c in chapters]
    return _grid([HEADER[i] for i in kept], sections)


def _grid(header: Sequence[str], sections: Iterable[tuple[str, Sequence[Sequence[str]]]]) -> Any:
    """Lines of text under a header, in sections with titles."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for i, name in enumerate(header):
        # headers in lines of their own, or they leave the first column no room
        table.add_column("\n".join(wrap(name, 12)), justify="right" if i else "left", no_wrap=i > 0)
    for title, lines in sections:
        table.add_row(f"[bold]{escape(title)}[/bold]")
        for line in lines:
            table.add_row(*map(escape, line))
        table.add_section()
    return table


def _fresh(chapter: Any) -> str:
    told = ", ".join(
        f"{f.predicted} ({'right' if f.predicted == f.truth else f'is: {f.truth}'})" for f in chapter.fresh
    )
    return (
        f"- Read back in a fresh process, the prompt file says: {told}. The same as in the process that trained, "
        f"probabilities within {chapter.difference:.2g}."
    )
