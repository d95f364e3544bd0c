"""``vpt generate PROMPTS.. TEXT``: pictures and short videos of what prompt files learned."""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from vpt.cli.names import positive
from vpt.header import Header, read_header

__all__ = ["run"]

SAID = re.compile(r"<([\w-]+)(?:\*\d+)?>")  # a placeholder, as sentences hold it
DRAWN = ("text", "text_2", "text_3", "context")  # towers of a diffusion pipeline that take rows
OPTIONS = ("pretrained", "weights", "size", "quantize", "dtype")  # of a backbone, as a prompt file keeps them


def run(command: str, argv: list[str]) -> None:
    """Check what was typed, load the pipeline, draw, write."""
    args = _parser(command).parse_intermixed_args(argv)
    if len(args.given) < 2:
        raise ValueError(
            f"one prompt file at least and a sentence are wanted, and {args.given[0]!r} is alone: vpt generate "
            "runs/mug/prompts.safetensors 'a photo of <my-mug> in the rain'. vpt fit --task text-to-image makes such a "
            "file."
        )
    *files, text = args.given
    heads = [_opened(given) for given in files]
    _check(heads, text, args)
    model = _model(heads, args)
    _check_folder(Path(args.out))
    with _told():
        _draw(heads, text, args, model, shlex.join(["vpt", command, *argv]))


def _parser(command: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"vpt {command}",
        usage=f"vpt {command} PROMPTS [PROMPTS ..] TEXT [options]",
        description="Draw what prompt files learned: a PNG a picture with its settings inside, and a contact sheet. "
        "Pictures that are there already, drawn in the same way, are kept.",
    )
    add = parser.add_argument
    add(
        "given",
        nargs="+",
        metavar="PROMPTS.. TEXT",
        help="files that vpt fit, vpt concept or vpt import wrote, then what to draw: 'a photo of <my-mug>'. "
        "FILE=NAME calls the placeholder of a file otherwise",
    )
    add("--model", help="diffusers/REPO_OR_FOLDER; by default the one that the first file names")
    add("--weights", help="local checkpoint of the pipeline")
    add("--dtype", choices=("float32", "bf16", "float16"), help="of the pipeline's weights")
    add("--quantize", help="the network's weights, by a back end of diffusers")
    add("--seed", type=_seed, default=1, help="of the first picture (default: %(default)s)")
    add("--count", type=positive, default=1, help="pictures, with seeds one after the other")
    add("--negative", metavar="TEXT", help="what to draw away from; it may hold placeholders")
    add(
        "--strength",
        type=_strengths,
        default=(1.0,),
        metavar="0.5,1,1.5",
        help="what the rows are multiplied by; several make a grid",
    )
    add("--before", action="store_true", help="also draw each picture without the rows, with the plain word")
    add("--word", default="", help="the plain word, where the file does not say it")
    add("--steps", type=positive, help="of denoising; by default the pipeline's own")
    add("--guidance", type=float, help="scale of guidance; by default the pipeline's own")
    add("--size", type=_size, metavar="HxW", help="in pixels, or one number for both")
    add("--frames", type=positive, help="of a video")
    add("--fps", type=positive, default=16, help="frames a second of a video (default: %(default)s)")
    add("--batch-size", type=positive, default=0, help="pictures at a time; by default as many as fit")
    add("--out", default="generated", metavar="DIR", help="folder to write to (default: %(default)s)")
    add(
        "--sheet",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="a contact sheet of several pictures",
    )
    add("--html", action="store_true", help="write a page with the pictures in it")
    add("--replace", action="store_true", help="draw anew what is there, also where it was drawn otherwise")
    add("--json", action="store_true", help="print the files with their settings")
    add("--device", default="auto")
    return parser


def _seed(text: str) -> int:
    if not text.isdecimal() or int(text) >= 2**63:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 0 to 2^63 - 1")
    return int(text)


def _strengths(text: str) -> tuple[float, ...]:
    try:
        found = tuple(float(part) for part in text.split(","))
    except ValueError:
        found = ()
    if not found or not all(abs(value) < 1e6 for value in found) or len(set(found)) < len(found):
        raise argparse.ArgumentTypeError(f"{text!r} is no list of different numbers such as 0.5,1,1.5")
    return found


def _size(text: str) -> tuple[int, int]:
    parts = text.lower().split("x")
    if len(parts) > 2 or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise argparse.ArgumentTypeError(
            f"{text!r} is no size in pixels such as 512x768 (height, width) or 512"
        )
    if wrong := [part for part in parts if int(part) % 8]:
        raise argparse.ArgumentTypeError(f"pictures have sides of a multiple of 8 pixels, not {wrong[0]}")
    return int(parts[0]), int(parts[-1])


class Head(NamedTuple):
    """A prompt file before it is loaded.  name: what its placeholder is called instead, or ""."""

    header: Header
    name: str

    @property
    def sites(self) -> list[tuple[str, str]]:
        """(tower, slot) of its rows, under the new name."""
        found = [(s["tower"], s["slot"]) for s in self.header.about.get("sites") or []]
        return [(t, f"<{self.name}>" if self.name and slot.startswith("<") else slot) for t, slot in found]

    @property
    def slots(self) -> list[str]:
        """Placeholders that it knows, with rows or without."""
        known = [f"<{self.name}>"] if self.name else list(self.header.about.get("placeholders") or {})
        return sorted({*known, *(slot for _, slot in self.sites if slot.startswith("<"))})

    @property
    def backbone(self) -> dict[str, Any]:
        return self.header.about.get("backbone") or {}


def _opened(given: str) -> Head:
    """The header of FILE or FILE=NAME. Raises ValueError for what cannot be drawn, FileNotFoundError."""
    path, _, name = (given, "", "") if Path(given).exists() or "=" not in given else given.rpartition("=")
    head = Head(read_header(path), name.strip("<>"))
    about, towers = head.header.about, {tower for tower, _ in head.sites}
    if other := sorted(towers - set(DRAWN)):
        raise ValueError(
            f"{path} writes to the {other[0]} tower, which draws nothing. Wanted: a file of vpt fit --task "
            "text-to-image, vpt concept or vpt import."
        )
    if not towers and not (about.get("kind") == "baseline" and about.get("task") == "denoise"):
        raise ValueError(f"{path} holds no rows for text or context, so it draws nothing.")
    if name:
        slots = Head(head.header, "").slots
        if len(slots) != 1 or not SAID.fullmatch(f"<{head.name}>"):
            what = (
                f"it has the placeholders {', '.join(slots) or 'none'}"
                if len(slots) != 1
                else "use letters, -, _"
            )
            raise ValueError(f"{path} cannot be called {name!r}: {what}. FILE=NAME is for a file with one.")
    return head


def _check(heads: Sequence[Head], text: str, args: argparse.Namespace) -> None:
    """Refuse what does not go together, and sentences that say too much or too little."""
    texts = [text, *([args.negative] if args.negative else [])]
    said = {f"<{found[1]}>" for t in texts for found in SAID.finditer(t)}
    known = {slot for head in heads for slot in head.slots}
    if strange := sorted(said - known):
        there = ", ".join(sorted(known)) or "none"
        raise ValueError(f"the sentence says {strange[0]}, which no prompt file holds. There are: {there}.")
    taken: dict[str, str] = {}
    for head in heads:
        path = head.header.path
        if head.slots and not said & set(head.slots) and not any(t == "context" for t, _ in head.sites):
            raise ValueError(
                f"no text says {' or '.join(head.slots)}, so {path} would do nothing. Write it into the sentence."
            )
        places = {slot.lower() if slot.startswith("<") else f"{tower}/{slot}" for tower, slot in head.sites}
        for place in sorted(places):
            if place in taken:
                raise ValueError(
                    f"{taken[place]} and {path} both hold rows for {place}, and one would be lost. Leave one out, or "
                    f"call its placeholder otherwise: {path}=another-name."
                )
        taken |= dict.fromkeys(places, path)
    if args.before and not args.word:
        for head in heads:
            words = head.header.about.get("placeholders") or {}
            if head.slots and not all(words.get(slot) for slot in Head(head.header, "").slots):
                raise ValueError(
                    f"{head.header.path} does not say what {head.slots[0]} is, so --before has no word for it. Give "
                    "--word mug."
                )


def _model(heads: Sequence[Head], args: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    """The name and the options of the pipeline. Raises ValueError where no file names one."""
    made = next((head.backbone for head in heads if head.backbone.get("name")), {})
    name = args.model or made.get("name")
    if not name:
        raise ValueError(f"{heads[0].header.path} names no pipeline. Give --model diffusers/REPO_OR_FOLDER.")
    if not str(name).startswith(("diffusers/", "starter/")):
        raise ValueError(
            f"{name} draws no pictures. Give --model diffusers/REPO_OR_FOLDER, a pipeline with the same text encoder."
        )
    options = {k: made[k] for k in OPTIONS if k in made} if name == made.get("name") else {}
    typed = {k: getattr(args, k) for k in ("weights", "dtype", "quantize")}
    return str(name), options | {k: v for k, v in typed.items() if v is not None}


def _check_folder(folder: Path) -> None:
    """Refuse a folder that cannot be written to, without making it."""
    there = next(p for p in (folder.absolute(), *folder.absolute().parents) if p.exists())
    if not there.is_dir():
        raise NotADirectoryError(
            f"{there} is a file, so nothing can be written into {folder}. Give another --out."
        )
    if not os.access(there, os.W_OK | os.X_OK):
        raise PermissionError(f"{there} may not be written to. Give another --out.")


@contextmanager
def _told() -> Iterator[None]:
    """Warnings as sentences, each once."""
    seen: set[str] = set()

    def show(message: Warning | str, category: type[Warning], *_: Any, **more: Any) -> None:
        if issubclass(category, UserWarning) and str(message) not in seen:
            seen.add(str(message))
            print(f"vpt: {message}", file=sys.stderr)

    with warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = show
        yield


def _draw(
    heads: Sequence[Head], text: str, args: argparse.Namespace, model: tuple[str, dict[str, Any]], typed: str
) -> None:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    drawing = _prepared(heads, text, args, model, typed)
    every = [d for row in drawing.rows() for d in row]
    todo = len(every) if args.replace else drawing.missing()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        pictures, steps = bar.add_task("pictures", total=todo), bar.add_task("steps", total=None)

        def stepped(done: int, of: int) -> None:
            bar.update(steps, completed=done, total=of)

        for _ in drawing.draw(anew=args.replace, progress=stepped):
            bar.advance(pictures)
    more = _sheets(drawing, args, typed)
    if args.json:
        from vpt.workflow.drawn import read_told

        print(json.dumps([{"file": str(d.file), **read_told(d.file)} for d in every], indent=1))
        return
    kept = f", {len(every) - todo} of them there already" if todo < len(every) else ""
    print(f"{len(every)} {'picture' if len(every) == 1 else 'pictures'} in {drawing.out}{kept}")
    shown = [("picture", every[0].file)] if len(every) == 1 else []
    for what, path in [*shown, *more]:
        print(f"  {what:<8}{path}")


def _prepared(
    heads: Sequence[Head], text: str, args: argparse.Namespace, model: tuple[str, dict[str, Any]], typed: str
) -> Any:
    """The pipeline with the prompts in it, and what is to be drawn."""
    from importlib.metadata import version

    from vpt.promptset import PromptSet, renamed
    from vpt.tasks.device import resolve_device
    from vpt.tasks.pipeline import TunedPipeline
    from vpt.towers.load import load
    from vpt.workflow.generate import Drawing

    device, (name, options) = resolve_device(args.device), model
    sets = [PromptSet.load(head.header.path) for head in heads]
    hashes = [f"{s.hash()} {Path(head.header.path).name}" for s, head in zip(sets, heads, strict=True)]
    called = [
        renamed(s, Head(head.header, "").slots[0], f"<{head.name}>") if head.name else s
        for s, head in zip(sets, heads, strict=True)
    ]
    backbone: Any = load(name, **options)
    for tower in backbone.towers.values():
        tower.model.to(device)
    return Drawing(
        TunedPipeline.joined(backbone, called),
        text,
        Path(args.out),
        range(args.seed, args.seed + args.count),
        args.strength,
        args.negative,
        args.before,
        args.word,
        {k: getattr(args, k) for k in ("steps", "guidance", "size", "frames")},
        {
            "model": " ".join([name, *(f"{k}={v}" for k, v in options.items())]),
            "prompts": "\n".join(hashes),
            "vpt": version("visual-prompt-tuning"),
            "command": typed,
        },
        args.batch_size,
        args.fps,
    )


def _sheets(drawing: Any, args: argparse.Namespace, typed: str) -> list[tuple[str, Path]]:
    """The contact sheet and the page, as asked for: what they are, and where."""
    from vpt.promptset import write_atomically
    from vpt.workflow.drawn import page, sheet, write_drawn
    from vpt.workflow.generate import slug

    rows, name, written = drawing.rows(), slug(drawing.text), []
    several = sum(map(len, rows)) > 1
    if args.sheet and several:
        told = {"prompt": drawing.text, **drawing.facts, **drawing.told}
        path = drawing.out / f"{name}-sheet.png"
        written.append(("sheet", write_drawn(path, sheet(drawing.text, rows, drawing.legend), told)))
    if args.html:
        made = {
            "prompt files, with the hashes of what they hold": drawing.told["prompts"],
            "command": typed,
            "vpt": drawing.told["vpt"],
        }
        text = page(drawing.text, rows, drawing.legend, made)
        written.append(("page", write_atomically(drawing.out / f"{name}.html", text.encode())))
    return written
